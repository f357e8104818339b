"""What a network computes without some units, found without cutting it; for `cdlib.surgery.exactness`.

The full-size network runs with the units' slices set to zero. Of its operators only those that would notice the zeros
(statistics over channels, a softmax, a product that reads something not zero) are computed on the kept indices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cdlib.errors import CdlibError
from cdlib.graph import ExampleInput, Inputs, Op, Value, in_mode, map_tensors, tensors
from cdlib.grouping import Drop, Groups, check_groups
from cdlib.surgery.prediction import Prediction, gone
from cdlib.surgery.removal import set_to_zero, slices_of
from cdlib.torch_state import copied


def masked(
    model: nn.Module,
    groups: Groups,
    drop: Drop,
    *,
    inputs: ExampleInput | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Return what a network computes without some units, by masks and not by cutting: a tensor or a nest of tensors.

    The network is a copy of full size in which all slices of the units are zero, those of the layers that read them
    too, but not the statistics of batch norms. The operators that groups report as taking statistics over units, or as
    reading something of them that is not zero, are computed on the indices that are kept; at the others they give what
    they make of the zeros, or zero where that is no number. Attention is scaled as in the full network. Samples are
    computed one by one and concatenated.

    Parameters
    ----------
    model, groups, drop
        As for `cdlib.remove`, whose errors it raises; one of its own if other operators run than were recorded.
    inputs, kwargs : tensor or tuple, and dict, optional
        What to run it with, of the size of the groups' example and any number of samples; by default that example.
    """
    check_groups(groups, model)
    drop = groups.check(drop)
    copy = copied(model)
    statistics = ("running_mean", "running_var")
    set_to_zero(copy, groups, drop, lambda g: [k for k in g.tensors if k[0].rpartition(".")[2] not in statistics])
    prediction = Prediction(groups.walk, gone(groups.walk, slices_of(groups, drop)))
    batch_dim = groups.inputs.batch_dim
    given = groups.inputs_for(model) if inputs is None else Inputs.of(inputs, kwargs, batch_dim)
    found = []
    for k in range(given.count or 1):
        mode = _Masking(prediction)
        with in_mode(copy, mode), mode:  # type: ignore[arg-type]
            found.append(given.take([k]).map(torch.clone).call(copy))
    if len(found) == 1:
        return found[0]
    joined = iter([torch.cat(same, batch_dim or 0) for same in zip(*map(tensors, found), strict=True)])
    return map_tensors(lambda _: next(joined), found[0])


class OtherCourse(CdlibError):
    """The network runs other operators than were recorded."""


class _Masking(TorchDispatchMode):
    """Computes some of the operators of a run on the kept indices only.

    An operator is found again by the module call in which it runs, its name, and how many of that name ran in this call
    before: the recorded run has other operators in between where it builds constants.
    """

    closely = False  # as for a recorder

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        self._prediction = prediction
        self._calls, self._stack = 0, [0]
        self._counts: Counter[tuple[int, str]] = Counter()
        noticed, counts = {problem.op for problem in prediction.walk.ledger.noticed}, Counter[tuple[int, str]]()
        self.left: dict[tuple[int, str, int], Op] = {}
        for op in prediction.graph.ops:
            key = (op.call, op.name)
            if op.index in noticed and prediction.changes(op):
                self.left[(*key, counts[key])] = op
            counts[key] += 1

    def enter_module(self, module: nn.Module, args: Any) -> None:
        """Note that a module is called."""
        self._calls += 1
        self._stack.append(self._calls)

    def leave_module(self, module: nn.Module, args: Any, *kwargs_and_output: Any) -> None:
        """Note that the last module called returns."""
        self._stack.pop()

    def attention(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """`scaled_dot_product_attention`, one operator in the recording."""
        with _disable_current_modes():
            return self._run("scaled_dot_product_attention", function, args, kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and PyTorch need not import its compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(str(func.__name__).split(".")[0], func, args, kwargs or {})

    def _run(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        key = (self._stack[-1], name)
        op = self.left.pop((*key, self._counts[key]), None)
        self._counts[key] += 1
        if op is None:
            return function(*args, **kwargs)
        found = tensors((args, kwargs))
        if [tuple(t.shape) for t in found] != [value.shape for value in op.inputs]:
            raise OtherCourse(
                f"the operator {op.name} in {op.module or 'the network'} does not run again as it was recorded: "
                "the network's course depends on its input, and it cannot be masked. "
                "Drop units of zero-invariant groups only."
            )
        given = {value.index: t for value, t in zip(op.inputs, found, strict=True)}
        arguments = map_tensors(
            lambda value: self._narrow(value, given[value.index]), self._prediction.arguments(op), Value
        )
        made = iter(zip(op.outputs, tensors(function(**arguments)), strict=True))
        return map_tensors(lambda t: self._wide(t, *next(made)), function(*args, **kwargs))

    def _narrow(self, value: Value, t: Tensor) -> Tensor:
        """What is at the kept indices."""
        for dim in range(len(value.shape)):
            if (stays := self._prediction.kept(value, dim)) is not None:
                t = t.index_select(dim, torch.from_numpy(np.flatnonzero(stays)).to(t.device))
        return t

    def _wide(self, whole: Tensor, value: Value, narrow: Tensor) -> Tensor:
        """What an operator gives on everything, with what it gives on the kept indices in its place.

        Weight norm divides rows of zeros by their norm: such NaN become zero, as no product would get rid of them.
        """
        if self._prediction.shape(value) == value.shape:
            return narrow
        places = self._narrow(value, torch.arange(whole.numel(), device=whole.device).view(whole.shape))
        return whole.masked_fill(whole.isnan(), 0).put(places, narrow)
