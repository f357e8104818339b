"""The layers of a network: which one an operator belongs to, and what every one adds up to."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from cdlib.complexity.macs import label_of, macs_of, weight_of
from cdlib.errors import CdlibError
from cdlib.graph import Graph, Op
from cdlib.torch_state import bytes_held, mask_name, packed_bytes, parts_of, tied

COLUMNS = ("params", "nonzero_params", "macs", "flops", "weight_bytes", "activation_bytes", "peak_activation_bytes")


def layer_names(graph: Graph) -> list[str]:
    """Return, for each operator, the layer that it belongs to.

    A product belongs to the module that owns its weight, or to the weight itself where that module owns several; a
    product of activations belongs to the calling module, with a name of its own where there are several in one call.
    Everything else belongs to the calling module.
    """
    products = [op for op in graph.ops if macs_of(op)]
    weights = {op.index: weight.name for op in products if (weight := weight_of(op))}
    owned = Counter(name.rpartition(".")[0] for name in set(weights.values()))
    names: dict[int, str] = {}
    seen: Counter[tuple[int, str]] = Counter()
    for op in products:
        if op.index in weights:
            name = weights[op.index]
            owner = name.rpartition(".")[0]
            names[op.index] = owner if owned[owner] == 1 else name
        else:
            label = label_of(op)
            number = f"_{seen[op.call, label]}" if seen[op.call, label] else ""
            names[op.index] = f"{op.module}.{label}{number}".lstrip(".")
            seen[op.call, label] += 1
    called = Counter(module for module, _ in {(op.module, names[op.index]) for op in products})
    for op in products:
        if op.index not in weights and called[op.module] == 1:
            names[op.index] = op.module
    return [names.get(op.index, op.module) for op in graph.ops]


def layer_table(
    model: nn.Module, graph: Graph, names: list[str], made: dict[int, int], live: list[int]
) -> pd.DataFrame:
    """Return a row per layer of the network that `graph` was captured from, in the order of the run, indexed by name.

    Of each operator, `names` has its layer, from `layer_names`, `made` the bytes of lasting activations that it makes,
    by its index, and `live` the bytes of activations alive while it runs.
    """
    rows: dict[str, dict[str, Any]] = {}
    layer_of: dict[str, str] = {}  # of a parameter: that of the first operator which computes with it
    for op in graph.ops:
        if op.does_work:
            row = rows.setdefault(names[op.index], _empty_row(names[op.index], graph, op))
            row["output_shape"] = op.outputs[0].shape if op.outputs else ()
            row["macs"] += macs_of(op)
            row["activation_bytes"] += made.get(op.index, 0)
            row["peak_activation_bytes"] = max(row["peak_activation_bytes"], live[op.index])
            for value in op.inputs:
                if value.kind == "parameter":
                    layer_of.setdefault(value.name, names[op.index])
    further = tied(model)
    for name, weight in [*model.named_parameters(), *_packed(graph)]:
        layer = layer_of.get(name, name.rpartition(".")[0])
        row = rows.setdefault(layer, _empty_row(layer, graph, None))
        row["params"] += weight.numel()
        row["nonzero_params"] += _nonzero(graph, weight, [name, *(n for n, first in further.items() if first == name)])
        row["weight_bytes"] += _bytes(graph, name, weight)
    for row in rows.values():
        row["flops"] = 2 * row["macs"]
    return pd.DataFrame(list(rows.values()), columns=["layer", "kind", "output_shape", *COLUMNS]).set_index("layer")


def _empty_row(layer: str, graph: Graph, op: Op | None) -> dict[str, Any]:
    """A row of zeros; its kind is the module's class, or what the product is called where the layer is no module."""
    module = graph.modules.get(layer)
    kind = type(module).__name__ if module is not None else label_of(op) if op is not None else "parameter"
    return {"layer": layer or "(network)", "kind": kind, "output_shape": (), **dict.fromkeys(COLUMNS, 0)}


def _nonzero(graph: Graph, weight: Tensor, names: list[str]) -> int:
    """Count the elements that are not zero and that some module uses: one that `torch.nn.utils.prune` did not mask."""
    if weight.is_meta:
        return 0
    values = parts_of(weight.dequantize() if weight.is_quantized else weight)[0]
    owners = [(graph.modules.get(owner), mask_name(own)) for owner, _, own in (name.rpartition(".") for name in names)]
    masks = [mask for owner, name in owners if isinstance(mask := getattr(owner, name or "", None), Tensor)]
    if len(masks) == len(names):
        values = values * torch.stack(masks).any(0)
    return int(torch.count_nonzero(values))


def _bytes(graph: Graph, name: str, weight: Tensor) -> int:
    """The bytes of a parameter; of one that is rounded (`cdlib.quantization`), those of its integers without gaps."""
    layer, _, own = name.rpartition(".")
    bits = getattr(graph.modules.get(layer.rpartition(".")[0]), "stored_bits", {}).get(own)
    return packed_bytes(weight.numel(), bits) if bits else bytes_held(weight)


def _packed(graph: Graph) -> list[tuple[str, Tensor]]:
    """Return the weights and biases that packed int8 modules keep out of `parameters()`, by name."""
    found = []
    for name, module in graph.modules.items():
        if hasattr(module, "_all_weight_values"):
            raise CdlibError(
                f"{name or type(module).__name__} is a packed recurrent int8 module, whose weights cannot be counted; "
                "profile the float network instead."
            )
        holder = graph.modules.get(name.rpartition(".")[0])
        if hasattr(module, "_weight_bias") and (module is holder or not hasattr(holder, "_weight_bias")):
            weight, bias = cast(Any, module)._weight_bias()
            if getattr(getattr(module, "_packed_params", None), "dtype", None) == torch.float16:
                weight = weight.half()
            found.append((f"{name}.weight", weight))
            found += [(f"{name}.bias", bias)] if bias is not None else []
    return found
