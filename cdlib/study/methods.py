"""The pruning experiment: one network, one method, one recipe, measured beside the dense network.

Every method gets the same data, recipe and measurement, so that records can be compared. Recording is left to
`cdlib.study.runs`, which calls `prune_and_train`; training is `cdlib.train`'s, measuring `cdlib.report`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdlib import models, pruning, train
from cdlib.complexity import profile
from cdlib.errors import CdlibError, check_choice
from cdlib.serialization import FORMS, encode
from cdlib.study.job import Job
from cdlib.surgery import remove
from cdlib.torch_state import copied, tensors_of


def prune_and_train(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
    """Prune a network by a method, train it as the method asks for, and measure it beside the dense one.

    Parameters
    ----------
    parameters : dict
        `data`, `model`, `options`, `recipe`, `runs`: as for `cdlib.study.train_and_compress`. `method`: a
        dict with the `name`, one of `METHODS`, the options of that function, and for those that start from a trained
        network `fine_tune`, the fields of the recipe that differ in the training that follows. Those that train once
        take ``budget="dense"``: not the epochs of the recipe ("Scratch-E"), but as many as cost the dense network's
        MACs in its epochs ("Scratch-B", Liu et al. 2019, arXiv:1810.05270). "switched_off" takes a `parameter`, the
        name without its modules of those that become zero.
    seed : int
        Of training and drawing. The initial weights come from torch's global generator, which `cdlib.study.run`
        seeds, so that runs of one seed start from the same weights.
    workdir : Path
        Keeps the checkpoints from which a killed run goes on. Trained dense networks stay in the folder above it, for
        all runs that start from them.

    Returns
    -------
    dict
        The quantities of `cdlib.report` for the result; `dense_*`: those that were measured of the dense network in
        the same run (its accuracy only where the method starts from it trained); `train_s`, `train_macs`: of all
        training, that of the dense network included where it was needed (a step counts three forward passes);
        `widths`: what is left of each prunable group; `validation_accuracy`, `threads`, `fingerprint`; and what the
        method adds.

    A CdlibError for a name, an option or a field that is unknown or missing, or a value that is out of range, before
    anything is trained; and for a training that diverges.
    """
    for key in ("data", "model", "options", "recipe", "runs", "method"):
        _taken(dict(parameters), key)
    method = dict(parameters["method"])
    name = _taken(method, "name")
    check_choice("method", name, METHODS)
    job = Job(parameters, seed, workdir)
    extra = _RUNS[name](job, method)
    return {**job.measured(), **extra}


def _taken(given: dict[str, Any], key: str) -> Any:
    """Take what must be given out of the options."""
    if key not in given:
        raise CdlibError(f"{key!r} is missing; only {', '.join(map(repr, given)) or 'nothing'} is given.")
    return given.pop(key)


def _check_options(known: Callable[..., Any] | Iterable[str], given: Iterable[str]) -> None:
    """Raise unless the options given are among the known ones, or are arguments of a function."""
    for name in given:
        check_choice("option:", name, inspect.signature(known).parameters if callable(known) else known)


# What each method does with a run; it returns what it adds to the metrics.


def _dense(job: Job, method: dict[str, Any]) -> dict[str, Any]:
    """The dense network, with further training if asked: what methods that train further are compared with."""
    further = job.recipe.changed(method.pop("fine_tune")) if "fine_tune" in method else None
    _check_options(["fine_tune"], method)
    job.start_trained()
    if further:
        job.fit(job.dense, further)
    return {}


def _switched_off(job: Job, method: dict[str, Any]) -> dict[str, Any]:
    """The trained dense network with all parameters of a name at zero, to see whether it needs what they scale."""
    name = _taken(method, "parameter")
    _check_options(["parameter"], method)
    check_choice("parameter", name, {path.rpartition(".")[2] for path, _ in job.dense.named_parameters()})
    job.start_trained()
    job.model = copied(job.dense)
    with torch.no_grad():
        for path, parameter in job.model.named_parameters():
            if path.rpartition(".")[2] == name:
                parameter.zero_()
    return {}


def _widths(function: Callable[..., nn.Module], job: Job, method: dict[str, Any]) -> dict[str, Any]:
    """Widths that are chosen before any training; the weights for them are drawn anew."""
    budget = method.pop("budget", None)
    if budget is not None:
        check_choice("budget", budget, ["dense"])
    groups = job.groups(method)
    _check_options(pruning.complexity_driven, method)
    job.model = models.reinitialised(function(job.dense, groups, seed=job.seed, **method), job.seed)
    recipe = job.recipe
    if budget:  # so many epochs that the small network's training takes as many MACs as the dense one's
        ratio = profile(job.dense, job.example).macs / profile(job.model, job.example).macs
        recipe = replace(recipe, epochs=round(recipe.epochs * ratio))
    job.fit(job.model, recipe)
    return {}


def _after_training(
    function: Callable[..., nn.Module], job: Job, on: Any, method: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Train, prune and train again; returns the network, and its accuracy before the latter for the metrics."""
    recipe = job.recipe.changed(_taken(method, "fine_tune"))
    _check_options(function, method)
    function(job.dense, on, seed=job.seed, **method)  # what is wrong with it shows before it is trained
    job.start_trained()
    pruned = function(job.dense, on, seed=job.seed, **method)
    before = train.evaluate(pruned, job.dataset.test).accuracy
    job.fit(pruned, recipe)
    return pruned, {"accuracy_before_tuning": before}


