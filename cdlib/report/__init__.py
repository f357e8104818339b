"""Measure networks alike and compare them."""

from __future__ import annotations

from cdlib.report.comparison import Comparison, compare, table
from cdlib.report.measurement import QUANTITIES, Measurement, measure
from cdlib.report.significance import MeanDifference, Paired, mcnemar, mean_difference, wilson
from cdlib.report.timing import allocator_peak, cpu_peak, file_bytes, hardware, latencies, machine

__all__ = [
    "QUANTITIES",
    "Comparison",
    "MeanDifference",
    "Measurement",
    "Paired",
    "allocator_peak",
    "compare",
    "cpu_peak",
    "file_bytes",
    "hardware",
    "latencies",
    "machine",
    "mcnemar",
    "mean_difference",
    "measure",
    "table",
    "wilson",
]
