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
from torch import Tensor, nn

from cdlib import data, models, pruning, report, train
from cdlib.complexity import profile
from cdlib.data import Dataset
from cdlib.errors import CdlibError, check_choice
from cdlib.grouping import Groups, find_groups
from cdlib.serialization import FORMS, encode
from cdlib.study import store
from cdlib.study.runs import alone
from cdlib.surgery import remove
from cdlib.torch_state import copied
from cdlib.train import Recipe


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


class Job:
    """A run: the network as it becomes smaller, what training it cost, and the dense network beside it."""

    def __init__(self, parameters: dict[str, Any], seed: int, workdir: Path) -> None:
        self.parameters, self.seed, self.workdir = parameters, seed, workdir
        self.recipe = Recipe().changed(parameters["recipe"])
        self.dataset: Dataset = data.load(parameters["data"])
        self.dense = models.build(parameters["model"], len(self.dataset.classes), **parameters["options"])
        some = self.dataset.train.sample(min(5000, len(self.dataset.train)))
        models.whiten(self.dense, some.input(len(some)))
        self.model, self.trained = self.dense, False
        self.example: Tensor = self.dataset.test.input(1)
        self.seconds, self.macs = 0.0, 0
        self.validation = float("nan")

    def groups(self, method: dict[str, Any]) -> Groups:
        """The groups of the dense network, without those of what a method is to `keep`."""
        return find_groups(self.dense, self.example, keep=method.pop("keep", ()))

    def start_trained(self) -> None:
        """Train the dense network, or take it from the run of this seed that did."""
        same = {key: self.parameters[key] for key in ("data", "model", "options", "recipe")}
        file = self.workdir.parent / f"dense-{store.key('dense', same, self.seed)}.pt"
        with alone(file.with_suffix(".lock")):
            self.fit(self.dense, self.recipe, file)
        self.trained = True

    def fit(self, model: nn.Module, recipe: Recipe, checkpoint: Path | None = None, **hooks: Any) -> train.Fit:
        """Train a network in place, and count what it cost."""
        file = checkpoint or self.workdir / "checkpoint.pt"
        fitted = train.fit(model, self.dataset, recipe, seed=self.seed, checkpoint=file, progress=False, **hooks)
        images = recipe.epochs * (len(self.dataset.train) // recipe.batch_size) * recipe.batch_size
        self.macs += 3 * profile(model, self.example).macs * images  # a step counts three forward passes
        self.seconds += fitted.seconds
        self.validation = float(fitted.history["validation_accuracy"].iloc[-1])
        return fitted

    def measured(self) -> dict[str, Any]:
        """What is recorded of every method."""
        pair = {"small": self.model} if self.model is self.dense else {"small": self.model, "dense": self.dense}
        taken = report.measure(pair, self.dataset.test, runs=self.parameters["runs"])
        dense = taken.get("dense", taken["small"]).quantities()
        if not self.trained:
            dense.pop("accuracy")
        return {
            **taken["small"].quantities(),
            **{f"dense_{key}": value for key, value in dense.items()},
            "widths": {group.name: group.size for group in find_groups(self.model, self.example).prunable},
            "validation_accuracy": self.validation,
            **self.spent(),
        }

    def spent(self) -> dict[str, Any]:
        """What all training took, and of which data."""
        return {
            "train_s": round(self.seconds, 1),
            "train_macs": self.macs,
            "threads": torch.get_num_threads(),
            "fingerprint": self.dataset.fingerprint,
        }


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
    """Widths that are chosen before any training."""
    budget = method.pop("budget", None)
    if budget is not None:
        check_choice("budget", budget, ["dense"])
    groups = job.groups(method)
    _check_options(pruning.complexity_driven, method)
    job.model = function(job.dense, groups, seed=job.seed, **method)
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
    masked, extra = _after_training(pruning.unstructured, job, job.example, method)
    job.model = pruning.permanent(masked)
    for name, network in (("storage", job.model), ("dense_storage", job.dense)):
        extra[name] = {form: len(encode(network, form)) for form in FORMS}
    return extra


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
    "dhspg": partial(_joint, pruning.dhspg),
    "hesso": partial(_joint, pruning.hesso),
}
METHODS = tuple(_RUNS)
