"""Small pieces of networks, on one tensor of shape [N, C, ...], for `random_networks`.

A block is made from the shape of the tensor that it is given and two numbers that choose its variant, and is left out
of the network (`Skip`) where it does not fit.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

Shape = tuple[int, ...]
WIDTHS = (4, 6, 2, 3, 8, 12, 1)
BLOCKS: dict[str, type[Block]] = {}


class Skip(Exception):
    """A block does not fit in its place."""


class Block(nn.Module):
    """Base of all blocks. `takes` is the number of earlier tensors that `forward` gets as well.

    A block that takes statistics over channels has a `mark`: a tensor of its own and the dimension of it that runs
    along those channels. The reference (`random_networks.reference`) writes to `absent` which of them are gone, and the
    block then takes its statistics over the others. A block that the reference cannot describe is `opaque`.
    """

    takes = 0
    mark: tuple[str, int] | None = None
    opaque = False
    absent: tuple[int, ...] = ()

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            BLOCKS[cls.__name__] = cls

    def kept(self, channels: int) -> list[int]:
        return [c for c in range(channels) if c not in self.absent]

    def over(self, function: Any, x: Tensor, dim: int = 1, **of_kept: Any) -> Tensor:
        """Apply a function of the same shape as `x` to the channels that are there."""
        if not self.absent:
            return function(x)
        kept = self.kept(x.shape[dim])
        index = torch.tensor(kept)
        return torch.zeros_like(x).index_copy(dim, index, function(x.index_select(dim, index)))


def need(fits: bool) -> None:
    if not fits:
        raise Skip


def pick(options: Any, number: int) -> Any:
    return options[number % len(options)]


def layer(name: str, rank: int) -> Any:
    """``layer("Conv", 2)`` is `nn.Conv2d`."""
    need(1 <= rank <= 3)
    return getattr(nn, f"{name}{rank}d")


def project(rank: int, c: int, out: int, bias: bool = True) -> nn.Module:
    """A layer from c to `out` channels: a convolution of size 1, or linear where there are no positions."""
    return layer("Conv", rank)(c, out, 1, bias=bias) if rank else nn.Linear(c, out, bias)


def along(shape: Shape, values: Tensor) -> Tensor:
    """A tensor [C] so that it meets the channels of a tensor [N, C, ...]."""
    return values.reshape(-1, *[1] * (len(shape) - 2))


# Layers with weights.


class Conv(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c, rank = shape[1], len(shape) - 2
        out = pick(WIDTHS, a)
        if rank == 0:
            self.layer: nn.Module = nn.Linear(c, out, bias=b % 2 == 0)
            return
        stride = 2 if b % 5 == 4 and min(shape[2:]) >= 2 else 1
        k = pick((3, 1, 3), b)
        self.layer = layer("Conv", rank)(
            c, out, k, stride, k // 2, bias=b % 2 == 0, padding_mode=pick(("zeros",) * 5 + ("circular",), b)
        )

        self.layer.weight.requires_grad_(b != 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class GroupedConv(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c, rank = shape[1], len(shape) - 2
        groups = pick([g for g in (c, 2, 3, 4) if c % g == 0], a)
        out = groups * pick((c // groups, 1, 2, 3), b)
        need(out <= 16)
        self.layer = layer("Conv", rank)(c, out, pick((3, 1), a), 1, "same", groups=groups, bias=b % 3 > 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Transposed(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c, rank = shape[1], len(shape) - 2
        groups = pick([g for g in (1, c, 2, 3) if c % g == 0], b)
        stride = 2 if math.prod(shape[2:]) <= 16 and a % 2 else 1
        out = groups * max(1, pick(WIDTHS, a) // groups)
        self.layer = layer("ConvTranspose", rank)(c, out, 3, stride, 1, stride - 1, groups, bias=b % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class ChannelsLast(Block):
    """Linear layers and norms with channels as the last dimension."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.norm = pick((nn.LayerNorm, nn.RMSNorm, None), a)
        self.norm = self.norm and self.norm(shape[1])
        if self.norm is not None:
            self.mark = ("norm.weight", 0)
        width = pick(WIDTHS, a + b)
        self.up, self.down = nn.Linear(shape[1], width), nn.Linear(width, shape[1], bias=b % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        if self.norm is not None:
            y = _normed(self, self.norm, y, -1)
        return x + self.down(F.gelu(self.up(y))).movedim(-1, 1)


def _normed(block: Block, norm: Any, x: Tensor, dim: int) -> Tensor:
    """A layer norm, over the channels that are there."""
    if not block.absent:
        return norm(x)
    kept = block.kept(x.shape[dim])
    shape = [len(kept), *norm.normalized_shape[1:]]
    if isinstance(norm, nn.RMSNorm):
        return block.over(lambda y: F.rms_norm(y, shape, norm.weight[kept], norm.eps), x, dim)
    bias = None if norm.bias is None else norm.bias[kept]
    return block.over(lambda y: F.layer_norm(y, shape, norm.weight[kept], bias, norm.eps), x, dim)


class Mixer(Block):
    """Layers over positions instead of channels."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        positions = math.prod(shape[2:])
        need(2 <= positions <= 36)
        width = pick(WIDTHS, a)
        self.up, self.down = nn.Linear(positions, width), nn.Linear(width, positions)
        self.act = pick((nn.GELU, nn.ReLU, nn.Sigmoid), b)()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x.flatten(2)))).reshape(x.shape)


class Twice(Block):
    """The same layer called two times."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.layer = project(len(shape) - 2, shape[1], shape[1])
        self.act = pick((nn.ReLU, nn.Sigmoid, nn.Identity), a)()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.act(self.layer(x)))


