"""Few bits: quantization of weights and activations, after training and with it, and the search for bits by layer."""

from __future__ import annotations

from cdlib.quantization.bit_costs import Mixture, apply, knapsack, operations
from cdlib.quantization.bit_search import Search, bitwidths
from cdlib.quantization.dynamic_int8 import dynamic
from cdlib.quantization.equalisation import equalise
from cdlib.quantization.placing import Quantized, prepared
from cdlib.quantization.post_training import static
from cdlib.quantization.quantizers import QuantizedLayer, QuantizedSum, Quantizer
from cdlib.quantization.ranges import RANGES, set_weight_range
from cdlib.quantization.sharing import Codebook, attach, clustered, codebooks, share
from cdlib.quantization.training import train

__all__ = [
    "RANGES",
    "Codebook",
    "Mixture",
    "Quantized",
    "QuantizedLayer",
    "QuantizedSum",
    "Quantizer",
    "Search",
    "apply",
    "attach",
    "bitwidths",
    "clustered",
    "codebooks",
    "dynamic",
    "equalise",
    "knapsack",
    "operations",
    "prepared",
    "set_weight_range",
    "share",
    "static",
    "train",
]
