"""Trained networks in files, and the layer that whitens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdlib import CdlibError, find_groups, models, remove
from cdlib.surgery import check_exact

CARD = models.Card(
    name="tiny",
    model="plain_cnn",
    options={"widths": [4, 8, 8]},
    classes=["a", "b", "c"],
    shape=[3, 32, 32],
    mean=[0.5, 0.5, 0.5],
    std=[0.2, 0.2, 0.2],
    data="none",
    record="0123456789abcdef",
    accuracy=0.5,
)


def images(n: int = 64) -> Tensor:
    """Smooth images: neighbours are alike, as in photographs."""
    rng = torch.Generator().manual_seed(0)
    return torch.nn.functional.avg_pool2d(torch.randn(n, 3, 34, 34, generator=rng), 3, 1) * 3


def built() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(CARD.model, 3, **CARD.options)


def test_what_the_first_layer_makes_is_uncorrelated_and_of_size_one() -> None:
    model, x = built(), images()
    models.whiten(model, x)
    layer = model.features[0]
    made = layer(x).transpose(0, 1).flatten(1).double()
    assert torch.equal(made[12:], -made[:12])
    second = made[:12] @ made[:12].T / made.shape[1]
    values = torch.linalg.eigvalsh(_patches(x).T @ _patches(x) / len(_patches(x)))
    torch.testing.assert_close(second, torch.diag(values / (values + 5e-4)), atol=1e-4, rtol=0)
    assert not layer.weight.requires_grad
    other = models.build("vgg_mini", 3)
    before = {name: t.clone() for name, t in other.state_dict().items()}
    models.whiten(other, x)
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())


def _patches(x: Tensor) -> Tensor:
    return torch.nn.functional.unfold(x, 2).transpose(1, 2).flatten(0, 1).double()


def test_convolutions_hand_on_their_first_inputs_at_first() -> None:
    conv = built().features[6]  # 4 to 4 channels
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(conv(x), x)


def test_half_of_a_plain_cnn_is_removed_exactly() -> None:
    model, x = built(), images(2)
    groups = find_groups(model, x)
    assert [g.size for g in groups.prunable] == [24, 4, 4, 8, 8, 8, 8]
    found = check_exact(model, groups, {g.name: range(g.size // 2) for g in groups.prunable})
    assert found.masked is not None and found.masked < 1e-9 < found.control


def test_a_file_gives_back_what_was_kept(tmp_path: Path) -> None:
    model = built()
    models.whiten(model, images())
    models.rounded(model)
    models.keep(model, CARD, tmp_path / "tiny.safetensors")
    found = models.trained("tiny", tmp_path)
    assert getattr(found, models.CARD) == CARD
    assert not found.training
    x = images(4)
    assert torch.equal(found(x), model.eval().to(memory_format=torch.channels_last)(x))
    assert all(t.dtype == torch.float32 for t in found.parameters())
    held = sum(p.numel() * (2 if p.dim() > 1 else 4) for p in model.parameters())
    assert held < (tmp_path / "tiny.safetensors").stat().st_size < held + 6000
    groups = find_groups(found, x)
    assert remove(found, groups, {groups.prunable[1].name: [0]})(x).shape == (4, 3)


@pytest.mark.parametrize("bytes_left", [0, 7, 100, -1])
def test_a_damaged_file_is_one_line(tmp_path: Path, bytes_left: int) -> None:
    file = tmp_path / "tiny.safetensors"
    models.keep(built(), CARD, file)
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(CdlibError, match="tiny.safetensors is damaged") as error:
        models.trained("tiny", tmp_path)
    assert "\n" not in str(error.value)


def test_an_unknown_name_says_which_there_are(tmp_path: Path) -> None:
    models.keep(built(), CARD, tmp_path / "tiny.safetensors")
    with pytest.raises(CdlibError, match="unknown trained network 'tinny'; did you mean 'tiny'"):
        models.trained("tinny", tmp_path)
