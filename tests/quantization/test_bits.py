"""Few bits: packing, budgets, the searches against exhaustive ones, and training with rounded numbers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from cdlib import CdlibError, data, models, profile
from cdlib.quantization import Mixture, Quantized, Quantizer, apply, bitwidths, knapsack, operations, static, train
from cdlib.quantization.bit_search import WAYS, fitted
from cdlib.serialization.packed import pack, unpack
from cdlib.train import Recipe, evaluate, fit

DIGITS = data.load("digits")


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A network of three layers that knows the digits."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return fit(net, DIGITS, Recipe(epochs=6, batch_size=32, lr=5e-3, augment=False), progress=False).model


@pytest.fixture(scope="module")
def quantized(small: nn.Module) -> Quantized:
    return static(small, DIGITS.train.sample(200, 0))


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_integers_come_back_and_take_no_more_than_their_bits(bits: int) -> None:
    every = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.int8).repeat(3)[:-1]
    stream = pack(every, bits)
    assert stream.numel() == -(-every.numel() * bits // 8)
    assert torch.equal(unpack(stream, bits, (every.numel(),)), every)
    with pytest.raises(CdlibError, match="the file is damaged"):
        unpack(stream[:-1], bits, (every.numel(),))


def test_three_bits_are_laid_out_one_after_the_other() -> None:
    assert pack(torch.tensor([1, -1, 2]), 3).tolist() == [0b00111101, 0b00000000]


def test_bytes_and_bit_operations_are_counted_by_hand(quantized: Quantized) -> None:
    mixed = apply(quantized, {"0": 3, "6": 5})
    found, one = operations(mixed, DIGITS.test.input(1)), DIGITS.test.input(1)
    macs = {"net.0": 36 * 8 * 9, "net.3": 16 * 8 * 8 * 9, "net.6": 128 * 10}
    assert found["macs"].to_dict() == macs
    assert found["bit_operations"].tolist() == [macs["net.0"] * 3 * 8, macs["net.3"] * 8 * 8, macs["net.6"] * 5 * 8]
    assert found["weight_bytes"].tolist() == [27 + 8 * 4, 576 + 8 * 4, 800 + 10 * 4]
    assert profile(mixed, one).weight_bytes == found["weight_bytes"].sum()
    assert Mixture(mixed, DIGITS.validation).bytes(mixed.bits) == 27 + 576 + 800


def test_other_bits_are_those_that_static_would_have_given(small: nn.Module, quantized: Quantized) -> None:
    some, x = DIGITS.train.sample(200, 0), DIGITS.test.input(50)
    wanted = static(small, some, bits={"0": 4, "3": 3, "6": 8}, correct_bias=False)
    found = apply(static(small, some, correct_bias=False), {"0": 4, "3": 3})
    assert torch.equal(found(x), wanted(x)) and found.bits == wanted.bits
    assert quantized.bits == {"0": 8, "3": 8, "6": 8}


def test_the_knapsack_finds_what_trying_all_finds() -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = {"a": 100, "b": 31, "c": 257}
    costs = {n: {b: float(torch.rand((), generator=generator)) / b for b in range(2, 9)} for n in sizes}
    for budget in (100, 180, 260):
        tried = [dict(zip(sizes, bits, strict=True)) for bits in itertools.product(range(2, 9), repeat=3)]
        fit_in = [t for t in tried if sum(-(-sizes[n] * t[n] // 8) for n in sizes) <= budget]
        least = min(sum(costs[n][t[n]] for n in sizes) for t in fit_in)
        found = knapsack(costs, sizes, budget)
        assert sum(costs[n][found[n]] for n in sizes) == pytest.approx(least)
        assert sum(-(-sizes[n] * found[n] // 8) for n in sizes) <= budget
    with pytest.raises(CdlibError, match=r"budget_bytes=1: with 2 bits for every weight it takes \d+ bytes"):
        knapsack(costs, sizes, 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_search_keeps_to_its_budget_and_says_what_it_cost(way: str, quantized: Quantized) -> None:
    judge = DIGITS.validation.sample(60, 0)
    found = bitwidths(quantized, judge, 700, way=way, rounds=5, draws=2, seed=3)
    mixture = Mixture(quantized, judge)
    assert found.bytes == mixture.bytes(found.bits) <= 700
    assert set(found.bits) == {"0", "3", "6"} and set(found.bits.values()) <= set(range(2, 9))
    assert found.loss == pytest.approx(evaluate(apply(quantized, found.bits), judge).loss)
    assert found == bitwidths(quantized, judge, 700, way=way, rounds=5, draws=2, seed=3)
    most = {"uniform": 0, "random": 10, "controller": 12, "hessian": 16, "knapsack": 22, "greedy": 80}
    assert found.evaluations <= most[way]


def test_the_controller_comes_near_the_best_of_all_mixtures(quantized: Quantized) -> None:
    judge, budget = DIGITS.validation, 560
    mixture = Mixture(quantized, judge)
    tried = [dict(zip(mixture.sizes, bits, strict=True)) for bits in itertools.product(range(2, 9), repeat=3)]
    losses = sorted(mixture.loss(bits) for bits in tried if mixture.bytes(bits) <= budget)
    found = bitwidths(quantized, judge, budget, rounds=40, draws=4)
    assert found.loss <= losses[len(losses) // 10]
    first, last = (torch.tensor(found.history[k]["chances"]) for k in (0, -1))
    assert first.sum(1).allclose(torch.ones(3)) and last.max() > first.max()


def test_what_is_over_the_budget_loses_bits_where_most_bytes_are(quantized: Quantized) -> None:
    mixture = Mixture(quantized, DIGITS.validation)
    assert fitted(mixture, {"0": 8, "3": 8, "6": 8}, 1700) == {"0": 8, "3": 8, "6": 6}


def test_second_derivatives_foretell_what_a_quadratic_loses() -> None:
    """Of a linear layer the Hessian of the loss is known: its trace is that of a difference quotient of gradients."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    quantized = static(net, DIGITS.train.sample(100, 0), correct_bias=False)
    judge = DIGITS.validation.sample(60, 0)
    found = Mixture(quantized, judge).foretold(draws=200)["1"]
    x, y, weight = judge.input(60).flatten(1), judge.labels, net[1].weight.detach()
    chances = (x @ weight.T + net[1].bias.detach()).softmax(1)
    trace = ((chances * (1 - chances)).sum(1) * x.square().sum(1)).mean().item()
    q = Quantizer(3, signed=True, axis=0)
    rounded = apply(quantized, {"1": 3}).layers()["1"].weights(weight)
    assert found[3] == pytest.approx(0.5 * trace / 640 * (rounded - weight).square().sum().item(), rel=0.1)
    assert len(y) == 60 and q.high == 3


