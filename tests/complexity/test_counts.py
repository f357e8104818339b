"""Counts against formulas derived by hand, and against PyTorch's own counter."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import cdlib
from cdlib.complexity import COLUMNS, in_units, macs_of, products_of
from cdlib.graph import capture


def totals(model: nn.Module, *shape: int) -> cdlib.Profile:
    return cdlib.profile(model, torch.randn(2, *shape))


# Each row: the layer, the shape of one sample, and (params, macs, activation bytes) worked out by hand.
BY_HAND: list[tuple[str, nn.Module, tuple[int, ...], tuple[int, int, int]]] = [
    # 16 filters of 3x5x5 with bias; (32 + 2*2 - 5)/1 + 1 = 32
    ("conv2d", nn.Conv2d(3, 16, 5, padding=2), (3, 32, 32), (16 * 75 + 16, 32 * 32 * 16 * 75, 4 * 16 * 32 * 32)),
    # (32 + 2 - 3)//2 + 1 = 16
    ("strided", nn.Conv2d(8, 4, 3, 2, 1, bias=False), (8, 32, 32), (4 * 72, 16 * 16 * 4 * 72, 4 * 4 * 256)),
    # every filter sees 8/4 = 2 input channels
    ("grouped", nn.Conv2d(8, 12, 3, padding=1, groups=4), (8, 6, 6), (12 * 18 + 12, 36 * 12 * 18, 4 * 12 * 36)),
    ("depthwise", nn.Conv2d(8, 8, 7, padding=3, groups=8), (8, 10, 10), (8 * 49 + 8, 100 * 8 * 49, 4 * 8 * 100)),
    # a dilated 3-kernel spans 5: 10 - 5 + 1 = 6
    ("dilated", nn.Conv2d(2, 3, 3, dilation=2), (2, 10, 10), (3 * 18 + 3, 36 * 3 * 18, 4 * 3 * 36)),
    # every one of the 5*5*4 inputs is spread over 6*2*2 outputs; (5 - 1)*2 + 2 = 10
    ("transposed", nn.ConvTranspose2d(4, 6, 2, 2), (4, 5, 5), (4 * 24 + 6, 25 * 4 * 24, 4 * 6 * 100)),
    ("transposed, grouped", nn.ConvTranspose2d(4, 6, 2, 2, groups=2), (4, 5, 5), (4 * 12 + 6, 25 * 4 * 12, 4 * 600)),
    ("conv1d", nn.Conv1d(4, 6, 3), (4, 20), (6 * 12 + 6, 18 * 6 * 12, 4 * 6 * 18)),
    ("conv3d", nn.Conv3d(2, 5, 3), (2, 6, 7, 8), (5 * 54 + 5, 4 * 5 * 6 * 5 * 54, 4 * 5 * 120)),
    ("linear", nn.Linear(10, 7), (10,), (77, 70, 28)),
    ("linear on 3-D input", nn.Linear(10, 7), (9, 10), (77, 9 * 70, 9 * 28)),
    ("batch norm", nn.BatchNorm2d(8), (8, 4, 4), (16, 0, 4 * 8 * 16)),
    ("ReLU in place", nn.ReLU(inplace=True), (8, 4, 4), (0, 0, 0)),
    ("flatten", nn.Flatten(), (8, 4, 4), (0, 0, 0)),
    ("max pooling", nn.MaxPool2d(2), (8, 4, 4), (0, 0, 4 * 8 * 4)),
]


@pytest.mark.parametrize(("model", "shape", "expected"), [row[1:] for row in BY_HAND], ids=[row[0] for row in BY_HAND])
def test_layer_kinds_by_hand(model: nn.Module, shape: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    profile = totals(model, *shape)
    assert (profile.params, profile.macs, profile.activation_bytes) == expected
    assert profile.flops == 2 * profile.macs and profile.weight_bytes == 4 * profile.params
    assert all(type(getattr(profile, column)) is int for column in COLUMNS)


def test_attention_by_hand() -> None:
    """10 tokens of width 32 in 4 heads of 8: three projections in, one out, and two products of 4 x (10 x 8 x 10)."""
    profile = cdlib.profile(nn.MultiheadAttention(32, 4, batch_first=True), (torch.randn(2, 10, 32),) * 3)
    assert profile.params == 4 * (32 * 32 + 32)
    assert profile.macs == 4 * 10 * 32 * 32 + 2 * 4 * 10 * 10 * 8
    assert profile.layers.loc["out_proj", "macs"] == 10 * 32 * 32, "the output projection is a row of its own"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_counts_are_the_same_when_the_network_must_run_on_numbers() -> None:
    """Then PyTorch would take its fused path through a transformer layer, where no product can be seen."""

    class DependsOnNumbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() != 0 else x

    x = torch.ones(2, 10, 32)
    expected = 4 * 10 * 32 * 32 + 2 * 4 * 10 * 10 * 8 + 2 * 10 * 32 * 64
    model = DependsOnNumbers()
    assert cdlib.profile(model, x).macs == cdlib.profile(model.layer, x).macs == expected


def test_counts_inference_whatever_mode_the_network_is_in() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4, 2))
    assert totals(model.train(), 3, 8, 8).totals() == totals(model.eval(), 3, 8, 8).totals()
    assert "2" not in totals(model.train(), 3, 8, 8).layers.index, "dropout does nothing at inference"


def test_fused_attention_with_other_widths() -> None:
    class Attend(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 6)
    profile = cdlib.profile(Attend(), (q, k, v))
    assert profile.macs == 3 * 5 * 7 * 8 + 3 * 5 * 7 * 6 and profile.activation_bytes == 4 * 3 * 5 * 6


def test_fused_attention_broadcasts_its_keys() -> None:
    """Six heads of queries share one head of keys and values: 2 x 6 x 5 x 7 weights of 8 + 8 products each."""

    class Attend(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k)

    model, q, k = Attend(), torch.randn(2, 6, 5, 8, device="meta"), torch.randn(2, 1, 7, 8, device="meta")
    profile = cdlib.profile(model, (q, k), batch_dim=None)
    with FlopCounterMode(display=False) as counter:
        model(q, k)
    assert 2 * profile.macs == counter.get_total_flops() == 2 * 2 * 6 * 5 * 7 * 16
    assert profile.activation_bytes == 4 * q.numel()


def test_what_is_computed_from_weights_alone_is_no_activation() -> None:
    layer = nn.Conv2d(3, 8, 3)
    plain = totals(layer, 3, 8, 8)
    normed = totals(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), 3, 8, 8)
    pruned = totals(prune.random_unstructured(layer, "weight", 0.5), 3, 8, 8)
    for profile in (normed, pruned):
        assert profile.macs == plain.macs and profile.peak_activation_bytes == plain.peak_activation_bytes
        assert profile.activation_bytes == plain.activation_bytes
    assert normed.params == plain.params + 8 and pruned.params == plain.params
    assert plain.nonzero_params == 224 and pruned.nonzero_params == 224 - 108, "a mask is a zero"


def test_a_buffer_that_the_network_fills_is_an_activation() -> None:
    class Fills(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(1, 6)
            out[:, :4] = x
            return out + 1

    assert list(totals(Fills(), 4).timeline["live_bytes"])[-1] == 2 * 24


class Calls(nn.Module):
    """Calls a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


