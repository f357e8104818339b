"""Integers times a scale: the arithmetic by hand and by onnxruntime, where quantizers stand, and their ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cdlib
from cdlib import CdlibError, data, models
from cdlib.quantization import Quantized, Quantizer, equalise, prepared, set_weight_range, share, static
from cdlib.train import evaluate


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ranged(quantizer: Quantizer, low: float, high: float) -> Quantizer:
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    return quantizer


# --- the arithmetic


def test_a_range_becomes_the_scale_and_zero_point_of_the_textbook() -> None:
    q = ranged(Quantizer(8, signed=False), -1.0, 4.1)
    assert q.scale.item() == pytest.approx(5.1 / 255)
    assert q.zero_point.item() == 50
    signed = ranged(Quantizer(4, signed=True), -0.7, 0.3)
    assert signed.scale.item() == pytest.approx(0.1)
    assert (signed.low, signed.high, signed.zero_point.item()) == (-7, 7, 0)


def test_halves_are_rounded_to_the_even_and_what_is_out_of_range_is_clipped() -> None:
    q = ranged(Quantizer(8, signed=False), 0.0, 255.0)
    assert q.integers(torch.tensor([0.5, 1.5, 2.5, -3.0, 300.0])).tolist() == [0, 2, 2, 0, 255]


@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.7), (0.0, 1.0), (-3.0, 0.0), (0.5, 2.0), (0.0, 0.0)])
def test_numbers_are_rounded_as_the_operators_of_onnx_do(low: float, high: float) -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    q, x = ranged(Quantizer(8, signed=False), low, high), numbers(10_000) * 2
    make, kinds = onnx.helper, onnx.TensorProto
    given = [
        make.make_tensor("s", kinds.FLOAT, [], [q.scale.item()]),
        make.make_tensor("z", kinds.UINT8, [], [q.zero_point.item()]),
    ]
    nodes = [
        make.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        make.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    infos = [make.make_tensor_value_info(name, kinds.FLOAT, [None]) for name in ("x", "y")]
    graph = make.make_graph(nodes, "g", infos[:1], infos[1:], given)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    [theirs] = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    assert np.array_equal(theirs, q(x).numpy())


def test_zero_stays_zero_since_padding_is_made_of_it() -> None:
    for low, high in ((-1.3, 2.7), (0.4, 3.0), (-5.0, -1.0)):
        assert ranged(Quantizer(8, signed=False), low, high)(torch.zeros(3)).tolist() == [0, 0, 0]


def test_gradients_pass_rounding_and_stop_where_numbers_are_clipped() -> None:
    q, x = ranged(Quantizer(8, signed=False), -1.0, 1.0), torch.tensor([0.3, -0.7, 5.0, -2.0], requires_grad=True)
    q(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_get_the_scale_of_least_squared_error(bits: int) -> None:
    weight = numbers(5, 400)
    weight[:, 0] = 8  # an outlier in each row
    errors = {}
    for ranges in ("minmax", "mse"):
        q = Quantizer(bits, signed=True, axis=0)
        set_weight_range(q, weight, ranges)
        assert q.scale.shape == (5,)
        errors[ranges] = (q(weight) - weight).square().sum(1)
    trials = torch.stack([_error(weight, weight.abs().amax(1) * share / 100, bits) for share in range(1, 101)])
    assert torch.allclose(errors["mse"], trials.amin(0), rtol=1e-4)
    assert (errors["mse"] <= errors["minmax"] * 1.0001).all()


def _error(weight: Tensor, most: Tensor, bits: int) -> Tensor:
    step = (most / (2 ** (bits - 1) - 1)).unsqueeze(1)
    return ((weight / step).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) * step - weight).square().sum(1)


# --- a layer by hand


def test_a_layer_computes_the_sum_of_products_of_integers() -> None:
    layer, x = nn.Conv2d(3, 4, 3, padding=1), numbers(8, 3, 6, 6)
    quantized = static(nn.Sequential(layer), x, ranges="minmax", correct_bias=False)
    [conv], (before, after) = quantized.layers().values(), quantized.activations().values()
    step_in = (x.max() - x.min()) / 255
    zero_in = round(float(-x.min() / step_in))
    assert before.scale.item() == pytest.approx(step_in.item())
    q_x = (x / before.scale).round() + zero_in
    step_w = layer.weight.detach().abs().amax((1, 2, 3)) / 127
    q_w = (layer.weight.detach() / step_w.view(-1, 1, 1, 1)).round()
    q_b = (layer.bias.detach().double() / (before.scale.double() * step_w.double())).round()
    sums = F.conv2d((q_x - zero_in).double(), q_w.double(), q_b, padding=1)
    factor = (before.scale * step_w / after.scale).view(-1, 1, 1).double()
    whole = ((sums * factor).round() + after.zero_point).clamp(0, 255)
    assert torch.allclose(
        quantized(x), ((whole - after.zero_point) * after.scale).float(), atol=after.scale.item() / 99
    )
    assert torch.allclose(conv.integers()["weight"], q_w)


def test_a_layer_in_training_computes_almost_the_same() -> None:
    quantized = static(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), x := numbers(8, 3, 6, 6))
    step = list(quantized.activations().values())[-1].scale.item()
    one = quantized(x)
    assert (quantized.train()(x) - one).abs().max() <= 1.01 * step


# --- where quantizers stand


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.act(self.norm(self.conv(x))))


def test_norms_are_folded_and_each_tensor_is_rounded_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Residual(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    for _ in range(3):
        net(numbers(16, 4, 6, 6))
    x = numbers(16, 4, 6, 6)
    quantized = static(net.eval(), x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quantized.modules())
    assert quantized.bits == {"0.conv": 8, "3": 8}
    names = list(quantized.activations())  # the input, behind the two ReLUs, the result; pooling adds none
    assert [name.removesuffix("_rounded") for name in names] == ["input_1", "_0_act", "relu", "_3"]
    assert (quantized(x) - net(x)).abs().max() < 0.05 * net(x).abs().max()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_norm_behind_pooling_is_folded_only_if_its_scales_are_positive(sign: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), norm := nn.BatchNorm2d(4), nn.Flatten())
    norm.weight.data[1] *= sign
    net(numbers(16, 3, 10, 10))
    quantized = static(net.eval(), x := numbers(16, 3, 10, 10, seed=1))
    assert any(isinstance(m, nn.BatchNorm2d) for m in quantized.modules()) == (sign < 0)
    assert ("2" in quantized.in_float) == (sign < 0)
    assert (quantized(x) - net(x)).abs().max() < 0.02 * net(x).abs().max()


def test_a_relu_behind_pooling_is_done_before_it_and_costs_no_rounding() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 5, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    ).eval()
    images = torch.randn(8, 3, 20, 20)
    small = static(net, images)
    behind = [str(node.args[0]) for node in small.net.graph.nodes if str(node.target).endswith("_rounded")]
    assert behind == ["input_1", "_4", "_5", "_8"]  # the ReLU, not its convolution or the pooling; the next two layers
    step = list(small.activations().values())[-1].scale
    assert (small(images) - net(images)).abs().max() < 4 * step


def test_a_relu_behind_pooling_stays_where_the_layer_is_read_elsewhere_too() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(324, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return torch.cat([self.head(F.relu(F.max_pool2d(y, 2)).flatten(1)), y.amin((2, 3))], 1)

    torch.manual_seed(0)
    net, images = Branched(), torch.randn(8, 3, 20, 20)
    small, wanted = static(net, images)(images), net(images)
    assert (wanted[:, 3:] < -0.5).all() and (small - wanted).abs().max() < 0.1


def test_what_stays_in_float_is_said() -> None:
    net = models.build("convnext_mini").eval()
    quantized = static(net, numbers(4, 3, 32, 32), keep=["classifier.2"])
    assert quantized.in_float["classifier.2"] == "kept by name"
    assert quantized.in_float["features.1.0.block.2"] == "no integer kernel for LayerNorm"
    assert len(quantized.bits) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) - 1


def test_the_float_network_is_left_as_it_was() -> None:
    net = models.build("resnet_mini").eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    static(net, numbers(4, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# --- how good it is


def test_eight_bits_cost_the_workhorse_little_and_each_correction_helps_at_four() -> None:
    dataset, net = data.load("cifar10-sample"), models.trained("plain-16")
    some = dataset.train.sample(200, 0)
    dense = evaluate(net, dataset.test).accuracy
    assert evaluate(static(net, some), dataset.test).accuracy > dense - 0.01
    at_four = {
        name: evaluate(static(net, some, bits=4, **options), dataset.test).loss
        for name, options in {
            "best": {},
            "uncorrected": {"correct_bias": False},
            "one scale": {"per_channel": False},
        }.items()
    }
    assert at_four["uncorrected"] > 1.02 * at_four["best"]
    assert at_four["one scale"] > 1.1 * at_four["best"]


def test_bias_correction_takes_the_mean_error_off() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    x = numbers(200, 3, 8, 8) + 1
    off = {}
    for correct in (False, True):
        quantized = static(net, x, bits=3, correct_bias=correct)
        off[correct] = (quantized(x) - net(x)).mean((0, 2, 3)).abs().mean().item()
    assert off[True] < 0.05 * off[False]


def test_an_outlier_does_not_rule_the_range_of_percentiles() -> None:
    x = numbers(2000, 10)
    x[0, 0] = 1000.0
    wide = next(iter(static(nn.Sequential(nn.Linear(10, 3)), x, ranges="minmax").activations().values()))
    found = next(iter(static(nn.Sequential(nn.Linear(10, 3)), x, ranges="percentile").activations().values()))
    assert found.scale < 0.01 * wide.scale


# --- cut networks, files


@pytest.mark.parametrize("name", ["plain_cnn", "resnet_mini", "mobilenet_mini", "convnext_mini"])
@pytest.mark.parametrize("bits", [8, 3])
def test_a_cut_network_is_quantized_saved_and_loaded_to_the_same_bits(name: str, bits: int, tmp_path: Any) -> None:
    torch.manual_seed(0)
    net, x = models.build(name).eval(), torch.rand(4, 3, 32, 32)
    groups = cdlib.find_groups(net, x[:1])
    small = cdlib.remove(net, groups, {group.name: range(group.size // 2) for group in groups.prunable[1:]})
    quantized = static(small, x, bits=bits)
    cdlib.save(quantized, file := tmp_path / "q.cdlib")
    again = cdlib.load(file)
    assert isinstance(again, Quantized) and again.bits == quantized.bits and again.in_float == quantized.in_float
    with torch.no_grad():
        assert torch.equal(again(x), quantized(x))
    weights = sum(-(-layer.weight().numel() * bits // 8) for layer in quantized.layers().values())
    assert weights < file.stat().st_size < weights + 60_000 + 5 * sum(p.numel() for p in small.parameters()) * 0.02


def test_a_quantized_network_is_not_cut() -> None:
    quantized = static(models.build("resnet_mini"), x := numbers(4, 3, 32, 32))
    with pytest.raises(CdlibError, match="prune the float network, then quantize"):
        cdlib.find_groups(quantized, x[:1])


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": torch.empty(0, 3, 8, 8)}, "no calibration images"),
        ({"calibration": torch.full((4, 3, 8, 8), 0.3)}, "one and the same number"),
        ({"calibration": torch.full((4, 3, 8, 8), torch.nan)}, "not finite"),
        ({"calibration": numbers(4, 5, 8, 8)}, r"cannot take calibration images \[4, 5, 8, 8\]"),
        ({"calibration": "images"}, "give a Split"),
        ({"bits": 9}, "bits=9"),
        ({"bits": 1}, "bits=1"),
        ({"bits": {"conv": 8}}, "layer 'conv'"),
        ({"keep": ["1"]}, "layer '1'"),
        ({"ranges": "max"}, "ranges"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], message: str) -> None:
    given = {"calibration": numbers(4, 3, 8, 8), **options}
    with pytest.raises(CdlibError, match=message) as error:
        static(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), **given)
    assert "\n" not in str(error.value)


def test_a_network_that_branches_on_numbers_is_refused() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CdlibError, match="Branches cannot be traced"):
        static(Branches(), numbers(4, 3))


def test_a_quantized_network_is_not_quantized_again() -> None:
    quantized = static(nn.Sequential(nn.Linear(4, 3)), x := numbers(9, 4))
    with pytest.raises(CdlibError, match="quantized already: give it other bits by apply"):
        static(quantized, x)


# --- equalisation


def uneven() -> nn.Module:
    """A depthwise-separable network whose channels differ a thousandfold, as folded norms make them."""
    torch.manual_seed(0)
    act = nn.ReLU
    layers = [nn.Conv2d(3, 8, 1), act(), nn.Conv2d(8, 8, 3, padding=1, groups=8), act(), nn.Conv2d(8, 5, 1)]
    net = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    with torch.no_grad():
        scales = torch.logspace(-1.5, 1.5, 8)
        layers[0].weight.mul_(scales.view(-1, 1, 1, 1)), layers[0].bias.mul_(scales)
        layers[2].weight.div_(scales.flip(0).view(-1, 1, 1, 1)), layers[2].bias.div_(scales.flip(0))
    return net.eval()


def test_equalising_changes_no_output_and_makes_ranges_equal() -> None:
    net, x = uneven(), numbers(4, 3, 6, 6)
    found: list[Any] = []

    def change(graph: Any) -> None:
        found.extend([equalise(graph), graph(x), dict(graph.named_modules())])

    prepared(net, 8, per_channel=False, change=change)
    assert found[0] == 3
    assert torch.allclose(found[1], net(x), rtol=1e-4, atol=1e-5)
    first, second = (found[2][name].weight.flatten(1).abs().amax(1) for name in ("0", "2"))
    assert torch.allclose(first, second, rtol=0.05)
    assert net[0].weight.abs().amax((1, 2, 3)).max() > 100 * net[0].weight.abs().amax((1, 2, 3)).min()


def test_equalising_saves_a_depthwise_network_with_one_scale_a_layer() -> None:
    net, x = uneven(), numbers(64, 3, 6, 6)
    wanted, error = net(x), {}
    for equalised in (False, True):
        given = static(net, x, per_channel=False, equalised=equalised, correct_bias=False)(x)
        error[equalised] = (given - wanted).square().mean().item()
    assert error[True] < 0.4 * error[False]


def test_an_equalised_network_comes_back_from_its_file(tmp_path: Any) -> None:
    quantized = static(models.build("mobilenet_mini"), x := numbers(4, 3, 32, 32), per_channel=False, equalised=True)
    cdlib.save(quantized, tmp_path / "q.cdlib")
    assert torch.equal(cdlib.load(tmp_path / "q.cdlib")(x), quantized(x))


def test_a_relu6_between_equalised_layers_becomes_a_relu() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1))
    quantized = static(net, numbers(8, 3, 4, 4), equalised=True)
    assert not any(isinstance(m, nn.ReLU6) for m in quantized.modules())
    assert any(isinstance(m, nn.ReLU6) for m in static(net, numbers(8, 3, 4, 4)).modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4)).double(), "0.weight is float64: give the network in float32"),
        (lambda: nn.Sequential(nn.Linear(4, 4)).bfloat16(), "0.weight is bfloat16"),
        (
            lambda: cdlib.pruning.unstructured(nn.Sequential(nn.Linear(4, 4)), numbers(1, 4), 0.5, 0.5),
            "make them permanent first",
        ),
        (lambda: share(nn.Sequential(nn.Linear(4, 4))), "masks or a codebook"),
        (lambda: nn.Sequential(nn.ReLU()), r"can be quantized \(it has no such layer"),
        (
            lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8), nn.Flatten()),
            "0: no integer kernel for TransformerEncoderLayer",
        ),
    ],
)
def test_networks_that_cannot_be_quantized_are_refused(make: Any, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        static(make(), numbers(9, 4))
