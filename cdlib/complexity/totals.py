"""The complexity of a network, by the counting rule of `cdlib.complexity`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from cdlib.complexity.layers import COLUMNS, layer_names, layer_table
from cdlib.complexity.memory import lifetimes, live_bytes
from cdlib.graph import ExampleInput, capture


@dataclass(frozen=True, eq=False)
class Profile:
    """The complexity of a network for one sample: seven totals, a row per layer, and memory over time.

    `cdlib.complexity` states the counting rule of the totals. The table `layers` has a row per layer in the order of
    the run, indexed by name: ``kind``, ``output_shape`` and the seven counts. A layer is a module that does work or
    holds parameters of its own; one that calls several products directly (attention, functional code) has a row for
    each, named after its weight. Rows add up to the totals, but for the peak, which is their maximum. `timeline` has a
    row per operator that is no view: ``operator``, ``layer``, ``live_bytes`` (activations alive while it runs).
    """

    params: int  #: Parameters.
    nonzero_params: int | None  #: Those that differ from zero; None on the meta device, where they have no values.
    macs: int  #: Multiply-accumulates.
    flops: int  #: Floating-point operations, 2 x `macs`.
    weight_bytes: int  #: Bytes of the parameters.
    activation_bytes: int  #: Bytes of all activations.
    peak_activation_bytes: int  #: Most bytes of activations that must be alive at once.
    layers: pd.DataFrame
    timeline: pd.DataFrame
    name: str = ""  #: Class of the network.

    def totals(self) -> dict[str, int | None]:
        """Return the seven totals by name."""
        return {column: getattr(self, column) for column in COLUMNS}

    def __str__(self) -> str:
        lines = [f"{label:>22}: {value}" for label, value in self.summary().items()]
        return "\n".join([self.layers.drop(columns=["flops"]).to_string(), "", *lines])

    def __repr__(self) -> str:
        return f"<Profile of {self.name}: " + ", ".join(f"{k} {v}" for k, v in self.summary().items()) + ">"

    def summary(self) -> dict[str, str]:
        """Return the totals as text in decimal units (M = 10^6, MB = 10^6 bytes)."""
        return {
            "params": in_units(self.params),
            "non-zero params": "unknown" if self.nonzero_params is None else in_units(self.nonzero_params),
            "MACs": in_units(self.macs),
            "FLOPs = 2 x MACs": in_units(self.flops),
            "weights": in_units(self.weight_bytes, "B"),
            "activations": in_units(self.activation_bytes, "B"),
            "peak of activations": in_units(self.peak_activation_bytes, "B"),
        }


def in_units(number: int, unit: str = "") -> str:
    """Return a count as text with a decimal prefix, for example ``27.83 M`` or ``1.2 kB``; below 1000 as it is."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 10**power:
            return f"{number / 10**power:.4g} {prefix}{unit}"
    return f"{number} {unit}".rstrip()


def profile(
    model: nn.Module, example_input: ExampleInput, *, kwargs: Mapping[str, Any] | None = None, batch_dim: int | None = 0
) -> Profile:
    """Count what `model` costs for one sample of `example_input`; return the `Profile`.

    Parameters
    ----------
    model : nn.Module
        Any network: float or with packed int8 modules, on any device, the meta device included. Left as it was found.
    example_input : tensor or tuple
        A tensor, or a tuple of the network's positional arguments: tensors, also on the meta device, numbers, None,
        dictionaries, lists of them. The batch size does not matter.
    kwargs : dict, optional
        Its arguments by name, likewise.
    batch_dim : int or None, default 0
        The dimension that counts samples; None if the input has none.

    Raises
    ------
    CdlibError
        If the network cannot run on the input.

    Examples
    --------
    >>> from torch import nn, zeros
    >>> profile(nn.Conv2d(3, 8, 3, padding=1), zeros(1, 3, 32, 32)).macs
    221184
    """
    graph = capture(model, example_input, kwargs=kwargs, batch_dim=batch_dim, autocast=True)
    names = layer_names(graph)
    lasting = lifetimes(graph)
    live = live_bytes(graph, lasting)
    made: Counter[int] = Counter()
    for start, _, size in lasting.values():
        made[start] += size
    layers = layer_table(model, graph, names, made, live)
    working = [(op.name, names[op.index], live[op.index]) for op in graph.ops if op.does_work]
    timeline = pd.DataFrame(working, columns=["operator", "layer", "live_bytes"])
    totals: dict[str, Any] = {column: int(layers[column].sum()) for column in COLUMNS}
    totals["peak_activation_bytes"] = max(live, default=0)
    if any(parameter.is_meta for parameter in model.parameters()):
        totals["nonzero_params"] = None
    return Profile(**totals, layers=layers, timeline=timeline, name=type(model).__name__)
