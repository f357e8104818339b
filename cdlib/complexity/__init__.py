"""What a network costs: parameters, multiply-accumulates, bytes of weights and of activations, layer by layer.

The counting rule, in one place:

- *params*: elements of `parameters()`, a shared one once, and the weights and biases inside packed int8 modules,
  which `parameters()` does not show. *weight_bytes*: their bytes; of a sparse one those of its values and indices.
  *nonzero_params*: those that differ from zero where the network uses them, after the masks of `torch.nn.utils.prune`:
  a weight that two modules share counts unless both mask it.
- *macs*: multiply-accumulates of convolutions, linear and bilinear layers and matrix products, attention and functional
  calls included; a module that is called twice counts twice. Biases, normalisation, activations and pooling count
  nothing, nor do products of weights alone, such as those of spectral norms: they do not depend on the sample.
  Zeros count: a sparse product counts like the dense one of the same shapes. A multiply-accumulate of two complex
  numbers counts as three of real ones, which is how PyTorch computes a complex convolution (Gauss's trick). A bilinear
  layer counts one for each of its weights. *flops* = 2 x macs.
- *activation_bytes*: bytes of the tensors that operators compute from the input and that are read later or returned. A
  view or an in-place operator makes none; what is computed from weights alone is none.
- *peak_activation_bytes*: the most bytes of activations, network inputs included, that must be alive at once: each from
  the operator that makes it to the last one that reads it. It is a floor: workspace inside an operator is not counted,
  nor what a variable holds on to after its last use.

All are for one sample at inference, whatever the batch size of the example. What runs on the machine is measured by
`cdlib.report`; this package only counts.
"""

from __future__ import annotations

from cdlib.complexity.layers import COLUMNS
from cdlib.complexity.macs import MAC_RULES, macs_of, products_of
from cdlib.complexity.memory import lifetimes
from cdlib.complexity.totals import Profile, in_units, profile

__all__ = ["COLUMNS", "MAC_RULES", "Profile", "in_units", "lifetimes", "macs_of", "products_of", "profile"]
