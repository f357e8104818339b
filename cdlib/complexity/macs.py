"""The multiply-accumulates of one operator, from the shapes that it was run on.

An operator without a rule here counts nothing; `cdlib.complexity` states what is meant to count.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from cdlib.graph import Op, Value


def macs_of(op: Op) -> int:
    """Return the multiply-accumulates of an operator; 0 for one that is no convolution, linear or matrix product."""
    rule = MAC_RULES.get(_plain(op))
    return rule(op) if rule else 0


def weight_of(op: Op) -> Value | None:
    """Return the parameter, or view of one, that a product multiplies with; None if it multiplies activations."""
    operands = op.args[1:] if _plain(op) in ("addmm", "addmv", "baddbmm", "addbmm") else op.args
    weights = [v for v in operands if isinstance(v, Value) and v.kind == "parameter" and len(v.shape) > 1]
    return weights[-1] if weights else None


def label_of(op: Op) -> str:
    """Return the everyday name of a product: "conv2d", "linear", "matmul", "attention"."""
    if "conv" in op.name:
        return f"conv{len(op.args[0].shape) - 2}d"
    if "attention" in op.name:
        return "attention"
    if "rnn" in op.name:
        return "rnn"
    return "linear" if "linear" in op.name or weight_of(op) else "matmul"


def _plain(op: Op) -> str:
    """The operator's name without the underscore that marks it as in-place."""
    return op.name.rstrip("_")


def _weight_shape(op: Op) -> tuple[int, ...]:
    """Shape of a layer's weight, also where an int8 operator holds it packed."""
    weight = op.args[1]
    return weight.shape if isinstance(weight, Value) else tuple(weight.unpack()[0].shape)


def _convolution(op: Op) -> int:
    """An output element sums over its group's input channels and the kernel; transposed, an input element spreads."""
    transposed = "transpose" in op.name or (op.name in _WITH_FLAG and op.args[6])
    elements = op.args[0].numel if transposed else op.outputs[0].numel
    return elements * prod(_weight_shape(op)[1:])


def _linear(op: Op) -> int:
    return op.outputs[0].numel * _weight_shape(op)[-1]


def _matmul(first: int) -> Callable[[Op], int]:
    """The rule for a product of `op.args[first]` (..., n, k) with a second factor (..., k, m) or (k,)."""

    def rule(op: Op) -> int:
        return op.outputs[0].numel * op.args[first].shape[-1]

    return rule


def _addbmm(op: Op) -> int:
    b, n, k = op.args[1].shape
    return b * n * k * op.args[2].shape[-1]


def _attention(op: Op) -> int:
    """Queries (..., n, d) times keys (..., m, d), then the n x m weights times values (..., m, e)."""
    query, key, value = op.args[:3]
    n_by_m = prod(op.outputs[0].shape[:-1]) * key.shape[-2]
    return n_by_m * (query.shape[-1] + value.shape[-1])


def _recurrent(op: Op) -> int:
    """One layer and direction of oneDNN's recurrent operator: input and hidden weights, at each time step."""
    x, to_input, to_hidden = op.args[:3]
    return x.numel // x.shape[-1] * (prod(to_input.shape) + prod(to_hidden.shape))


def _dot(op: Op) -> int:
    return op.args[0].numel


_WITH_FLAG = ("convolution", "_convolution", "convolution_overrideable")  # their seventh argument says "transposed"

MAC_RULES: dict[str, Callable[[Op], int]] = {
    **dict.fromkeys(_WITH_FLAG, _convolution),
    **{f"conv{n}d{relu}": _convolution for n in (1, 2, 3) for relu in ("", "_relu", "_dynamic")},
    **{f"conv_transpose{n}d{dynamic}": _convolution for n in (1, 2, 3) for dynamic in ("", "_dynamic")},
    "deform_conv2d": _convolution,
    **{f"linear{kind}": _linear for kind in ("", "_relu", "_dynamic", "_relu_dynamic", "_dynamic_fp16")},
    **dict.fromkeys(("mm", "bmm", "mv", "_int_mm", "_scaled_mm", "matmul"), _matmul(0)),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _matmul(1)),
    "addbmm": _addbmm,
    "dot": _dot,
    "scaled_dot_product_attention": _attention,
    "mkldnn_rnn_layer": _recurrent,
}