ATTENTION = {
    "by the functional's name": lambda q: F.scaled_dot_product_attention(q, q, q),
    "imported before": lambda q: scaled_dot_product_attention(q, q, q),
    "by the operator's name": lambda q: torch.ops.aten.scaled_dot_product_attention(q, q, q),
    "by its overload": lambda q: torch.ops.aten.scaled_dot_product_attention.default(q, q, q),
    "by keywords": lambda q: scaled_dot_product_attention(query=q, key=q, value=q, is_causal=True),
}


@pytest.mark.parametrize("numbers", [False, True], ids=["on shapes", "on numbers"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_one_operator_however_it_is_called(name: str, numbers: bool) -> None:
    """8 heads of 64 tokens of width 16: two products of 8 x 64 x 64 x 16, and an output like the input."""

    def attend(q: Tensor) -> Tensor:
        return ATTENTION[name](q) if not numbers or q.sum() > -1e9 else q

    profile = totals(Calls(attend), 8, 64, 16)
    assert profile.macs == 2 * 8 * 64 * 64 * 16
    assert profile.activation_bytes == 4 * 8 * 64 * 16 + 5 * numbers, "a sum and a truth value are needed to choose"
    assert profile.peak_activation_bytes == 2 * 4 * 8 * 64 * 16


def test_bilinear_layer_counts_each_of_its_weights() -> None:
    for model in (nn.Bilinear(5, 6, 7), nn.Bilinear(5, 6, 7, bias=False)):
        profile = cdlib.profile(model, (torch.randn(2, 5), torch.randn(2, 6)))
        assert profile.macs == 5 * 6 * 7 == 210 and list(profile.layers["kind"]) == ["Bilinear"]
    rows = cdlib.profile(nn.Bilinear(5, 6, 7), (torch.randn(2, 3, 5), torch.randn(2, 3, 6)))
    assert rows.macs == 3 * 210


@pytest.mark.parametrize(
    "product",
    [
        lambda s, x: torch.sparse.mm(s, x),
        lambda s, x: torch.sparse.addmm(torch.ones(4, 1), s, x),
        lambda s, x: s @ x,
        lambda s, x: s @ x[:, 0],
        lambda s, x: F.linear(x.T, s),
    ],
    ids=["mm", "addmm", "matmul", "matrix-vector", "linear"],
)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:Sparse invariant checks")
def test_a_sparse_product_counts_like_the_dense_one(product: Any, layout: torch.layout) -> None:
    """4x5 times 5x1, whether 20 or only 3 numbers of the first are stored."""
    few = torch.zeros(4, 5).index_put_((torch.tensor([0, 1, 3]), torch.tensor([4, 1, 2])), torch.ones(3))
    for matrix in (torch.ones(4, 5), few):
        sparse = matrix.to_sparse(layout=layout)
        profile = cdlib.profile(Calls(lambda x, s=sparse: product(s, x)), torch.randn(5, 1), batch_dim=None)
        assert profile.macs == 4 * 5 and profile.activation_bytes == 4 * 4
        given = cdlib.profile(Calls(lambda s: product(s, torch.ones(5, 1))), sparse, batch_dim=None)
        assert given.macs == 4 * 5


def _recurrent(x: Tensor) -> Tensor:
    weights = [p.detach() for p in nn.LSTM(3, 4).parameters()]
    state = x.new_zeros(1, 1, 4)
    return torch.ops.aten._cudnn_rnn(x, weights, 4, None, state, state, 2, 4, 0, 1, False, 0, False, False, [], None)[0]


@pytest.mark.parametrize(
    ("product", "shape", "macs"),
    [
        # 7 - 3 + 1 = 5 steps of 2 sequences, 4 channels out of 3 under a kernel of 3
        (lambda x: torch.conv_tbc(x, torch.ones(3, 3, 4), torch.ones(4)), (7, 2, 3), 5 * 2 * 4 * 3 * 3),
        (lambda x: torch.hspmm(torch.ones(4, 5).to_sparse(), x), (5, 1), 20),
        (lambda x: torch.smm(torch.ones(4, 5).to_sparse(), x), (5, 1), 20),
        (lambda x: torch.sparse.mm(torch.ones(4, 5).to_sparse(), x.to_sparse()), (5, 1), 20),
        (lambda x: torch.sparse.mm(torch.ones(4, 5).to_sparse_csr(), x, "sum"), (5, 1), 20),
        (lambda x: torch.sparse.sampled_addmm(torch.eye(4, 5).to_sparse_csr(), x, torch.ones(2, 5)), (4, 2), 4 * 2 * 5),
        (lambda x: torch._addmm_activation(torch.ones(3), x, torch.ones(4, 3)), (2, 4), 2 * 4 * 3),
        # 7 steps, four gates of 4 units that read 3 inputs and 4 units
        (_recurrent, (7, 1, 3), 7 * 4 * 4 * (3 + 4)),
    ],
    ids=["conv_tbc", "hspmm", "smm", "sparse by sparse", "reduced", "sampled", "with activation", "cuDNN's LSTM"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:Sparse invariant checks")
def test_products_that_pytorch_has_an_operator_of_its_own_for(product: Any, shape: Any, macs: int) -> None:
    x = torch.ones(shape, device="meta" if product is _recurrent else "cpu")
    assert cdlib.profile(Calls(product), x, batch_dim=None).macs == macs


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:Sparse invariant checks")
def test_sparse_weights_take_the_bytes_of_their_values_and_indices() -> None:
    class Sparse(nn.Module):
        def __init__(self, layout: torch.layout) -> None:
            super().__init__()
            matrix = torch.eye(4, 5).to_sparse(layout=layout)
            self.weight = nn.Parameter(matrix, requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.weight, x.T).T

    for layout, indices in ((torch.sparse_coo, 2 * 4), (torch.sparse_csr, 4 + 5)):
        profile = totals(Sparse(layout), 5)
        assert (profile.params, profile.nonzero_params, profile.macs) == (20, 4, 20)
        assert profile.weight_bytes == 4 * 4 + 8 * indices


@pytest.mark.parametrize(
    ("model", "shape", "products"),
    [
        (nn.Linear(4, 5, dtype=torch.complex64), (4,), 4 * 5),
        (nn.Conv2d(4, 5, 1, dtype=torch.complex64), (4, 1, 1), 4 * 5),
        (nn.ConvTranspose2d(4, 5, 1, dtype=torch.complex64), (4, 1, 1), 4 * 5),
        (nn.Bilinear(4, 4, 5, dtype=torch.complex64), (4,), 4 * 4 * 5),
        (Calls(lambda x: x @ x.mH), (2, 4), 2 * 4 * 2),
        (Calls(lambda x: torch.vdot(x[0], x[0])), (4,), 4),
    ],
    ids=["linear", "convolution", "transposed", "bilinear", "matmul", "vdot"],
)
def test_a_product_of_complex_numbers_counts_as_three_of_real_ones(model: Any, shape: Any, products: int) -> None:
    x = torch.ones(1, *shape, dtype=torch.complex64)
    assert cdlib.profile(model, (x, x) if isinstance(model, nn.Bilinear) else x).macs == 3 * products


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
    ],
)
def test_products_of_weights_alone_count_nothing(norm: Any) -> None:
    plain, normed = totals(nn.Linear(8, 8), 8), totals(norm(nn.Linear(8, 8)), 8)
    for column in ("macs", "activation_bytes", "peak_activation_bytes"):
        assert getattr(normed, column) == getattr(plain, column) == {"macs": 64}.get(column, getattr(plain, column))


def test_a_product_of_the_input_that_is_written_into_a_buffer_counts() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.zeros(1, 3))
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.mm(x, self.weight, out=self.kept) + 1

    assert totals(Keeps(), 4).macs == 12


@pytest.mark.parametrize("first", [0, 1])
def test_a_mask_on_one_of_two_modules_that_share_a_weight_hides_nothing(first: int) -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    nn.init.ones_(model[0].weight)
    one, other = (model[2], model[0]) if first else (model[0], model[2])
    mask = torch.ones(6, 6)
    mask[:3] = 0
    prune.custom_from_mask(one, "weight", mask)
    assert totals(model, 6).nonzero_params == 36, "the other module uses all"
    prune.custom_from_mask(other, "weight", mask.T)
    assert totals(model, 6).nonzero_params == 36 - 9, "only what both mask is used by none"


@pytest.mark.parametrize(
    ("function", "macs", "made"),
    [
        (lambda x: torch.mul(x, 2, out=x.new_empty(0)), 0, 24),
        (lambda x: torch.mm(x, x.T, out=x.new_empty(0)), 6, 4),
        (lambda x: torch.mm(x, x.T, out=torch.empty(0)), 6, 4),
        (lambda x: torch.cat([x, x], out=x.new_empty(0)), 0, 48),
        (lambda x: x.new_empty(0).resize_(1, 6).copy_(x), 0, 24),
        (lambda x: x.new_empty(0).set_(x * 2), 0, 24),
    ],
    ids=["mul", "mm", "mm into a constant", "cat", "resize_", "set_"],
)
def test_a_tensor_that_is_resized_in_place_takes_its_new_bytes(function: Any, macs: int, made: int) -> None:
    profile = totals(Calls(function), 6)
    assert (profile.macs, profile.activation_bytes, profile.peak_activation_bytes) == (macs, made, 24 + made)


def test_local_response_norm_across_channels_makes_its_output_and_its_scale() -> None:
    assert totals(nn.CrossMapLRN2d(3), 4, 5, 5).peak_activation_bytes == 3 * 400


def test_what_has_no_shape_is_refused_in_one_line() -> None:
    with pytest.raises(cdlib.CdlibError, match="0.weight has no shape yet: run the network once"):
        totals(nn.Sequential(nn.LazyLinear(3)), 4)
    nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    for batch_dim in (0, None):
        with pytest.raises(cdlib.CdlibError, match="nested tensor, which has no one shape"):
            cdlib.profile(nn.Linear(4, 2), nested, batch_dim=batch_dim)


def test_samples_of_sparse_inputs() -> None:
    model = Calls(lambda x, y: torch.sparse.mm(x, torch.ones(5, 3)) + y)
    x = torch.ones(4, 5).to_sparse()
    profile = cdlib.profile(model, x, kwargs={"y": torch.ones(4, 3)})
    assert profile.macs == 5 * 3 and profile.activation_bytes == 2 * 4 * 3


def test_arguments_by_name_in_nests_and_on_the_meta_device() -> None:
    model = Calls(lambda d, scale, nothing, *, bias: F.linear(d["x"], d["w"]) * scale + bias[0][1])
    x, w, bias = torch.ones(2, 4, device="meta"), torch.ones(3, 4), torch.ones(2, 3)
    profile = cdlib.profile(model, ({"x": x, "w": w}, 2, None), kwargs={"bias": [(0, bias)]})
    assert profile.macs == 12 and profile.activation_bytes == 3 * 4 * 3


@pytest.mark.parametrize(
    ("product", "macs"),
    [
        (lambda x: torch.einsum("nij,nkj->nik", x, x), 4 * 5 * 4),
        (lambda x: x @ x.transpose(1, 2), 4 * 5 * 4),
        (lambda x: torch.baddbmm(x.new_zeros(1, 4, 4), x, x.mT), 4 * 5 * 4),
        (lambda x: torch.addbmm(x.new_zeros(4, 4), x, x.mT), 4 * 5 * 4),
        (lambda x: x[0] @ x[0, 0], 4 * 5),
        (lambda x: x.new_zeros(1, 4, 4).baddbmm_(x, x.mT), 4 * 5 * 4),
        (lambda x: x.new_zeros(4, 4).addmm_(x[0], x[0].T), 4 * 5 * 4),
    ],
    ids=["einsum", "matmul", "baddbmm", "addbmm", "matrix-vector", "baddbmm in place", "addmm in place"],
)
def test_matrix_products_of_activations(product: Any, macs: int) -> None:
    assert cdlib.profile(Calls(product), torch.randn(1, 4, 5)).macs == macs


def test_shared_layer_counts_its_work_twice_and_its_parameters_once() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    profile = totals(nn.Sequential(conv, nn.ReLU(), conv), 4, 6, 6)
    assert profile.params == 4 * 36 + 4 and profile.macs == 2 * 36 * 4 * 36
    assert list(profile.layers.index) == ["0", "1"] and profile.layers.loc["0", "macs"] == profile.macs


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    assert totals(model, 6).params == 36 and totals(model, 6).macs == 72


def test_functional_network_has_a_row_for_each_weight() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(5, 4, 1, 1))
            self.unused = nn.Parameter(torch.zeros(7))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.relu(F.conv2d(x, self.first)), self.second)

    layers = totals(Functional(), 3, 8, 8).layers
    assert dict(layers["macs"]) == {"first": 36 * 4 * 27, "(network)": 0, "second": 36 * 5 * 4}
    assert dict(layers["params"]) == {"first": 108, "(network)": 7, "second": 20}
    assert dict(layers["nonzero_params"]) == {"first": 108, "(network)": 0, "second": 20}
    assert dict(layers["kind"]) == {"first": "conv2d", "(network)": "Functional", "second": "conv2d"}


