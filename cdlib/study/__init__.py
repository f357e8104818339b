"""The study: `run` does an experiment once, `recorded` reads what came of it, `above` compares with uniform widths."""

from cdlib.study.advice import Advice, advise
from cdlib.study.baseline import train_and_compress
from cdlib.study.camera_trials import show_to_camera
from cdlib.study.compression import compress
from cdlib.study.controls import above, recounted, uniform_line
from cdlib.study.few_bits import quantize_network
from cdlib.study.four_arms import arms, time_arms
from cdlib.study.repeats import repeat
from cdlib.study.runs import run
from cdlib.study.shipped import prune_over_grid, train_network
from cdlib.study.store import folder, load
from cdlib.study.sweeps import sweep
from cdlib.study.tables import described, networks, paired_verdict, quantized, recorded, summary

__all__ = [
    "Advice",
    "above",
    "advise",
    "arms",
    "compress",
    "described",
    "folder",
    "load",
    "networks",
    "paired_verdict",
    "prune_over_grid",
    "quantize_network",
    "quantized",
    "recorded",
    "recounted",
    "repeat",
    "run",
    "show_to_camera",
    "summary",
    "sweep",
    "time_arms",
    "train_and_compress",
    "train_network",
    "uniform_line",
]
