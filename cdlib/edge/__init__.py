"""Networks on their way to a device: as checked files, measured, before a camera, held against the cards of devices."""

from __future__ import annotations

from cdlib.edge.benchmarking import Arm, Bench, Ratio, bench
from cdlib.edge.camera import Shot, watch
from cdlib.edge.deployed import Deployed
from cdlib.edge.device_cards import SIZES, Device, Figure, Roofline, device, devices, roofline, this_machine
from cdlib.edge.engines import ENGINES
from cdlib.edge.onnx_files import OPSET, export
from cdlib.edge.power_meter import Energy, energy
from cdlib.edge.printed import print_samples
from cdlib.edge.shift import STEPS, Simulation, disturbed, simulate

__all__ = [
    "ENGINES",
    "OPSET",
    "SIZES",
    "STEPS",
    "Arm",
    "Bench",
    "Deployed",
    "Device",
    "Energy",
    "Figure",
    "Ratio",
    "Roofline",
    "Shot",
    "Simulation",
    "bench",
    "device",
    "devices",
    "disturbed",
    "energy",
    "export",
    "print_samples",
    "roofline",
    "simulate",
    "this_machine",
    "watch",
]
