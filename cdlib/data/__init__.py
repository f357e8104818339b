"""Data sets with fixed splits, in memory, and batches made where the images live."""

from __future__ import annotations

from cdlib.data.batching import batches
from cdlib.data.datasets import check, fetch, from_arrays, load
from cdlib.data.image_folder import Arrays
from cdlib.data.seeds import bits, draws
from cdlib.data.sources import where
from cdlib.data.splits import Dataset, Split

__all__ = ["Arrays", "Dataset", "Split", "batches", "bits", "check", "draws", "fetch", "from_arrays", "load", "where"]
