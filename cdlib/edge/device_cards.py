"""Devices as cards of public figures, and how long a network takes on one at best: for devices that one does not have.

The cards stand in ``device_cards.toml``, each figure with its source.
"""

from __future__ import annotations

import contextlib
import os
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from cdlib.complexity import Profile
from cdlib.edge.onnx_files import OPSET
from cdlib.errors import CdlibError, check_choice
from cdlib.report import machine

SIZES = {"float32": 4, "int8": 1}  # bytes of a number
_FLOAT = SIZES["float32"]  # which a profile counts


class Figure(NamedTuple):
    """A figure of a device."""

    value: float
    source: str  #: The document that has it, "derived: " and the arithmetic, or "measured".


@dataclass(frozen=True)
class Device:
    """What is known of a device; a figure is None where nothing could be verified."""

    name: str
    title: str
    ram_bytes: Figure | None = None
    storage_bytes: Figure | None = None
    macs_float32: Figure | None = None  #: Multiply-accumulates per second at most,
    macs_int8: Figure | None = None  #: likewise of 8-bit integers.
    bandwidth: Figure | None = None  #: Of the memory, bytes per second.
    storage_bandwidth: Figure | None = None
    """Of the storage, bytes per second, where weights are read from there and take no RAM, as on microcontrollers."""
    price_usd: Figure | None = None
    power_w: Figure | None = None

    def figures(self) -> dict[str, Figure]:
        """Return the figures that are known, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Figure)}


@dataclass(frozen=True, eq=False)
class Roofline:
    """What a device needs for one sample, *estimated*: by its peaks, which programs rarely reach; no measurement."""

    latency_ms: float
    layers: pd.DataFrame  #: By layer: ``macs``, ``bytes``, ``macs_ms``, ``bytes_ms``, ``ms``, the larger of the two.
    bound: str  #: "macs" or "bytes": what most of the time goes into.
    ram_bytes: int  #: The peak of activations, and the weights where they are not read from the storage.
    fits_ram: bool | None  #: None where the device's RAM is not known,
    fits_storage: bool | None  #: or its storage, or the size of the file.


def devices() -> dict[str, Device]:
    """Return all cards, by name."""
    held: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        name: Device(name, card.pop("title"), **{key: Figure(*value) for key, value in card.items()})
        for name, card in held.items()
    }


def device(name: str) -> Device:
    """Return the card of a device; a CdlibError that names the nearest one if it is not known."""
    check_choice("device", name, cards := devices())
    return cards[name]


def roofline(counted: Profile, on: Device, dtype: str = "float32", *, file_bytes: int | None = None) -> Roofline:
    """Estimate how long a network takes on a device at least, and say whether it fits.

    The latency is the sum over layers of the larger of two times: MACs over the device's peak, and bytes over the
    bandwidth (Williams et al. 2009, doi:10.1145/1498765.1498785). Bytes are the weights, read once, and the
    activations, written and read once; none of a layer without products whose output has the shape of the layer before,
    since runtimes fuse it. Caches and the cost of a call are not in it.

    Parameters
    ----------
    counted : cdlib.complexity.Profile
        Of the float32 network, for one sample.
    on : Device
        A card, or `this_machine`.
    dtype : {"float32", "int8"}, default "float32"
        Of weights and activations on the device.
    file_bytes : int, optional
        Of the network's file.

    Raises
    ------
    CdlibError
        For an unknown type, or one whose peak the card does not have.
    """
    check_choice("dtype", dtype, SIZES)
    peak: Figure | None = getattr(on, f"macs_{dtype}")
    if peak is None:
        raise CdlibError(f"the card of {on.name} has no peak for {dtype}: give another type or device.")
    size, table = SIZES[dtype], counted.layers
    fused = (table["macs"] == 0) & (table["output_shape"] == table["output_shape"].shift())
    weights = size * table["params"].where(~fused, 0)
    moved = 2 * size * table["activation_bytes"].where(~fused, 0) / _FLOAT
    paths = ((weights, on.storage_bandwidth or on.bandwidth), (moved, on.bandwidth))
    found = pd.DataFrame({"macs": table["macs"], "bytes": (weights + moved).astype(int)})
    found["macs_ms"] = 1e3 * table["macs"] / peak.value
    found["bytes_ms"] = 1e3 * sum(part / rate.value if rate else 0 * part for part, rate in paths)
    found["ms"] = found[["macs_ms", "bytes_ms"]].max(axis=1)
    latency = float(found["ms"].sum())
    arithmetic = float(found["ms"].where(found["macs_ms"] >= found["bytes_ms"], 0).sum())
    ram = counted.peak_activation_bytes * size // _FLOAT + (0 if on.storage_bandwidth else size * counted.params)
    return Roofline(
        latency_ms=latency,
        layers=found,
        bound="macs" if 2 * arithmetic >= latency else "bytes",
        ram_bytes=ram,
        fits_ram=None if on.ram_bytes is None else ram <= on.ram_bytes.value,
        fits_storage=None if on.storage_bytes is None or file_bytes is None else file_bytes <= on.storage_bytes.value,
    )


def this_machine() -> Device:
    """Measure the card of this machine's CPU, in about a second, with as many threads as PyTorch has.

    The peaks are the best of repeated matrix products, of PyTorch in float32 and, where onnx and onnxruntime are
    installed, of onnxruntime in int8; the bandwidth is the best of repeated copies of 64 MB.
    """
    a, b, n = torch.rand(512, 512), torch.rand(512, 512), 2**24
    source, target = torch.ones(n), torch.ones(n)
    figures = {
        "macs_float32": 512**3 / _best(lambda: a @ b),
        "bandwidth": 2 * _FLOAT * n / _best(lambda: target.copy_(source)),
    }
    with contextlib.suppress(ImportError):
        figures["macs_int8"] = 512**3 / _best(_int8_product(512))
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        figures["ram_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device("this machine", machine(), **{name: Figure(value, "measured") for name, value in figures.items()})


def _best(call: Callable[[], object], seconds: float = 0.3) -> float:
    """The shortest time of a call, in seconds."""
    times, end = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _int8_product(n: int) -> Callable[[], object]:
    """A product of n x n bytes in onnxruntime."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((n, n), np.int8), "b")
    given = helper.make_tensor_value_info("a", TensorProto.UINT8, [n, n])
    made = helper.make_tensor_value_info("c", TensorProto.INT32, [n, n])
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    options, ones = onnxruntime.SessionOptions(), np.ones((n, n), np.uint8)
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": ones})