# --- training


@pytest.mark.parametrize("scales", ["learned", "running", "fixed"])
def test_training_with_rounded_numbers_gives_back_what_rounding_took(scales: str, small: nn.Module) -> None:
    rounded = static(small, DIGITS.train.sample(200, 0), bits=2)
    recipe = Recipe(epochs=4, batch_size=32, lr=1e-3, augment=False)
    trained = train(small, DIGITS, recipe, bits=2, scales=scales, progress=False)
    assert evaluate(trained, DIGITS.validation).loss < 0.7 * evaluate(rounded, DIGITS.validation).loss
    assert trained.bits == rounded.bits and not trained.training
    assert all(not p.shape or p.dim() for p in trained.parameters())
    held = {name for name, _ in trained.named_parameters()}
    assert not any("scale" in name or "parametrizations" in name for name in held)
    start = {n: q.scale for n, q in rounded.activations().items()}
    moved = [not torch.equal(q.scale, start[n]) for n, q in trained.activations().items()]
    assert (sum(moved) >= 3) == (scales != "fixed")


def test_a_quantized_network_is_trained_on_and_a_killed_training_goes_on(small: nn.Module, tmp_path: Any) -> None:
    rounded = static(small, DIGITS.train.sample(200, 0), bits=3)
    recipe, x = Recipe(epochs=2, batch_size=64, lr=1e-3), DIGITS.test.input(20)
    whole = train(rounded, DIGITS, recipe, progress=False)
    count = 0

    class Killed(Exception):
        pass

    import cdlib.quantization.training as training

    real = training.fit

    def killed(*given: Any, **options: Any) -> Any:
        def stop(step: int) -> None:
            nonlocal count
            count = step
            if step == 30:
                raise Killed

        return real(*given, **options, after_step=stop)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "fit", killed)
        train(rounded, DIGITS, recipe, checkpoint=tmp_path / "c", progress=False)
    assert count == 30
    again = train(rounded, DIGITS, recipe, checkpoint=tmp_path / "c", progress=False)
    assert torch.equal(again(x), whole(x))


def test_a_teacher_pulls_the_outputs_towards_its_own(small: nn.Module) -> None:
    common = {"epochs": 2, "batch_size": 32, "lr": 1e-3, "augment": False}
    apart = {}
    for share in (0.0, 1.0):
        teacher = {"teacher": small} if share else {}
        trained = train(small, DIGITS, Recipe(**common, distill=share), bits=2, progress=False, **teacher)
        with torch.no_grad():
            x = DIGITS.validation.input(len(DIGITS.validation))
            apart[share] = (trained(x).softmax(1) - small(x).softmax(1)).abs().mean().item()
    assert apart[1.0] < apart[0.0]
    for recipe, teacher in ((Recipe(distill=0.5), {}), (Recipe(), {"teacher": small})):
        with pytest.raises(CdlibError, match="go together"):
            train(small, DIGITS, recipe, progress=False, **teacher)


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_bytes": 100}, "it takes 482 bytes"),
        ({"budget_bytes": 1e3}, "budget_bytes=1000.0"),
        ({"way": "genetic"}, "way"),
        ({"rounds": 0}, "rounds=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_input_of_a_search_is_one_line(options: dict[str, Any], message: str, quantized: Quantized) -> None:
    given = {"budget_bytes": 700, **options}
    with pytest.raises(CdlibError, match=message):
        bitwidths(quantized, DIGITS.validation, **given)


def test_bits_of_unknown_layers_and_widths_are_refused(quantized: Quantized) -> None:
    with pytest.raises(CdlibError, match="layer 'conv'"):
        apply(quantized, {"conv": 4})
    with pytest.raises(CdlibError, match="bits=9"):
        apply(quantized, {"0": 9})
    with pytest.raises(CdlibError, match="scales"):
        train(models.build("vgg_mini", in_channels=1), DIGITS, scales="lerned")
