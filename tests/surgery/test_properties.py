"""What must hold for every network: groups, zeroing and removal on networks put together at random.

``CDLIB_EXAMPLES=2000`` tries that many networks per property, other ones each time.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import random_networks as rn
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from torch import nn

import cdlib
from cdlib.graph import map_tensors, tensors
from cdlib.surgery.masked_reference import OtherCourse, masked

EXAMPLES = int(os.environ.get("CDLIB_EXAMPLES", "0"))
SEEDS = st.integers(0, 9)
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding)


def modest(few: int) -> settings:
    """A few examples, the same each time; or as many as the environment asks for, others each time."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def chosen(groups: list[cdlib.Group], seed: int) -> dict[str, list[int]]:
    """Some units of every group, not all; for every third seed of one group only."""
    source = np.random.default_rng(seed)
    groups = [g for g in groups if g.size > 1]
    if seed % 3 == 2 and groups:
        groups = [groups[source.integers(len(groups))]]
    return {g.name: source.permutation(g.size)[: source.integers(1, g.size)].tolist() for g in groups}


def agree(one: nn.Module, two: nn.Module, built: rn.Built) -> float:
    """How far two networks are apart, for one sample and for three; leaves the example where rounding decides."""
    worst = 0.0
    for samples in (1, 3):
        inputs = built.inputs(samples, seed=samples)
        a, b = rn.outputs(one, inputs), rn.outputs(two, inputs)
        found = rn.distance(a, b)
        if found > 1e-9:
            assume(not unstable(one, inputs))
        worst = max(worst, found)
    return worst


