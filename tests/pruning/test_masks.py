"""Masks over single weights: exact counts, against `torch.nn.utils.prune`, through training, saving and taking off."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import cdlib
from cdlib import CdlibError, models
from cdlib.pruning import permanent, unstructured
from cdlib.pruning.masks import Gradual
from tests.pruning.small_networks import Net, conv

IMAGE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        conv(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4),
    )  # fmt: skip


def zeros(model: nn.Module) -> dict[str, int]:
    return {
        name: int((m.weight == 0).sum()) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("by", ["l1", "random"])
def test_each_layer_loses_its_share(by: str) -> None:
    masked = unstructured(network(), IMAGE, conv=0.25, linear=0.6, by=by)
    assert zeros(masked) == {"0": round(162 / 4), "3": round(270 / 4), "6": 21, "8": round(0.6 * 28)}


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_local_l1_masks_are_those_of_torch(amount: float) -> None:
    ours, theirs = unstructured(network(), IMAGE, conv=amount, linear=amount), network()
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(module, "weight", amount)
            assert torch.equal(ours.get_submodule(name).weight_mask, module.weight_mask)


def test_global_l1_masks_are_those_of_torch() -> None:
    ours = unstructured(network(), IMAGE, conv=0.7, linear=0.3, scope="global")
    theirs = network()
    for kind, amount in ((nn.Conv2d, 0.7), (nn.Linear, 0.3)):
        layers = [(m, "weight") for m in theirs if isinstance(m, kind)]
        prune.global_unstructured(layers, prune.L1Unstructured, amount=amount)
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert torch.equal(ours.get_submodule(name).weight_mask, module.weight_mask)
    assert zeros(ours)["0"] + zeros(ours)["3"] == round(0.7 * (162 + 270))


def test_equal_weights_are_masked_to_the_exact_count() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    assert zeros(unstructured(model, IMAGE, conv=0.3))["0"] == round(0.3 * 162)


def test_the_seed_decides_about_random_masks() -> None:
    one, same, other = (unstructured(network(), IMAGE, by="random", seed=s)[0].weight_mask for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_network_given_is_not_touched_and_nothing_else_is_masked() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    masked = unstructured(model, IMAGE, layers=["3", "6"])
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items()) and len(before) == len(
        model.state_dict()
    )
    assert [name for name, _ in masked.named_buffers() if "mask" in name] == ["3.weight_mask", "6.weight_mask"]


def test_masked_weights_stay_zero_in_training_and_afterwards() -> None:
    masked = unstructured(network(), IMAGE, conv=0.5, linear=0.5)
    where = {n: m.weight == 0 for n, m in masked.named_modules() if hasattr(m, "weight_mask")}
    free = {n: m.weight.clone() for n, m in masked.named_modules() if hasattr(m, "weight_mask")}
    optimizer = torch.optim.AdamW(masked.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        masked(torch.randn(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    x = torch.randn(2, 3, 8, 8)
    masked.eval()
    expected, plain = masked(x), permanent(masked)
    assert torch.equal(plain(x), expected)
    assert list(plain.state_dict()) == list(network().state_dict())
    for name, zero in where.items():
        weight = plain.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        assert bool((weight[zero] == 0).all())
        assert not torch.equal(weight[~zero], free[name][~zero])


def test_masks_grow_and_never_shrink() -> None:
    once = unstructured(network(), IMAGE, conv=0.3, linear=0.3, by="random")
    twice = unstructured(once, IMAGE, conv=0.6, linear=0.6)
    assert zeros(twice)["0"] == round(0.6 * 162)
    assert bool((twice[0].weight_mask <= once[0].weight_mask).all())
    with pytest.raises(CdlibError, match=r"conv=0.2: of the 162 weights of 0, 49 are masked already.*at least 0.3025"):
        unstructured(once, IMAGE, conv=0.2, linear=0.5)


def test_parameters_that_count_do_but_nothing_is_smaller() -> None:
    dense = network()
    sparse = permanent(unstructured(dense, IMAGE, conv=0.5, linear=0.5))
    one, other = cdlib.profile(dense, IMAGE), cdlib.profile(sparse, IMAGE)
    assert other.nonzero_params == one.nonzero_params - 81 - 135 - 18 - 14
    assert (other.params, other.macs, other.weight_bytes) == (one.params, one.macs, one.weight_bytes)


def test_a_masked_network_can_be_cut_by_filters_after_the_masks_are_permanent() -> None:
    sparse = permanent(unstructured(network(), IMAGE))
    small = cdlib.pruning.uniform_width(sparse, IMAGE, target=0.3)
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_only_layers_that_are_called_get_masks() -> None:
    """The output projection of PyTorch's attention is read, not called: a mask in it would never be applied."""
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    masked = unstructured(attention, torch.zeros(1, 4, 8))
    names = [name for name, _ in masked.named_buffers()]
    assert names == ["linear1.weight_mask", "linear2.weight_mask"]


