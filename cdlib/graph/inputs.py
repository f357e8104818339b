"""What a network is called with: its arguments, and which dimension of them counts samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.graph.trees import map_tensors, tensors

ExampleInput = Tensor | Sequence[Any]
"""A tensor, or a tuple of positional arguments: tensors, numbers, None, dictionaries, lists of them."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of a call of a network.

    `batch_dim` is the dimension that counts samples in every tensor that is as long there as the first one; None if
    there is no such dimension.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch_dim: int | None

    @classmethod
    def of(
        cls, example_input: ExampleInput, kwargs: Mapping[str, Any] | None = None, batch_dim: int | None = 0
    ) -> Inputs:
        """Return what a user gave as the input of a network.

        A CdlibError if it is no tensor or tuple, holds no tensor or no sample, or has no such dimension.
        """
        if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)):
            raise CdlibError(f"kwargs is {type(kwargs).__name__!r}; pass a dict of the network's arguments by name.")
        args: Any = (example_input,) if isinstance(example_input, Tensor) else example_input
        if not isinstance(args, tuple | list) or not tensors((args, kwargs)):
            raise CdlibError(
                f"example_input is {type(example_input).__name__!r}; pass a tensor, or a tuple of the network's "
                "arguments (those by name in kwargs)."
            )
        inputs = cls(tuple(args), {**(kwargs or {})}, batch_dim)
        if batch_dim is not None and type(batch_dim) is not int:
            raise CdlibError(f"batch_dim={batch_dim!r}: give the number of a dimension of the input, or None.")
        if any(t.is_nested for t in tensors(inputs)):
            raise CdlibError(
                "the input holds a nested tensor, which has no one shape: pass a sample as a plain tensor."
            )
        first = tensors(inputs)[0]
        if batch_dim is not None and first.dim():
            if not -first.dim() <= batch_dim < first.dim():
                raise CdlibError(f"batch_dim={batch_dim} is no dimension of an input of shape {tuple(first.shape)}.")
            if first.shape[batch_dim] == 0:
                raise CdlibError(f"example_input of shape {tuple(first.shape)} holds no sample; pass at least one.")
        return inputs

    @property
    def count(self) -> int | None:
        """How many samples they are; None if nothing counts them."""
        first = tensors(self)[0]
        return None if self.batch_dim is None or not first.dim() else first.shape[self.batch_dim]

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed; one that is given twice stays one."""
        done: dict[int, Tensor] = {}

        def once(t: Tensor) -> Tensor:
            if id(t) not in done:
                done[id(t)] = function(t)
            return done[id(t)]

        args, kwargs = map_tensors(once, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def to(self, device: torch.device) -> Inputs:
        """The same on a device, where a tensor that has a shape only becomes zeros."""
        return self.map(lambda t: torch.zeros_like(t, device=device) if t.is_meta else t.to(device))

    def call(self, model: nn.Module) -> Any:
        """What a network returns for them."""
        return model(*self.args, **self.kwargs)

    def repeated(self, samples: int) -> Inputs:
        """The arguments for the first sample, once or several times."""
        return self.take([0] * samples)

    def take(self, samples: list[int]) -> Inputs:
        """The arguments for some samples; all of them if nothing counts samples."""
        dim, count = self.batch_dim, self.count
        if dim is None or count is None:
            return self

        def taken(t: Tensor) -> Tensor:
            if not -t.dim() <= dim < t.dim() or t.shape[dim] != count:
                return t
            if t.layout == torch.strided:
                parts = [t.narrow(dim, k, 1) for k in samples]
                return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
            index = torch.tensor(samples, device=t.device)
            return t.to_sparse_coo().index_select(dim, index).to_sparse(layout=t.layout)

        return self.map(taken)
