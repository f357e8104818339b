"""Places for the nodes of a directed graph, in layers from top to bottom, for `cdlib.plots.group_drawing`.

The usual four steps (Sugiyama, Tagawa and Toda 1981): a layer for each node, so that all edges point down; stops for
edges that pass layers; an order in each layer with few crossings; then distances, chains straight. Nothing is random.

By hand, since igraph's layered layout knows no widths, bends the trunk of a residual network at every block, crosses
edges half as often again in random graphs, and mixes up the stops of edges where a graph has several parts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from statistics import fmean

Edge = tuple[int, int]
Place = tuple[float, float]

LANE = 0.16  # width of a stop
GAP = 0.14  # between neighbours


@dataclass(frozen=True)
class Layout:
    """Where things are: x to the right, y the number of the layer, from 0 at the top."""

    places: dict[int, Place]  # the centre of each node
    routes: dict[Edge, list[Place]]  # for each edge, the centres of its ends and, between them, of its stops


def layered(widths: Sequence[float], edges: Sequence[Edge]) -> Layout:
    """Place nodes 0 ... n-1 of the given widths; every edge must lead to a node with a higher number."""
    count, edges = len(widths), list(dict.fromkeys(edges))
    layer, size, chains = _layers(count, edges), list(widths), list[list[int]]()
    for a, b in edges:
        between = range(layer[a] + 1, layer[b])
        chains.append([a, *range(len(size), len(size) + len(between)), b])
        layer += between
        size += [LANE] * len(between)
    links = [link for chain in chains for link in pairwise(chain)]
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for v, y in enumerate(layer):
        rows[y].append(v)
    at = list(zip(_spread(_ordered(rows, links), size, links, count), map(float, layer), strict=True))
    routes = {edge: [at[v] for v in chain] for edge, chain in zip(edges, chains, strict=True)}
    return Layout(dict(enumerate(at[:count])), routes)


def _layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """Longest path from the top; what nothing leads to stands right above its first reader."""
    layer = [0] * count
    for a, b in sorted(edges, key=lambda e: e[1]):
        layer[b] = max(layer[b], layer[a] + 1)
    for v in set(range(count)) - {b for _, b in edges}:
        layer[v] = min((layer[b] - 1 for a, b in edges if a == v), default=0)
    return layer


def _ordered(rows: list[list[int]], links: Sequence[Edge]) -> list[list[int]]:
    """Sort layers by the mean place of the neighbours, downwards and upwards; keep the order with fewest crossings."""
    above, below = _neighbours(links)
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for turn in range(12):
        near, way = (above, rows) if turn % 2 == 0 else (below, rows[::-1])
        for fixed, row in pairwise(way):
            place = {v: k for k, v in enumerate(fixed)}
            mean = {v: fmean([place[u] for u in near[v]] or [k]) for k, v in enumerate(row)}
            row.sort(key=mean.__getitem__)
        if (now := _crossings(rows, below)) < fewest:
            best, fewest = [list(row) for row in rows], now
    return best


def _neighbours(links: Iterable[Edge]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """For each node, those that links lead to it from, and those that links lead to."""
    above, below = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    for a, b in links:
        above[b].append(a)
        below[a].append(b)
    return above, below


def _crossings(rows: Sequence[Sequence[int]], below: Mapping[int, Sequence[int]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {v: k for k, v in enumerate(lower)}
        ends = [[place[b] for b in below[a]] for a in upper]
        total += sum(b > c for k, mine in enumerate(ends) for b in mine for later in ends[k + 1 :] for c in later)
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
    rank = {v: k for row in rows for k, v in enumerate(row)}
    above, below = _neighbours((a, b) for a, b in links if (a < real) == (b < real))
    column = list(range(count))
    for lower in rows[1:]:
        reached = -1
        for b in lower:
            for a in _middle_first(above[b], rank):
                if rank[a] > reached and _middle_first(below[a], rank)[0] == b:
                    column[b], reached = column[a], rank[a]
                    break
    return column


def _middle_first(nodes: list[int], rank: dict[int, int]) -> list[int]:
    """Sort nodes by their distance from the middle one in a layer."""
    ranked = sorted(nodes, key=rank.__getitem__)
    return sorted(ranked, key=lambda v: abs(ranked.index(v) - (len(ranked) - 1) / 2))
