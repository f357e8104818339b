"""What reductions and softmax do to labels. Whether zeros make a difference to a reduction is not listed but tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cdlib.graph import Op
from cdlib.grouping.labels import Labels, unlabelled
from cdlib.grouping.ops import arguments, is_weight
from cdlib.grouping.rules.pointwise import SAMPLES
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.walk_state import Walk

REDUCTIONS = "sum mean amax amin max min var std var_mean std_mean prod norm linalg_vector_norm logsumexp any all"


@rule(*REDUCTIONS.split(), "argmax", "argmin")
def reduction(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Sums, means, extremes: over dimensions that vanish only if zeros make no difference."""
    x = op.inputs[0]
    axes, why = walk.of(x)
    dim = args.get("dim")
    over = [d % len(axes) for d in ([dim] if isinstance(dim, int) else dim or range(len(axes)))]  # all if none is named
    walk.asked_weights |= is_weight(x) and len(axes) > 1
    places = op.outputs[1:] if op.name in ("max", "min") else ()
    of_places = op.name.startswith("arg") or any(value.index in walk.uses.values for value in places)
    for dim in over:
        if (axis := axes[dim]) is None:
            continue
        if of_places or len(op.inputs) > 1:
            walk.ledger.freeze(axis.ids, op.index, f"{walk.place(op)} counts positions along it")
        elif not ignores_zeros(op):
            walk.statistics(op, Labels(axes), [dim])
        else:
            walk.ledger.notice(axis.ids[~axis.zero], op.index, f"is not zero where {walk.place(op)} reads it")
    kept = [
        (None if dim in over else axis and axis.known(axis.zero & is_zero_reduced(op)))
        for dim, axis in enumerate(axes)
        if dim not in over or args.get("keepdim")
    ]
    return [Labels(tuple(kept), why) if len(kept) == len(v.shape) else unlabelled(v.shape, why) for v in op.outputs]


def _reduce(op: Op, numbers: Sequence[float]) -> torch.Tensor:
    """What an operator makes of some numbers, with the settings that it was called with; NaN where it fails."""
    _, *settings = arguments(op).items()
    kwargs = {name: value for name, value in settings if value is not None}
    if any(name == "dim" for name, _ in settings):
        kwargs["dim"] = 0 if isinstance(kwargs.get("dim"), int) else [0]
    if "keepdim" in kwargs:
        kwargs["keepdim"] = False
    try:
        result = op.target(torch.tensor(numbers, dtype=torch.float64).to(op.inputs[0].dtype), **kwargs)
    except Exception:
        return torch.tensor(torch.nan)
    return result[0] if isinstance(result, tuple) else result


def ignores_zeros(op: Op) -> bool:
    """Whether a reduction gives the same with zeros appended, found by trying."""
    several = (SAMPLES, [abs(n) for n in SAMPLES], [-abs(n) for n in SAMPLES])
    return all(torch.allclose(_reduce(op, numbers), _reduce(op, [*numbers, 0.0, 0.0])) for numbers in several)


def is_zero_reduced(op: Op) -> bool:
    """Whether a reduction of zeros is zero, found by trying."""
    return bool((_reduce(op, [0.0] * 4) == 0).all())


@rule("_softmax", "_log_softmax", "softmax", "log_softmax")
def softmax(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A softmax shares out 1 among all indices: fewer of them change the others."""
    labels = walk.of(op.inputs[0])
    walk.statistics(op, labels, [args["dim"] % len(labels.axes)])
    return labels.not_zero()
