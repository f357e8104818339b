"""The multiply-accumulates of one operator, from the shapes that it was run on.

An operator without a rule here counts nothing; `cdlib.complexity` states what is meant to count.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from cdlib.graph import Op, Value


def macs_of(op: Op) -> int:
    """Return the multiply-accumulates of an operator for a sample: its products, or 0 if it reads weights alone."""
    of_the_sample = any(value.kind in ("input", "activation") for value in (*op.inputs, *op.outputs))
    return products_of(op) if of_the_sample else 0


def products_of(op: Op) -> int:
    """Return the multiply-accumulates of an operator; 0 for one that is no convolution, linear or matrix product."""
    rule = MAC_RULES.get(op.name.rstrip("_"))  # in place or not
    return rule(op) * (3 if op.outputs[0].dtype.is_complex else 1) if rule else 0


def weight_of(op: Op) -> Value | None:
    """Return the parameter, or view of one, that a product multiplies with; None if it multiplies activations."""
    weights = [v for v in _factors(op) if isinstance(v, Value) and v.kind == "parameter" and len(v.shape) > 1]
    return weights[-1] if weights else None


def label_of(op: Op) -> str:
    """Return the everyday name of a product: "conv2d", "linear", "matmul", "attention"."""
    if "conv" in op.name:
        return f"conv{len(op.args[0].shape) - 2}d"
    for word, label in (("attention", "attention"), ("rnn", "rnn"), ("trilinear", "bilinear")):
        if word in op.name:
            return label
    return "linear" if "linear" in op.name or weight_of(op) else "matmul"


def _factors(op: Op) -> tuple[Any, ...]:
    """The arguments of a product, without the tensor that it is added to."""
    return op.args[1:] if op.name.rstrip("_") in _WITH_SUMMAND else op.args


def _weight_shape(op: Op) -> tuple[int, ...]:
    """Shape of a layer's weight, also where an int8 operator holds it packed."""
    weight: Any = op.args[1]
    return tuple(weight.shape if hasattr(weight, "shape") else weight.unpack()[0].shape)


def _convolution(op: Op) -> int:
    """An output element sums over its group's input channels and the kernel; transposed, an input element spreads."""
    transposed = "transpose" in op.name or (op.name in _WITH_FLAG and op.args[6])
    elements = op.args[0].numel if transposed else op.outputs[0].numel
    return elements * prod(_weight_shape(op)[1:])


def _matmul(op: Op) -> int:
    """An output element sums over the k of a first factor (..., n, k) or (k,), whatever the shape of the second."""
    return op.outputs[0].numel * _factors(op)[0].shape[-1]


def _addbmm(op: Op) -> int:
    """The products (n, k) times (k, m) of a batch of matrices, of which there is only the sum."""
    first, second = _factors(op)[:2]
    return first.numel * second.shape[-1]


def _bilinear(op: Op) -> int:
    """The product of three tensors, broadcast along `expand`, before it is summed over some dimensions."""
    shapes = []
    for value, expand in zip(op.args[:3], op.args[3:6], strict=True):
        shape = list(value.shape)
        for dim in expand:
            shape.insert(dim, 1)
        shapes.append(shape)
    return prod(max(sizes) for sizes in zip(*shapes, strict=True))


def _attention(op: Op) -> int:
    """Queries (..., n, d) times keys (..., m, d), then the n x m weights times values (..., m, e)."""
    query, key, value = op.args[:3]
    n_by_m = prod(op.outputs[0].shape[:-1]) * key.shape[-2]
    return n_by_m * (query.shape[-1] + value.shape[-1])


def _recurrent(op: Op) -> int:
    """One layer and direction of oneDNN's recurrent operator: input and hidden weights, at each time step."""
    x, to_input, to_hidden = op.args[:3]
    return x.numel // x.shape[-1] * (prod(to_input.shape) + prod(to_hidden.shape))


def _cudnn_recurrent(op: Op) -> int:
    """All layers and directions: every weight matrix at each time step."""
    x, weights = op.args[:2]
    return x.numel // x.shape[-1] * sum(weight.numel for weight in weights if len(weight.shape) > 1)


_WITH_FLAG = ("convolution", "_convolution", "convolution_overrideable")  # their seventh argument says "transposed"
_WITH_SUMMAND = (
    *("addmm", "addmv", "baddbmm", "addbmm"),
    *("_addmm_activation", "_sparse_addmm", "sspaddmm", "sparse_sampled_addmm"),
)
_MATRIX = (
    *("mm", "bmm", "mv", "dot", "vdot", "matmul", "_int_mm", "_scaled_mm", "_grouped_mm", "_weight_int8pack_mm"),
    *("_sparse_mm_reduce_impl", "_sparse_sparse_matmul", "hspmm"),
    *("linear", "linear_relu", "linear_dynamic", "linear_relu_dynamic", "linear_dynamic_fp16"),
)
_FUSED = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")

MAC_RULES: dict[str, Callable[[Op], int]] = {
    **dict.fromkeys(_WITH_FLAG, _convolution),
    **{f"conv{n}d{relu}": _convolution for n in (1, 2, 3) for relu in ("", "_relu", "_dynamic")},
    **{f"conv_transpose{n}d{dynamic}": _convolution for n in (1, 2, 3) for dynamic in ("", "_dynamic")},
    "deform_conv2d": _convolution,
    "conv_tbc": lambda op: op.outputs[0].numel * prod(op.args[1].shape[:2]),
    **dict.fromkeys((*_MATRIX, *_WITH_SUMMAND), _matmul),
    "addbmm": _addbmm,
    "_trilinear": _bilinear,
    "scaled_dot_product_attention": _attention,
    **{f"_scaled_dot_product_{kernel}": _attention for kernel in _FUSED},
    "_cudnn_rnn": _cudnn_recurrent,
    "mkldnn_rnn_layer": _recurrent,
}
