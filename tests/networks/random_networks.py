"""Networks put together at random, for the property tests; and what removal should do to them, worked out apart.

A `Recipe` is plain data that hypothesis draws and shrinks. `build` makes a network of it: the blocks of `random_blocks`
and `random_attention` one after the other on a tensor [N, C, ...], joined with earlier tensors.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import random_attention  # noqa: F401  (enters its blocks)
import torch
from hypothesis import strategies as st
from random_blocks import BLOCKS, WIDTHS, Block, Shape, Skip, pick, project
from torch import Tensor, nn

import cdlib
from cdlib.graph import map_tensors, tensors

NAMES = tuple(BLOCKS)
EXTRAS = ("none", "none", "image", "vector", "tokens")
HEADS = ("pooled", "flat", "map", "direct", "dict", "tuple", "named", "deep")


class Step(NamedTuple):
    """A block: its class, two numbers that choose its variant, and which earlier tensor it takes, if it takes one."""

    block: str
    a: int = 0
    b: int = 0
    take: int = 0


@dataclass(frozen=True)
class Recipe:
    """What a network is built from. `rank` is the number of dimensions of positions."""

    rank: int
    steps: tuple[Step, ...]
    head: str = "pooled"
    extra: str = "none"
    width: int = 4


numbers = st.integers(0, 11)
steps = st.builds(Step, st.sampled_from(NAMES), numbers, numbers, numbers)
recipes = st.builds(
    Recipe,
    rank=st.sampled_from((2, 2, 2, 1, 0, 3)),
    steps=st.lists(steps, min_size=1, max_size=7).map(tuple),
    head=st.sampled_from(HEADS),
    extra=st.sampled_from(EXTRAS),
    width=st.sampled_from(WIDTHS),
)


class Outputs(NamedTuple):
    """The outputs of a network with a named tuple."""

    main: Tensor
    others: list[Tensor]


class Head(nn.Module):
    """Makes the outputs of a network out of the last tensor and an earlier one."""

    def __init__(self, kind: str, shape: Shape, earlier: Shape) -> None:
        super().__init__()
        self.kind = kind
        if kind == "flat":
            self.layer: nn.Module = nn.Linear(math.prod(shape[1:]), 3)
        elif kind == "map":
            self.layer = project(len(shape) - 2, shape[1], 2)
        elif kind != "direct":
            self.layer = nn.Linear(shape[1], 3)
        if kind in ("dict", "deep"):
            self.aux = nn.Linear(earlier[1], 2)

    def forward(self, x: Tensor, earlier: Tensor) -> Any:
        if self.kind == "direct":
            return x
        if self.kind == "map":
            return self.layer(x)
        if self.kind == "flat":
            return self.layer(torch.flatten(x, 1))
        y = self.layer(_pooled(x))
        if self.kind == "dict":
            return {"out": y, "aux": self.aux(_pooled(earlier))}
        if self.kind == "tuple":
            return y, earlier
        if self.kind == "named":
            return Outputs(y.softmax(-1), [y.argmax(-1), y.sum()])
        return [(y, {"aux": [self.aux(_pooled(earlier))]}), None, 3] if self.kind == "deep" else y


def _pooled(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2) if x.dim() > 2 else x


class Net(nn.Module):
    """Blocks one after the other; each may take an earlier tensor as well."""

    def __init__(self, recipe: Recipe, shapes: list[Shape]) -> None:
        super().__init__()
        self.takes: list[list[int]] = []
        self.embedding = nn.Embedding(7, 5) if recipe.extra == "tokens" else None
        rank, c = len(shapes[0]) - 2, shapes[0][1]
        self.stem = project(rank, c, recipe.width)
        pool = [self.stem(torch.zeros(shapes[0]))]
        if len(shapes) > 1:
            shape = (2, 5, shapes[1][1]) if recipe.extra == "tokens" else shapes[1]
            pool.insert(0, torch.zeros(shape))
        for number, step in enumerate(recipe.steps):
            x, kind = pool[-1], BLOCKS[step.block]
            takes = [_taken(pool, step)] if kind.takes else []
            try:
                block = kind(tuple(x.shape), step.a, step.b, *(tuple(pool[k].shape) for k in takes))
                out = block.eval()(x.clone(), *(pool[k].clone() for k in takes))
            except Skip:
                continue
            if out.shape[1] > 24 or math.prod(out.shape[1:]) > 400:
                continue
            self.add_module(f"{step.block.lower()}{number}", block)
            self.takes.append(takes)
            pool.append(out)
        self.earlier = -min(len(pool), 3)
        self.head = Head(recipe.head, tuple(pool[-1].shape), tuple(pool[self.earlier].shape))

    def forward(self, x: Tensor, extra: Any = None) -> Any:
        pool = [self.stem(x)]
        extra = extra["vector"] if isinstance(extra, dict) else extra
        if extra is not None:
            pool.insert(0, extra if self.embedding is None else self.embedding(extra).transpose(1, 2))
        blocks = (module for module in self.children() if isinstance(module, Block) or hasattr(module, "stands_for"))
        for block, takes in zip(blocks, self.takes, strict=True):
            pool.append(block(pool[-1], *(pool[k] for k in takes)))
        return self.head(pool[-1], pool[self.earlier])


def _taken(pool: list[Tensor], step: Step) -> int:
    """An earlier tensor of the same shape if there is one and the step does not want any."""
    same = [k for k, t in enumerate(pool[:-1]) if t.shape == pool[-1].shape]
    return pick(same, step.take) if same and step.take < 8 else step.take % len(pool)


class Built(NamedTuple):
    """A network in evaluation mode, in float64, and an input for any number of samples."""

    model: Net
    recipe: Recipe
    shapes: list[Shape]

    def inputs(self, samples: int, seed: int = 0) -> tuple[Any, ...]:
        source = torch.Generator().manual_seed(seed)
        found: list[Any] = [torch.randn(samples, *s[1:], generator=source, dtype=torch.float64) for s in self.shapes]
        if self.recipe.extra == "tokens":
            found[1] = (found[1].abs() * 3).long() % 7
        if self.recipe.extra == "vector":
            found[1] = {"vector": found[1]}
        return tuple(found)


def build(recipe: Recipe, seed: int = 0) -> Built:
    """Make a network with random weights and statistics."""
    positions = {0: (), 1: (8,), 2: (4, 4), 3: (2, 3, 2)}[recipe.rank]
    shapes: list[Shape] = [(2, 3, *positions)]
    if recipe.extra != "none":
        shapes.append({"image": (2, 3, *positions), "vector": (2, 5), "tokens": (2, 4)}[recipe.extra])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net(recipe, shapes)
    return Built(randomised(model, seed), recipe, shapes)


def randomised(model: Any, seed: int) -> Any:
    """Random parameters and statistics such that numbers neither grow nor vanish."""
    source = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for _, p in model.named_parameters():
            each = max(1, p[0].numel()) if p.dim() > 1 else 1
            p.copy_(torch.randn(p.shape, generator=source, dtype=p.dtype) / each**0.5 if p.numel() else p)
        for name, b in model.named_buffers():
            if "running_var" in name or "running_mean" in name:
                b.copy_(torch.rand(b.shape, generator=source, dtype=b.dtype) + 0.5)
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():  # weights that old-style hooks compute
                hook(module, ())
    return model


def describe(built: Built) -> str:
    """A network as text: its blocks and what each takes."""
    blocks = [f"{name}: {block}" for name, block in built.model.named_children()]
    return "\n".join([repr(built.recipe), *blocks, f"takes {built.model.takes}, earlier {built.model.earlier}"])


# What removal should do.

Removed = dict[tuple[str, int], np.ndarray]


def removed(groups: cdlib.Groups, drop: dict[str, list[int]]) -> Removed:
    """The indices that vanish from each dimension of each tensor."""
    found: dict[tuple[str, int], list[int]] = {}
    for name, units in drop.items():
        for unit in units:
            for tensor, dim, indices in groups[name].slices(unit):
                found.setdefault((tensor, dim), []).extend(indices)
    return {key: np.array(sorted(indices)) for key, indices in found.items()}


def reference(model: nn.Module, gone: Removed) -> nn.Module | None:
    """The same function as after removal: everything removed is zero, and statistics are taken over the rest.

    None if a block on the way cannot be described so.
    """
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, Block)}
    if any(block.opaque for block in blocks.values()):
        return None
    same = copy.deepcopy(model)
    held = {**dict(same.named_parameters()), **dict(same.named_buffers())}
    with torch.no_grad():
        for (name, dim), indices in gone.items():
            held[name].index_fill_(dim, torch.from_numpy(indices), 0)
    for name, block in blocks.items():
        if block.mark is not None:
            found = gone.get((f"{name}.{block.mark[0]}", block.mark[1]))
            if found is not None:
                same.get_submodule(name).absent = tuple(found.tolist())  # type: ignore[assignment]
    return same


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that a network returns for a copy of some inputs."""
    with torch.no_grad():
        return tensors(model(*map_tensors(torch.clone, inputs)))


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, relative to the largest number in each."""
    worst = 0.0
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        if one.shape != two.shape:
            return math.inf
        if one.numel():
            one, two = one.double(), two.double()
            if not torch.equal(one.isfinite(), two.isfinite()):
                return math.inf
            one, two = one.nan_to_num(0, 0, 0), two.nan_to_num(0, 0, 0)
            worst = max(worst, float((one - two).abs().max() / one.abs().max().clamp(min=1e-6)))
    return worst
