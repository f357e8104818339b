"""Scores of units, against sums by hand, and which units are chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cdlib
from cdlib import CdlibError, surgery
from cdlib.grouping import Group, parameter_share
from cdlib.pruning.saliency import MEASURES, lowest, scores

IMAGE = torch.zeros(1, 2, 4, 4)


def network() -> nn.Sequential:
    """Two convolutions with a batch norm between them, the weights small integers."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Flatten())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3, -4], [0, 1], [-2, 0]]).view(3, 2, 1, 1))
        model[0].bias.copy_(torch.tensor([0, -2, 2]))
        model[1].weight.copy_(torch.tensor([-12, 2, 1]))
        model[1].bias.copy_(torch.tensor([0, 4, 0]))
        model[1].running_mean.fill_(100)
        model[3].weight.fill_(100)
    return model.append(nn.Linear(64, 2))


def first(model: nn.Module, image: Any = IMAGE) -> Group:
    return cdlib.find_groups(model, image)[0]


@pytest.mark.parametrize(("by", "expected"), [("l1", [19, 9, 5]), ("l2", [13, 5, 3]), ("bn", [12, 2, 1])])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_are_those_of_the_own_slices(by: str, expected: list[int], kind: torch.dtype) -> None:
    model = network()
    group = first(model)
    found = scores(model.to(kind), group, by)
    assert found.tolist() == expected
    assert found.dtype == (torch.float64 if kind == torch.float64 else torch.float32)


def test_every_row_that_makes_the_channel_counts() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(x + self.b(x))

    model = Residual()
    rows = [torch.cat([model.a.weight, model.b.weight], 1), torch.stack([model.a.bias, model.b.bias], 1)]
    expected = torch.cat(rows, 1)
    group = first(model, torch.zeros(1, 2))
    assert torch.allclose(scores(model, group), expected.norm(dim=1))
    assert torch.allclose(scores(model, group, "l1"), expected.abs().sum(1))


def test_a_unit_of_several_indices_gets_all_of_them() -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 1, bias=False), nn.PixelShuffle(2), nn.Conv2d(2, 3, 1))
    group = first(model)
    assert group.size == 2 and len(group.pzig(1)[0].indices) == 4
    by_hand = [model[0].weight[list(group.pzig(unit)[0].indices)].norm() for unit in (0, 1)]
    assert torch.allclose(scores(model, group), torch.stack(by_hand))


def test_several_batch_norms_are_summed() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    for norm, scales in ((model[1], [1.0, -2.0, 3.0]), (model[2], [4.0, 5.0, -6.0])):
        norm.weight.data = torch.tensor(scales)
    assert scores(model, first(model, torch.zeros(1, 2)), "bn").tolist() == [5, 7, 9]


def test_random_scores_follow_from_seed_and_group() -> None:
    model = nn.Sequential(nn.Linear(2, 50), nn.Linear(50, 50), nn.Linear(50, 2))
    one, other = cdlib.find_groups(model, torch.zeros(1, 2)).prunable
    state = torch.get_rng_state()
    assert torch.equal(scores(model, one, "random", seed=3), scores(model, one, "random", seed=3))
    assert not torch.equal(scores(model, one, "random", seed=3), scores(model, one, "random", seed=4))
    assert not torch.equal(scores(model, one, "random"), scores(model, other, "random"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("ratio", "count"), [(0, 0), (0.009, 0), (0.01, 1), (0.29, 29), (0.5, 50), (0.999, 99), (0.9999999999999999, 99)]
)
def test_the_share_is_rounded_down_and_never_all(ratio: float, count: int) -> None:
    model = nn.Sequential(nn.Linear(1, 100), nn.Linear(100, 1))
    drop = lowest(model, cdlib.find_groups(model, torch.zeros(1, 1)), ratio)
    assert sum(map(len, drop.values())) == count
    assert set(drop) == ({"0"} if count else set())


def test_the_lowest_come_first_and_ties_in_order() -> None:
    model = nn.Sequential(nn.Linear(1, 6, bias=False), nn.Linear(6, 1))
    model[0].weight.data = torch.tensor([[5.0], [-1.0], [3.0], [0.0], [1.0], [-3.0]])
    groups = cdlib.find_groups(model, torch.zeros(1, 1))
    assert lowest(model, groups, 0.9) == {"0": [3, 1, 4, 2, 5]}
    small = cdlib.remove(model, cdlib.find_groups(model, torch.zeros(1, 1)), lowest(model, groups, 0.5), round_to=2)
    assert small[0].weight.flatten().tolist() == [5, 3, 1, -3]  # four are kept, not three: the last one chosen stays


def test_each_group_gives_its_share_and_others_are_passed_over() -> None:
    model = nn.Sequential(nn.Linear(2, 10), nn.Linear(10, 5), nn.Linear(5, 1), nn.Linear(1, 4))
    groups = cdlib.find_groups(model, torch.zeros(1, 2), keep=["1"])
    assert {name: len(units) for name, units in lowest(model, groups, 0.5, by="l1").items()} == {}
    groups = cdlib.find_groups(model, torch.zeros(1, 2))
    assert {name: len(units) for name, units in lowest(model, groups, 0.5, by="l1").items()} == {"0": 5, "1": 2}
    assert set(lowest(model, [groups["1"]], 0.5)) == {"1"}


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, float("nan"), float("inf"), True, "0.5", None])
def test_a_ratio_outside_of_its_range(ratio: Any) -> None:
    model = network()
    with pytest.raises(CdlibError, match="give a number from 0 to below 1"):
        lowest(model, cdlib.find_groups(model, IMAGE), ratio)


