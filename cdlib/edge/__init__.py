"""Networks on their way to a device: as files that runtimes read, checked against the network they came from."""

from __future__ import annotations

from cdlib.edge.deployed import Deployed
from cdlib.edge.device_cards import SIZES, Device, Figure, Roofline, device, devices, roofline, this_machine
from cdlib.edge.onnx_files import OPSET, export

__all__ = [
    "OPSET",
    "SIZES",
    "Deployed",
    "Device",
    "Figure",
    "Roofline",
    "device",
    "devices",
    "export",
    "roofline",
    "this_machine",
]
