"""Options that are one of a few names: every function says which there are, whatever it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import conv
from torch import nn

from cdlib import CdlibError, Groups, find_groups
from cdlib.pruning import complexity_driven, ranking, unstructured
from cdlib.serialization import encode, executable

IMAGE = torch.zeros(1, 2, 4, 4)


def found(net: nn.Module) -> Groups:
    return find_groups(net, IMAGE)


OPTIONS: dict[str, tuple[str, Callable[[nn.Module, Any], object]]] = {
    "mode": ("FA, MA, PA", lambda net, value: complexity_driven(net, found(net), mode=value)),
    "stop_at": (
        "activation_bytes, macs, params",
        lambda net, value: complexity_driven(net, found(net), stop_at=value),
    ),
    "saliency": (
        "bn, l1, l2, random, taylor",
        lambda net, value: ranking(net, found(net), by=value),
    ),
    "scope": ("global, layer", lambda net, value: ranking(net, found(net), scope=value)),
    "resource": (
        "activation_bytes, macs, params, units",
        lambda net, value: ranking(net, found(net), resource=value),
    ),
    "criterion": ("l1, random", lambda net, value: unstructured(net, IMAGE, by=value)),
    "scope of masks": ("global, local", lambda net, value: unstructured(net, IMAGE, scope=value)),
    "form": ("bitmask, csr, dense, gzip, zstd", lambda net, value: encode(net, value)),
    "executable form": ("2:4, csr", lambda net, value: executable(net, value)),
}


@pytest.mark.parametrize("value", ["other", ["PA"], {}, 5], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_value_that_is_none_of_the_names_is_named_with_all_of_them(option: str, value: Any) -> None:
    known, call = OPTIONS[option]
    net = nn.Sequential(conv(2, 2), nn.ReLU(), conv(2, 4), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(CdlibError) as error:
        call(net, value)
    assert str(error.value).startswith("unknown ")
    assert repr(str(value)) in str(error.value)
    assert str(error.value).endswith(f"Known: {known}.")
