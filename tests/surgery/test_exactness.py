"""The exactness test agrees with cuts that are right, and shows cuts that are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cdlib
from cdlib.errors import CdlibError
from cdlib.grouping.labels import Ledger
from cdlib.grouping.rules.registry import RULES
from cdlib.surgery import removal
from cdlib.surgery.exactness import check_exact, difference, masked, random_like, randomised

IMAGE = torch.zeros(1, 3, 8, 8)
TOKENS = torch.zeros(1, 5, 12)
EXACT, WRONG = 1e-9, 1e-5


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Mixer(nn.Module):
    """LayerNorm over a residual stream."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(12, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 5, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return {"out": self.last(x * gate), "gate": [gate.mean()]}


def by_hand(q, k, v):
    return (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused, self.qkv, self.out = fused, nn.Linear(12, 24), nn.Linear(8, 3)
        self.embed, self.norm = nn.Linear(12, 12), nn.LayerNorm(12)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(self.embed(x))).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention if self.fused else by_hand
        return self.out(attention(q, k, v).transpose(1, 2).flatten(2))


class Torch(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(12, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x)[0])


def group_norm():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def sigmoid_between():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3))


def softmax_over_channels():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.Conv2d(8, 4, 3))


NETWORKS = {
    "residual": (Residual, IMAGE, True),
    "squeeze-excite": (SqueezeExcite, IMAGE, False),
    "layer norm": (Mixer, TOKENS, False),
    "group norm": (group_norm, IMAGE, False),
    "sigmoid": (sigmoid_between, IMAGE, False),
    "softmax": (softmax_over_channels, IMAGE, False),
    "attention": (lambda: Attention(fused=False), TOKENS, False),
    "fused attention": (lambda: Attention(fused=True), TOKENS, False),
    "MultiheadAttention": (Torch, TOKENS, True),
}


def exact(model, x, drop):
    return check_exact(model, cdlib.find_groups(model, x), drop)


def half(model, x):
    groups = cdlib.find_groups(model, x)
    return {group.name: range(0, group.size, 2) for group in groups.prunable if group.size > 1}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_references_agree_with_a_cut_and_a_wrong_unit_shows(name):
    make, x, invariant = NETWORKS[name]
    model = make()
    drop = half(model, x)
    assert drop
    found = exact(model, x, drop)
    assert found.masked < EXACT
    assert (found.zeroed is not None) == invariant
    assert found.zeroed is None or found.zeroed < EXACT
    assert found.effect > WRONG
    assert found.control > WRONG


@pytest.mark.parametrize("name", ["layer norm", "group norm", "sigmoid", "softmax"])
def test_zeroing_alone_is_not_enough_where_zeroed_is_none(name):
    make, x, _ = NETWORKS[name]
    x = random_like(x)
    model = randomised(make(), x)
    groups, drop = cdlib.find_groups(model, x), half(model, x)
    small, zeroed = (
        cdlib.remove(model, groups, drop),
        cdlib.zero(model, groups, drop),
    )
    assert difference(small(*x), zeroed(*x)) > WRONG
    assert difference(small(*x), masked(model, groups, drop)) < EXACT


def shifted(name):
    """`removal.shrink`, but one tensor loses the indices after those that it should lose."""
    right = removal.shrink

    def shrink(model, slices):
        size = removal.tensors_of(model)[name[0]].shape[name[1]]
        return right(model, {**slices, name: np.unique((slices[name] + 1) % size)})

    return shrink


@pytest.mark.parametrize(
    ("network", "tensor"),
    [
        ("residual", ("conv2.weight", 1)),
        ("residual", ("bn1.running_mean", 0)),
        ("layer norm", ("norm.weight", 0)),
        ("layer norm", ("down.weight", 1)),
        ("fused attention", ("out.weight", 1)),
    ],
)
def test_a_cut_at_wrong_indices_of_one_tensor_shows(network, tensor, monkeypatch):
    make, x, _ = NETWORKS[network]
    model = make()
    drop = half(model, x)
    monkeypatch.setattr(removal, "shrink", shifted(tensor))
    found = exact(model, x, drop)
    assert found.masked > WRONG
    assert found.zeroed is None or found.zeroed > WRONG


def test_slices_of_other_units_show(monkeypatch):
    right = removal.slices_of

    def shifted_units(groups, drop, round_to=1):
        return right(groups, {name: [unit + 1 for unit in units] for name, units in drop.items()}, round_to)

    model, drop = Residual(), {"conv1": [0, 2]}
    assert exact(model, IMAGE, drop).masked < EXACT
    monkeypatch.setattr(removal, "slices_of", shifted_units)
    found = exact(model, IMAGE, drop)
    assert found.zeroed > WRONG
    assert found.masked > WRONG


def test_statistics_that_the_rules_miss_show(monkeypatch):
    monkeypatch.setattr(Ledger, "notice", lambda self, ids, op, reason: None)
    model = Mixer()
    drop = half(model, TOKENS)
    assert all(group.zero_invariant for group in cdlib.find_groups(model, TOKENS).prunable)
    found = exact(model, TOKENS, drop)
    assert found.zeroed > WRONG
    assert found.masked > WRONG


