"""What all runs of the pruning experiment share: data, networks, training, and what it cost."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdlib import data, models, report, train
from cdlib.complexity import profile
from cdlib.data import Dataset
from cdlib.grouping import Groups, find_groups
from cdlib.pruning import layers_of
from cdlib.study import store
from cdlib.study.runs import alone
from cdlib.torch_state import copied
from cdlib.train import Recipe


class _Reached(Exception):
    """A training came to the step up to which it was wanted."""


class Job:
    """A run: the network as it becomes smaller, what training it cost, and the dense network beside it."""

    def __init__(self, parameters: dict[str, Any], seed: int, workdir: Path) -> None:
        self.parameters, self.seed, self.workdir = parameters, seed, workdir
        self.recipe = Recipe().changed(parameters["recipe"])
        self.dataset: Dataset = data.load(parameters["data"])
        self.dense = self.built()
        self.layers = list(layers_of(self.dense, trained=True))
        self.fixed = list(layers_of(self.dense, trained=False))
        self.model, self.trained = self.dense, False
        self.example: Tensor = self.dataset.test.input(1)
        self.seconds, self.macs = 0.0, 0
        self.validation = float("nan")

    def built(self, seed: int | None = None) -> nn.Module:
        """A network without training, with weights of torch's global generator or of a seed of their own."""
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            network = models.build(self.parameters["model"], len(self.dataset.classes), **self.parameters["options"])
        some = self.dataset.train.sample(min(5000, len(self.dataset.train)))
        models.whiten(network, some.input(len(some)))
        return network

    def early(self, epochs: int) -> nn.Module:
        """The dense network, which is not trained yet, as it will be after so many epochs of its training."""
        network, steps = copied(self.dense), epochs * (len(self.dataset.train) // self.recipe.batch_size)

        def stop(done: int) -> None:
            if done == steps:
                raise _Reached

        with contextlib.suppress(_Reached):
            if steps:
                train.fit(network, self.dataset, self.recipe, seed=self.seed, progress=False, after_step=stop)
        return network

    def groups(self, method: dict[str, Any]) -> Groups:
        """The groups of the dense network, without those of what a method is to `keep` and of what is not trained."""
        return find_groups(self.dense, self.example, keep={*self.fixed, *method.pop("keep", ())})

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
