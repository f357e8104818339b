"""What all tests share."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Let the collector pass over PyTorch's hundred thousand objects and come by less often, for speed."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
