"""Masks in the 2:4 pattern: which two of four weights stay, in which layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cdlib
from cdlib import CdlibError, models
from cdlib.pruning import permanent, two_to_four, unstructured

IMAGE = torch.zeros(1, 3, 8, 8)


def matrix(rows: list[list[float]]) -> nn.Linear:
    """A linear layer with these weights."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def test_two_of_four_stay_and_they_are_the_largest() -> None:
    layer = matrix([[1.0, -4.0, 3.0, 2.0, 0.5, 0.0, -0.1, 0.2], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 9.0]])
    weight = two_to_four(layer).weight
    assert weight[0].tolist() == [0.0, -4.0, 3.0, 0.0, 0.5, 0.0, 0.0, pytest.approx(0.2)]
    assert weight[1, :4].sum() == 2 and weight[1, 4:].tolist() == [0.0, 0.0, 0.0, 9.0]
    assert layer.weight.count_nonzero() == 12, "the network given is left alone"


def test_two_to_four_counts_along_the_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(12, 5)
    )
    counts = [int(two_to_four(model)[k].weight.count_nonzero()) for k in (0, 1, 2, 4)]
    assert counts == [3 * 8 * 9, 8 * 8 * 9 // 2, 8 * 9, 30]
    fours = two_to_four(model)[1].weight.reshape(8, 2, 4, 9)  # input channels 0-3 and 4-7 at each place of a kernel
    assert (fours != 0).sum(2).eq(2).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_the_inputs_of_a_transposed_convolution_come_first(groups: int) -> None:
    layer = nn.ConvTranspose2d(8, 6, 3, groups=groups)
    fours = two_to_four(layer).weight.reshape(2, 4, -1)
    assert (fours != 0).sum(1).eq(2).all()
    assert not hasattr(two_to_four(nn.ConvTranspose2d(6, 8, 3)), "weight_mask")


def test_two_to_four_looks_at_the_weights_that_are_trained() -> None:
    """Not at their product with the mask, which is that of the last call."""
    masked: Any = unstructured(matrix([[1.0, 2.0, 3.0, 4.0]]), torch.zeros(1, 4), linear=0.25)
    with torch.no_grad():
        masked.weight_orig.copy_(torch.tensor([[9.0, 8.0, 1.0, 2.0]]))
    assert two_to_four(masked).weight_mask.tolist() == [[0, 1, 0, 1]], "the first was masked before"


def test_two_to_four_passes_over_what_is_not_called() -> None:
    """The output projection of PyTorch's attention is read; with an input, any layer that is only read is known."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.called = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.called(nn.functional.linear(x, self.read.weight))

    attention, x = two_to_four(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), torch.randn(2, 4, 8)
    assert [name for name, _ in attention.named_buffers()] == ["linear1.weight_mask", "linear2.weight_mask"]
    reads = two_to_four(Reads(), torch.zeros(1, 4))
    assert [name for name, _ in reads.named_buffers()] == ["called.weight_mask"]
    for _ in range(2):
        (attention(x).sum() + reads(x[..., :4]).sum()).backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.nn.utils.parametrizations.weight_norm, "the weight of 0 is computed"),
        (torch.nn.utils.spectral_norm, "the weight of 0 is computed"),
        (lambda layer: layer.weight.data.fill_(torch.nan), "the weights of 0 have values that are not finite"),
    ],
)
def test_weights_that_two_to_four_cannot_mask(change: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    change(model[0])
    with pytest.raises(CdlibError, match=message):
        two_to_four(model)


def test_two_to_four_does_not_part_tied_weights() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(CdlibError, match="1 shares its weight with another module"):
        two_to_four(model)


def test_two_to_four_keeps_the_masks_there_are_and_masks_stay_in_training() -> None:
    masked = unstructured(models.build("vgg_mini", 10), IMAGE, conv=0.0, linear=0.6)
    both = two_to_four(masked)
    for name, module in masked.named_modules():
        if isinstance(module, nn.Linear):
            assert not both.get_submodule(name).weight_mask[module.weight_mask == 0].any()
    dataset = cdlib.data.load("digits")
    model = two_to_four(models.build("vgg_mini", 10, in_channels=1))
    recipe = cdlib.train.Recipe(epochs=1, batch_size=256, augment=False)
    cdlib.train.fit(model, dataset, recipe, progress=False)
    last = permanent(model).classifier[0].weight  # type: ignore[union-attr, index]
    assert (last.reshape(-1, 4) != 0).sum(1).max() == 2
