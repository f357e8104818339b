"""When the tensors that a network computes are alive, and how many bytes they take then."""

from __future__ import annotations

from itertools import accumulate

from cdlib.graph import Graph


def lifetimes(graph: Graph) -> dict[int, tuple[int, int, int]]:
    """Return, for the storage of every activation that is used: first operator, last operator, bytes.

    The network's input lives from the start (-1); what is returned lives to the end.
    """
    first: dict[int, tuple[int, int]] = {v.storage: (-1, v.storage_bytes) for v in graph.inputs}
    last: dict[int, int] = {}
    for op in graph.ops:
        for value in op.inputs:
            last[value.storage] = op.index
        for value in op.outputs:
            if value.kind == "activation":
                first.setdefault(value.storage, (op.index, value.storage_bytes))
    for value in graph.outputs:
        last[value.storage] = len(graph.ops) - 1
    return {storage: (start, last[storage], size) for storage, (start, size) in first.items() if storage in last}


def live_bytes(graph: Graph, lasting: dict[int, tuple[int, int, int]]) -> list[int]:
    """Return the bytes of activations that must be alive while each operator runs; `lasting` are the `lifetimes`."""
    change = [0] * (len(graph.ops) + 1)
    for start, end, size in lasting.values():
        change[max(start, 0)] += size
        change[end + 1] -= size
    return list(accumulate(change))[:-1]
