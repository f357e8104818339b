"""A network as a graph of tensors: which operators run, on what, in which module."""

from __future__ import annotations

from cdlib.graph.inputs import ExampleInput, Inputs
from cdlib.graph.tracing import capture, changes, in_mode, record, run
from cdlib.graph.trees import leaves, map_tensors, tensors
from cdlib.graph.types import Call, Graph, Op, Value

__all__ = [
    "Call",
    "ExampleInput",
    "Graph",
    "Inputs",
    "Op",
    "Value",
    "capture",
    "changes",
    "in_mode",
    "leaves",
    "map_tensors",
    "record",
    "run",
    "tensors",
]