def test_nonzeros_fall_when_weights_are_zeroed_and_nothing_else_does() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    nn.init.constant_(model[0].bias, 1.0)
    before = totals(model, 3, 8, 8)
    with torch.no_grad():
        model[0].weight[:4] = 0
    after = totals(model, 3, 8, 8)
    assert before.nonzero_params is not None and after.nonzero_params == before.nonzero_params - 4 * 27
    assert {k: v for k, v in after.totals().items() if k != "nonzero_params"} == {
        k: v for k, v in before.totals().items() if k != "nonzero_params"
    }


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_does_not_depend_on_the_batch_size(batch: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))
    profile = cdlib.profile(model, torch.randn(batch, 3, 8, 8))
    reference = cdlib.profile(model, torch.randn(1, 3, 8, 8))
    assert profile.totals() == reference.totals() and profile.layers.equals(reference.layers)


def test_batch_in_another_dimension_or_none() -> None:
    lstm = nn.LSTM(5, 7)  # time first
    one = 11 * 4 * 7 * (5 + 7)
    assert cdlib.profile(lstm, torch.randn(11, 3, 5), batch_dim=1).macs == one
    assert cdlib.profile(nn.Linear(5, 7), torch.randn(5), batch_dim=None).macs == 35
    with pytest.raises(cdlib.CdlibError, match="batch_dim=None keeps it whole"):
        cdlib.profile(nn.Linear(5, 7), torch.randn(5))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_peak_does_not_depend_on_the_batch_either(device: str) -> None:
    class DependsOnNumbers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.is_meta or x.sum() > -1e9 else x

    class Twice(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    for batch in (1, 2, 7):
        x = torch.ones(batch, 6, device=device)
        assert cdlib.profile(DependsOnNumbers(), x).peak_activation_bytes == 2 * 24
        assert cdlib.profile(Twice(), (x, x)).peak_activation_bytes == 2 * 24, "one tensor, given twice"


def test_outputs_may_come_in_a_dataclass() -> None:
    @dataclasses.dataclass
    class Outputs:
        logits: Tensor

    class Wraps(nn.Module):
        def forward(self, x: Tensor) -> Outputs:
            return Outputs(x * 2)

    assert totals(Wraps(), 6).activation_bytes == 24


def test_peak_of_a_chain_is_its_largest_neighbours() -> None:
    """3x8x8 -> 16x8x8 -> 4x8x8: the second layer reads 16 maps while it writes 4."""
    profile = totals(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)), 3, 8, 8)
    assert profile.peak_activation_bytes == 4 * 64 * (16 + 4)
    assert list(profile.timeline["live_bytes"]) == [4 * 64 * (3 + 16), 4 * 64 * (16 + 4)]


