"""What all tests share."""

from __future__ import annotations

import functools
import gc

import pytest
import typer.main
import typer.testing


def pytest_collection_finish() -> None:
    """Let the collector pass over PyTorch's hundred thousand objects and come by less often, for speed."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session", autouse=True)
def _built_once() -> None:
    """Build the command from its functions' signatures once, not for every line that a test gives it."""
    vars(typer.testing)["_get_command"] = functools.cache(typer.main.get_command)
