"""The networks that ship with the book: training and keeping them, and what pruning leaves of one without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdlib import data, models
from cdlib.pruning import layers_of, permanent, unstructured
from cdlib.report import measure
from cdlib.study import store
from cdlib.study.job import Job
from cdlib.train import evaluate

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
            options={key: value for key, value in parameters["options"].items() if key != "pretrained"},
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


def prune_over_grid(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
    """Prune single weights of a trained network by every pair of two shares, and evaluate it without training it again.

    The map of Francy and Singh 2024 (arXiv:2409.02134, figures 5 and 6). Layers whose weights are not trained stay.

    Parameters
    ----------
    parameters : dict
        `network`: for `cdlib.models.trained`; `data`; `by`: the criterion of `cdlib.pruning.unstructured`; `amounts`:
        the shares, of the convolutions' and of the linear layers' weights alike.
    seed : int
        Of a random choice.
    workdir : Path
        Not used: the longest run takes minutes.

    Returns
    -------
    dict
        `accuracy`, `nonzero_params`: a list for each share of the convolutions, in which there is a number for each
        share of the linear layers: the accuracy on the test split, with the batch norms' averages of the network
        before, and what is not zero. `dense`: the accuracy before. `fingerprint`.
    """
    model, dataset = models.trained(parameters["network"]), data.load(parameters["data"])
    layers = layers_of(model, trained=True)
    one = dataset.test.input(1)
    found: dict[str, list[list[float]]] = {"accuracy": [], "nonzero_params": []}
    for conv in parameters["amounts"]:
        options = {"by": parameters["by"], "layers": layers, "seed": seed}
        pruned = [unstructured(model, one, conv, linear, **options) for linear in parameters["amounts"]]
        nets = [permanent(net) for net in pruned]
        found["accuracy"].append([evaluate(net, dataset.test).accuracy for net in nets])
        found["nonzero_params"].append([sum(int(p.count_nonzero()) for p in net.parameters()) for net in nets])
    return {**found, "dense": evaluate(model, dataset.test).accuracy, "fingerprint": dataset.fingerprint}