def test_labels_that_the_rules_mix_up_show(monkeypatch):
    class Concat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    def reversed_cat(walk, op, args):
        return right(walk, op, {**args, "tensors": args["tensors"][::-1]})

    right = RULES["cat"]
    drop = {"a": [0, 3]}
    assert exact(Concat(), IMAGE, drop).masked < EXACT
    monkeypatch.setitem(RULES, "cat", reversed_cat)
    found = exact(Concat(), IMAGE, drop)
    assert found.zeroed > WRONG
    assert found.masked > WRONG


def test_a_head_of_half_the_size_keeps_its_scale():
    x = random_like(TOKENS)
    model = randomised(Attention(fused=True), x)
    groups = cdlib.find_groups(model, x)
    drop = {group.name: [0, 1] for group in groups if group.prunable and "qkv.weight" in group.stems}
    rows = np.concatenate([groups[name].indices([0, 1], ("qkv.weight", 0)) for name in drop])
    kept = np.setdiff1d(np.arange(24), rows).reshape(3, 2, 2)
    q, k, v = model.qkv(model.norm(model.embed(*x)))[..., torch.from_numpy(kept)].permute(2, 0, 3, 1, 4)
    columns = torch.from_numpy(kept[2].reshape(-1) - 16)
    expected = by_hand(q, k, v).transpose(1, 2).flatten(2) @ model.out.weight[:, columns].T + model.out.bias
    assert difference(expected, masked(model, groups, drop)) < EXACT


def test_layer_norm_by_hand():
    x = random_like(TOKENS)
    model = randomised(nn.Sequential(nn.Linear(12, 6), nn.LayerNorm(6), nn.Linear(6, 2)), x)
    (name,) = half(model, x)
    kept = torch.tensor([1, 2, 4])
    y = model[0](*x)[..., kept]
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    y = (y * model[1].weight[kept] + model[1].bias[kept]) @ model[2].weight[:, kept].T + model[2].bias
    assert difference(y, masked(model, cdlib.find_groups(model, x), {name: [0, 3, 5]})) < EXACT


def test_samples_are_masked_one_by_one():
    x = random_like(torch.zeros(3, 5, 12))
    model = randomised(Mixer(), x)
    groups, drop = cdlib.find_groups(model, x), half(model, x)
    whole = masked(model, groups, drop)
    assert whole.shape == (3, 3)
    assert difference(whole[1:2], masked(model, groups, drop, inputs=(x[0][1:2],))) == 0
    assert difference(whole, cdlib.remove(model, groups, drop)(*x)) < EXACT


def test_nothing_is_changed():
    model = Residual().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    exact(model, IMAGE, half(model, IMAGE))
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_dropping_nothing_has_no_effect_and_no_control():
    found = exact(Residual(), IMAGE, {})
    assert (found.zeroed, found.masked, found.effect) == (0, 0, 0)
    assert math.isnan(found.control)


def test_another_course_than_the_recorded_one_is_said():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 12)

        def forward(self, x):
            for _ in range(x.shape[1]):
                x = self.b(self.norm(self.a(x)))
            return x

    x = random_like(TOKENS)
    model = randomised(Loop(), x)
    groups, drop = cdlib.find_groups(model, x), half(model, x)
    assert difference(masked(model, groups, drop), cdlib.remove(model, groups, drop)(*x)) < EXACT
    with pytest.raises(CdlibError, match="does not run again as it was recorded"):
        masked(model, groups, drop, inputs=(torch.cat([*x, *x], 1),))


def test_calibrated_statistics_are_near_those_of_the_activations():
    x = random_like(torch.zeros(4, 3, 8, 8))
    model = randomised(Residual(), x)
    seen = {}
    model.bn2.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    model(*x)
    var = seen["x"].var((0, 2, 3), correction=0)
    assert ((model.bn2.running_var / var > 0.4) & (model.bn2.running_var / var < 1.7)).all()
    assert not torch.equal(model.bn2.running_var, var)


def test_weight_norm_of_what_is_masked_is_no_nan():
    """It divides a row of zeros by its norm."""
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), normed, nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1))
    groups = cdlib.find_groups(model, IMAGE)
    assert len(groups.prunable) == 3
    for count in (1, 2, 3):
        result = exact(model, IMAGE, {group.name: range(count) for group in groups.prunable})
        assert result.masked < EXACT < WRONG < result.control


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([torch.tensor([2.0, -4.0])], [torch.tensor([2.0, -3.0])], 0.25),
        ({"x": torch.ones(2), "y": (torch.tensor([10.0]),)}, {"x": torch.ones(2), "y": (torch.tensor([9.0]),)}, 0.1),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.zeros(2), torch.ones(2), math.inf),
        (torch.ones(2), torch.ones(3), math.inf),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)], math.inf),
        (torch.ones(1), torch.tensor([math.nan]), math.inf),
        (torch.tensor([math.nan]), torch.ones(1), math.inf),
    ],
)
def test_difference_takes_the_worst_leaf(a, b, expected):
    assert difference(a, b) == pytest.approx(expected)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_seeds_that_no_generator_takes_are_named(seed):
    x, model = torch.zeros(1, 4), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    for call in (
        lambda: check_exact(model, cdlib.find_groups(model, x), {}, seed=seed),
        lambda: randomised(model, x, seed=seed),
    ):
        with pytest.raises(CdlibError, match=f"seed={seed}: give an integer"):
            call()
