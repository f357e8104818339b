"""Figures in the book's style, without a screen, closed after each test."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from cdlib import plots


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def show(*_: object, **__: object) -> None:
        raise AssertionError("only a notebook shows a figure")

    monkeypatch.setattr(plt, "show", show)
    with matplotlib.rc_context():
        plots.style()
        yield
    plt.close("all")
