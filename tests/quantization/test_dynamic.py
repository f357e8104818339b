"""Dynamic quantization by both engines: what becomes small, what it computes, and how counters see it."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import thop
import torch
from torch import nn

from cdlib import CdlibError, models, profile
from cdlib.quantization import dynamic


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 40), nn.ReLU(), nn.Linear(40, 10)).eval()


@pytest.mark.parametrize("engine", ["eager", "torchao"])
def test_linear_layers_get_a_quarter_of_the_bytes_and_compute_nearly_the_same(engine: str) -> None:
    if engine == "torchao":
        pytest.importorskip("torchao")
    model, x = network(), torch.randn(4, 3, 8, 8)
    small = dynamic(model, engine=engine)
    assert not small.training and isinstance(small[0], nn.Conv2d)
    with torch.no_grad():
        wanted, found = model(x), small(x)
    assert 0 < (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert model[2].weight.dtype == torch.float32
    before, after = profile(model, x[:1]), profile(small, x[:1])
    weights = 288 * 40 + 40 * 10
    scales = 5 * 50 if engine == "torchao" else 0  # of each output channel, with a zero point; eager's are no tensors
    assert after.weight_bytes == before.weight_bytes - 3 * weights + scales
    assert (after.params, after.macs) == (before.params, before.macs)


def test_an_engine_that_is_unknown_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CdlibError, match="engine 'torchoa'.*did you mean 'torchao'"):
        dynamic(network(), engine="torchoa")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("torchao"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CdlibError, match="engine='torchao' is not in this installation: .*install torchao"):
        dynamic(network(), engine="torchao")


def test_table_four_of_francy_and_singh_counts_what_its_counter_can_see() -> None:
    """2.15 M, 7.27 M and 2.17 M in units of 2^20 (arXiv:2409.02134), against 49.46 M parameters and 177.2 M MACs."""
    model, x = models.build("convnext_small", 10).eval(), torch.zeros(1, 3, 32, 32)
    small = dynamic(model)
    true = profile(model, x)
    assert (round(true.params / 1e6, 2), round(true.macs / 1e6, 1)) == (49.46, 177.2)
    assert (profile(small, x).params, profile(small, x).macs) == (true.params, true.macs)
    listed = sum(p.numel() for p in small.parameters())
    macs, params = thop.profile(small, (x,), verbose=False)
    assert [round(count / 2**20, 2) for count in (params, macs, listed)] == [2.15, 7.27, 2.17]
