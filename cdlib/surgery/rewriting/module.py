"""A module that runs code written from a recording, in place of Python code that does not follow new widths.

A `Rewritten` module keeps the parameters, buffers and submodules of the module in whose place it stands, under the same
names. It does what the recording did, for inputs of the same size but any number of samples.
`cdlib.surgery.rewriting.writer` writes its code, `cdlib.surgery.rewriting.rewriter` decides where some is needed.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from cdlib.errors import CdlibError
from cdlib.graph import leaves, tensors


class PerSample(NamedTuple):
    """A size that depends on the number of samples: ``fixed + each * samples``."""

    fixed: int
    each: int


Shape = tuple[int | PerSample, ...]


class Takes(NamedTuple):
    """What rewritten code takes.

    Attributes
    ----------
    arguments : Arguments
        Brings those of a call in order.
    leaves : list
        What is in those of the network itself, in order: `Tensor` for a tensor, else what it must be, or ``...``; empty
        for an inner module, which is called by code that was recorded or compared.
    shapes : tuple
        Those of the tensors.
    first : list of int
        For each tensor, the first one that was the same.
    """

    arguments: Arguments
    leaves: list[Any]
    shapes: tuple[Shape, ...]
    first: list[int]


class Arguments:
    """What a module is called with, in the order of its signature, with its defaults."""

    def __init__(self, module: nn.Module) -> None:
        found = inspect.signature(module.forward).parameters.values()
        self._names = [p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self._positional = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._defaults = {p.name: p.default for p in found if p.default is not p.empty}

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments of a call, however they were given."""
        given = {**self._defaults, **dict(zip(self._positional, args, strict=False)), **kwargs}
        names = [*self._names, *(name for name in kwargs if name not in self._names)]
        return [*args[len(self._positional) :], *(given[name] for name in names if name in given)]


