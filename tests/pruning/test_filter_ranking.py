"""Ranked filter pruning: which units go, how many, and that rounds and measures do what they say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_networks import attention, conv
from torch import Tensor, nn
from torch.nn import functional as F

import cdlib
from cdlib import CdlibError, models
from cdlib.data import Split
from cdlib.pruning import ranking
from cdlib.pruning.saliency import scores, with_gradients

IMAGE = torch.zeros(1, 2, 4, 4)


def chain() -> nn.Sequential:
    """Groups of 2 and 4 channels whose l2 scores are set by hand."""
    model = nn.Sequential(conv(2, 2), nn.ReLU(), conv(2, 4), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        for layer, norms in ((model[0], (1.0, 3.0)), (model[2], (40.0, 10.0, 20.0, 30.0))):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(norms))
    return model


def ranked(
    model: nn.Module, x: Tensor, target: float = 0.5, keep: Any = (), batch_dim: Any = 0, **options: Any
) -> nn.Module:
    return ranking(model, cdlib.find_groups(model, x, keep=keep, batch_dim=batch_dim), target, **options)


def widths(model: nn.Module) -> tuple[int, int]:
    return model[0].out_channels, model[2].out_channels


def left(model: nn.Module) -> list[list[float]]:
    return [model[0].bias.tolist(), model[2].bias.tolist()]


def test_globally_the_lowest_scores_relative_to_the_mean_of_their_group_go_first() -> None:
    """Relative scores: 0.5, 1.5 and 1.6, 0.4, 0.8, 1.2. So channel 10 goes first, then 1, then 20."""
    order = [left(ranked(chain(), IMAGE, share)) for share in (1 / 6, 2 / 6, 3 / 6, 4 / 6)]
    assert order[0] == [[1, 3], [40, 20, 30]]
    assert order[1] == [[3], [40, 20, 30]]
    assert order[2] == [[3], [40, 30]]
    assert order[3] == [[3], [40]]


def test_by_layer_every_group_loses_the_same_share() -> None:
    assert left(ranked(chain(), IMAGE, 0.5, scope="layer")) == [[3], [40, 30]]


def test_the_network_given_is_not_touched() -> None:
    model = chain()
    before = copy.deepcopy(model.state_dict())
    ranked(model, IMAGE, 0.5, rounds=2, between=lambda m: [p.data.add_(1) for p in m.parameters()])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("resource", ["params", "macs", "activation_bytes"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_target_is_met_within_one_unit(resource: str, scope: str) -> None:
    model = models.build("resnet_mini", 10)
    image = torch.zeros(1, 3, 32, 32)
    full = getattr(cdlib.profile(model, image), resource)
    small = getattr(cdlib.profile(ranked(model, image, 0.4, resource=resource, scope=scope), image), resource)
    assert 0.57 * full < small <= 0.6 * full


def test_rounds_take_equal_parts_and_train_between_them() -> None:
    seen: list[tuple[int, int]] = []
    small = ranked(chain(), IMAGE, 0.5, rounds=3, between=lambda m: seen.append(widths(m)))
    assert seen == [(2, 3), (1, 3)]
    assert widths(small) == (1, 2)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounds_reach_a_target_in_activations_though_a_cut_rewrites_attention(scope: str) -> None:
    model, x = attention(), torch.zeros(2, 6, 16)
    groups, full = cdlib.find_groups(model, x), cdlib.profile(model, x).activation_bytes

    def left(target: float) -> float:
        small = ranking(model, groups, target, resource="activation_bytes", rounds=2, scope=scope)
        return cdlib.profile(small, x).activation_bytes / full

    assert left(0.4) <= 0.6
    assert left(0.85) <= 0.15
    with pytest.raises(CdlibError, match="cannot be reached") as error:
        left(0.95)
    target = float(str(error.value).split("width, ")[1].split(" of")[0])
    assert left(target) <= 1 - target


def test_every_round_ranks_anew() -> None:
    def turn(model: Any) -> None:
        with torch.no_grad():
            model[2].bias[model[2].bias == 40] = 0.1

    assert left(ranked(chain(), IMAGE, 2 / 6, rounds=2, between=turn)) == [[1, 3], [20, 30]]


def split(n: int = 30) -> Split:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 2, 4, 4), dtype=torch.uint8, generator=rng)
    return Split("some", images, torch.randint(0, 2, (n,), generator=rng), (0.0, 0.0), (1.0, 1.0), False, "none")


def test_taylor_is_the_loss_change_of_a_small_step_towards_zero() -> None:
    """Against finite differences: the slices of a unit are shrunk a little, and the loss is computed again."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).double().eval()
    data = split()
    x, y = data.input(30).double(), data.labels
    group = cdlib.find_groups(model, IMAGE.double()).prunable[0]

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    loss().backward()
    found = scores(model, group, "taylor")
    for unit in range(3):
        before, kept = loss(), copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for tensor, dim, indices in group.pzig(unit):
                part = model.get_parameter(tensor).index_select(dim, torch.tensor(indices))
                model.get_parameter(tensor).index_copy_(dim, torch.tensor(indices), part * (1 - 1e-6))
        assert found[unit].item() == pytest.approx(abs((loss() - before).item()) * 1e6, rel=1e-3)
        model.load_state_dict(kept)


def test_gradients_over_batches_are_those_of_the_whole_split() -> None:
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(48, 2))
    whole, parts = (with_gradients(model, split(), batch_size=size) for size in (30, 7))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert ranked(model, IMAGE, 1 / 3, by="taylor", data=split())[0].out_channels == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "l3"}, "saliency 'l3'"),
        ({"scope": "all"}, "scope 'all'"),
        ({"resource": "flops"}, "resource 'flops'"),
        ({"target": 1.0}, "target=1.0"),
        ({"target": 0.99}, "target=0.99 cannot be reached"),
        ({"rounds": 0}, "rounds=0"),
        ({"target": 0.99, "rounds": 9, "between": print}, "target=0.99 cannot be reached"),
        ({"rounds": 2, "between": 5}, "between=5 cannot be called"),
        ({"by": "taylor", "data": 5}, "needs data: give a Split"),
        ({"keep": None}, "keep=None: give a list of names"),
        ({"batch_dim": "0"}, "batch_dim='0': give the number of a dimension"),
        ({"by": "taylor"}, "needs data"),
        ({"data": split()}, "needs no data"),
        ({"by": "bn"}, "no batch norm"),
        ({"keep": ["4", "9"]}, "'9'"),
        ({"min_width": 0}, "min_width=0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        ranked(chain(), IMAGE, **options)


def test_nothing_to_prune() -> None:
    with pytest.raises(CdlibError, match="nothing to remove"):
        ranked(nn.Sequential(nn.Flatten(), nn.Linear(32, 2)), IMAGE)
