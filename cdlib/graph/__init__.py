"""A network as a graph of tensors: which operators run, on what, in which module."""

from __future__ import annotations

from cdlib.graph.recorder import Recorder, once
from cdlib.graph.tracing import ExampleInput, capture, in_mode, on_samples, one_sample, repeated, run
from cdlib.graph.types import Call, Graph, Kind, Op, Value, leaves, map_tensors, moved_after, tensors

__all__ = [
    "Call",
    "ExampleInput",
    "Graph",
    "Kind",
    "Op",
    "Recorder",
    "Value",
    "capture",
    "in_mode",
    "leaves",
    "map_tensors",
    "moved_after",
    "on_samples",
    "once",
    "one_sample",
    "repeated",
    "run",
    "tensors",
]
