"""Several removals become one map of indices of the first network, unless code was rewritten."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import cdlib
from cdlib.surgery import history, rewritten

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Scale(nn.Module):
    """Keeps a width that has to follow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.weight = width, nn.Parameter(torch.rand(width) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, self.width) * self.weight


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), Scale(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


def without(model: nn.Module, drop: dict[str, list[int]]) -> Any:
    return cdlib.remove(model, cdlib.find_groups(model, X), drop)


def test_indices_are_those_of_the_first_network(tmp_path: Path) -> None:
    model = network()
    small = without(without(without(model, {"0": [1, 3]}), {"0": [0, 2], "2": [4]}), {"2": [0, 3]})
    (entry,) = getattr(small, history.HISTORY)
    gone = history.slices(entry)
    assert set(gone) == {("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("2.weight", 0), ("2.weight", 1)} | {
        ("2.bias", 0),
        ("4.weight", 1),
    }
    assert gone["0.weight", 0].tolist() == gone["2.weight", 1].tolist() == [0, 1, 3, 4]
    assert gone["2.bias", 0].tolist() == gone["4.weight", 1].tolist() == [0, 3, 4]
    for (name, dim), ids in gone.items():
        stays = np.setdiff1d(np.arange(model.get_parameter(name).shape[dim]), ids)
        if name != "2.weight":
            kept = model.get_parameter(name).index_select(dim, torch.from_numpy(stays))
            assert torch.equal(kept, small.get_parameter(name))
    assert torch.equal(model[2].weight[[1, 2]][:, [2, 5]], small[2].weight)
    cdlib.save(small, tmp_path / "small.cdlib")
    same: Any = cdlib.load(tmp_path / "small.cdlib", network())
    assert same[1].width == 2 and torch.equal(same(X), small(X))
    assert getattr(same, history.HISTORY) == [entry]
    assert not hasattr(model, history.HISTORY)


def test_masks_that_come_and_go_between(tmp_path: Path) -> None:
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.25)
    small = without(cdlib.pruning.permanent(without(model, {"0": [1]})), {"0": [0], "2": [0]})
    (entry,) = getattr(small, history.HISTORY)
    assert history.slices(entry)["0.weight", 0].tolist() == [0, 1]
    assert not any("_orig" in name or "_mask" in name for name, _ in history.slices(entry))
    cdlib.save(small, tmp_path / "small.cdlib")
    assert torch.equal(cdlib.load(tmp_path / "small.cdlib", network())(X), small(X))


class Stubborn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 6) * 2


def test_a_removal_that_rewrote_code_stands_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), Stubborn(), nn.Linear(6, 2)).eval()
    fresh = copy.deepcopy(model)
    small = without(without(without(model, {"0": [1]}), {"0": [1]}), {"2": [0, 1]})
    entries = getattr(small, history.HISTORY)
    assert [entry["rewritten"] for entry in entries] == [[], ["3"]] and rewritten(small) == ["3"]
    assert history.slices(entries[0])["0.weight", 0].tolist() == [1, 2]
    cdlib.save(small, tmp_path / "small.cdlib")
    assert torch.equal(cdlib.load(tmp_path / "small.cdlib", fresh)(X), small(X))


class Halves(nn.Module):
    """Its code splits by a number that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.conv = 4, nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.conv(x).split((self.c, self.c), 1)
        return torch.cat([one, other.relu()], 1)


def test_attributes_are_noted_in_the_order_of_the_network() -> None:
    """Not in that of a set, which is another one under every hash seed, and would stand in the file."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *(Halves() for _ in range(7)), nn.Conv2d(8, 2, 1))
    x = torch.randn(1, 3, 4, 4)
    groups = cdlib.find_groups(net, x)
    drop = {g.name: [0, g.size - 1] if g.size == 8 else [0] for g in groups.prunable}
    small = cdlib.remove(net, groups, drop)
    (entry,) = getattr(small, history.HISTORY)
    assert list(history.from_json(entry["attributes"])) == [str(k) for k in range(1, 8)]
