"""The four arms of a two-stage compression on a machine: dense, pruned, in integers, and both, timed in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cdlib import data, edge, models, pruning, report, train
from cdlib.grouping import find_groups
from cdlib.quantization import static
from cdlib.serialization import load
from cdlib.study import store

EXPERIMENT = "edge"


def arms(network: str, pruned: str | float, dataset: data.Dataset, seed: int) -> dict[str, nn.Module]:
    """Return a network as it is, pruned, in 8-bit integers, and both.

    Parameters
    ----------
    network : str
        One that ships, or the name of one that `cdlib.models.build` builds, with random weights from the seed.
    pruned : str or float
        The name of a pruned network that ships, or the share of parameters by which all widths shrink alike.
    dataset : Dataset
        Has the images for calibration.
    seed : int
        Of their choice.
    """
    torch.manual_seed(seed)
    shipped = network in models.shipped_names()
    dense = models.trained(network) if shipped else models.build(network, len(dataset.classes)).eval()
    if isinstance(pruned, str):
        small: nn.Module = load(store.folder() / "networks" / f"{pruned}.cdlib")
    else:
        groups = find_groups(dense, dataset.test.input(1))
        small = pruning.uniform_width(dense, groups, "PA", pruned)
    some = dataset.train.sample(min(128, len(dataset.train)), seed)
    whole = {"dense": dense, "pruned": small.eval()}
    return {**whole, "int8": static(dense, some), "pruned, int8": static(small, some)}


def time_arms(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
    """Time the four arms in one run, in turns.

    Parameters
    ----------
    parameters : dict
        `network`, `pruned`, `data`: as for `arms`. `batch`, `threads`, `runs`, `sustained`: as for `cdlib.edge.bench`.
        `size`, for a network that is not trained: the side to which the images are enlarged. `engines`, by default
        PyTorch and onnxruntime.
    seed : int
        Of weights and calibration.
    workdir : Path
        Not used: the longest run takes minutes.

    Returns
    -------
    dict
        By arm, in PyTorch for the two of floats and in the other engines for all: ``p50_ms``, ``p95_ms``, ``p99_ms``,
        ``images_per_s``, ``load_ms``, ``first_ms``, ``peak_bytes``, ``file_bytes``, ``in_float``, and by how much it is
        ``faster`` than the dense network in PyTorch, with the 95 % interval. `accuracy` on the test split, of networks
        that were trained. `instructions` of the processor, `others`: cores that other processes kept busy.
    """
    dataset = data.load(parameters["data"])
    if "size" in parameters:
        dataset = _enlarged(dataset, parameters["size"], max(128, parameters["batch"]))
    nets = arms(parameters["network"], parameters["pruned"], dataset, seed)
    options = {key: parameters[key] for key in ("threads", "runs", "sustained", "engines") if key in parameters}
    found = edge.bench(nets, dataset.test.input(parameters["batch"]), **options)
    kept = {name: arm for name, arm in found.arms.items() if not ("int8" in name and name.endswith("eager"))}
    first = "dense, eager"
    made: dict[str, Any] = {}
    for name, arm in kept.items():
        faster = found.ratio(first, name)
        made[name] = {
            **{f"p{share}_ms": float(np.percentile(arm.times, share)) for share in (50, 95, 99)},
            **{"images_per_s": arm.throughput, "load_ms": arm.load_ms, "first_ms": arm.first_ms},
            **{"peak_bytes": arm.peak_bytes, "file_bytes": arm.file_bytes, "in_float": arm.in_float},
            "faster": [faster.value, faster.low, faster.high],
        }
    judged = parameters["network"] in models.shipped_names()
    accuracy = {name: train.evaluate(net, dataset.test).accuracy for name, net in nets.items()} if judged else {}
    facts = {"instructions": report.instructions(), "others": found.others, "busy": found.busy}
    return {"arms": made, "accuracy": accuracy, "fingerprint": dataset.fingerprint, **facts}


def _enlarged(dataset: data.Dataset, size: int, count: int) -> data.Dataset:
    """So many images of each split, enlarged to squares of a size."""
    parts: list[Any] = []
    for split in (dataset.train.sample(count), dataset.test.sample(count)):
        images = torch.nn.functional.interpolate(split.images, (size, size), mode="bilinear")
        parts.append((images.numpy(), split.labels.numpy()))
    known = (dataset.train.mean, dataset.train.std)
    return data.from_arrays(f"{dataset.name} at {size}", dataset.classes, parts[0], parts[1], True, known)
