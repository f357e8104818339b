"""Widths by complexity, evenly and at random: draws, targets, and that the modes differ where they should."""

from __future__ import annotations

import inspect
from collections import Counter
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import attention, conv
from torch import nn

import cdlib
from cdlib import CdlibError, models
from cdlib.pruning import MODES, plan
from cdlib.pruning.costs import RESOURCES, Meter

IMAGE = torch.zeros(1, 3, 32, 32)
SMALL = torch.zeros(1, 2, 4, 4)


def chain() -> nn.Sequential:
    return nn.Sequential(conv(2, 3), nn.ReLU(), conv(3, 4), nn.Flatten(), nn.Linear(64, 2))


METHODS = {"complexity_driven": "by cost", "uniform_width": "evenly", "random_draw": "at random"}


@pytest.fixture(scope="module")
def vgg() -> tuple[nn.Module, cdlib.Groups]:
    model = models.build("vgg16_bn_cifar", 10)
    return model, cdlib.find_groups(model, IMAGE)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, cdlib.Groups]:
    model = models.build("resnet18_cifar", 10)
    return model, cdlib.find_groups(model, IMAGE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_the_target_is_met_within_one_draw(resnet: Any, method: str, mode: str) -> None:
    model, groups = resnet
    done = plan(model, groups, mode, 0.5, seed=3, draw=METHODS[method])
    resource = MODES[mode]
    most = 0.5 * done.before[resource]
    assert done.after[resource] <= most
    meter = Meter(model, groups)
    left = {name: iter(units) for name, units in done.drop.items()}
    for name, fewer in done.trace[:-1]:
        meter.drop(name, islice(left[name], fewer))
    assert meter.totals[resource] > most
    assert Counter(name for name, _ in done.trace) == {name: len(units) for name, units in done.drop.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [0.2, 0.4])
def test_activations_of_what_a_cut_rewrites_count_too(method: str, target: float) -> None:
    """A cut replaces attention by its operators, which keep what the fused one does not."""
    model, x = attention(), torch.zeros(2, 6, 16)
    most = (1 - target) * cdlib.profile(model, x).activation_bytes
    groups = cdlib.find_groups(model, x)
    small = getattr(cdlib.pruning, method)(model, groups, "MA", target, seed=1)
    assert cdlib.profile(small, x).activation_bytes <= most
    gone = {g.name: g.size for g in groups.prunable}
    for group in cdlib.find_groups(small, x).prunable:
        gone[group.name] -= group.size
    draws = sum(gone.values())
    trace = plan(model, groups, "MA", 0.9, seed=1, draw=METHODS[method]).trace
    drop: dict[str, list[int]] = {}
    rng = np.random.default_rng(1)
    order = {group.name: rng.permutation(group.size).tolist() for group in groups.prunable}
    for name, _ in trace[: draws - 1]:
        drop.setdefault(name, []).append(order[name][len(drop.get(name, []))])
    assert cdlib.profile(cdlib.remove(model, groups, drop), x).activation_bytes > most  # with a draw less


def test_the_controls_and_the_plan_take_what_the_method_takes() -> None:
    model = chain()
    groups = cdlib.find_groups(model, SMALL)
    known = inspect.signature(cdlib.pruning.complexity_driven).parameters.values()
    options = {p.name: p.default for p in known if p.kind == p.KEYWORD_ONLY}
    for method, draw in METHODS.items():
        function = getattr(cdlib.pruning, method)
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
        assert names == [p.name for p in known if p.kind == p.POSITIONAL_OR_KEYWORD]
        small = function(model, groups, "FA", 0.4, 1, **options)
        left = cdlib.profile(function(model, groups, mode="FA", target=0.4, seed=1), SMALL).totals()
        assert cdlib.profile(small, SMALL).totals() == left
        assert plan(model, groups, "FA", 0.4, 1, **options, draw=draw).after["macs"] == left["macs"]
        with pytest.raises(TypeError, match="stpe"):
            function(model, groups, stpe=2)


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_the_planned_one_and_the_given_one_is_not_touched(resnet: Any, method: str) -> None:
    model, groups = resnet
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = getattr(cdlib.pruning, method)(model, groups, mode="FA", target=0.4, seed=1)
    counted = cdlib.profile(small, IMAGE)
    assert plan(model, groups, "FA", 0.4, 1, draw=METHODS[method]).after == {r: getattr(counted, r) for r in RESOURCES}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    small(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_the_same_seed_draws_the_same(vgg: Any) -> None:
    one, same, other = (plan(*vgg, seed=seed) for seed in (5, 5, 6))
    assert (one.trace, one.drop) == (same.trace, same.drop)
    assert one.trace != other.trace


def test_the_first_draw_has_the_shares_as_probabilities() -> None:
    """For a chain, the parameters, MACs and activations of the two convolutions can be counted by hand."""
    model = chain()
    groups = cdlib.find_groups(model, SMALL)
    for mode, share in (("PA", 9 / 25), ("FA", 96 / 288), ("MA", 96 / 160)):
        drawn = [plan(model, groups, mode=mode, target=0.01, seed=seed).trace[0][0] for seed in range(400)]
        assert drawn.count("0") / 400 == pytest.approx(share, abs=4 * 0.025)


def test_shares_are_recomputed_or_kept(vgg: Any) -> None:
    """With kept shares, the layers' counts of draws stay in the ratio of the full network's parameters."""
    meter = Meter(*vgg)
    shares = meter.shares("params")
    total = sum(shares.values())
    kept = plan(*vgg, target=0.3, recompute=False)
    counts = Counter(name for name, _ in kept.trace)
    for name, share in shares.items():
        expected = len(kept.trace) * share / total
        assert abs(counts[name] - expected) <= 4 * np.sqrt(expected) + 1
    assert plan(*vgg, target=0.3, recompute=True).trace != kept.trace


def test_pa_cuts_late_layers_and_ma_early_ones(vgg: Any) -> None:
    model, groups = vgg
    lost = {}
    for mode in MODES:
        shares = []
        for seed in range(3):
            drop = plan(model, groups, mode=mode, target=0.5, seed=seed).drop
            shares.append([len(drop.get(group.name, [])) / group.size for group in groups.prunable])
        lost[mode] = np.mean(shares, axis=0)
    early, late = slice(0, 2), slice(8, 13)
    assert lost["PA"][late].mean() > 5 * lost["PA"][early].mean()
    assert lost["MA"][early].mean() > 5 * lost["MA"][late].mean()
    assert lost["PA"][early].mean() < lost["FA"][early].mean() < lost["MA"][early].mean()


def test_uniform_takes_the_same_share_of_every_group(vgg: Any) -> None:
    model, groups = vgg
    done = plan(model, groups, "PA", 0.6, draw="evenly")
    for one, other in pairwise(groups.prunable):
        apart = len(done.drop[one.name]) / one.size - len(done.drop[other.name]) / other.size
        assert abs(apart) <= 1 / min(one.size, other.size)


def test_random_draws_all_groups_alike(vgg: Any) -> None:
    done = plan(*vgg, "PA", 0.1, draw="at random")
    counts = Counter(name for name, _ in done.trace)
    expected = len(done.trace) / len(vgg[1].prunable)
    assert all(abs(counts[group.name] - expected) < 4 * np.sqrt(expected) for group in vgg[1].prunable)


@pytest.mark.parametrize("method", METHODS)
def test_steps_rounding_and_least_widths(vgg: Any, method: str) -> None:
    model, groups = vgg
    done = plan(model, groups, "FA", 0.5, step=3, round_to=8, min_width=16, draw=METHODS[method])
    for group in groups.prunable:
        width = group.size - len(done.drop.get(group.name, []))
        assert width == group.size or (width % 8 == 0 and width >= 16)
    assert {fewer for _, fewer in done.trace} == {8}
    assert {fewer for _, fewer in plan(model, groups, "FA", 0.5, step=3, draw=METHODS[method]).trace} == {3}


def test_the_first_draw_brings_an_odd_width_to_a_multiple() -> None:
    model = nn.Sequential(conv(2, 13), conv(13, 4))
    done = plan(model, cdlib.find_groups(model, SMALL), target=0.6, round_to=4)
    assert done.trace == (("0", 1), ("0", 4), ("0", 4))


def test_another_resource_can_stop_a_mode(resnet: Any) -> None:
    for mode in MODES:
        done = plan(*resnet, mode=mode, target=0.5, stop_at="macs")
        assert 0.49 < done.after["macs"] / done.before["macs"] <= 0.5


def test_depthwise_and_residual_networks_stay_consistent() -> None:
    for name in ("mobilenet_v2_cifar", "resnet50_cifar"):
        model = models.build(name, 10)
        groups = cdlib.find_groups(model, IMAGE)
        small = cdlib.pruning.complexity_driven(model, groups, mode="MA", target=0.3, step=4)
        assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)
        again = cdlib.pruning.complexity_driven(small, cdlib.find_groups(small, IMAGE), mode="PA", target=0.3, step=4)
        assert cdlib.profile(again, IMAGE).params <= 0.7 * cdlib.profile(small, IMAGE).params


def test_a_target_out_of_reach_names_one_that_is_not() -> None:
    model = chain()
    with pytest.raises(CdlibError, match=r"target=0.9 cannot be reached: .* 0\.\d+ of params is gone") as error:
        cdlib.pruning.complexity_driven(model, cdlib.find_groups(model, SMALL), target=0.9, min_width=2)
    nearest = float(str(error.value).split("width, ")[1].split(" of")[0])
    cdlib.pruning.complexity_driven(model, cdlib.find_groups(model, SMALL), target=nearest, min_width=2)
    with pytest.raises(CdlibError, match="cannot be reached"):
        cdlib.pruning.complexity_driven(model, cdlib.find_groups(model, SMALL), target=nearest + 0.01, min_width=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "pa"}, "unknown mode 'pa'"),
        ({"target": 1.0}, r"target=1.0 is no share: .* below 1"),
        ({"target": -0.1}, "target=-0.1"),
        ({"target": "half"}, "target='half'"),
        ({"step": 0}, "step=0: give an integer of at least 1"),
        ({"min_width": 0.5}, "min_width=0.5"),
        ({"round_to": True}, "round_to=True"),
        ({"seed": -1}, "seed=-1"),
        ({"recompute": "no"}, "recompute='no': give True or False"),
        ({"stop_at": "flops"}, "unknown resource in stop_at: 'flops'"),
        ({"keep": ["head"]}, "unknown module or parameter in keep: 'head'"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_bad_input(method: str, options: dict[str, Any], message: str) -> None:
    options = dict(options)
    with pytest.raises(CdlibError, match=message):
        model = chain()
        groups = cdlib.find_groups(model, SMALL, keep=options.pop("keep", ()))
        getattr(cdlib.pruning, method)(model, groups, **options)


def test_unknown_method_and_nothing_to_remove() -> None:
    model = chain()
    with pytest.raises(CdlibError, match="unknown draw 'uniform'"):
        plan(model, cdlib.find_groups(model, SMALL), draw="uniform")
    with pytest.raises(CdlibError, match="nothing to remove"):
        model = nn.Sequential(conv(2, 3))
        cdlib.pruning.random_draw(model, cdlib.find_groups(model, SMALL))
