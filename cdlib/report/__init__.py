"""Measure networks alike and compare them."""

from cdlib.report.comparison import CommonTable, Comparison, compare, table
from cdlib.report.host import hardware, instructions, machine, threads
from cdlib.report.measurement import QUANTITIES, Measurement, measure
from cdlib.report.memory import allocator_peak, cpu_peak, file_bytes
from cdlib.report.power import images_needed, pairs_needed
from cdlib.report.significance import MeanDifference, Paired, mcnemar, mean_difference, wilson
from cdlib.report.timing import WARM_UP, interleaved, latencies
from cdlib.report.verdicts import Verdict, verdict

__all__ = [
    "QUANTITIES",
    "WARM_UP",
    "CommonTable",
    "Comparison",
    "MeanDifference",
    "Measurement",
    "Paired",
    "Verdict",
    "allocator_peak",
    "compare",
    "cpu_peak",
    "file_bytes",
    "hardware",
    "images_needed",
    "instructions",
    "interleaved",
    "latencies",
    "machine",
    "mcnemar",
    "mean_difference",
    "measure",
    "pairs_needed",
    "table",
    "threads",
    "verdict",
    "wilson",
]