class TiedTransposed(Block):
    """An autoencoder whose decoder is the encoder's weight, transposed."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.rank, width = len(shape) - 2, pick(WIDTHS, a)
        self.act = pick((torch.relu, torch.tanh, torch.sigmoid), b)
        self.weight = nn.Parameter(torch.empty(width, shape[1], *[1] * self.rank))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.rank == 0:
            return F.linear(self.act(F.linear(x, self.weight, self.bias)), self.weight.t())
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.rank - 1]
        back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.rank - 1]
        return back(self.act(conv(x, self.weight, self.bias)), self.weight)


class TiedModules(Block):
    """Two layers that hold the same parameter."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.one, self.two = (project(len(shape) - 2, shape[1], shape[1], bias=k == a % 2) for k in range(2))
        self.two.weight = self.one.weight  # type: ignore[assignment]
        self.act = pick((nn.ReLU, nn.Hardswish), b)()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.act(self.one(x)))


class Reparametrised(Block):
    """Weight norm, spectral norm, masks and other weights computed from parameters."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        made = project(len(shape) - 2, shape[1], pick(WIDTHS, a))
        p, kind = nn.utils.parametrizations, b % 7
        with torch.no_grad():
            if kind == 0:
                made = p.weight_norm(made)
            elif kind == 1:
                with warnings.catch_warnings(action="ignore"):  # deprecated, and used everywhere
                    made = nn.utils.weight_norm(made, dim=pick((0, None), a))
            elif kind == 2:
                made = p.spectral_norm(made)
            elif kind == 3:
                prune.random_unstructured(made, "weight", amount=0.3)
            elif kind == 4:
                prune.ln_structured(made, "weight", amount=0.5, n=2, dim=0)
            elif kind == 5:
                nn.utils.parametrize.register_parametrization(made, "weight", Scaled(made.weight.shape[0]))
            else:
                prune.random_unstructured(made, "weight", amount=0.3)
                prune.random_unstructured(made, "bias", amount=0.3)
        self.opaque = kind in (0, 1)  # the norm of a row of zeros divides by zero
        self.layer = made

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Scaled(nn.Module):
    """A weight times a learnt gain per row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(rows))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain.view(-1, *[1] * (weight.dim() - 1))