def unstable(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether the outputs depend on rounding errors."""
    nudged = map_tensors(lambda x: x * (1 + 1e-13) if x.is_floating_point() else x, inputs)
    return rn.distance(rn.outputs(model, inputs), rn.outputs(model, nudged)) > 1e-10


class Case(NamedTuple):
    """A network, its groups, and what was cut out of it; no check changes them."""

    built: rn.Built
    groups: cdlib.Groups
    cuts: dict[str, nn.Module]

    @classmethod
    def of(cls, built: rn.Built) -> Case:
        return cls(built, cdlib.find_groups(built.model, built.inputs(3)), {})

    def cut(self, drop: dict[str, list[int]]) -> nn.Module:
        if repr(drop) not in self.cuts:
            self.cuts[repr(drop)] = cdlib.remove(self.built.model, self.groups, drop)
        return self.cuts[repr(drop)]


@lru_cache(maxsize=128)
def case(recipe: rn.Recipe, seed: int) -> Case:
    """The case of an example, which the checks draw alike."""
    return Case.of(rn.build(recipe, seed))


def check_exact(case: Case, seed: int) -> None:
    """Zeroing and removing the units of zero-invariant groups is the same."""
    built, groups, _ = case
    drop = chosen([g for g in groups.prunable if g.zero_invariant], seed)
    assert agree(cdlib.zero(built.model, groups, drop), case.cut(drop), built) < 1e-9


def check_reference(case: Case, seed: int) -> None:
    """Removing the units of any prunable groups gives what an independent reference gives."""
    built, groups, _ = case
    drop = chosen(groups.prunable, seed)
    small = case.cut(drop)
    same = rn.reference(built.model, rn.removed(groups, drop))
    if same is not None:
        assert agree(same, small, built) < 1e-9
    try:
        found = tensors(masked(built.model, groups, drop, inputs=built.inputs(1)))
    except OtherCourse:
        return
    assert rn.distance(found, rn.outputs(small, built.inputs(1))) < 1e-9 or unstable(built.model, built.inputs(1))


def check_complete(case: Case, seed: int) -> None:
    """The slices of the units are what is cut out, no more and no less, and belong to one unit each."""
    built, groups, _ = case
    taken: dict[tuple[str, int], list[int]] = {}
    for group in groups:
        for unit in range(group.size):
            slices = group.slices(unit)
            assert {s[:2] for s in slices} == set(group.tensors), "a unit changes the tensors of its group"
            assert set(group.pzig(unit)) <= set(slices)
            for tensor, dim, indices in slices:
                assert indices and list(indices) == sorted(set(indices))
                taken.setdefault((tensor, dim), []).extend(indices)
    for (tensor, dim), indices in taken.items():
        assert len(indices) == len(set(indices)), f"an index of {tensor}, dimension {dim}, is in two units"
    gone = rn.removed(groups, drop := chosen(groups.prunable, seed))
    small = case.cut(drop)
    held = dict(small.named_parameters(remove_duplicate=False)) | dict(small.named_buffers(remove_duplicate=False))
    own = dict(built.model.named_parameters(remove_duplicate=False)) | dict(
        built.model.named_buffers(remove_duplicate=False)
    )
    names = {
        id(t): name for name, t in {**dict(built.model.named_buffers()), **dict(built.model.named_parameters())}.items()
    }
    assert not set(own) - set(held)
    for name, tensor in own.items():
        left = tensor
        for dim in range(tensor.dim()):
            stays = np.setdiff1d(np.arange(tensor.shape[dim]), gone.get((names[id(tensor)], dim), []))
            left = left.index_select(dim, torch.from_numpy(stays).long())
        assert torch.equal(held[name], left), f"{name} is not what is left of it"
        assert held[name].requires_grad == tensor.requires_grad and held[name].dtype == tensor.dtype


def check_stems(built: rn.Built) -> None:
    """Every layer that runs makes the units of some group, prunable or with a reason why not."""
    x = built.inputs(3)
    groups = cdlib.find_groups(built.model, x)
    called: list[str] = []
    names = {id(module): name for name, module in built.model.named_modules()}
    hooks = [
        m.register_forward_hook(lambda m, *_: called.append(names[id(m)]))
        for m in built.model.modules()
        if isinstance(m, LAYERS)
    ]
    rn.outputs(built.model, x)
    for hook in hooks:
        hook.remove()
    held = {id(t): name for name, t in built.model.named_parameters()}
    stems = {stem for group in groups for stem in group.stems}
    for name in set(called):
        own = {held[id(t)] for t in built.model.get_submodule(name).parameters()}
        assert own & stems, f"{name} runs and is in no group"
    for group in groups:
        assert group.prunable or group.reason
        assert group.zero_invariant or group.reason
        assert group.prunable or not group.zero_invariant


def trained(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module | None:
    """A copy of a network after one step of training; None if autograd cannot follow it."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            outputs = [t for t in tensors(model(*map_tensors(torch.clone, inputs))) if t.requires_grad]
            if not outputs:
                return None
            sum(t.square().mean() for t in outputs).backward()  # type: ignore[union-attr]
        except (RuntimeError, ValueError):
            return None
    optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def check_usable(case: Case, seed: int) -> None:
    """What is left trains, copies, prints, and can be pruned again."""
    built, groups, _ = case
    x = built.inputs(3)
    small = case.cut(chosen(groups.prunable, seed))
    repr(small), small.state_dict()
    assert rn.distance(rn.outputs(small, x), rn.outputs(copy.deepcopy(small), x)) == 0
    again = rn.Built(small, built.recipe, built.shapes)
    if trained(built.model, x) is not None:
        after = trained(small, x)
        assert after is not None, "it does not train any more"
        again = rn.Built(after, built.recipe, built.shapes)
    check_exact(Case.of(again), seed + 1)


def state(model: nn.Module) -> list[object]:
    """All that a network holds, in a form that can be compared."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    found: list[object] = []
    for name, module in model.named_modules():
        plain = {
            k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple | list | bool | type(None))
        }
        found.append(
            (name, type(module), repr(plain), [len(getattr(module, hook)) for hook in hooks], sorted(vars(module)))
        )
    found += [(name, id(t), t._version, t.requires_grad, t.grad is None) for name, t in model.named_parameters()]
    return found


def check_untouched(case: Case, seed: int) -> None:
    """The network itself, the input and the random numbers are as before."""
    built = case.built
    x = built.inputs(3)
    built.model.train(seed % 2 == 0)
    kept = {name: t.clone() for name, t in built.model.state_dict().items()}
    before, random, inputs = state(built.model), torch.get_rng_state(), [t.clone() for t in tensors(x)]
    groups = cdlib.find_groups(built.model, x)
    drop = chosen(groups.prunable, seed)
    small, zeroed = cdlib.remove(built.model, groups, drop), cdlib.zero(built.model, groups, drop)
    assert state(built.model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(tensors(x), inputs, strict=True))
    for model in (small, zeroed):
        assert model.training == built.model.training
        own = {t.data_ptr() for t in built.model.parameters() if t.numel()}
        assert not own & {t.data_ptr() for t in model.parameters()}, "shares memory with the network it is from"
        with torch.no_grad():
            for t in model.parameters():
                t.add_(1)
    assert all(torch.equal(t, kept[name]) for name, t in built.model.state_dict().items())
    built.model.eval()


def caught(built: rn.Built, seed: int) -> bool | None:
    """Whether it shows in the outputs that another unit was removed; None if there is nothing to see."""
    x = built.inputs(3)
    groups = cdlib.find_groups(built.model, x)
    source = np.random.default_rng(seed)
    possible = [g for g in groups.prunable if g.size > 2]
    if not possible:
        return None
    group = possible[source.integers(len(possible))]
    right, wrong = source.permutation(group.size)[:2].tolist()
    full, same = rn.outputs(built.model, x), rn.reference(built.model, rn.removed(groups, {group.name: [right]}))
    if same is None or rn.distance(full, expected := rn.outputs(same, x)) < 1e-6:
        return None
    assert rn.distance(expected, rn.outputs(cdlib.remove(built.model, groups, {group.name: [right]}), x)) < 1e-9
    return rn.distance(expected, rn.outputs(cdlib.remove(built.model, groups, {group.name: [wrong]}), x)) > 1e-6


def needless(built: rn.Built, seed: int) -> list[tuple[str, bool]]:
    """For each group said not to be zero-invariant: the reason, and whether zeroing equals removal after all."""
    x = built.inputs(3)
    found = []
    groups = cdlib.find_groups(built.model, x)
    for group in groups.prunable:
        if not group.zero_invariant and group.size > 1:
            drop = {group.name: [seed % group.size]}
            zeroed, small = (rn.outputs(f(built.model, groups, drop), x) for f in (cdlib.zero, cdlib.remove))
            found.append((group.reason, rn.distance(zeroed, small) < 1e-9))
    return found


CHECKS = {
    check.__name__: check for check in (check_exact, check_reference, check_complete, check_usable, check_untouched)
}


@pytest.mark.parametrize("block", rn.NAMES)
def test_every_block(block: str) -> None:
    """Each block by itself, in many variants, so that none is left to chance."""
    found = 0
    for a in range(12):
        for rank in (2, 0):
            built = rn.build(rn.Recipe(rank, (rn.Step(block, a, 5 * a % 12, a),)), a)
            if built.model.takes:
                found += 1
                check_reference(alone := Case.of(built), 0)
                check_exact(alone, 0)
                break
    assert found > 5


@pytest.mark.parametrize(
    "name, few",
    [
        ("check_exact", 60),
        ("check_reference", 60),
        ("check_complete", 30),
        ("check_usable", 25),
        ("check_untouched", 15),
    ],
)
def test_every_network(name: str, few: int) -> None:
    @modest(few)
    @given(rn.recipes, SEEDS)
    def run(recipe: rn.Recipe, seed: int) -> None:
        known = case(recipe, seed)
        note(rn.describe(known.built))
        CHECKS[name](known, seed)

    run()


@modest(30)
@given(rn.recipes)
def test_every_layer_that_runs_is_in_a_group(recipe: rn.Recipe) -> None:
    built = rn.build(recipe)
    note(rn.describe(built))
    check_stems(built)


def test_a_wrong_unit_shows() -> None:
    results: Counter[bool | None] = Counter()

    @modest(50)
    @given(rn.recipes, SEEDS)
    def run(recipe: rn.Recipe, seed: int) -> None:
        results[caught(rn.build(recipe, seed), seed)] += 1

    run()
    assert results[True] >= 0.2 * results.total(), "nearly all networks leave nothing to see"
    assert results[True] >= 20 * results[False], "the check would not see a mistake"


def test_zero_invariance_is_seldom_denied_without_need(record_property: Callable[[str, object], None]) -> None:
    results: Counter[bool] = Counter()

    @modest(30)
    @given(rn.recipes, SEEDS)
    def run(recipe: rn.Recipe, seed: int) -> None:
        results.update(same for _, same in needless(rn.build(recipe, seed), seed))

    run()
    record_property("needless", f"{results[True]} of {results.total()}")
    assert results[True] < 0.5 * results.total()
