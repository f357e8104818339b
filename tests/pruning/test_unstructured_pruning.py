"""Masks over single weights: exact counts, against `torch.nn.utils.prune`, through training, saving and taking off."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_networks import Net, conv
from torch import nn
from torch.nn.utils import parametrizations, prune

import cdlib
from cdlib import CdlibError, models
from cdlib.pruning import permanent, unstructured
from cdlib.pruning.unstructured_pruning import Gradual
from cdlib.surgery.removal import rewritten

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
    small = cut(sparse)
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def cut(model: nn.Module, x: torch.Tensor = IMAGE) -> nn.Module:
    return cdlib.pruning.uniform_width(model, cdlib.find_groups(model, x), target=0.3)


def masked(model: nn.Module) -> nn.Module:
    return unstructured(model, IMAGE)


def more(model: nn.Module) -> nn.Module:
    return unstructured(model, IMAGE, conv=0.9, linear=0.9)


@pytest.mark.parametrize(
    "steps",
    [
        (masked,), (cut, masked), (masked, cut), (masked, cut, permanent), (masked, cut, permanent, cut),
        (cut, masked, cut, more), (cut, masked, permanent, masked),
    ],
    ids=lambda steps: "-".join(step.__name__ for step in steps),
)  # fmt: skip
def test_masks_and_cuts_in_any_order_are_saved_and_loaded(steps: tuple[Any, ...], tmp_path: Any) -> None:
    model: Any = network()
    for step in steps:
        model = step(model)
    cdlib.save(model, tmp_path / "network.cdlib")
    x = torch.randn(2, 3, 8, 8)
    for before in (network(), unstructured(network(), IMAGE, layers=["3"])):
        same: Any = cdlib.load(tmp_path / "network.cdlib", before)
        assert list(same.state_dict()) == list(model.state_dict())
        assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(same[0].weight, model[0].weight), "computed from what was loaded"
        assert torch.equal(same.eval()(x), model.eval()(x))
    if steps[-1] in (masked, more):
        same.train()(x).square().mean().backward()
        torch.optim.SGD(same.parameters(), lr=0.1).step()
        same(x)
        assert zeros(same) == zeros(model), "masks stay in training"


class Widths(nn.Module):
    """Its code insists on widths, so that it has to be rewritten when it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.sizes = nn.Linear(6, 8), nn.Linear(8, 6), {"width": 8}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        return self.b(y / y.shape[-1] ** 0.5 + 1 / self.sizes["width"] - 1 / y.shape[-1])


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / x.shape[-1] ** 0.5


