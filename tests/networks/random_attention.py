"""Blocks of `random_networks` that look across channels or positions, and that join several tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from random_blocks import WIDTHS, Block, Shape, along, layer, need, pick, project
from torch import Tensor, nn
from torch.nn import functional as F

# Across channels.


class Excite(Block):
    """Squeeze and excitation: every channel is scaled by what all of them say."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        rank, c, width = len(shape) - 2, shape[1], pick(WIDTHS, a)
        self.kind = b % 4
        inner = 0 if self.kind == 1 else rank
        self.down, self.up = project(inner, c, width), project(inner, width, c)
        self.gate = pick((nn.Sigmoid, nn.Hardsigmoid, nn.Tanh), a)()

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean(tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else x
        if self.kind == 1:
            s = s.flatten(1)
        s = self.gate(self.up(F.relu(self.down(s))))
        if self.kind == 1:
            s = s.view(*s.shape, *[1] * (x.dim() - 2))
        return x.clone().mul_(s) if self.kind == 2 else x * s


ACROSS: list[Any] = [
    lambda x: x.softmax(1),
    lambda x: F.normalize(x, dim=1),
    lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-3),
    lambda x: x - x.mean(1, keepdim=True),
    lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-3).sqrt(),
    lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3),
    lambda x: x.log_softmax(1),
    lambda x: x / (x.abs().sum(1, keepdim=True) + 1),
    lambda x: x - x.amax(1, keepdim=True),
    lambda x: F.layer_norm(x, x.shape[1:]),
    lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1),
    lambda x: x * x.sum(1, keepdim=True),
    lambda x: x / (1 + F.softplus(x).sum(1, keepdim=True)),
    lambda x: F.group_norm(x, 1),
    lambda x: x.sub(x.min(1, keepdim=True).values),
    lambda x: F.rms_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1),
]


class Across(Block):
    """Something taken over all channels, after a scale of each."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.function = pick(ACROSS, a + 12 * (b % 2))
        self.opaque = b >= 6
        self.scale = None if self.opaque else nn.Parameter(torch.empty(shape[1]))
        self.mark = None if self.opaque else ("scale", 0)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.scale is None else x * along(tuple(x.shape), self.scale)
        return self.over(self.function, x)


class SpatialGate(Block):
    """CBAM: positions are scaled by what the mean and the largest channel say."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.conv = layer("Conv", len(shape) - 2)(2, 1, 3, padding=1)
        self.scale, self.mark = nn.Parameter(torch.empty(shape[1])), ("scale", 0)
        self.by_max = a % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        x = x * along(tuple(x.shape), self.scale)
        y = x[:, self.kept(x.shape[1])] if self.absent else x
        largest = y.max(1, keepdim=True).values if self.by_max else y.amax(1, keepdim=True)
        return x * torch.sigmoid(self.conv(torch.cat([y.mean(1, keepdim=True), largest], 1)))


class Gram(Block):
    """Products of channels with channels."""

    opaque = True

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c = shape[1]
        need(len(shape) > 2 and c <= 6)
        self.kind = a % 3
        self.layer = nn.Linear(c * c, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2)
        gram = y @ y.transpose(1, 2) / y.shape[-1]
        if self.kind == 0:
            return self.layer(gram.flatten(1))
        return (gram @ y).reshape(x.shape) if self.kind == 1 else gram.diagonal(dim1=1, dim2=2)


# Across positions.


