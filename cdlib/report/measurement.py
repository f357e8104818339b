"""Taking every figure that the book compares of a set of networks, under the same conditions.

What is counted comes from `cdlib.complexity`, what is predicted from `cdlib.train.evaluate`, what is clocked and
weighed from the modules beside this one.
"""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from cdlib.complexity import profile
from cdlib.data import Split
from cdlib.errors import CdlibError, check_choice
from cdlib.graph import ExampleInput, Inputs, tensors
from cdlib.report import host
from cdlib.report.memory import allocator_peak, file_bytes
from cdlib.report.significance import wilson
from cdlib.report.timing import latencies
from cdlib.torch_state import check_module, check_shapes, device_of, tensors_of
from cdlib.train import evaluate

# Every quantity that is compared: its name, how a table calls it, its unit. In this order, always.
QUANTITIES = {
    "accuracy": ("accuracy", "%"),
    "file_bytes": ("file", "B"),
    "params": ("parameters", ""),
    "nonzero_params": ("non-zero parameters", ""),
    "macs": ("MACs", ""),
    "weight_bytes": ("weights", "B"),
    "latency_p50_ms": ("latency p50", "ms"),
    "latency_p95_ms": ("latency p95", "ms"),
    "peak_activation_bytes": ("peak memory, modelled", "B"),
    "peak_memory_bytes": ("peak memory, measured", "B"),
}


@dataclass(frozen=True)
class Measurement:
    """One network, measured. Bytes are bytes, counts are for one sample, latencies for one batch of `input_shape`."""

    name: str  #: What the caller calls the network.
    data: str | None  #: Name and fingerprint of the split behind `accuracy`; None without one.
    input_shape: tuple[Any, ...]  #: Of the input that was counted and timed; of several inputs, a tuple of shapes.
    machine: str  #: Device, CPU, cores and threads.
    accuracy: float | None  #: Share of images classified correctly, 0 to 1.
    correct: Tensor | None = field(repr=False, compare=False)  #: Which images were classified correctly, bool [N].
    #: Of the serialised artefact, a given file or else `torch.save` of the state_dict; None on the meta device.
    file_bytes: int | None
    params: int  #: Parameters; this and the next four are counted, by the rule of `cdlib.complexity`.
    nonzero_params: int | None  #: Those that differ from zero; None on the meta device.
    macs: int  #: Multiply-accumulates for one sample.
    weight_bytes: int  #: Bytes of the parameters.
    peak_activation_bytes: int  #: Most bytes of activations that must be alive at once.
    #: Half of the `runs` forward passes were at most as long; None on the meta device, where nothing can be run.
    latency_p50_ms: float | None
    latency_p95_ms: float | None  #: 95 % of them were.
    latency_fastest_ms: float | None  #: The shortest of them.
    #: The allocator's peak during a forward pass, weights apart; None on a device that keeps no account.
    peak_memory_bytes: int | None
    runs: int  #: Forward passes timed; 0 on the meta device.
    session: str = field(repr=False, compare=False)  #: The same for all networks whose latencies were interleaved.

    def quantities(self) -> dict[str, float]:
        """Return the figures that are known, by the names of `QUANTITIES`: JSON values, fit for a record's metrics."""
        values = {name: getattr(self, name) for name in QUANTITIES}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def disturbed(self) -> bool:
        """Whether the machine had other work to do: p50 is over 1.3 times the fastest run, or p95 over twice p50.

        On a quiet machine they lie close together; of the recorded runs, 9 in 10 have a p95 below 1.9 times p50.
        """
        if self.latency_fastest_ms is None or self.latency_p50_ms is None or self.latency_p95_ms is None:
            return False
        return self.latency_p50_ms > 1.3 * self.latency_fastest_ms or self.latency_p95_ms > 2 * self.latency_p50_ms

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return Wilson's interval for the accuracy, or None without one."""
        return None if self.correct is None else wilson(int(self.correct.sum()), len(self.correct), level)


