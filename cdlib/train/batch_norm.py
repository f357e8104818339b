"""Batch norms whose averages are those of the network they stand in: what cutting or masking weights makes untrue."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cdlib.data import Split, batches
from cdlib.errors import CdlibError
from cdlib.torch_state import copied, device_of
from cdlib.train.evaluation import evaluating


def recalibrated(model: nn.Module, split: Split, *, batch_size: int = 256) -> nn.Module:
    """Return a copy whose batch norms have means and variances of their own inputs; no weight is trained.

    Only the batch norms are in training mode meanwhile, so that dropout and the like draw nothing. A network without
    batch norms that keep averages comes back as it was.

    Parameters
    ----------
    model : nn.Module
        Takes float32 [n, C, H, W].
    split : Split
        Images of training, two or more; their labels are not used.
    batch_size : int, default 256
        Images at a time. The averages are plain means over the batches.

    Returns
    -------
    nn.Module
        In evaluation mode, on the device of `model`.

    Raises
    ------
    CdlibError
        If the split has fewer than two images, or the network cannot be copied.
    """
    if len(split) < 2:
        raise CdlibError(f"{split.name} has {len(split)} images; averages of a batch take two at least.")
    network = copied(model).eval()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with evaluating(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # a plain mean over all batches
        if norms:
            alone = len(split) % batch_size == 1  # one image has no variance where a map is a single pixel
            for x, _ in batches(split.to(device_of(network)), batch_size, drop_last=alone):
                network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network
