"""Dynamic quantization: linear layers with int8 weights, whose activations are rounded while they run."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from cdlib.errors import CdlibError, check_choice
from cdlib.torch_state import check_module, copied

ENGINES = ("eager", "torchao")


def dynamic(model: nn.Module, *, engine: str = "eager") -> nn.Module:
    """Return a copy of a network whose linear layers hold int8 weights.

    A weight w becomes an integer q with w = scale * q; biases stay
    float32. Activations are rounded to 8 bits while the layer runs,
    with a scale taken from each input. Other layers stay as they are.

    Parameters
    ----------
    model : nn.Module
        float32, on the CPU.
    engine : {"eager", "torchao"}, default "eager"
        PyTorch's own, with one scale per layer: its linear layers have
        no `parameters()`, their weights are packed. Or its successor
        torchao's `quantize_`, with one scale per output channel.

    Returns
    -------
    nn.Module
        In evaluation mode.

    Raises
    ------
    CdlibError
        If the engine is unknown, or is not in this installation.
    """
    check_choice("engine", engine, ENGINES)
    small: nn.Module = copied(check_module(model)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the move to torchao
        try:
            if engine == "torchao":
                from torchao import quantization as ao

                rule = ao.Int8DynamicActivationInt8WeightConfig()
                ao.quantize_(small, rule)
            else:
                from torch.ao import quantization as old

                linear = {nn.Linear}
                small = old.quantize_dynamic(small, linear, torch.qint8)
        except (ImportError, AttributeError) as error:
            raise CdlibError(
                f"engine={engine!r} is not in this installation: {error}; install torchao, or take the other."
            ) from error
    return small.eval()
