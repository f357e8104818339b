"""Networks on their way to a device: as files that runtimes read, checked, measured, and held against device cards."""

from __future__ import annotations

from cdlib.edge.benchmarking import Arm, Bench, Ratio, bench
from cdlib.edge.deployed import Deployed
from cdlib.edge.device_cards import SIZES, Device, Figure, Roofline, device, devices, roofline, this_machine
from cdlib.edge.engines import ENGINES
from cdlib.edge.onnx_files import OPSET, export
from cdlib.edge.power_meter import Energy, energy

__all__ = [
    "ENGINES",
    "OPSET",
    "SIZES",
    "Arm",
    "Bench",
    "Deployed",
    "Device",
    "Energy",
    "Figure",
    "Ratio",
    "Roofline",
    "bench",
    "device",
    "devices",
    "energy",
    "export",
    "roofline",
    "this_machine",
]