class ComputedWeight(Block):
    """A convolution whose weight is the sum of two (RepVGG), times a buffer, or standardised."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(len(shape) == 4)
        self.kind, out = b % 3, pick(WIDTHS, a)
        self.three = nn.Parameter(torch.empty(out, shape[1], 3, 3))
        if self.kind == 0:
            self.one = nn.Parameter(torch.empty(out, shape[1], 1, 1))
        elif self.kind == 1:
            self.register_buffer("mask", torch.rand(out, shape[1], 3, 3).round())
        self.opaque = self.kind == 2

    def forward(self, x: Tensor) -> Tensor:
        weight = self.three
        if self.kind == 0:
            weight = weight + F.pad(self.one, [1, 1, 1, 1])
        elif self.kind == 1:
            weight = weight * self.mask
        else:
            mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
            weight = (weight - mean) / (std + 1e-3)
        return F.conv2d(x, weight, padding=1)


class Einsum(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        out = pick(WIDTHS, a)
        self.kind = b % 3
        self.weight = nn.Parameter(torch.empty((out, shape[1]) if self.kind else (shape[1], out)))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            return torch.einsum("nc...,co->no...", x, self.weight)
        if self.kind == 1:
            return torch.einsum("oc,nc...->no...", self.weight, x)
        return (self.weight @ x.flatten(2) if x.dim() > 2 else x @ self.weight.t()).reshape(len(x), -1, *x.shape[2:])


# Norms and activations.


class Norm(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c, rank = shape[1], len(shape) - 2
        affine, kind = b % 3 > 0, a % 5
        if kind in (0, 1):
            tracks = b % 4 > 0 or (rank == 0 or math.prod(shape[2:]) == 1)
            self.norm: nn.Module = layer("BatchNorm", max(rank, 1))(c, affine=affine, track_running_stats=tracks)
        elif kind == 2:
            need(rank > 0 and math.prod(shape[2:]) > 1)
            self.norm = layer("InstanceNorm", rank)(c, affine=affine, track_running_stats=b % 4 == 0)
        elif kind == 3:
            groups = pick([g for g in (c, 1, 2, 3) if c % g == 0], b)
            need(rank > 0 or groups < c)
            self.norm = nn.GroupNorm(groups, c, affine=True)
            self.mark = ("norm.weight", 0) if groups < c else None
        else:
            need(rank > 0)
            self.norm = nn.LayerNorm(shape[1:], bias=affine)
            self.mark = ("norm.weight", 0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.absent:
            return self.norm(x)
        if isinstance(self.norm, nn.LayerNorm):
            return _normed(self, self.norm, x, 1)
        n: Any = self.norm
        kept = self.kept(x.shape[1])
        return self.over(lambda y: F.group_norm(y, n.num_groups, n.weight[kept], n.bias[kept], n.eps), x)


ACTIVATIONS: list[Any] = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.GELU,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Tanh,
    nn.Softplus,
    nn.PReLU,
    nn.SiLU,
    nn.ReLU6,
    nn.Hardsigmoid,
    lambda: nn.ELU(inplace=True),
    lambda: nn.LeakyReLU(0.1),
    nn.Softsign,
    nn.Mish,
    lambda: nn.Hardtanh(0.1, 2.0),
    lambda: nn.Threshold(-0.5, 0.3),
    nn.LogSigmoid,
    nn.CELU,
    nn.SELU,
    nn.Tanhshrink,
    lambda: nn.Softshrink(0.1),
    nn.Dropout,
    nn.Identity,
]


class Activation(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.act = nn.PReLU(shape[1]) if b == 1 else pick(ACTIVATIONS, a + 12 * (b % 2))()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


FUNCTIONS: list[Any] = [
    lambda x: x.exp().clamp(max=5),
    lambda x: x.abs().sqrt(),
    lambda x: x * 2 + 1,
    lambda x: 1 / (1 + x * x),
    lambda x: x.clamp(min=0.2),
    lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    lambda x: x.sin(),
    lambda x: x.cos(),
    lambda x: x.masked_fill(x < 0, 0.5),
    lambda x: (x > 0).to(x.dtype),
    lambda x: -x,
    lambda x: (x + 3).relu() / 6 * x,
    lambda x: x.pow(2),
    lambda x: x.float().to(x.dtype),
    lambda x: F.relu_(x - 0.1),
    lambda x: x.clone().add_(1).sub_(1),
    lambda x: torch.where(x > 0, 1.0, 0.0) * x,
    lambda x: x.contiguous().detach() * 0.5 + x,
    lambda x: torch.logaddexp(x, -x),
    lambda x: x.sigmoid_(),
    lambda x: x.mul_(0.5),
    lambda x: x.square().log1p(),
    lambda x: torch.atan2(x, x + 3),
]


class Function(Block):
    """Arithmetic without a module."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.function = pick(FUNCTIONS, a + 12 * (b % 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gated(Block):
    """Half of the channels gates the other half."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(shape[1] % 2 == 0)
        self.kind = b % 4
        self.widen = project(len(shape) - 2, shape[1], 2 * shape[1]) if a % 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.widen(x)
        if self.kind == 0:
            return F.glu(y, 1)
        one, two = y.chunk(2, 1)
        if self.kind == 3:
            return torch.cat([F.relu(one), torch.sigmoid(two)], 1) * 2
        return one * two if self.kind == 1 else F.silu(one) * two


# Bare parameters.


class LayerScale(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c, rest = shape[1], shape[2:]
        form = pick(([c, *[1] * len(rest)], [1, c, *rest], [c, *rest], [1], []), a)
        self.kind = b % 4
        self.value = nn.Parameter(torch.empty(form))
        self.register_buffer("shift", torch.randn(c))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            return x * self.value
        if self.kind == 1:
            return x + self.value
        return (x - along(tuple(x.shape), self.shift)) * self.value if self.kind == 2 else self.value.sigmoid() * x


class Unused(Block):
    """Parameters that nothing reads."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.aux = nn.Linear(shape[1], 4)
        self.bare = nn.Parameter(torch.empty(shape[1]))
        self.empty = nn.Parameter(torch.empty(0))
        self.register_buffer("steps", torch.tensor(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


# Parts and order of channels.


class Parts(Block):
    """Parts of the channels go different ways."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c = shape[1]
        need(c >= 2)
        self.kind, self.cut = a % 8, 1 + b % (c - 1)
        first = c // 2 if self.kind in (1, 4) else self.cut
        self.layer = project(len(shape) - 2, first, first if b % 2 else pick(WIDTHS, b))

    def forward(self, x: Tensor) -> Tensor:
        c, kind = x.shape[1], self.kind
        if kind in (1, 4):
            c = c - c % 2
            one, two = x[:, :c].chunk(2, 1)
        elif kind == 2:
            one, two = x[:, : self.cut], x[:, self.cut :]
        elif kind == 3:
            one, two = x[:, -self.cut :], x[:, : -self.cut]
        elif kind == 5:
            one, two = x.narrow(1, 0, self.cut), x
        elif kind == 6:
            one, two = torch.tensor_split(x, [self.cut], 1)
        elif kind == 7:
            one, two = x.split([self.cut, c - self.cut], 1)
            return torch.cat([two, self.layer(one), two], 1)
        else:
            one, two = torch.split(x, [self.cut, c - self.cut], 1)
        return torch.cat([self.layer(one), two], 1)


class Slices(Block):
    """Some of the channels only."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(shape[1] >= 3)
        self.kind, self.cut = a % 11, 1 + b % (shape[1] - 2)

    def forward(self, x: Tensor) -> Tensor:
        _c, k = x.shape[1], self.cut
        kinds: list[Any] = [
            lambda: x[:, :k],
            lambda: x[:, -k:],
            lambda: x[:, k:],
            lambda: x[:, ::2],
            lambda: x[:, 1::2],
            lambda: x[:, k],
            lambda: x[:, [0, k]],
            lambda: x.flip(1),
            lambda: x.roll(k, 1),
            lambda: x.index_select(1, torch.arange(k, device=x.device)),
            lambda: torch.stack(x.unbind(1)[k:], 1),
        ]
        y = kinds[self.kind]()
        return y.unsqueeze(1) if y.dim() < x.dim() else y


class Shuffle(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        options = [g for g in (2, 3, 4) if shape[1] % g == 0 and shape[1] > g]
        need(bool(options))
        self.groups, self.kind = pick(options, a), b % 3
        need(self.kind == 0 or len(shape) == 4)
        self.module = nn.ChannelShuffle(self.groups) if self.kind == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        n, c, *rest = x.shape
        if self.module is not None:
            return self.module(x)
        if self.kind == 2:
            return x.reshape(n, self.groups, -1, *rest).permute(0, 2, 1, 3, 4).flatten(1, 2)
        return x.view(n, self.groups, c // self.groups, *rest).transpose(1, 2).contiguous().view(n, -1, *rest)


class PixelShuffle(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(len(shape) == 4)
        c, (h, w) = shape[1], shape[2:]
        self.up, self.by_view = b % 2 == 0, a % 2 == 0
        self.opaque = self.up and self.by_view  # rows or columns may be removed
        self.widen = nn.Conv2d(c, 4 * pick((1, 2, 3), a), 1) if self.up else nn.Identity()
        need(h * w <= 16 if self.up else h % 2 == w % 2 == 0 and c <= 4)
        self.module = (nn.PixelShuffle if self.up else nn.PixelUnshuffle)(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        if not self.by_view:
            return self.module(x)
        n, c, h, w = x.shape
        if self.up:
            return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        y = x.view(n, c, h // 2, 2, w // 2, 2)
        return y.permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


class Repeat(Block):
    """Channels several times over."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(shape[1] <= 6)
        self.kind = a % 5
        self.layer = project(len(shape) - 2, shape[1], 1)
        self.width = shape[1]

    def forward(self, x: Tensor) -> Tensor:
        ones = [1] * (x.dim() - 2)
        if self.kind == 0:
            return torch.cat([x, x], 1)
        if self.kind == 1:
            return x.repeat(1, 2, *ones)
        if self.kind == 2:
            return x.repeat_interleave(2, 1)
        if self.kind == 3:
            return x + self.layer(x).expand(-1, self.width, *[-1] * (x.dim() - 2))
        return x * self.layer(x)


class PadChannels(Block):
    """More channels without weights, as the shortcut of the CIFAR ResNets; or zeros that are written into."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.left, self.right, self.kind = a % 3, b % 3, a % 4
        self.c = shape[1]
        self.fill = pick((0, 0, 0.5), b)
        need(self.c <= 8)

    def forward(self, x: Tensor) -> Tensor:
        n, c, *rest = x.shape
        if self.kind == 0:
            return F.pad(x, [0, 0] * len(rest) + [self.left, self.right], value=self.fill)
        if self.kind == 1:
            return torch.cat([x, x.new_zeros(n, self.right + 1, *rest)], 1)
        if self.kind == 2:
            y = torch.zeros(n, c + 2, *rest, dtype=x.dtype, device=x.device)
            y[:, : self.c] = x
            return y
        y = torch.zeros_like(x)
        y[:, 0] = x[:, 0]
        return torch.cat([x, y], 1)


class WriteInto(Block):
    """Some channels are overwritten in place."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(shape[1] >= 2)
        self.kind, self.cut = a % 5, 1 + b % (shape[1] - 1)

    def forward(self, x: Tensor) -> Tensor:
        y, k = x.clone() if self.kind != 4 else x * 2, self.cut
        if self.kind == 0:
            y[:, k:] = 0
        elif self.kind == 1:
            y[:, :k] += 1
        elif self.kind == 2:
            y[:, :k] = torch.sigmoid(y[:, :k])
        elif self.kind == 3:
            y[:, k:].mul_(0.5)
        else:
            y[:, :k].fill_(0.3)
        return y


# Positions.


class Resize(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        rank, self.kind = len(shape) - 2, a % 7
        need(rank > 0)
        small, even = math.prod(shape[2:]) <= 16, all(n >= 2 for n in shape[2:])
        need(small if self.kind in (3, 4) else even)
        linear = ("linear", "bilinear", "trilinear")[rank - 1]
        self.layer: nn.Module = [
            lambda: layer("MaxPool", rank)(2),
            lambda: layer("AvgPool", rank)(2),
            lambda: layer("AdaptiveAvgPool", rank)(2),
            lambda: nn.Upsample(scale_factor=2),
            lambda: nn.Upsample(scale_factor=2, mode=linear),
            lambda: layer("AdaptiveMaxPool", rank)(2),
            lambda: layer("MaxPool", rank)(3, 1, 1),
        ][self.kind]()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Pool(Block):
    """All positions become one, or none."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(len(shape) > 2)
        self.kind = a % 4

    def forward(self, x: Tensor) -> Tensor:
        dims = list(range(2, x.dim()))
        return [x.mean(dims), x.amax(dims), x.mean(dims, keepdim=True), x.flatten(2).logsumexp(-1)][self.kind]


class Flatten(Block):
    """Channels and positions become one dimension, and are mixed; then perhaps positions again."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        positions = math.prod(shape[2:])
        need(len(shape) > 2 and shape[1] * positions <= 96)
        self.back = self.opaque = b % 2 == 1  # positions may be removed
        out = pick(WIDTHS, a)
        need(not self.back or out * positions <= 96)
        self.layer = nn.Linear(shape[1] * positions, out * positions if self.back else out)
        self.out, self.rest = out, shape[2:]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.layer(x.flatten(1)))
        return y.view(-1, self.out, *self.rest) if self.back else y


class Tokens(Block):
    """Positions as a sequence, with a class token and an embedding of positions."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(len(shape) > 2)
        c, positions = shape[1], math.prod(shape[2:])
        self.token = nn.Parameter(torch.empty(1, 1, c))
        self.where = nn.Parameter(torch.empty(1, positions + 1, c))
        self.kind = a % 3

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], 1) + self.where
        if self.kind == 0:
            return y[:, 0]
        return y.transpose(1, 2) if self.kind == 1 else y[:, 1:].transpose(1, 2).reshape(x.shape)


class Windows(Block):
    """Window partition as in Swin, or patches that are merged."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        need(len(shape) == 4 and shape[2] % 2 == shape[3] % 2 == 0 and shape[1] <= 6)
        c = shape[1]
        self.kind = a % 3
        self.layer = nn.Linear(4 * c if self.kind else c, c)
        self.table = nn.Parameter(torch.empty(9, c))
        self.register_buffer("index", torch.arange(4) * 2)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.permute(0, 2, 3, 1)
        if self.kind == 0:
            y = torch.roll(y, (1, 1), (1, 2))
            y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
            y = self.layer(y + self.table[self.index])
            y = y.view(n, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
        elif self.kind == 1:
            parts = [y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
            y = self.layer(torch.cat(parts, -1))
        else:
            y = self.layer(F.unfold(x, 2, stride=2).transpose(1, 2)).view(n, h // 2, w // 2, -1)
        return y.permute(0, 3, 1, 2)


class Merged(Block):
    """Samples, channels and positions are merged with each other for a while."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c, rank = shape[1], len(shape) - 2
        self.kind = a % 6
        need(rank > 0 if self.kind < 4 else rank == 2)
        width = pick(WIDTHS, b)
        if self.kind == 0:
            self.layer: nn.Module = nn.Sequential(
                nn.Linear(c, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, c)
            )
        elif self.kind in (1, 4):
            self.layer = layer("Conv", rank if self.kind == 1 else 1)(1, 1, 3, padding=1)
        elif self.kind == 5:
            self.layer = nn.Conv2d(4 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, *rest = x.shape
        if self.kind == 0:
            return self.layer(x.movedim(1, -1).reshape(-1, c)).view(n, *rest, c).movedim(-1, 1)
        if self.kind == 1:  # one filter for every channel
            return self.layer(x.reshape(n * c, 1, *rest)).view_as(x)
        if self.kind == 2:  # temporal shift
            y = x.flatten(2)
            fold = max(c // 4, 1)
            left, rest_of = F.pad(y[:, :fold, 1:], [0, 1]), y[:, fold:]
            return torch.cat([left, rest_of], 1).reshape(x.shape)
        if self.kind == 3:  # pairs of channels turned (rotary embedding)
            if c % 2:
                return x
            y = x.flatten(2).transpose(1, 2)
            z = torch.view_as_complex(y.reshape(n, -1, c // 2, 2).contiguous()) * (0.6 + 0.8j)
            return torch.view_as_real(z).flatten(2).transpose(1, 2).reshape(x.shape)
        if self.kind == 4:  # efficient channel attention
            gate = torch.sigmoid(self.layer(x.mean((2, 3)).unsqueeze(1)))
            return x * gate.transpose(1, 2).unsqueeze(-1)
        y = F.unfold(x, 2, padding=1)
        y = F.fold(y, tuple(rest), 2, padding=1)
        h, w = rest
        z = x.view(n, c, h // 2 if h % 2 == 0 else 1, -1, w).mean((2, 3), keepdim=True).squeeze(2)
        return self.layer(torch.cat([y, x, x * z, -x], 1))


# Operators without a rule.


@torch.library.custom_op("cdlib_tests::halve_and_swap", mutates_args=())
def halve_and_swap(x: Tensor) -> Tensor:
    return x.flip(1) * 0.5


halve_and_swap.register_fake(torch.empty_like)
halve_and_swap.register_autograd(lambda ctx, grad: grad.flip(1) * 0.5)


class Unknown(Block):
    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.kind = a % 8
        need(self.kind not in (2, 6) or len(shape) > 2)
        self.rnn = nn.GRU(shape[1], 3, batch_first=True) if self.kind == 6 else None

    def forward(self, x: Tensor) -> Tensor:
        kind = self.kind
        if kind == 0:
            return halve_and_swap(x)
        if kind == 1:
            return torch.fft.fft(x, dim=1).real
        if kind == 2:
            return torch.fft.irfft(torch.fft.rfft(x, dim=-1) * 0.5, n=x.shape[-1], dim=-1)
        if kind == 3:
            return x.cumsum(1)
        if kind == 4:
            return x.sort(1).values
        if kind == 5:
            return x.topk(1, 1).values + x
        if self.rnn is not None:
            return self.rnn(x.flatten(2).transpose(1, 2))[0].transpose(1, 2)
        return torch.cummax(x, 1).values
