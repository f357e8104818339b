"""Places for the nodes of a directed graph, in layers from top to bottom, for `cdlib.plots.group_drawing`.

The usual four steps (Sugiyama, Tagawa and Toda 1981): a layer for each node, so that all edges point down; stops for
edges that pass layers; an order in each layer with few crossings; then distances, chains straight. Nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

Edge = tuple[int, int]
Place = tuple[float, float]

LANE = 0.16  # width of a stop
GAP = 0.14  # between neighbours


@dataclass(frozen=True)
class Layout:
    """Where things are: x to the right, y the number of the layer, from 0 at the top.

    Attributes
    ----------
    places : dict from int to (x, y)
        The centre of each node.
    routes : dict from (int, int) to list of (x, y)
        For each edge, the centres of its ends and, between them, of its stops.
    """

    places: dict[int, Place]
    routes: dict[Edge, list[Place]]


def layered(widths: Sequence[float], edges: Sequence[Edge]) -> Layout:
    """Place nodes 0 ... n-1 of the given widths; every edge must lead to a node with a higher number."""
    edges = list(dict.fromkeys(edges))
    layer = _layers(len(widths), edges)
    size, chains, links = list(widths), dict[Edge, list[int]](), list[Edge]()
    for a, b in edges:
        chain = [a]
        for level in range(layer[a] + 1, layer[b]):
            chain.append(len(size))
            size.append(LANE)
            layer.append(level)
        chain.append(b)
        chains[a, b] = chain
        links += pairwise(chain)
    rows = _ordered([[v for v in range(len(size)) if layer[v] == y] for y in range(max(layer, default=-1) + 1)], links)
    x = _spread(rows, size, links, len(widths))
    at = {v: (float(x[v]), float(layer[v])) for v in range(len(size))}
    return Layout({v: at[v] for v in range(len(widths))}, {e: [at[v] for v in chain] for e, chain in chains.items()})


def _layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """Longest path from the top; what nothing leads to stands right above its first reader."""
    layer = [0] * count
    for a, b in sorted(edges, key=lambda e: e[1]):
        layer[b] = max(layer[b], layer[a] + 1)
    entered = {b for _, b in edges}
    for v in range(count):
        below = [layer[b] for a, b in edges if a == v]
        if v not in entered and below:
            layer[v] = min(below) - 1
    return layer


def _ordered(rows: list[list[int]], links: Sequence[Edge]) -> list[list[int]]:
    """Sort layers by the mean place of the neighbours, downwards and upwards; keep the order with fewest crossings."""
    above, below = _neighbours(links)
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for turn in range(12):
        near, order = (above, range(1, len(rows))) if turn % 2 == 0 else (below, range(len(rows) - 2, -1, -1))
        for y in order:
            other = rows[y - 1] if turn % 2 == 0 else rows[y + 1]
            place = {v: k for k, v in enumerate(other)}
            mean = {v: _mean([place[u] for u in near.get(v, [])], k) for k, v in enumerate(rows[y])}
            rows[y] = sorted(rows[y], key=lambda v: mean[v])
        if (now := _crossings(rows, below)) < fewest:
            best, fewest = [list(row) for row in rows], now
    return best


def _neighbours(links: Sequence[Edge]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for a, b in links:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    return above, below


def _mean(places: Sequence[int], otherwise: int) -> float:
    return sum(places) / len(places) if places else float(otherwise)


def _crossings(rows: Sequence[Sequence[int]], below: Mapping[int, Sequence[int]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {v: k for k, v in enumerate(lower)}
        ends = [sorted(place[b] for b in below.get(a, [])) for a in upper]
        for k, mine in enumerate(ends):
            total += sum(b > c for b in mine for later in ends[k + 1 :] for c in later)
    return total


def _spread(rows: Sequence[Sequence[int]], size: Sequence[float], links: Sequence[Edge], real: int) -> list[float]:
    """Give each node an x: columns of nodes move to the mean of their neighbours, as far as those beside them allow."""
    column = _columns(rows, links, len(size), real)
    right: dict[int, dict[int, float]] = {c: {} for c in column}  # column to those right of it, with the distance
    left: dict[int, dict[int, float]] = {c: {} for c in column}
    for row in rows:
        for u, v in pairwise(row):
            a, b, apart = column[u], column[v], (size[u] + size[v]) / 2 + GAP
            right[a][b] = left[b][a] = max(apart, right[a].get(b, 0.0))
    near: dict[int, list[int]] = {c: [] for c in column}
    for u, v in links:
        if column[u] != column[v]:
            near[column[u]].append(column[v])
            near[column[v]].append(column[u])
    x: dict[int, float] = {}
    for c in TopologicalSorter({c: left[c] for c in dict.fromkeys(column)}).static_order():
        x[c] = max((x[other] + apart for other, apart in left[c].items()), default=0.0)
    order = sorted(x, key=lambda c: (x[c], c))
    for turn in range(80):
        for c in order if turn % 2 else order[::-1]:
            if near[c]:
                low = max((x[other] + apart for other, apart in left[c].items()), default=-math.inf)
                high = min((x[other] - apart for other, apart in right[c].items()), default=math.inf)
                x[c] = min(max(sum(x[other] for other in near[c]) / len(near[c]), low), high)
    least = min(x.values(), default=0.0)
    return [x[c] - least for c in column]


def _columns(rows: Sequence[Sequence[int]], links: Sequence[Edge], count: int, real: int) -> list[int]:
    """Number the columns: a node stands below the middle one of its sources, a stop below the stop before it.

    Links within columns never cross, so that columns can be ordered from left to right.
    """
    above, below = _neighbours(links)
    column = list(range(count))
    taken: set[int] = set()
    for upper, lower in pairwise(rows):
        place = {v: k for k, v in enumerate(upper)}
        reached = -1
        for b in lower:
            for a in _middle_first([a for a in above.get(b, []) if (a < real) == (b < real)], place):
                children = [c for c in below[a] if c in lower and (c < real) == (a < real)]
                rank = {v: k for k, v in enumerate(lower)}
                if a not in taken and place[a] > reached and _middle_first(children, rank)[0] == b:
                    column[b], reached = column[a], place[a]
                    taken.add(a)
                    break
    return column


def _middle_first(nodes: list[int], place: Mapping[int, int]) -> list[int]:
    """Sort nodes by their distance from the middle one in a layer."""
    ranked = sorted(nodes, key=lambda v: place[v])
    middle = (len(ranked) - 1) / 2
    return sorted(ranked, key=lambda v: (abs(ranked.index(v) - middle), ranked.index(v)))
