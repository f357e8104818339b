"""Shared weights: k-means against scikit-learn, gradients summed by hand, Huffman's bounds, and files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

import cdlib
from cdlib import CdlibError, data, models, pruning
from cdlib.quantization import clustered, codebooks, share
from cdlib.serialization import huffman
from cdlib.train import Recipe, evaluate, fit


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_values_are_those_that_lloyds_algorithm_finds_elsewhere() -> None:
    weight = numbers(40, 50)
    values, index = clustered(weight, 16)
    start = np.linspace(weight.min().item(), weight.max().item(), 16)[:, None]
    flat = weight.double().numpy().reshape(-1, 1)
    theirs = KMeans(16, init=start, n_init=1, tol=0, algorithm="lloyd", max_iter=100).fit(flat)
    assert np.allclose(np.sort(theirs.cluster_centers_[:, 0]), values.numpy(), atol=1e-6)
    error = (weight.flatten() - values[index.flatten().long() - 1]).square().sum().item()
    assert error == pytest.approx(theirs.inertia_, rel=1e-6)


def test_zeros_stay_zero_and_take_a_value_of_their_own() -> None:
    layer = nn.Linear(30, 20)
    with torch.no_grad():
        layer.weight[layer.weight.abs() < 0.1] = 0
    shared = share(nn.Sequential(layer), 3)
    assert torch.equal(shared[0].weight == 0, layer.weight == 0)
    assert len(shared[0].weight.unique()) <= 8
    fit_less = share(nn.Sequential(nn.Linear(30, 20)), 3)
    assert len(fit_less[0].weight.unique()) == 8


def test_a_value_gets_the_sum_of_its_weights_gradients() -> None:
    layer, x = nn.Linear(6, 5), numbers(9, 6)
    shared = share(nn.Sequential(layer), 2)
    [(values, index)] = codebooks(shared).values()
    shared(x).square().sum().backward()
    plain = nn.Linear(6, 5)
    plain.load_state_dict({"weight": shared[0].weight.detach(), "bias": layer.bias.detach()})
    plain(x).square().sum().backward()
    assert plain.weight.grad is not None
    wanted = [plain.weight.grad[index == k + 1].sum() for k in range(len(values))]
    assert torch.allclose(shared[0].parametrizations.weight.original.grad, torch.stack(wanted), rtol=1e-5)


def test_training_moves_values_and_neither_zeros_nor_indices() -> None:
    digits = data.load("digits")
    torch.manual_seed(0)
    model = models.build("vgg_mini", 10, in_channels=1)
    fit(model, digits, Recipe(epochs=3, batch_size=64, lr=3e-3, augment=False), progress=False)
    pruned = pruning.permanent(pruning.unstructured(model, digits.test.input(1), 0.6, 0.6, by="l1"))
    shared = share(pruned, 3)
    before = {name: (values.clone(), index.clone()) for name, (values, index) in codebooks(shared).items()}
    worse = evaluate(shared, digits.validation).loss
    fit(shared, digits, Recipe(epochs=3, batch_size=64, lr=1e-3, augment=False), progress=False)
    assert evaluate(shared, digits.validation).loss < 0.8 * worse
    for name, (values, index) in codebooks(shared).items():
        assert torch.equal(index, before[name][1]) and not torch.equal(values, before[name][0])
        zeros = pruned.get_submodule(name).weight == 0
        assert zeros.any() and torch.equal(shared.get_submodule(name).weight == 0, zeros)


# --- Huffman


@pytest.mark.parametrize("kind", ["skewed", "even", "one", "none", "all"])
def test_symbols_come_back_from_a_code_within_a_bit_of_the_entropy(kind: str) -> None:
    random = np.random.default_rng(0)
    symbols = {
        "skewed": random.geometric(0.4, 5000).clip(max=255),
        "even": random.integers(0, 16, 5000),
        "one": np.full(70, 9),
        "none": np.zeros(0),
        "all": random.permutation(np.arange(256).repeat(3)),
    }[kind].astype(np.uint8)
    stream, lengths = huffman.coded(symbols)
    assert np.array_equal(huffman.decoded(stream, lengths, len(symbols)), symbols)
    bits = sum(int(lengths[s]) for s in symbols)
    assert len(stream) == -(-bits // 8)
    if kind != "none":
        assert huffman.entropy(symbols) <= bits / len(symbols) <= huffman.entropy(symbols) + 1


def test_the_code_of_the_textbook() -> None:
    symbols = np.repeat([0, 1, 2, 3, 4, 5], [45, 13, 12, 16, 9, 5]).astype(np.uint8)  # Cormen et al., section 16.3
    assert huffman.coded(symbols)[1].tolist() == [1, 3, 3, 3, 4, 4]
    assert huffman.entropy(np.array([0, 1, 0, 1])) == 1


def test_damaged_streams_are_refused() -> None:
    stream, lengths = huffman.coded(np.arange(100, dtype=np.uint8))
    with pytest.raises(CdlibError, match="holds .* symbols and not 100"):
        huffman.decoded(stream[:-5], lengths, 100)
    with pytest.raises(CdlibError, match="no lengths of a Huffman code"):
        huffman.decoded(stream, np.ones(9, dtype=np.uint8), 3)


# --- files


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.99])
def test_a_network_that_shares_weights_is_saved_and_loaded_to_the_same_bits(zeros: float, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, x = models.build("resnet_mini").eval(), torch.rand(3, 3, 32, 32)
    groups = cdlib.find_groups(model, x[:1])
    model = cdlib.remove(model, groups, {groups.prunable[1].name: [0, 3]})
    if zeros:
        model = pruning.permanent(pruning.unstructured(model, x[:1], zeros, zeros, by="l1"))
    shared = share(model, 4, keep=["classifier"] if "classifier" in dict(model.named_modules()) else ())
    before = {name: type(module) for name, module in shared.named_modules()}
    cdlib.save(shared, file := tmp_path / "s.cdlib")
    again = cdlib.load(file)
    assert {name: type(module) for name, module in shared.named_modules()} == before
    with torch.no_grad():
        assert torch.equal(again(x), shared(x))
    for name, (values, index) in codebooks(shared).items():
        assert torch.equal(codebooks(again)[name][0], values) and torch.equal(codebooks(again)[name][1], index)
    dense = sum(p.numel() * 4 for p in model.parameters())
    assert file.stat().st_size < dense * {0.0: 0.2, 0.5: 0.16, 0.99: 0.08}[zeros]
    assert sum(len(v.unique()) <= 17 for v in (m.weight for m in again.modules() if isinstance(m, nn.Conv2d))) > 10


def test_a_damaged_file_of_shared_weights_is_one_line(tmp_path: Any) -> None:
    cdlib.save(share(models.build("vgg_mini")), file := tmp_path / "s.cdlib")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CdlibError, match="altered or damaged") as error:
        cdlib.load(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: share(nn.Linear(2, 2), 9), "bits=9"),
        (lambda: share(nn.Linear(2, 2), 0), "bits=0"),
        (lambda: share(nn.Sequential(nn.Linear(2, 2)), keep=["1"]), "layer '1'"),
        (lambda: share(share(nn.Sequential(nn.Linear(2, 2)))), "masks or a codebook"),
        (
            lambda: share(pruning.unstructured(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4), 0.5, 0.5)),
            "make them permanent first",
        ),
    ],
)
def test_bad_input_of_sharing_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        make()
