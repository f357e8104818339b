"""The networks that ship with the book: training them, and keeping them beside their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cdlib import data, models, train
from cdlib.report import measure
from cdlib.study import store
from cdlib.study.methods import training_macs
from cdlib.train import Recipe

EXPERIMENT = "networks"


def train_network(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
    """Train a network, round it to how it is stored, measure it on the test split, and keep it.

    Parameters
    ----------
    parameters : dict
        `name`: under which it ships, or nothing for a run that is only recorded. `data`, `model`, `options`, `recipe`,
        `runs`: as for `cdlib.study.train_and_compress`.
    seed : int
        Of the training. The initial weights come from torch's global generator, which `cdlib.study.run` seeds.
    workdir : Path
        Keeps the checkpoint from which a killed run goes on.

    Returns
    -------
    dict
        The quantities of `cdlib.report`, of the network as stored; `curve`: the validation accuracy after each epoch;
        `train_s`, `train_macs` (a step counts three forward passes), `threads`, `fingerprint`.
    """
    recipe, dataset = Recipe().changed(parameters["recipe"]), data.load(parameters["data"])
    network = models.build(parameters["model"], len(dataset.classes), **parameters["options"])
    models.whiten(network, dataset.train.input(min(5000, len(dataset.train))))
    file = workdir / "checkpoint.pt"
    fitted = train.fit(network, dataset, recipe, seed=seed, checkpoint=file, progress=False)
    models.rounded(network)
    measured = measure({"network": network}, dataset.test, runs=parameters["runs"])["network"].quantities()
    if name := parameters.get("name"):
        card = models.Card(
            name=name,
            model=parameters["model"],
            options=parameters["options"],
            classes=list(dataset.classes),
            shape=list(dataset.shape),
            mean=list(dataset.train.mean),
            std=list(dataset.train.std),
            data=dataset.name,
            record=store.key(EXPERIMENT, parameters, seed),
            accuracy=measured["accuracy"],
        )
        models.keep(network, card, store.folder() / EXPERIMENT / f"{name}.safetensors")
    return {
        **measured,
        "curve": [round(accuracy, 4) for accuracy in fitted.history["validation_accuracy"]],
        "train_s": round(fitted.seconds, 1),
        "train_macs": training_macs(network, dataset, recipe),
        "threads": torch.get_num_threads(),
        "fingerprint": dataset.fingerprint,
    }
