"""The quantization experiment: a trained network, pruned or not, in few bits, measured as a file and in a runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdlib import data, models, pruning, quantization, train
from cdlib.complexity import profile
from cdlib.edge import export
from cdlib.errors import CdlibError, check_choice
from cdlib.grouping import find_groups
from cdlib.quantization import Quantized, operations
from cdlib.serialization import save
from cdlib.study import store
from cdlib.train import Recipe

EXPERIMENT = "quantization"
CALIBRATION = 512
WAYS = ("float", "static", "train", "search", "share")


def quantize_network(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
    """Quantize a network that ships with the book, and measure what comes of it.

    Parameters
    ----------
    parameters : dict
        `network`: for `cdlib.models.trained`; `data`; `way`: a dict with the `name`, one of `WAYS`, and

        - "float": nothing, or `recipe`: further training in float32, the control of "train" and "share".
        - "static": the options of `cdlib.quantization.static`.
        - "train": `recipe`, and the options of `cdlib.quantization.train`.
        - "search": `bits`, how many a weight on average, `way` and further options of
          `cdlib.quantization.bitwidths`; with `recipe`, the network is trained with the bits that were found.
        - "share": `bits`, and `recipe` for the training of the shared values.

        `prune`, for a network that is pruned before: a dict with the `name`, "ranking" or "unstructured", the options
        of that function of `cdlib.pruning`, and the `recipe` of the training that follows. A recipe may `distill` from
        the network as it ships, or from another that does, the `teacher`. With `options`, of `cdlib.models.build`, its
        weights go into a network built with these before that: ReLU in place of GELU, for example.

        `name`: under which the result is kept, as ``results/networks/NAME.cdlib``.
    seed : int
        Of the choice of calibration images, of the search and of the training.
    workdir : Path
        Keeps the checkpoint from which a killed run goes on.

    Returns
    -------
    dict
        `accuracy` on the test split; `file_bytes` of what `cdlib.save` writes; `weight_bytes`, `macs`, `bits` by layer;
        `bit_operations`; of integer networks `steps`: how far the logits of all test images are from
        onnxruntime's at most, in steps of the last quantizer; of a search its `evaluations` and `loss`. `fingerprint`.

    A CdlibError for a way that is unknown or an option that is missing.
    """
    dataset, model = data.load(parameters["data"]), models.trained(parameters["network"])
    way = dict(parameters["way"])
    name = way.pop("name", None)
    check_choice("way", name, WAYS)
    recipe = Recipe().changed(way.pop("recipe")) if "recipe" in way else None
    if name == "train" and recipe is None:
        raise CdlibError("'recipe' is missing: training with rounded numbers needs one.")

    def trained(by: Any, network: nn.Module, chosen: Any, checkpoint: str = "checkpoint", **options: Any) -> Any:
        """Train by a function, with the teacher if the recipe asks for one."""
        options |= {"seed": seed, "checkpoint": workdir / f"{checkpoint}.pt", "progress": False}
        return by(network, dataset, chosen, teacher=teacher if chosen.distill else None, **options)

    other = parameters.get("prune", {}).get("teacher")
    teacher = models.trained(other) if other else model
    if "prune" in parameters:
        model, tuned = _pruned(model, dataset, dict(parameters["prune"]), seed)
        trained(train.fit, model, tuned, "pruned")
        model = pruning.permanent(model)  # without masks, a copy
    some = dataset.train.sample(CALIBRATION, seed)
    found: dict[str, Any] = {}
    result: nn.Module = model
    if name == "static":
        result = quantization.static(model, some, **way)
    elif name == "train":
        result = trained(quantization.train, model, recipe, **way)
    elif name == "search":
        result = quantization.static(model, some)
        budget = int(way.pop("bits") * sum(layer.weight().numel() for layer in result.layers().values()) / 8)
        judge = dataset.validation.sample(min(1000, len(dataset.validation)), seed)
        searched = quantization.bitwidths(result, judge, budget, seed=seed, **way)
        found = {"evaluations": searched.evaluations, "loss": searched.loss, "history": searched.history}
        result = quantization.apply(result, searched.bits)
        if recipe:
            result = trained(quantization.train, result, recipe)
    elif name == "share":
        result = quantization.share(model, **way)
    if recipe and name in ("float", "share"):
        trained(train.fit, result, recipe)
    if kept := parameters.get("name"):
        save(result, store.folder() / "networks" / f"{kept}.cdlib")
    return {**found, **_measured(result, dataset, workdir), "fingerprint": dataset.fingerprint}


def _pruned(model: nn.Module, dataset: data.Dataset, how: dict[str, Any], seed: int) -> tuple[nn.Module, Recipe]:
    """A network that is pruned and is to be trained by a recipe."""
    name, recipe = how.pop("name"), Recipe().changed(how.pop("recipe"))
    how.pop("teacher", None)
    check_choice("prune", name, ("ranking", "unstructured"))
    if options := how.pop("options", {}):
        card: models.Card = getattr(model, models.CARD)
        other = models.build(card.model, len(card.classes), **card.options, **options)
        other.load_state_dict(model.state_dict())
        model = other.to(memory_format=torch.channels_last)
    one = dataset.test.input(1)
    if name == "ranking":
        groups = find_groups(model, one, keep=pruning.layers_of(model, trained=False))
        return pruning.ranking(model, groups, seed=seed, **how), recipe
    trained = pruning.layers_of(model, trained=True)
    return pruning.unstructured(model, one, seed=seed, layers=trained, **how), recipe


def _measured(model: nn.Module, dataset: data.Dataset, workdir: Path) -> dict[str, Any]:
    one = dataset.test.input(1)
    found: dict[str, Any] = {"accuracy": train.evaluate(model, dataset.test).accuracy}
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        save(model, Path(folder) / "network.cdlib")
        found["file_bytes"] = (Path(folder) / "network.cdlib").stat().st_size
        if isinstance(model, Quantized):
            images = dataset.test.input(len(dataset.test))
            found["steps"] = export(model, images, Path(folder) / "network.onnx")
            found["onnx_bytes"] = (Path(folder) / "network.onnx").stat().st_size
    counted = profile(model, one)
    return {
        **found,
        "weight_bytes": counted.weight_bytes,
        "macs": counted.macs,
        "bits": model.bits if isinstance(model, Quantized) else {},
        "bit_operations": int(operations(model, one)["bit_operations"].sum()),
        "threads": torch.get_num_threads(),
    }
