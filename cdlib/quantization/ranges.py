"""Which range of numbers a quantizer covers: all that was seen, all but a few, or that of least error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError, check_choice
from cdlib.quantization.quantizers import Quantizer

RANGES = ("minmax", "percentile", "mse")
PERCENTILE = 99.99
"""Per cent of the numbers that "percentile" keeps within the range, half of the others on each side."""
BINS, TRIALS = 2048, 100


def set_weight_range(quantizer: Quantizer, weight: Tensor, ranges: str) -> None:
    """Set the range of weights: of the whole tensor, or of each index along the quantizer's axis.

    "mse" tries `TRIALS` shares of the largest magnitude, and takes that with the least squared error; "percentile" is
    "minmax" for weights, of which each one counts.
    """
    rows = weight.detach().double()
    rows = rows.flatten().unsqueeze(0) if quantizer.axis is None else rows.movedim(quantizer.axis, 0).flatten(1)
    most = rows.abs().amax(1)
    best, least = most.clone(), torch.full_like(most, torch.inf)
    trial = Quantizer(quantizer.bits, signed=True, axis=0)
    for share in (torch.arange(TRIALS, 0, -1) / TRIALS).tolist() if ranges == "mse" else [1.0]:
        trial.set_range(-most * share, most * share)
        error = (trial(rows) - rows).square().sum(1)
        better = error < least
        best, least = torch.where(better, most * share, best), torch.where(better, error, least)
    best = best.squeeze(0) if quantizer.axis is None else best
    quantizer.set_range(-best, best)


def set_ranges(quantizers: Mapping[str, Quantizer], run: Callable[[], Iterable[None]], ranges: str) -> None:
    """Set the ranges of quantizers from what passes through them while calibration images run.

    Parameters
    ----------
    quantizers : mapping of str to Quantizer
        By the names that errors give; they let everything pass meanwhile.
    run : callable
        Runs the images through the network, batch by batch; called twice unless `ranges` is "minmax".
    ranges : {"minmax", "percentile", "mse"}
        The second and third look at a histogram of `BINS` bins. "mse" tries `TRIALS` shares of the range.

    Raises
    ------
    CdlibError
        If what passes through one is not finite.
    """
    check_choice("ranges", ranges, RANGES)
    seen: dict[str, list[Tensor]] = {name: [] for name in quantizers}
    _watch(quantizers, run, lambda name, x: seen[name].append(torch.stack(x.detach().aminmax()).double()))
    bounds = {name: (torch.stack(found)[:, 0].amin(), torch.stack(found)[:, 1].amax()) for name, found in seen.items()}
    for name, (low, high) in bounds.items():
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CdlibError(f"{name} gets numbers that are not finite from the calibration images: check the network.")
    if ranges != "minmax":
        counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in quantizers}

        def count(name: str, x: Tensor) -> None:
            low, high = (bound.item() for bound in bounds[name])
            if high > low:
                counts[name] += torch.histc(x.detach().float(), BINS, low, high).double().cpu()

        _watch(quantizers, run, count)
        choose = _percentile if ranges == "percentile" else _least_error
        bounds = {name: choose(quantizers[name], counts[name], *bounds[name]) for name in quantizers}
    for name, quantizer in quantizers.items():
        quantizer.set_range(*bounds[name])


def _watch(
    quantizers: Mapping[str, Quantizer], run: Callable[[], Iterable[None]], see: Callable[[str, Tensor], None]
) -> None:
    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, inputs: see(name, inputs[0])

    handles = [quantizer.register_forward_pre_hook(hook(name)) for name, quantizer in quantizers.items()]
    try:
        for _ in run():
            pass
    finally:
        for handle in handles:
            handle.remove()


def _percentile(_: Quantizer, counts: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    below = counts.cumsum(0) / counts.sum().clamp(min=1)
    cut = (1 - PERCENTILE / 100) / 2
    edges = low + (high - low) * torch.arange(BINS + 1, dtype=torch.float64) / BINS
    inside = torch.nonzero((below > cut) & (below - counts / counts.sum().clamp(min=1) < 1 - cut)).flatten()
    return (edges[inside[0]], edges[inside[-1] + 1]) if len(inside) else (low, high)


def _least_error(quantizer: Quantizer, counts: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    middles = low + (high - low) * (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    trial = Quantizer(quantizer.bits, signed=quantizer.signed)
    best, least = (low, high), torch.inf
    for share in (torch.arange(TRIALS, 0, -1) / TRIALS).tolist():
        trial.set_range(low * share, high * share)
        error = (counts * (trial(middles) - middles).square()).sum().item()
        if error < least:
            best, least = (low * share, high * share), error
    return best