class Rewritten(nn.Module):
    """A module that runs recorded operators, with the tensors and submodules of the one in whose place it stands.

    Takes what that took, for inputs of the size that it was recorded with and any number of samples; raises
    `CdlibError` for other sizes or numbers, and in training mode if it could not be recorded in it. Its forward hooks
    run as before; what others did is part of the code.

    Attributes
    ----------
    stands_for : str
        The class of the module in whose place it is.
    code, training_code : str
        The Python function that it runs at inference and in training mode (empty if there is none).
    why_not : str
        Why there is none.
    types : dict
        The classes of named tuples that the code makes, by the names that it has for them.
    """

    def __init__(self, original: nn.Module, takes: Takes, code: str, types: Mapping[str, type] | None = None) -> None:
        super().__init__()
        mine = set(vars(nn.Module()))
        vars(self).update({name: value for name, value in vars(original).items() if name not in mine})
        self._parameters, self._buffers, self._modules = original._parameters, original._buffers, original._modules
        self._non_persistent_buffers_set = original._non_persistent_buffers_set
        hooks = original._forward_pre_hooks.items()
        self._forward_pre_hooks.update((k, hook) for k, hook in hooks if isinstance(hook, BasePruningMethod))
        for name in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
            getattr(self, name).update(getattr(original, name))
        if isinstance(original, nn.MultiheadAttention):
            self._qkv_same_embed_dim = False  # else PyTorch's transformer layers pass by it, to a fused kernel
        self.training = original.training
        self.stands_for = getattr(original, "stands_for", type(original).__name__)
        self.takes, self.code, self.training_code, self.why_not = takes, code, "", ""
        self.types = dict(types or {})
        self._run = _function(code, self.types)
        self._run_in_training: Callable[..., Any] | None = None
        self._precision: tuple[torch.dtype, ...] = ()

    def trains(self, code: str, why_not: str = "") -> None:
        """Give it the code for training mode, or the reason why there is none."""
        self.training_code, self.why_not = code, why_not
        self._run_in_training = _function(code, self.types) if code else None

    def keep_precision(self, inputs: Sequence[torch.dtype]) -> None:
        """Have it take only tensors of these types, and only while its parameters have those that they have now."""
        self._precision = self._precision_of(inputs)

    def _precision_of(self, inputs: Sequence[torch.dtype]) -> tuple[torch.dtype, ...]:
        return (*(d for d in inputs if d.is_floating_point), *(p.dtype for p in itertools.islice(self.parameters(), 1)))

    def keep(self, constants: Mapping[str, Tensor]) -> None:
        """Give it the constants that its code reads."""
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the functions, of which there is the code."""
        return {name: value for name, value in vars(self).items() if name not in ("_run", "_run_in_training")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The module again, with its functions."""
        super().__setstate__(state)
        self._run = _function(self.code, self.types)
        self.trains(self.training_code, self.why_not)

    def extra_repr(self) -> str:
        """What it stands for and for which sizes."""
        shapes = ("x".join("N" if isinstance(n, PerSample) else str(n) for n in shape) for shape in self.takes.shapes)
        return f"in place of {self.stands_for}, for inputs of {', '.join(shapes)}"

    def train(self, mode: bool = True) -> Rewritten:
        """Set the mode, as any module does.

        Raises
        ------
        CdlibError
            For training mode, if there is no code for it.
        """
        if mode:
            self._check_training()
        return super().train(mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the code."""
        arguments = self.takes.arguments(args, kwargs)
        given = tensors(arguments)
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):  # type: ignore[attr-defined]
            self._check_others(leaves(arguments), given)
        samples = self._samples([tuple(t.shape) for t in given])
        if self._precision and (found := self._precision_of([t.dtype for t in given])) != self._precision:
            want, got = (str(list(dtypes)).replace("torch.", "") for dtypes in (self._precision, found))
            raise CdlibError(
                f"{self.stands_for} was rewritten in {want} and got {got}, in which its code does something else: "
                f"convert the network before it is cut, or keep it in {want}."
            )
        code, gradients = self._run, torch.is_grad_enabled()
        if self.training:
            self._check_training()
            code = self._run_in_training or code
        try:
            return code(self, samples, *given)
        except BaseException:
            torch.set_grad_enabled(gradients)  # the code may have turned them off
            raise

    def _check_others(self, arguments: list[Any], given: list[Tensor]) -> None:
        """Raise if what is no tensor is not as it was recorded, or two tensors are given where one was."""
        want = self.takes.leaves
        if want and (len(arguments) != len(want) or not all(map(_same, arguments, want))):
            raise CdlibError(
                f"{self.stands_for} was rewritten for the arguments {_said(want)} and got {_said(arguments)}: find the "
                "groups with the arguments that the network is to take."
            )
        for k, (one, first) in enumerate(zip(given, self.takes.first, strict=False)):
            if one is not given[first] and not torch.equal(one, given[first]):
                raise CdlibError(
                    f"{self.stands_for} was rewritten for one tensor as its inputs {first + 1} and {k + 1}, and got "
                    "two: find the groups with two tensors."
                )

    def _check_training(self) -> None:
        if not self.training_code:
            raise CdlibError(
                f"{self.stands_for} was rewritten for inference when it was cut, and could not be for training "
                f"({self.why_not}): call .eval() before it runs, or change its code to follow widths."
            )

    def _samples(self, shapes: list[tuple[int, ...]]) -> int:
        samples = 1
        for given, shape in zip(shapes, self.takes.shapes, strict=False):
            for size, want in zip(given, shape, strict=False):
                if isinstance(want, PerSample):
                    samples = (size - want.fixed) // want.each
        fits = [
            tuple(n.fixed + n.each * samples if isinstance(n, PerSample) else n for n in shape)
            for shape in self.takes.shapes
        ]
        if not torch.jit.is_tracing() and shapes != fits:  # type: ignore[attr-defined]
            raise CdlibError(
                f"{self.stands_for} was rewritten for inputs of shape {', '.join(map(str, fits))} and got "
                f"{', '.join(map(str, shapes))}: call the network with the size of the example it was pruned with."
            )
        return samples


def _same(got: Any, want: Any) -> bool:
    if want is Tensor or isinstance(got, Tensor):
        return want is Tensor and isinstance(got, Tensor)
    return want is ... or (type(got) is type(want) and bool(got == want))


def _said(arguments: list[Any]) -> str:
    return ", ".join("a tensor" if a is Tensor or isinstance(a, Tensor) else repr(a) for a in arguments)


def _function(code: str, types: Mapping[str, type]) -> Callable[..., Any]:
    """The function that some code defines."""
    space: dict[str, Any] = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan, **types}
    exec(compile(code, "<rewritten>", "exec"), space)
    found: Callable[..., Any] = space["forward"]
    return found