def test_gradual_masks_follow_the_cubic_schedule() -> None:
    masked = unstructured(network(), IMAGE, conv=0, linear=0)
    gradual = Gradual(masked, conv=0.8, linear=0.4, begin=2, end=10, every=3)
    assert gradual.amounts(2) == {"conv": 0, "linear": 0}
    assert gradual.amounts(6) == pytest.approx({"conv": 0.7, "linear": 0.35})
    seen = []
    for step in range(1, 13):
        gradual(step)
        seen.append(zeros(masked)["0"])
    cubic = [round(162 * 0.8 * (1 - (1 - k / 8) ** 3)) for k in (0, 3, 6, 8)]
    assert seen == [0, 0, 0, 0, cubic[1], cubic[1], cubic[1], cubic[2], cubic[2], *[cubic[3]] * 3]


def test_gradual_masks_in_training_with_resume(tmp_path: Any) -> None:
    dataset = cdlib.data.load("digits")
    recipe = cdlib.train.Recipe(epochs=2, batch_size=64, lr=1e-2)

    def trained(epochs_before: int) -> nn.Module:
        torch.manual_seed(0)
        model = models.build("resnet_mini", 10, in_channels=1)
        one = dataset.test.input(1)
        for end in ([epochs_before] if epochs_before else []) + [None]:
            masked = unstructured(model, one, conv=0, linear=0)
            steps = len(dataset.train) // 64
            gradual = Gradual(masked, 0.8, 0.5, end=2 * steps - 2, every=5)

            stop = None if end is None else end * steps + 2

            def step(done: int, gradual: Gradual = gradual, stop: int | None = stop) -> None:
                gradual(done)
                if done == stop:
                    raise KeyboardInterrupt

            try:
                cdlib.train.fit(
                    masked, dataset, recipe, checkpoint=tmp_path / f"{epochs_before}.pt", progress=False,
                    after_step=step,
                )  # fmt: skip
            except KeyboardInterrupt:
                assert end is not None
        return masked

    whole, resumed = trained(0), trained(1)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    convs = [m for m in whole.modules() if isinstance(m, nn.Conv2d)]
    assert all(int((m.weight_mask == 0).sum()) == round(0.8 * m.weight_mask.numel()) for m in convs)


def twice(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.b(self.a(x))


def tied() -> nn.Module:
    model = Net(twice, a=conv(3, 3), b=conv(3, 3))
    model.b.weight = model.a.weight
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv": 1.0}, "conv=1.0 is no share"),
        ({"linear": -0.5}, "linear=-0.5 is no share"),
        ({"by": "l2"}, "unknown criterion 'l2'"),
        ({"scope": "layer"}, "unknown scope 'layer'"),
        ({"layers": ["7"]}, "unknown layer in layers: '7'"),
        ({"layers": "0"}, "is a single text"),
        ({"model": nn.Sequential(nn.ReLU())}, "no convolution or linear layer"),
        ({"model": tied()}, "a shares its weight with another layer"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        unstructured(**{"model": network(), "example_input": IMAGE, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 0}, "give steps with 0 <= begin < end"),
        ({"begin": 5, "end": 5}, "begin=5, end=5"),
        ({"end": 5, "every": 0}, "every=0"),
        ({"end": 5, "conv": 1}, "conv=1 is no share"),
        ({"end": 5, "model": network()}, "has no masks"),
    ],
)
def test_bad_schedules(options: dict[str, Any], message: str) -> None:
    masked = unstructured(network(), IMAGE, conv=0, linear=0)
    with pytest.raises(CdlibError, match=message):
        Gradual(**{"model": masked, **options})
