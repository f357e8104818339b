"""Networks stored and run in forms that know of zeros: sizes by hand, round trips to the bit, the same outputs."""

from __future__ import annotations

import gzip
import json
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import cdlib
from cdlib import CdlibError, models
from cdlib.pruning import permanent, two_to_four, unstructured
from cdlib.serialization import FORMS, decode, encode, executable, sizes
from cdlib.serialization.sparse_execution import CsrLinear

IMAGE = torch.zeros(1, 3, 8, 8)


def matrix(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    """A linear layer with these weights."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def sparse(amount: float = 0.8, name: str = "vgg_mini") -> nn.Module:
    torch.manual_seed(0)
    return permanent(unstructured(models.build(name, 10), IMAGE, conv=amount, linear=amount))


def payload(content: bytes) -> int:
    """Bytes of the tensors alone, without the header of a safetensors file."""
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_bytes_of_a_small_layer_by_hand() -> None:
    rows = [[0.0] * 16 for _ in range(4)]
    rows[0][3], rows[2][0], rows[2][15] = 1.5, -2.0, 0.25
    layer = matrix(rows, bias=[1.0, 2.0, 3.0, 4.0])
    dense = 4 * (4 * 16 + 4)
    csr = 3 * 4 + 3 * 4 + 5 * 4 + 16  # values, columns, 4 rows and an end; the bias, dense
    bitmask = 3 * 4 + 64 // 8 + 16  # the bias would take 16 bytes and a byte of bits, so it is dense too
    found = {form: payload(encode(layer, form)) for form in ("dense", "csr", "bitmask")}
    assert found == {"dense": dense, "csr": csr, "bitmask": bitmask}


def test_what_csr_and_the_bitmask_hold() -> None:
    from safetensors.torch import load

    layer = matrix([[0.0, 7.0, 0.0, 0.0], [0.0] * 4, [5.0, 0.0, 0.0, 6.0], [0.0] * 4])
    held = load(encode(layer, "csr"))
    assert held["weight.values"].tolist() == [7.0, 5.0, 6.0]
    assert held["weight.columns"].tolist() == [1, 0, 3]
    assert held["weight.rows"].tolist() == [0, 1, 1, 3, 3]
    held = load(encode(layer, "bitmask"))
    assert held["weight.values"].tolist() == [7.0, 5.0, 6.0]
    assert held["weight.bits"].tolist() == [0b01000000, 0b10010000]


@pytest.mark.parametrize(
    ("nonzero", "csr", "bitmask"),
    [(64, 256, 256), (62, 256, 256), (61, 256, 8 + 244), (32, 256, 136), (30, 256, 128), (29, 20 + 232, 124)],
)
def test_a_tensor_that_would_not_be_smaller_stays_dense(nonzero: int, csr: int, bitmask: int) -> None:
    values = [1.0] * nonzero + [0.0] * (64 - nonzero)
    layer = matrix([values[k : k + 16] for k in range(0, 64, 16)])
    assert payload(encode(layer, "csr")) == csr  # 8 bytes a non-zero weight and 5 row pointers, or 4 a weight
    assert payload(encode(layer, "bitmask")) == bitmask
    assert (b"weight.bits" in encode(layer, "bitmask")) == (bitmask < 256)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("amount", [0.0, 0.6, 0.97])
def test_nothing_is_lost(form: str, amount: float) -> None:
    model = sparse(amount)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor[tensor == 0] = 0.0  # a zero without a sign
    stored, back = model.state_dict(), decode(encode(model, form))
    assert back.keys() == stored.keys()
    for name, tensor in stored.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(back[name]) == bits(tensor), name


@pytest.mark.parametrize("form", FORMS)
def test_odd_tensors_survive(form: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.float16 = nn.Parameter(torch.tensor([[0, 1.5, 0, 0, 0, 0, 0, 0, 0]] * 9, dtype=torch.float16))
            self.bfloat16_ = nn.Parameter(torch.eye(20).bfloat16())
            self.float64 = nn.Parameter(torch.eye(7).double() * torch.pi)
            self.scalar, self.none = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.zeros(0, 3))
            self.special = nn.Parameter(torch.diag(torch.tensor([torch.nan, torch.inf, -torch.inf, 1e-45, 0, 0])))
            self.register_buffer("count", torch.tensor(3))
            self.register_buffer("seen", torch.tensor([[True, False]]))
            self.volume = nn.Parameter(torch.zeros(2, 2, 3, 4, 5).index_fill(1, torch.tensor(1), -1.0))

    odd = Odd()
    back = decode(encode(odd, form))
    for name, tensor in odd.state_dict().items():
        assert back[name].shape == tensor.shape and back[name].dtype == tensor.dtype
        assert bits(back[name]) == bits(tensor), name


def test_the_sign_of_a_zero_is_dropped_and_masks_are_applied() -> None:
    masked = unstructured(sparse(0.0), IMAGE, conv=0.7, linear=0.7)
    plain = permanent(masked)
    assert any((torch.signbit(p) & (p == 0)).any() for p in plain.parameters()), "masks leave negative zeros"
    for form in FORMS:
        back = decode(encode(masked, form))
        assert back.keys() == plain.state_dict().keys()
        for name, tensor in plain.state_dict().items():
            assert torch.equal(back[name], tensor)
            assert not (torch.signbit(back[name]) & (back[name] == 0)).any()
        assert encode(masked, form) == encode(plain, form)
    assert any(name.endswith("weight_mask") for name, _ in masked.named_buffers()), "left as it was"


def test_a_shared_tensor_is_stored_once() -> None:
    first, second = matrix([[0.0, 1.0], [2.0, 0.0]]), matrix([[0.0, 0.0], [0.0, 0.0]])
    model = nn.Sequential(first, second)
    assert payload(encode(model)) == 32
    second.weight = first.weight
    assert payload(encode(model)) == 16
    for form in FORMS:
        back = decode(encode(model, form))
        assert list(back) == ["0.weight", "1.weight"] and torch.equal(back["1.weight"], first.weight)


def test_sizes_are_lengths_and_gzip_is_gzip() -> None:
    model = sparse(0.9)
    found = sizes(model)
    assert list(found.index) == list(FORMS) and found.index.name == "form"
    for form in FORMS:
        assert found.loc[form, "bytes"] == len(encode(model, form))
        assert found.loc[form, "relative"] == found.loc[form, "bytes"] / found.loc["dense", "bytes"]
    dense = encode(model)
    assert gzip.decompress(encode(model, "gzip")) == dense
    state = model.state_dict().values()
    assert payload(dense) == sum(tensor.nbytes for tensor in state)
    kept = sum(tensor.element_size() * int(tensor.count_nonzero()) for tensor in state)
    assert kept < payload(encode(model, "bitmask")) < kept + payload(dense) // 30  # a bit is 1/32 of a weight
    assert found["bytes"].idxmax() == "dense" and found.loc["csr", "bytes"] > found.loc["bitmask", "bytes"]


def test_a_dense_file_is_a_safetensors_file() -> None:
    from safetensors.torch import load

    layer = matrix([[1.0, 0.0]], bias=[2.0])
    assert {name: t.tolist() for name, t in load(encode(layer)).items()} == {"weight": [[1.0, 0.0]], "bias": [2.0]}


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_byte_never_goes_unnoticed(form: str) -> None:
    layer = matrix([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0]] * 4, bias=[1.0] * 4)
    content, right = encode(layer, form), layer.state_dict()
    noticed = 0
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 0x41
        try:
            back = decode(bytes(altered))
        except CdlibError as error:
            noticed += 1
            assert "\n" not in str(error)
        else:  # gzip and zstd have a few bytes that do not matter, such as the time of a file
            assert back.keys() == right.keys() and all(torch.equal(back[name], right[name]) for name in right)
    assert noticed >= len(content) - 12


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_was_cut_short(form: str) -> None:
    content = encode(sparse(0.5), form)
    for end in (0, 1, 7, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(CdlibError, match=f"cannot read {end} bytes|altered"):
            decode(content[:end])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_of_any_kind_are_read(form: str, kind: Any) -> None:
    layer = matrix([[0.0] * 40 + [1.0] * 2])
    assert torch.equal(decode(kind(encode(layer, form)))["weight"], layer.weight)


@pytest.mark.parametrize("content", [None, 5, "weights"])
def test_what_holds_no_bytes(content: Any) -> None:
    with pytest.raises(CdlibError, match=f"content is '{type(content).__name__}', not bytes"):
        decode(content)


def test_masks_of_biases_are_applied_too() -> None:
    layer = matrix([[1.0, 2.0]] * 2, bias=[3.0, 0.5])
    prune.l1_unstructured(layer, "bias", 0.5)
    assert {name: t.tolist() for name, t in decode(encode(layer)).items()} == {
        "weight": [[1.0, 2.0]] * 2, "bias": [3.0, 0.0],
    }  # fmt: skip


def test_a_safetensors_file_of_someone_else() -> None:
    from safetensors.torch import save

    with pytest.raises(CdlibError, match="give what encode made"):
        decode(save({"weight": torch.ones(3)}))
    with pytest.raises(CdlibError, match="give what encode made"):
        decode(json.dumps({"weight": 1}).encode())


def test_forms_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CdlibError, match="unknown form 'zip'; did you mean 'gzip'"):
        encode(nn.Linear(2, 2), "zip")
    with pytest.raises(CdlibError, match="unknown executable form 'coo'"):
        executable(nn.Linear(2, 2), "coo")
    with pytest.raises(CdlibError, match="unknown executable form"):
        executable(nn.Linear(2, 2), ["csr"])  # type: ignore[arg-type]
    with pytest.raises(CdlibError, match="quantized or sparse"):
        encode(nn.ParameterDict({"a": nn.Parameter(torch.eye(3).to_sparse())}))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(CdlibError, match="pip install zstandard"):
        encode(nn.Linear(2, 2), "zstd")


@pytest.mark.parametrize("form", FORMS)
def test_types_that_safetensors_lacks_are_named(form: str, tmp_path: Any) -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(3, dtype=torch.complex128))})
    with pytest.raises(CdlibError, match="hold no tensors of complex128: convert them"):
        encode(model, form)
    with pytest.raises(CdlibError, match="hold no tensors of complex128: convert them"):
        cdlib.save(model, tmp_path / "model.cdlib")


@pytest.mark.parametrize("function", [executable, two_to_four, encode, sizes])
def test_a_text_is_no_network(function: Any) -> None:
    with pytest.raises(CdlibError, match="model is 'str'"):
        function("network")


@pytest.mark.parametrize("shape", [(64,), (1, 64), (5, 64), (2, 3, 4, 64), (0, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_csr_layer_computes_what_the_dense_one_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for bias in (True, False):
        dense = permanent(unstructured(nn.Linear(64, 24, bias), torch.zeros(1, 64), linear=0.7)).to(dtype)
        x = torch.randn(shape, dtype=dtype)
        y = executable(dense)(x)
        assert y.shape == (*shape[:-1], 24) and y.is_contiguous()
        torch.testing.assert_close(y, dense(x))


def test_a_network_runs_from_csr() -> None:
    model = sparse(0.9, "convnext_mini").eval()
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast, x = executable(model), torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-4)
    other = executable(sparse(0.8, "convnext_mini")).eval()
    assert (fast(x) - other(x)).abs().max() > 1e-3, "the outputs depend on the weights"
    linears = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert all(isinstance(fast.get_submodule(name), CsrLinear) for name in linears)
    assert not any(isinstance(m, CsrLinear) for m in model.modules())
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    gone = sum(int((model.get_submodule(name).weight == 0).sum()) for name in linears)  # type: ignore[operator]
    assert cdlib.profile(fast, x).params == cdlib.profile(model, x).params - gone


def test_a_layer_that_is_used_twice_is_replaced_in_both_places() -> None:
    layer = matrix([[0.0, 1.0], [2.0, 0.0]])
    fast = executable(nn.Sequential(layer, nn.ReLU(), layer))
    assert fast[0] is fast[2] and isinstance(fast[0], CsrLinear)  # type: ignore[index]
    assert fast(torch.tensor([[3.0, 5.0]])).tolist() == [[6.0, 10.0]]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_stay_dense() -> None:
    model: Any = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    model(x)
    with torch.no_grad():
        model[0].weight_g.mul_(3)  # the weight itself is still that of the last call
    torch.testing.assert_close(executable(model)(x), model(x))


def test_csr_under_autocast() -> None:
    layer, x = nn.Linear(16, 8), torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(executable(layer)(x), executable(layer)(x.float()))
        torch.testing.assert_close(executable(layer)(x.bfloat16()), layer(x).float(), atol=0.03, rtol=0.03)


def test_csr_says_nothing_of_betas() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        executable(nn.Linear(4, 4))(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("model", "form", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1)), "csr", "Sequential has no linear layer that can run from 'csr'"),
        (nn.Linear(64, 64).half(), "csr", "no linear layer that can run"),
        (nn.Linear(64, 64), "2:4", "2:4 needs float16 .* capability 8.0 or more, and model is float32 on cpu"),
        (nn.Sequential(nn.Linear(64, 64).half()), "2:4", "and 0 is float16 on cpu: move it there, or use 'csr'"),
    ],
)
def test_what_cannot_be_run(model: nn.Module, form: str, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        executable(model, form)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no GPU with 2:4 kernels"
)
def test_a_network_runs_from_two_to_four() -> None:
    torch.manual_seed(0)
    dense: Any = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10)).half().cuda()
    with pytest.raises(CdlibError, match="0 has more than two non-zero weights in four"):
        executable(dense, "2:4")
    pattern = permanent(two_to_four(dense))
    fast, x = executable(pattern, "2:4"), torch.randn(64, 128, dtype=torch.float16, device="cuda")
    assert type(fast[0].weight.data) is not Tensor and type(fast[2].weight.data) is Tensor  # type: ignore[index, union-attr]
    torch.testing.assert_close(fast(x), pattern(x), atol=1e-2, rtol=1e-2)