def test_what_cannot_be_scored_is_named() -> None:
    model = network()
    groups = cdlib.find_groups(model, IMAGE)
    with pytest.raises(CdlibError, match="unknown saliency 'l3'.* Known: bn, l1, l2, random"):
        lowest(model, groups, 0.5, by="l3")
    with pytest.raises(CdlibError, match="group '3' has no batch norm to score it by"):
        lowest(model, groups, 0.5, by="bn")
    with pytest.raises(CdlibError, match="group '0' is of another network: this one has no such '0.weight'"):
        scores(nn.Sequential(nn.Linear(2, 2)), groups[0])
    with pytest.raises(CdlibError, match="group '0' is of another network"):
        scores(nn.Conv2d(2, 3, 1), groups[0])
    with pytest.raises(CdlibError, match="have no values"):
        scores(network().to("meta"), groups[0])
    model[0].weight.data[1] = float("nan")
    with pytest.raises(CdlibError, match="group '0' have values that are not finite"):
        lowest(model, groups, 0.5)


def test_scoring_changes_nothing() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = cdlib.find_groups(model, IMAGE)
    model.eval()(torch.ones(1, 2, 4, 4)).sum().backward()
    for by in sorted(MEASURES):
        found = scores(model, groups[0], by)
        assert found.shape == (3,) and not found.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------------- how much


def test_the_share_of_the_parameters_is_that_of_all_slices() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    groups = cdlib.find_groups(model, torch.zeros(1, 2))
    total = 3 * 2 + 3 + 4 * 3 + 4 + 5 * 4 + 5
    assert parameter_share(model, groups.prunable) == pytest.approx(1 - 5 / total)  # all but the last bias
    assert parameter_share(model, [groups["0"]]) == pytest.approx((3 * 2 + 3 + 4 * 3) / total)
    assert parameter_share(model, []) == 0 and parameter_share(nn.ReLU(), []) == 0


def test_units_among_slices() -> None:
    model = nn.Sequential(nn.Conv2d(2, 32, 1), nn.PixelShuffle(2), nn.Conv2d(8, 3, 1))
    groups = cdlib.find_groups(model, IMAGE)
    found = [len(groups.check({groups[0].name: [1, 4, 6]}, round_to=n)[groups[0].name]) for n in (1, 2, 3, 8)]
    assert found == [3, 2, 2, 0]
    rows = [*range(4, 8), *range(16, 20), *range(24, 28)]
    for units, n in zip(found, (1, 2, 3, 8), strict=True):
        slices = surgery.slices_of(groups, {groups[0].name: [1, 4, 6]}, round_to=n)
        gone = [rows[: 4 * units], rows[: 4 * units], [1, 4, 6][:units]]
        assert [ids.tolist() for ids in slices.values()] == (gone if units else [])


@pytest.mark.parametrize("by", ["l1", "l2", "taylor"])
def test_masked_weights_count_as_zero_and_masks_not_at_all(by: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 6)
    masked = cdlib.pruning.unstructured(model, x, 0, 0.6, by="random")
    permanent = cdlib.pruning.permanent(masked)
    for net in (masked, permanent):
        net(x).square().sum().backward()
    for mine, theirs in zip(cdlib.find_groups(masked, x), cdlib.find_groups(permanent, x), strict=True):
        if mine.prunable:
            torch.testing.assert_close(scores(masked, mine, by), scores(permanent, theirs, by))


def test_a_parameter_that_is_only_named_like_a_masked_one_is_scored_like_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    renamed = nn.Sequential(_Scaled(6, 5, "scale_orig"), nn.ReLU(), nn.Linear(5, 2))
    plain = nn.Sequential(_Scaled(6, 5, "scale"), nn.ReLU(), nn.Linear(5, 2))
    for net in (renamed, plain):
        net.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(3, 6)
    mine, theirs = (cdlib.find_groups(net, x)[0] for net in (renamed, plain))
    assert torch.equal(scores(renamed, mine, "l2"), scores(plain, theirs, "l2"))


class _Scaled(nn.Linear):
    """A linear layer with a scale of each output, a parameter of the given name."""

    def __init__(self, inputs: int, outputs: int, name: str) -> None:
        super().__init__(inputs, outputs)
        self.register_parameter(name, nn.Parameter(torch.linspace(1, 2, outputs)))
        self.of = name

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * getattr(self, self.of)