def _ranking(job: Job, method: dict[str, Any]) -> dict[str, Any]:
    job.model, extra = _after_training(pruning.ranking, job, job.groups(method), method)
    return extra


def _unstructured(job: Job, method: dict[str, Any]) -> dict[str, Any]:
    method.setdefault("layers", job.layers)
    masked, extra = _after_training(pruning.unstructured, job, job.example, method)
    job.model = pruning.permanent(masked)
    for name, network in (("storage", job.model), ("dense_storage", job.dense)):
        extra[name] = {form: len(encode(network, form)) for form in FORMS}
    return extra


def _ticket(job: Job, method: dict[str, Any]) -> dict[str, Any]:
    """A lottery ticket: masked by the trained weights, trained again from those after `rewind` epochs, or from `fresh`.

    Frankle and Carbin 2019 (arXiv:1803.03635); Frankle et al. 2020 (arXiv:1912.05671). Masks are made at once.
    """
    rewind, fresh = method.pop("rewind", 0), method.pop("fresh", False)
    method.setdefault("layers", job.layers)
    _check_options(pruning.unstructured, method)
    pruning.unstructured(job.dense, job.example, seed=job.seed, **method)  # what is wrong shows before the training
    start = job.built(job.seed + 1000) if fresh else job.early(rewind)
    job.start_trained()
    masked = pruning.unstructured(job.dense, job.example, seed=job.seed, **method)
    held = tensors_of(start)
    with torch.no_grad():
        for name, tensor in tensors_of(masked).items():
            if (source := name.removesuffix("_orig")) in held:
                tensor.copy_(held[source])
    job.fit(masked, job.recipe)
    job.model = pruning.permanent(masked)
    return {}


def _joint(function: Callable[..., Any], job: Job, method: dict[str, Any]) -> dict[str, Any]:
    """Pruned while it is trained; `start_epochs` and `prune_epochs` are the method's steps in epochs."""
    a_epoch = len(job.dataset.train) // job.recipe.batch_size
    method["start"], method["steps"] = (_taken(method, key) * a_epoch for key in ("start_epochs", "prune_epochs"))
    groups = job.groups(method)
    _check_options(function, method)
    made: list[Any] = []

    def wrap(base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        made.append(function(job.dense, groups, base, **method))
        return made[0]

    job.fit(job.dense, job.recipe, optimizer=wrap)
    [optimizer] = made
    job.model = remove(job.dense, groups, optimizer.drop())
    job.trained = True
    images = job.dataset.test.input(min(1000, len(job.dataset.test)))
    with torch.no_grad():
        full, cut = job.dense(images), job.model(images)
    return {
        "sparsity": optimizer.sparsity,
        "forced": getattr(optimizer, "forced", 0),
        "difference": float((full - cut).abs().max() / full.abs().max()),
    }


_RUNS: dict[str, Callable[[Job, dict[str, Any]], dict[str, Any]]] = {
    "dense": _dense,
    "switched_off": _switched_off,
    "complexity_driven": partial(_widths, pruning.complexity_driven),
    "uniform_width": partial(_widths, pruning.uniform_width),
    "random_draw": partial(_widths, pruning.random_draw),
    "ranking": _ranking,
    "unstructured": _unstructured,
    "ticket": _ticket,
    "dhspg": partial(_joint, pruning.dhspg),
    "hesso": partial(_joint, pruning.hesso),
}
METHODS = tuple(_RUNS)
