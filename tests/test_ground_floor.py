"""What everything stands on: checks of arguments, lines of text, and what a network holds."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import nn

from cdlib.errors import CdlibError, check_choice, check_seed, check_share, check_whole
from cdlib.text import digest, mean_and_spread, one_line
from cdlib.torch_state import bytes_of, check_module, check_network, sharing, tensors_of, tied


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None, torch.tensor(1)])
def test_what_is_no_whole_number_from_one(value: Any) -> None:
    with pytest.raises(CdlibError, match="steps=.*: give an integer of at least 1"):
        check_whole("steps", value, 1)


def test_whole_numbers_and_seeds_end() -> None:
    check_whole("steps", 10**30, 1)
    check_whole("steps", 5, 0, 5)
    with pytest.raises(CdlibError, match=r"^steps=6: give an integer of at most 5\.$"):
        check_whole("steps", 6, 0, 5)
    check_seed(0)
    check_seed(2**63 - 1)
    for seed in (2**63, 2**64, 10**30):
        with pytest.raises(CdlibError, match=f"seed={seed}: give an integer of at most {2**63 - 1}"):
            check_seed(seed)


@pytest.mark.parametrize("value", [1, 1.0, -0.1, float("nan"), True, "0.5", None])
def test_what_is_no_share(value: Any) -> None:
    check_share("ratio", 0)
    check_share("ratio", 0.999)
    with pytest.raises(CdlibError, match="ratio=.* is no share: give a number from 0 to below 1"):
        check_share("ratio", value)


@pytest.mark.parametrize("value", ["conv", ["lin"], None])
def test_what_is_no_choice(value: Any) -> None:
    check_choice("kind", "lin", {"lin": 1})
    with pytest.raises(CdlibError, match="unknown kind"):
        check_choice("kind", value, {"lin": 1})


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("first\n  second\t third ")) == "ValueError: first second third"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line(OSError("x" * 300)) == f"OSError: {'x' * 160}"
    assert one_line(OSError("abcdef"), 3) == "OSError: abc"


def test_an_error_keeps_the_innermost_reason() -> None:
    inner = CdlibError(f"{'x' * 300} (ValueError: the reason).")
    assert one_line(inner) == f"{'x' * 300} (ValueError: the reason)"
    outer = RuntimeError("o" * 200)
    outer.__cause__ = inner
    assert one_line(outer) == f"RuntimeError: {'o' * 160} ({'x' * 300} (ValueError: the reason))"


def test_mean_and_spread_by_hand() -> None:
    nbsp = "\u00a0"
    assert mean_and_spread([1.0, 2.0, 3.0]) == f"2.0{nbsp}±{nbsp}1.0"  # squares of deviations 1 + 0 + 1, over 2
    assert mean_and_spread([0.912, 0.918], factor=100, digits=2) == f"91.50{nbsp}±{nbsp}0.42"  # 0.3 x sqrt(2)
    assert mean_and_spread([2.0, float("nan")], sign=True) == "+2.0"
    assert mean_and_spread(iter([-1.0, -1.0]), sign=True) == "-1.0"
    assert mean_and_spread([]) == mean_and_spread([float("nan")]) == "-"


def test_a_digest_is_that_of_all_parts() -> None:
    assert digest(["ab", b"c", memoryview(b"d")]) == hashlib.sha256(b"abcd").hexdigest()


def test_the_bytes_of_tensors() -> None:
    matrix = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    assert bytes(bytes_of(matrix.t())) == b"".join(n.to_bytes(2, "little") for n in (0, 3, 1, 4, 2, 5))
    assert bytes(bytes_of(nn.Parameter(torch.ones(1, dtype=torch.bfloat16)))) == b"\x80\x3f"
    assert bytes(bytes_of(torch.tensor(True))) == b"\x01"
    assert bytes(bytes_of(torch.empty(0, 3))) == b""


def test_what_is_no_network() -> None:
    layer = nn.Linear(2, 2)
    assert check_network(layer) is check_module(layer) is layer
    with pytest.raises(CdlibError, match="model is 'int', not a torch.nn.Module; pass the network itself"):
        check_network(3)
    with pytest.raises(CdlibError, match="model 'a' is 'NoneType', not a torch.nn.Module"):
        check_module(None, "model 'a'")
    compiled: Any = torch.compile(layer)
    assert check_module(compiled) is compiled
    with pytest.raises(CdlibError, match="is compiled"):
        check_network(compiled)


def test_tensors_with_several_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model[2].register_buffer("same", model[0].bias)
    held = tensors_of(model)
    assert list(held) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "2.bias",
        "1.running_mean", "1.running_var", "1.num_batches_tracked",
    ]  # fmt: skip
    assert held["0.weight"] is model[0].weight
    assert tied(model) == {"2.weight": "0.weight", "2.same": "0.bias"}


def test_tensors_that_share_memory() -> None:
    memory = torch.zeros(8)
    views = {"a": memory[:4], "none": memory[:0], "b": memory[4:], "again": memory[4:6]}
    assert sharing(views, torch.Tensor.data_ptr) == ("again", "b")
    assert sharing(views, lambda t: t.untyped_storage().data_ptr()) == ("b", "a")
    others = {"sparse": torch.eye(2).to_sparse(), "meta": memory.to("meta"), "too": memory.to("meta"), "own": memory}
    assert sharing(others, torch.Tensor.data_ptr) is None