def test_peak_counts_what_a_shortcut_keeps_alive() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.project = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.project(self.expand(x).relu_())

    profile = totals(Residual(), 4, 8, 8)
    live = [4 * 64 * maps for maps in (4 + 16, 4 + 16, 4 + 16 + 4, 4 + 4 + 4)]
    assert list(profile.timeline["operator"]) == ["convolution", "relu_", "convolution", "add"]
    assert list(profile.timeline["live_bytes"]) == live and profile.peak_activation_bytes == max(live)


def test_peak_keeps_the_base_of_a_view_and_what_is_returned() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            doubled = x * 2
            half = doubled[:, :2]
            return half + 1, doubled.flatten(1).exp()

    profile = totals(Views(), 4, 4)
    size = 4 * 16
    assert list(profile.timeline["live_bytes"]) == [2 * size, size + size // 2, size + size // 2 + size]


def test_an_activation_function_of_integers_makes_floats() -> None:
    profile = cdlib.profile(nn.Sigmoid(), torch.ones(2, 6, dtype=torch.int64))
    assert profile.activation_bytes == 4 * 6 and profile.peak_activation_bytes == 8 * 6 + 4 * 6


def test_bytes_follow_the_data_type() -> None:
    model = nn.Linear(8, 4).bfloat16()
    profile = cdlib.profile(model, torch.randn(1, 8, dtype=torch.bfloat16))
    assert profile.weight_bytes == 2 * 36 and profile.activation_bytes == 8


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore::DeprecationWarning")
def test_packed_int8_modules_count_with_their_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    before = totals(model, 1, 4, 4)
    after = totals(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}), 1, 4, 4)
    assert sum(p.numel() for p in model.parameters()) == before.params == after.params
    assert after.macs == before.macs
    assert after.weight_bytes == 4 * 40 + (128 + 4 * 8) + (24 + 4 * 3), "float convolution, int8 weights, float biases"
    assert after.layers.loc["2", "params"] == 136 and after.layers.loc["4", "macs"] == 24
    half = totals(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.float16), 1, 4, 4)
    assert half.params == before.params and half.weight_bytes == 4 * 40 + (2 * 128 + 4 * 8) + (2 * 24 + 4 * 3)
    with pytest.raises(cdlib.CdlibError, match="profile the float network"):
        cdlib.profile(torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(4, 4))), torch.randn(1, 3, 4))


