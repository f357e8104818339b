"""Places in layers: edges point down, boxes stand apart, chains are straight."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from cdlib.plots.layering import GAP, LANE, Layout, layered

Box = tuple[float, float, float]  # x, layer, width


def boxes_of(layout: Layout, widths: list[float]) -> list[Box]:
    """All nodes and all stops."""
    boxes = [(x, y, w) for (x, y), w in zip(layout.places.values(), widths, strict=True)]
    return boxes + [(x, y, LANE) for route in layout.routes.values() for x, y in route[1:-1]]


def assert_apart(boxes: list[Box]) -> None:
    for k, (x, y, w) in enumerate(boxes):
        for other, level, width in boxes[:k]:
            assert y != level or abs(x - other) >= (w + width) / 2 + GAP - 1e-6


def crossings(layout: Layout) -> int:
    links = [link for route in layout.routes.values() for link in pairwise(route)]
    return sum(
        a[1] == c[1] and (a[0] - c[0]) * (b[0] - d[0]) < 0 for k, (a, b) in enumerate(links) for c, d in links[:k]
    )


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_in_layers_edges_point_down_and_nothing_overlaps(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = data.draw(st.lists(st.sampled_from(pairs), max_size=18)) if pairs else []
    widths = data.draw(st.lists(st.floats(0.2, 3), min_size=count, max_size=count))
    layout = layered(widths, edges)
    assert set(layout.routes) == set(edges)
    for (a, b), route in layout.routes.items():
        assert (route[0], route[-1]) == (layout.places[a], layout.places[b])
        assert [y for _, y in route] == [route[0][1] + k for k in range(len(route))]  # a stop in every layer between
    assert_apart(boxes_of(layout, widths))


def test_a_chain_stands_straight_beside_its_shortcut() -> None:
    layout = layered([1.0, 2.0, 0.5, 1.5, 1.0], [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)])
    assert len({round(x, 6) for x, _ in layout.places.values()}) == 1
    assert len({round(x, 6) for x, _ in layout.routes[0, 4][1:-1]}) == 1
    assert_apart(boxes_of(layout, [1.0, 2.0, 0.5, 1.5, 1.0]))


def test_columns_of_a_dense_graph_do_not_cross() -> None:
    edges = [(a, b) for b in range(9) for a in range(b) if (a * b + a + b) % 3]
    layout = layered([1.0] * 9, edges)
    assert set(layout.routes) == set(edges)
    links = [link for route in layout.routes.values() for link in pairwise(route)]
    assert sum(a[0] == b[0] for a, b in links) >= 40  # of 96: there are columns
    assert_apart(boxes_of(layout, [1.0] * 9))  # a column that crossed another would stand in its place
    assert crossings(layout) <= 22


def test_edges_that_need_not_cross_do_not() -> None:
    twisted = [(0, 5), (1, 4), (2, 3), (3, 8), (4, 7), (5, 6), (6, 9), (7, 9), (8, 9)]
    assert crossings(layered([1.0] * 10, twisted)) == 0
    assert crossings(layered([1.0] * 4, [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)])) == 0
