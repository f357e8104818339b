"""Batch norms that take averages of their own, against values computed by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from cdlib import CdlibError
from cdlib.data import Split
from cdlib.pruning import unstructured
from cdlib.train import recalibrated


@pytest.fixture
def split() -> Split:
    """Four images of one pixel, which are normalised as they are: 0, 1/3, 2/3 and 1."""
    images = torch.tensor([0, 85, 170, 255], dtype=torch.uint8).view(-1, 1, 1, 1)
    return Split("four", images, torch.zeros(4, dtype=torch.long), (0.0,), (1.0,), False, "")


def test_averages_are_those_of_its_own_inputs(split: Split) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.9), nn.BatchNorm2d(1))
    found = recalibrated(network, split, batch_size=2)
    first, last = found[0], found[2]
    assert isinstance(first, nn.BatchNorm2d) and first.running_mean is not None and first.running_var is not None
    assert first.running_mean.item() == pytest.approx(1 / 2)  # the mean of 1/6 and 5/6
    assert first.running_var.item() == pytest.approx(1 / 18)  # in each batch two numbers that are a third apart
    assert isinstance(last, nn.BatchNorm2d) and last.running_mean is not None
    assert last.running_mean.item() == pytest.approx(0, abs=1e-6)  # dropout is off, so a normalised batch comes in
    assert (first.momentum, found.training, first.training) == (0.1, False, False)
    before = network[0]
    assert isinstance(before, nn.BatchNorm2d) and before.num_batches_tracked is not None and network.training
    assert before.num_batches_tracked.item() == 0


def test_a_masked_network_keeps_its_masks(split: Split) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2))
    network[0].weight.data[:] = torch.tensor([2.0, 0.5]).view(2, 1, 1, 1)  # type: ignore[operator]
    masked = unstructured(network, split.input(1), 0.5)
    masked(split.input(4))  # the weight is now what the mask made of it, which Python cannot copy
    found = recalibrated(masked, split)
    mean = found[1].running_mean  # type: ignore[union-attr]
    assert mean.tolist() == pytest.approx([1, 0])  # twice the mean of the images, and nothing of the masked one
    assert found[0].weight_mask.flatten().tolist() == [1, 0]  # type: ignore[union-attr, operator]


def test_a_single_image_over_is_left_out(split: Split) -> None:
    found = recalibrated(nn.BatchNorm2d(1), split, batch_size=3)
    assert found.num_batches_tracked.item() == 1  # type: ignore[operator]


def test_networks_without_averages_come_back_as_they_were(split: Split) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    found = recalibrated(network, split)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), found.parameters(), strict=True))


def test_one_image_makes_no_averages(split: Split) -> None:
    with pytest.raises(CdlibError, match="has 1 images"):
        recalibrated(nn.BatchNorm2d(1), dataclasses.replace(split, images=split.images[:1], labels=split.labels[:1]))