@pytest.mark.parametrize("own", [Widths, lambda: nn.Sequential(nn.Linear(6, 8), Scaled(8, 8), nn.Linear(8, 6))])
def test_masks_in_code_that_was_rewritten(own: Any, tmp_path: Any) -> None:
    x = torch.randn(3, 6)
    small = cut(unstructured(own(), x), x)
    assert rewritten(small)
    cdlib.save(small, tmp_path / "small.cdlib")
    same = cdlib.load(tmp_path / "small.cdlib", own())
    assert list(same.state_dict()) == list(small.state_dict())
    assert torch.equal(same(x), small(x)) and zeros(same) == zeros(small)
    half = cut(unstructured(own(), x), x).eval().bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16  # masked or not, its operators are those of any precision
    plain = permanent(small)
    assert list(plain.state_dict()) == list(own().state_dict())
    assert torch.equal(plain(x), small(x))
    cdlib.save(plain, tmp_path / "small.cdlib")
    assert torch.equal(cdlib.load(tmp_path / "small.cdlib", own())(x), plain(x))
    plain(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


def test_masks_of_other_parameters_are_no_obstacle_and_are_taken_off_too() -> None:
    model: Any = network()
    for layer in (model[0], model[6]):
        prune.l1_unstructured(layer, "bias", 0.5)
    prune.l1_unstructured(model[1], "weight", 0.5)
    both: Any = unstructured(model, IMAGE, conv=0.5, linear=0.5)
    assert zeros(both)["0"] == 81 and zeros(both)["6"] == 18
    plain: Any = permanent(both)
    assert list(plain.state_dict()) == list(network().state_dict())
    assert int((plain[0].bias == 0).sum()) == int((plain[1].weight == 0).sum()) == 3
    assert torch.equal(plain.eval()(IMAGE), both.eval()(IMAGE))


def test_weights_in_double_precision_are_ranked_in_it() -> None:
    layer = nn.Linear(4, 2).double()
    with torch.no_grad():
        layer.weight.copy_(1 - 1e-12 * torch.arange(8).double().view(2, 4))
    assert unstructured(layer, torch.zeros(1, 4).double(), linear=0.5).weight_mask.tolist() == [[1] * 4, [0] * 4]


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


def test_gradual_masks_start_from_what_each_layer_has() -> None:
    model = unstructured(network(), IMAGE, conv=0.5, linear=0, scope="global")
    before = zeros(model)
    assert before["0"] / 162 != before["3"] / 270
    gradual = Gradual(model, conv=0.9, linear=0.9, begin=1, end=5)
    seen = []
    for step in range(6):
        gradual(step)
        seen.append(zeros(model))
    assert seen[0] == seen[1] == before
    for name, size in (("0", 162), ("3", 270), ("6", 35)):
        final = 0.9 * size
        assert [counts[name] for counts in seen[1:]] == [
            round(final + (before[name] - final) * (1 - k / 4) ** 3) for k in range(5)
        ]


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


def embedding() -> nn.Module:
    model = Net(lambda m, i: m.b(m.a(i)), a=nn.Embedding(5, 3), b=nn.Linear(3, 5))
    model.b.weight = model.a.weight
    return model


def changed(change: Any, layer: str = "6") -> nn.Module:
    model = network()
    change(model.get_submodule(layer))
    return model


def not_a_number(layer: Any) -> None:
    layer.weight.data[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv": 1.0}, "conv=1.0 is no share"),
        ({"seed": "a"}, "seed='a': give an integer of at least 0"),
        ({"seed": None}, "seed=None"),
        ({"linear": -0.5}, "linear=-0.5 is no share"),
        ({"by": "l2"}, "unknown criterion 'l2'"),
        ({"scope": "layer"}, "unknown scope 'layer'"),
        ({"layers": ["7"]}, "unknown layer in layers: '7'"),
        ({"layers": "0"}, "is a single text"),
        ({"model": nn.Sequential(nn.ReLU())}, "no convolution or linear layer"),
        ({"layers": []}, r"layers=\[\] names nothing"),
        ({"layers": 5}, "layers=5 names nothing"),
        ({"model": embedding(), "example_input": torch.ones(1, 2).long()}, "b shares its weight with another module"),
        ({"model": changed(not_a_number)}, "the weights of 6 have values that are not finite"),
        ({"model": tied()}, "a shares its weight with another module"),
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
        ({"end": 5, "seed": -1}, "seed=-1: give an integer of at least 0"),
        ({"end": 5, "model": network()}, "has no masks"),
        ({"end": 10.5}, "end=10.5: give an integer"),
        ({"end": float("inf")}, "end=inf: give an integer"),
        ({"end": "10"}, "end='10': give an integer"),
        ({"end": 10, "begin": True}, "begin=True: give an integer"),
        ({"end": 10, "every": 1.5}, "every=1.5: give an integer"),
        ({"end": 5, "model": "network"}, "model is 'str'"),
        (
            {"end": 5, "conv": 0.2, "model": unstructured(network(), IMAGE, conv=0.3, linear=0)},
            "conv=0.2: of the 162 weights of 0, 49 are masked already",
        ),
    ],
)
def test_bad_schedules(options: dict[str, Any], message: str) -> None:
    masked = unstructured(network(), IMAGE, conv=0, linear=0)
    with pytest.raises(CdlibError, match=message):
        Gradual(**{"model": masked, **options})


def test_weights_without_numbers_have_no_magnitudes() -> None:
    with pytest.raises(CdlibError, match="the model is on the meta device, where 0.weight has no numbers"):
        unstructured(nn.Sequential(nn.Conv2d(3, 4, 1)).to("meta"), torch.zeros(1, 3, 4, 4, device="meta"), 0.5, 0)


def test_a_text_is_no_network() -> None:
    with pytest.raises(CdlibError, match="model is 'str'"):
        permanent("network")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal,
        torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm,
    ],
)  # fmt: skip
def test_a_weight_that_is_computed_has_to_be_left_out(change: Any) -> None:
    model = changed(change)
    with pytest.raises(CdlibError, match="the weight of 6 is computed: remove the parametrization"):
        unstructured(model, IMAGE)
    assert zeros(unstructured(model, IMAGE, layers=["0", "3", "8"])) == {"0": 81, "3": 135, "6": 0, "8": 14}
