"""The networks that ship with the book: training them, and keeping them beside their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdlib import models
from cdlib.report import measure
from cdlib.study import store
from cdlib.study.methods import Job

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
    job = Job(parameters, seed, workdir)
    fitted = job.fit(job.dense, job.recipe)
    models.rounded(job.dense)
    measured = measure({"network": job.dense}, job.dataset.test, runs=parameters["runs"])["network"].quantities()
    if name := parameters.get("name"):
        card = models.Card(
            name=name,
            model=parameters["model"],
            options=parameters["options"],
            classes=list(job.dataset.classes),
            shape=list(job.dataset.shape),
            mean=list(job.dataset.train.mean),
            std=list(job.dataset.train.std),
            data=job.dataset.name,
            record=store.key(EXPERIMENT, parameters, seed),
            accuracy=measured["accuracy"],
        )
        models.keep(job.dense, card, store.folder() / EXPERIMENT / f"{name}.safetensors")
    return {
        **measured,
        "curve": [round(accuracy, 4) for accuracy in fitted.history["validation_accuracy"]],
        **job.spent(),
    }