def measure(
    models: Mapping[str, nn.Module],
    split: Split | None,
    *,
    example_input: ExampleInput | None = None,
    kwargs: Mapping[str, Any] | None = None,
    batch_dim: int | None = 0,
    files: Mapping[str, pathlib.Path] | None = None,
    runs: int = 50,
    threads: int | None = None,
    progress: bool = False,
) -> dict[str, Measurement]:
    """Measure networks alike: same images, same input, same threads, latencies interleaved in one run.

    Parameters
    ----------
    models : mapping of str to nn.Module
        The networks, by the name they get in tables. Left as they were found. Each is measured where its weights are;
        on the meta device it is counted only.
    split : Split or None
        Images for the accuracy; None to leave it out.
    example_input : tensor or tuple, optional
        What is counted (one sample of it) and timed (the whole), as for `cdlib.profile`; a tensor on the meta device
        stands for zeros. Default: one image of `split`.
    kwargs : dict, optional
        The arguments of the networks by name.
    batch_dim : int or None, default 0
        The dimension that counts samples; None if there is none.
    files : mapping of str to path, optional
        Artefacts whose size counts as the file's, by network; the others' state_dict is serialised to be sized.
    runs : int, default 50
        Forward passes timed per network.
    threads : int, optional
        torch's threads while measuring; the setting is restored. Default: as it is.
    progress : bool, default False
        Show a progress bar on standard error.

    Raises
    ------
    CdlibError
        If there is nothing to measure, no input, a file is missing, or a network cannot run on the input.
    """
    for name, model in models.items():
        check_shapes(check_module(model, f"model {name!r}"))
    if example_input is None:
        if split is None:
            raise CdlibError(
                "neither a split nor an example_input; give at least one to know what to run the networks on."
            )
        example_input = () if kwargs else split.input(1)
    inputs = Inputs.of(example_input, kwargs, batch_dim)
    shapes = tuple(tuple(t.shape) for t in tensors(inputs))
    sizes = _sizes(models, files or {})
    run = {name: model for name, model in models.items() if not _only_shapes(model)}
    with host.threads(threads):
        profiles = {name: _profiled(name, model, inputs) for name, model in models.items()}
        given: dict[str, Any] = {"example_input": inputs.args, "kwargs": inputs.kwargs}
        times = {} if models and not run else latencies(run, **given, runs=runs, progress=progress)
        session = uuid.uuid4().hex
        return {
            name: Measurement(
                name=name,
                data=None if split is None else _data_name(split),
                input_shape=shapes[0] if len(shapes) == 1 else shapes,
                machine=host.machine(device_of(model)),
                accuracy=None if judged is None else judged.accuracy,
                correct=None if judged is None else judged.correct,
                file_bytes=sizes[name],
                **profiles[name],
                latency_p50_ms=_percentile(times.get(name), 50),
                latency_p95_ms=_percentile(times.get(name), 95),
                latency_fastest_ms=_percentile(times.get(name), 0),
                peak_memory_bytes=allocator_peak(model, **given) if name in run else None,
                runs=runs if name in run else 0,
                session=session,
            )
            for name, model in models.items()
            for judged in [None if split is None else evaluate(model, split)]
        }


def shape_text(shape: tuple[Any, ...]) -> str:
    """Return a shape, or a tuple of shapes, as people write it: ``1x3x32x32``, or several with commas between."""
    if any(isinstance(part, tuple) for part in shape):
        return ", ".join(shape_text(part) for part in shape)
    return "x".join(str(part) for part in shape)


def _only_shapes(model: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in tensors_of(model).values())


def _percentile(times: np.ndarray | None, share: int) -> float | None:
    return None if times is None else float(np.percentile(times, share))


def _data_name(split: Split) -> str:
    """Return the split's name and fingerprint, of a folder's path only the last part: tables get published."""
    kind, colon, path = split.name.partition(":")
    return f"{kind}{colon}{'/'.join(path.split('/')[-2:])} {split.fingerprint}"


def _sizes(models: Mapping[str, nn.Module], files: Mapping[str, pathlib.Path]) -> dict[str, int | None]:
    """Return each model's file size, after a look whether the files given belong to models and exist."""
    for name, path in files.items():
        check_choice("model", name, models)
        if not pathlib.Path(path).is_file():
            raise CdlibError(f"file of model {name!r} not found: {path}; export it first, or leave it out.")
    given: dict[str, int | None] = {name: pathlib.Path(path).stat().st_size for name, path in files.items()}
    others = {name: model for name, model in models.items() if name not in files}
    return given | {name: None if _only_shapes(model) else file_bytes(model) for name, model in others.items()}


def _profiled(name: str, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    local = inputs.to(device_of(model))
    try:
        totals = profile(model, local.args, kwargs=local.kwargs, batch_dim=inputs.batch_dim).totals()
    except CdlibError as error:
        raise CdlibError(f"model {name!r}: {error}") from error
    return {key: value for key, value in totals.items() if key in QUANTITIES}
