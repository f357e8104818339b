"""Training and pruning at once: optimizers that drive whole units to zero while they train the others.

`hesso` and `dhspg` make a `torch.optim.Optimizer` out of any other one. The base moves all weights; then the redundant
units are moved on towards zero, where they stay. Since only zero-invariant groups take part, `cdlib.remove` of the
units that `drop` names gives a smaller network that computes what the trained one does ("only train once").

DHSPG is the optimizer of OTOv2 (Chen et al. 2023, arXiv:2303.06862), HESSO that of OTOv3 and its successor (Chen et al.
2023, arXiv:2312.09411; 2024, arXiv:2409.09085). Where these papers write the gradient, their implementation takes the
direction of the base (with momentum, or Adam's); so does this one: d = (x - x') / lr for a base step from x to x'.
"""

from __future__ import annotations

from cdlib.pruning.oto.group_sparse import GroupSparse
from cdlib.pruning.oto.half_space import DHSPG, dhspg
from cdlib.pruning.oto.shrink import HESSO, hesso

__all__ = ["DHSPG", "HESSO", "GroupSparse", "dhspg", "hesso"]