@pytest.mark.filterwarnings("ignore")
def test_statically_quantized_convolution_counts_as_the_float_one() -> None:
    net = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()).eval()
    expected = totals(net, 4, 8, 8)
    net.qconfig = torch.ao.quantization.default_qconfig  # type: ignore[assignment]
    prepared = torch.ao.quantization.prepare(torch.ao.quantization.fuse_modules(net, [["1", "2"]]))
    prepared(torch.randn(1, 4, 8, 8))
    quantized = totals(torch.ao.quantization.convert(prepared), 4, 8, 8)
    assert (quantized.params, quantized.macs) == (expected.params, expected.macs) == (6 * 18 + 6, 36 * 6 * 18)
    assert quantized.weight_bytes == 6 * 18 + 4 * 6 and quantized.layers.loc["1", "activation_bytes"] == 6 * 36


def test_meta_network_is_counted_without_memory() -> None:
    with torch.device("meta"):
        model = torchvision.models.convnext_large()
    profile = cdlib.profile(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert profile.params == torchvision.models.ConvNeXt_Large_Weights.DEFAULT.meta["num_params"]
    assert profile.nonzero_params is None and "unknown" in str(profile)


# One network of every family whose module code differs; benchmarks/profilers.py does all of them.
FAMILIES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_half_of_torchs_counter_and_the_published_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for initialiser in ("trunc_normal_", "kaiming_normal_", "normal_", "xavier_uniform_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, initialiser, lambda tensor, *args, **kwargs: tensor)  # values do not matter here
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, **kwargs).eval()
    weights = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    size = {"maxvit_t": 224, "swin_v2_t": 256, "inception_v3": 299}.get(name, 224)
    x = torch.empty(1, 3, size, size, device="meta")
    profile = cdlib.profile(model, x)
    # Swin v2 computes tables of positions from weights and constants: torch counts that for every image, we for none
    alone = sum(products_of(op) - macs_of(op) for op in capture(model, x).ops)
    assert (alone > 0) == name.startswith("swin_v2")
    # with gradients on, so that attention takes the same path as ours: the fused one is invisible to the counter
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(x)
    assert 2 * profile.macs == profile.flops == counter.get_total_flops() - 2 * alone
    assert profile.params == sum(p.numel() for p in model.parameters())
    if name not in ("googlenet", "inception_v3"):  # published without their auxiliary heads
        assert profile.params == weights.meta["num_params"]
    for column in ("params", "nonzero_params", "macs", "flops", "weight_bytes", "activation_bytes"):
        assert profile.layers[column].sum() == getattr(profile, column)
    assert profile.layers["peak_activation_bytes"].max() == profile.peak_activation_bytes


def test_text_names_its_units() -> None:
    text = str(totals(nn.Conv2d(3, 16, 3), 3, 32, 32))
    assert "FLOPs = 2 x MACs: 777.6 k" in text and "activations: 57.6 kB" in text
    assert [in_units(n, "B") for n in (999, 1_000, 27_827_818, 5_000_000_000)] == ["999 B", "1 kB", "27.83 MB", "5 GB"]


def test_import_is_light() -> None:
    """`import cdlib` needs torch, numpy and pandas, and nothing that the extras bring."""
    code = "import sys, cdlib; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    extras = {"torchvision", "timm", "accelerate", "sklearn", "scipy", "matplotlib", "typer", "rich", "papermill"}
    assert not extras & set(loaded)


def test_two_equal_blocks_count_alike_however_often_they_were_seen() -> None:
    """Shapes are worked out once for each operator; some operators hand on memory without saying so."""
    block = {"d_model": 20, "nhead": 4, "dim_feedforward": 32, "batch_first": True}
    net = nn.Sequential(*(nn.TransformerEncoderLayer(**block) for _ in range(2))).eval()
    for _ in range(2):
        held = cdlib.profile(net, torch.zeros(1, 7, 20)).layers["activation_bytes"]
        assert [held[name] for name in held.index if name.startswith("0")] == [
            held[name] for name in held.index if name.startswith("1")
        ]
        assert held["0.self_attn"] == 4 * 7 * 20 * 7  # q, k, v as projected and as copied apart, and the heads joined