class Attention(Block):
    """Self-attention over positions, written in the ways that people write it."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c = shape[1]
        need(len(shape) > 2 and math.prod(shape[2:]) <= 36)
        self.heads = pick([h for h in (2, 1, 3) if c % h == 0], b)
        self.kind, self.c, self.residual = a % 10, c, b % 2 == 0
        h, d = self.heads, c // self.heads
        self.scale = d**-0.5
        if self.kind == 0:
            self.module = nn.MultiheadAttention(c, h, batch_first=b % 3 > 0, bias=b % 5 > 0)
            return
        if self.kind == 9:
            self.opaque = True
            self.module = nn.TransformerEncoderLayer(
                c, h, 6, batch_first=b % 3 > 0, norm_first=b % 2 == 0, activation=pick(("relu", "gelu"), b)
            )
            return
        if self.kind == 4:
            self.q, self.k, self.v = (nn.Linear(c, n * h) for n in (d, d, d + 1))
        elif self.kind == 8:
            need(h % 2 == 0)
            self.q, self.k, self.v = (nn.Linear(c, n) for n in (h * d, h // 2 * d, h // 2 * d))
        else:
            self.qkv = nn.Linear(c, 3 * c, bias=b % 3 > 0)
        if self.kind == 6:
            self.bias = nn.Parameter(torch.empty(h, 1, 1))
        self.opaque = self.kind == 7
        self.proj = nn.Linear(h * (d + 1) if self.kind == 4 else c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        y = y + self.attend(y) if self.residual else self.attend(y)
        return y.transpose(1, 2).reshape(x.shape)

    def attend(self, y: Tensor) -> Tensor:
        n, t, c = y.shape
        h, kind = self.heads, self.kind
        if kind == 0:
            if self.module.batch_first:
                return self.module(y, y, y, need_weights=False)[0]
            z = y.transpose(0, 1)
            return self.module(z, z, z)[0].transpose(0, 1)
        if kind == 9:
            return (
                self.module(y) if self.module.self_attn.batch_first else self.module(y.transpose(0, 1)).transpose(0, 1)
            )
        if kind == 4:
            q, k, v = (f(y).view(n, t, h, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        if kind == 8:
            q = self.q(y).view(n, t, h, -1).transpose(1, 2)
            k, v = (f(y).view(n, t, h // 2, -1).transpose(1, 2) for f in (self.k, self.v))
            z = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return self.proj(z.transpose(1, 2).flatten(2))
        if kind == 2:
            q, k, v = (z.reshape(n, t, h, -1).transpose(1, 2) for z in self.qkv(y).chunk(3, -1))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        if kind == 3:
            q, k, v = (z.unflatten(-1, (h, -1)) for z in self.qkv(y).split(c, -1))
            weights = (torch.einsum("nthd,nshd->nhts", q, k) * self.scale).softmax(-1)
            return self.proj(torch.einsum("nhts,nshd->nthd", weights, v).flatten(2))
        q, k, v = self.qkv(y).reshape(n, t, 3, h, c // h).permute(2, 0, 3, 1, 4).unbind(0)
        if kind == 5:
            return self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(n, t, -1))
        if kind == 7:  # linear attention
            q, k = F.elu(q) + 1, F.elu(k) + 1
            z = q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(-2).unsqueeze(-1))
            return self.proj(z.transpose(1, 2).reshape(n, t, c))
        weights = (q * self.scale) @ k.transpose(-2, -1)
        weights = (weights + self.bias if kind == 6 else weights).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))


class CrossCovariance(Block):
    """Attention of channels to channels (XCiT)."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        c = shape[1]
        need(len(shape) > 2)
        self.heads, self.opaque = pick([h for h in (1, 2) if c % h == 0], b), True
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.temperature = nn.Parameter(torch.empty(self.heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, *_ = x.shape
        y = self.qkv(x.flatten(2).transpose(1, 2))
        q, k, v = y.reshape(n, -1, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return x + self.proj((weights @ v).permute(0, 3, 1, 2).reshape(n, -1, c)).transpose(1, 2).reshape(x.shape)


# Code that does not follow new widths.


class Stubborn(Block):
    """Code that knows its widths: an assertion, a scale, a shape, a hidden number."""

    def __init__(self, shape: Shape, a: int, b: int) -> None:
        super().__init__(shape, a, b)
        self.width, self.kind, self.shape = shape[1], a % 5, shape
        self.layer = project(len(shape) - 2, shape[1], pick(WIDTHS, b))
        self.out = pick(WIDTHS, b)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0 and x.shape[1] != self.width:
            raise ValueError(f"expected {self.width} channels")
        if self.kind == 1:
            x = x * x.shape[1] ** -0.5
        if self.kind == 2:
            x = x.reshape(len(x), *self.shape[1:])
        y = self.layer(x)
        if self.kind == 3:
            return y.view(-1, pick(WIDTHS, WIDTHS.index(self.out)), *x.shape[2:])
        return y / len(self.layer.weight) if self.kind == 4 else y  # type: ignore[arg-type]


# Joins.


class _Join(Block):
    """Two tensors: the other one is brought to the shape of the first."""

    takes = 1

    def __init__(self, shape: Shape, a: int, b: int, other: Shape) -> None:
        super().__init__(shape, a, b)
        rank, self.same_rank = len(shape) - 2, len(shape) == len(other)
        self.size, self.shape = shape[2:], shape
        fits = other[1] == shape[1] and self.same_rank
        self.fit = nn.Identity() if fits and b < 9 else project(rank if self.same_rank else 0, other[1], shape[1])

    def fitted(self, x: Tensor, other: Tensor) -> Tensor:
        if self.same_rank:
            if other.shape[2:] != self.size:
                rank = len(self.size)
                other = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[rank - 1](
                    other, self.size
                )
            return self.fit(other)
        y = self.fit(other.flatten(2).mean(2) if other.dim() > 2 else other)
        return y.view(*y.shape, *[1] * (x.dim() - 2))


JOINS: list[Any] = [
    lambda x, y: x + y,
    lambda x, y: x * y,
    lambda x, y: x - y,
    lambda x, y: x / (1 + F.softplus(y)),
    torch.maximum,
    lambda x, y: torch.where(y > 0, x, y),
    lambda x, y: torch.lerp(x, y, 0.3),
    lambda x, y: x.add(y, alpha=2),
    lambda x, y: x.clone().add_(y),
    lambda x, y: torch.addcmul(x, x, y),
    lambda x, y: x * torch.sigmoid(y),
    lambda x, y: F.relu(x) + y.exp().clamp(max=3),
]


class Join(_Join):
    """Arithmetic of two tensors."""

    def __init__(self, shape: Shape, a: int, b: int, other: Shape) -> None:
        super().__init__(shape, a, b, other)
        self.function = JOINS[a] if b else JOINS[0]

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.function(x, self.fitted(x, other))


class Concat(_Join):
    def __init__(self, shape: Shape, a: int, b: int, other: Shape) -> None:
        super().__init__(shape, a, b, other)
        self.kind = b % 4
        need(shape[1] <= 12)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        y = self.fitted(x, other)
        if self.kind == 3:  # the other one is only as large as it has to be
            y = y.expand(x.shape).contiguous()
            z = x.new_zeros(len(x), 2 * x.shape[1], *x.shape[2:])
            z[:, : x.shape[1]], z[:, x.shape[1] :] = x, y
            return z
        y = y.expand(-1, -1, *x.shape[2:])
        return torch.cat([x, y, x] if self.kind == 1 else [y, x], 1)


class Selective(_Join):
    """Selective kernels: a softmax says how much of each branch every channel takes."""

    def __init__(self, shape: Shape, a: int, b: int, other: Shape) -> None:
        super().__init__(shape, a, b, other)
        self.down, self.up = nn.Linear(shape[1], 4), nn.Linear(4, 2 * shape[1])

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        both = torch.stack([x, self.fitted(x, other).expand_as(x)], 1)
        s = both.sum(1).flatten(2).mean(2) if x.dim() > 2 else both.sum(1)
        s = self.up(F.relu(self.down(s))).view(len(x), 2, -1, *[1] * (x.dim() - 2)).softmax(1)
        return (both * s).sum(1)


class CrossAttention(_Join):
    """Positions of one tensor look at those of another."""

    def __init__(self, shape: Shape, a: int, b: int, other: Shape) -> None:
        super().__init__(shape, a, b, other)
        self.fit = nn.Identity()
        c = shape[1]
        self.module = nn.MultiheadAttention(c, 1, kdim=other[1], vdim=other[1], batch_first=True)
        self.query = nn.Parameter(torch.empty(1, 3, c)) if a % 2 else None
        self.opaque = a % 2 == 1  # positions may be removed

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        y, z = (t.reshape(*t.shape[:2], -1).transpose(1, 2) for t in (x, other))
        if self.query is not None:
            return self.module(self.query.expand(len(x), -1, -1), z, z)[0].transpose(1, 2)
        return x + self.module(y, z, z)[0].transpose(1, 2).reshape(x.shape)


class Matched(_Join):
    """Correlation of two tensors."""

    opaque = True

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        y = self.fitted(x, other)
        return x * (x * y).sum(1, keepdim=True)


class BilinearForm(_Join):
    def __init__(self, shape: Shape, a: int, b: int, other: Shape) -> None:
        super().__init__(shape, a, b, other)
        need(len(shape) == 2)
        self.form = nn.Bilinear(shape[1], shape[1], pick(WIDTHS, a))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.form(x, self.fitted(x, other))
