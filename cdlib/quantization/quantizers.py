"""A number as an integer times a scale: the quantizer, and the layers that compute with quantized weights.

The arithmetic is that of the ONNX operators QuantizeLinear and DequantizeLinear, to the last bit: q is x divided by
the scale, rounded to the nearest integer (halves to the even one), plus the zero point, saturated; and what is computed
with is (q - zero point) times the scale. Where ranges come from is `cdlib.quantization.ranges`' business.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations


class _Round(torch.autograd.Function):
    """Rounding whose gradient is that of the identity (the straight-through estimator, Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Gentle(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class _Positive(nn.Module):
    """A parametrization by the logarithm."""

    def forward(self, logarithm: Tensor) -> Tensor:
        return logarithm.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.log()


class Quantizer(nn.Module):
    """Rounds what passes through to the multiples of a scale, and lets it pass as it is until it has one.

    Parameters
    ----------
    bits : int
        2 to 8: of the integers.
    signed : bool
        Integers are symmetric around zero, from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, and the zero point is 0; or
        they go from 0 to 2^bits - 1.
    axis : int or None, default None
        Of the tensors: each index along it has a scale of its own (per channel); None: one scale for all.

    Attributes
    ----------
    scale, zero_point : Tensor, float32 and int32, [] or [channels]
        The step between neighbours, and the integer that means zero.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, *, signed: bool, axis: int | None = None) -> None:
        super().__init__()
        self.bits, self.signed, self.axis, self.active = bits, signed, axis, False
        self.running: float | None = None  # the weight of a new range, where ranges follow what comes in training
        self.high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        self.low = -self.high if signed else 0
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Take the smallest scale for which what lies from `low` to `high`, and zero, is not clipped.

        With an unsigned quantizer zero is a multiple of the scale, as padding needs it. A range of nothing but zeros
        gets the scale 1.
        """
        low, high = low.double().clamp(max=0), high.double().clamp(min=0)
        scale = torch.maximum(-low, high) / self.high if self.signed else (high - low) / self.high
        scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1).float()
        zero = torch.zeros_like(scale) if self.signed else (-low / scale).round().clamp(self.low, self.high)
        if self.active and scale.shape == self.scale.shape:
            self.scale.copy_(scale)
            self.zero_point.copy_(zero)
        else:
            self.scale, self.zero_point, self.active = scale, zero.int(), True

    def learn(self) -> None:
        """Make the scale a parameter, kept positive by its logarithm (Esser et al. 2020, arXiv:1902.08153)."""
        scale = self._buffers.pop("scale")
        assert scale is not None
        self.register_parameter("scale", nn.Parameter(scale))
        register_parametrization(self, "scale", _Positive())

    def stop_learning(self) -> None:
        """Make the scale a buffer again."""
        if is_parametrized(self, "scale"):
            remove_parametrizations(self, "scale")
            scale = self.scale.detach()
            del self._parameters["scale"]
            self.register_buffer("scale", scale)

    def integers(self, x: Tensor) -> Tensor:
        """Return the integers of `x`, as numbers of its own type."""
        return self._integers(x, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest numbers that the quantizer has."""
        if not self.active:
            return x
        if self.running is not None and self.training:
            self._follow(x.detach())
        scale = self.scale
        if scale.requires_grad and torch.is_grad_enabled():
            scale = _Gentle.apply(scale, (x.numel() / scale.numel() * self.high) ** -0.5)
        whole = (self._integers(x, scale) - self._along(self.zero_point, x)).to(scale.dtype)
        return whole * self._along(scale, whole)

    def _integers(self, x: Tensor, scale: Tensor) -> Tensor:
        scaled = x / self._along(scale, x)
        whole = _Round.apply(scaled) if torch.is_grad_enabled() and scaled.requires_grad else scaled.round()
        return (whole + self._along(self.zero_point, x)).clamp(self.low, self.high)

    def _follow(self, x: Tensor) -> None:
        """Move the range towards that of what comes."""
        rows = x.flatten().unsqueeze(0) if self.axis is None else x.movedim(self.axis, 0).flatten(1)
        low, high = rows.aminmax(dim=1)
        low, high = (v.squeeze(0) if self.axis is None else v for v in (low, high))
        own = self.scale * (self.low - self.zero_point), self.scale * (self.high - self.zero_point)
        self.set_range(*(old.lerp(new, self.running or 0.0) for old, new in zip(own, (low, high), strict=True)))

    def extra_repr(self) -> str:
        """What is printed of it."""
        where = "one scale" if self.axis is None else f"a scale for each index of dimension {self.axis}"
        return f"{self.bits} bits, {'signed' if self.signed else 'unsigned'}, {where}"

    def _along(self, values: Tensor, x: Tensor) -> Tensor:
        values = values.to(x.dtype)
        if self.axis is None or values.dim() == 0:
            return values
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return values.view(shape)


class QuantizedLayer(nn.Module):
    """A convolution or linear layer that computes with the quantized numbers of its weights.

    In training mode it computes with rounded weights in floating point, so that gradients pass. In evaluation mode it
    computes as integer kernels do: a sum of products of integers, plus an integer bias, times the float32 number that
    makes it a multiple of the scale of its outputs. Sums are exact up to 2^24.

    Parameters
    ----------
    layer : nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.Linear
        Keeps the float weights, which training moves.
    bits : int
        Of the weights.
    per_channel : bool
        A scale for each output channel, or one for all.
    """

    layer: Any

    def __init__(self, layer: nn.Module, bits: int, per_channel: bool) -> None:
        super().__init__()
        self.layer = layer
        self.weights = Quantizer(bits, signed=True, axis=0 if per_channel else None)
        self.neighbours: tuple[Quantizer, ...] = ()  # of inputs and outputs; a tuple, so that they are no submodules

    @property
    def channel_dim(self) -> int:
        """The dimension of output channels in what the layer returns."""
        return -1 if isinstance(self.layer, nn.Linear) else 1

    def bias(self) -> Tensor:
        """The layer's bias, which it gets if it has none."""
        if self.layer.bias is None:
            self.layer.bias = nn.Parameter(self.layer.weight.new_zeros(self.layer.weight.shape[0]))
        bias: Tensor = self.layer.bias
        return bias

    @property
    def stored_bits(self) -> dict[str, int]:
        """Of each weight and bias in a file, by the layer's names for them."""
        return {"weight": self.weights.bits, "bias": 32}

    def weight(self) -> Tensor:
        """The layer's float weights."""
        weight: Tensor = self.layer.weight
        return weight

    def integers(self) -> dict[str, Tensor]:
        """Return the weights and the bias, if there is one, as integers: the latter of the scale of products."""
        found = {"weight": self.weights.integers(self.weight().detach())}
        if self.layer.bias is not None:
            found["bias"] = (self.bias().detach().double() / self.product_scale()).round()
        return found

    def product_scale(self) -> Tensor:
        """The scale of an input times that of a weight, float64, [] or [channels]."""
        return self.neighbours[0].scale.double() * self.weights.scale.double()

    def make_room(self) -> None:
        """Enlarge the scales of weights beside which the bias, in steps of products, would not fit into 32 bits.

        Channels of zeros, whose scale changes nothing else, get one that is fine enough for their bias.
        """
        if self.layer.bias is None or not all(near.active for near in (self.weights, *self.neighbours)):
            return
        rows = torch.stack([self.bias().detach().abs(), self.weight().detach().flatten(1).abs().amax(1)]).double()
        bias, most = rows if self.weights.scale.dim() else rows.amax(1)
        bias = bias / self.neighbours[0].scale.double()
        scale = self.weights.scale.maximum(bias / 2**30)
        self.weights.scale.copy_(torch.where((most == 0) & (bias > 0), bias / 2**20, scale))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes; float64 numbers where they are those of integers."""
        if self.training or not all(near.active for near in (self.weights, *self.neighbours)):
            given = {"weight": self.weights(self.weight())}
            out: Tensor = torch.func.functional_call(self.layer, given, (x,))
            return out
        scale_in, scale_out = (near.scale for near in self.neighbours)
        whole = {name: tensor.to(x.dtype) for name, tensor in self.integers().items()}
        inputs = (x / scale_in).round()
        if isinstance(self.layer, nn.Linear) and x.dim() > 2:  # a product of matrices: runtimes add its bias in float32
            sums = nn.functional.linear(inputs, whole["weight"]) * (scale_in * self.weights.scale)
            return sums + whole["bias"] * self.product_scale().float() if "bias" in whole else sums
        sums = torch.func.functional_call(self.layer, whole, (inputs,))
        factor = scale_in * self.weights.scale / scale_out
        if factor.dim() and self.channel_dim == 1:
            factor = factor.view(-1, *[1] * (sums.dim() - 2))
        return (sums * factor).double() * scale_out.double()


class QuantizedSum(nn.Module):
    """The sum of two tensors; in evaluation mode, rounded as onnxruntime's kernel rounds it on x86 (MLAS, QLinearAdd).

    That is float32 arithmetic on integers, with products and sums fused: a step from exact arithmetic once in 10^5.
    """

    def __init__(self) -> None:
        super().__init__()
        self.neighbours: tuple[Quantizer, ...] = ()  # of both inputs and the output

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum; float64 numbers where they are those of integers."""
        if self.training or not self.neighbours or not all(near.active for near in self.neighbours):
            return x + y
        one, other, out = self.neighbours
        first, second = one.scale / out.scale, other.scale / out.scale
        offset = out.zero_point.float() - _fused(one.zero_point, first, other.zero_point * second)
        whole = _fused(one.integers(x), first, _fused(other.integers(y), second, offset)).round()
        return (whole - out.zero_point).double() * out.scale.double()


def _fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The float32 number nearest to a b + c."""
    return (a.double() * b.double() + c.double()).float()
