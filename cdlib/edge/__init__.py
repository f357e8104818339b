"""Networks on their way to a device: as files that runtimes read, checked against the network they came from."""

from __future__ import annotations

from cdlib.edge.camera import Shot, watch
from cdlib.edge.deployed import Deployed
from cdlib.edge.onnx_files import OPSET, export
from cdlib.edge.printed import print_samples
from cdlib.edge.shift import STEPS, Simulation, disturbed, simulate

__all__ = [
    "OPSET",
    "STEPS",
    "Deployed",
    "Shot",
    "Simulation",
    "disturbed",
    "export",
    "print_samples",
    "simulate",
    "watch",
]
