"""The baseline experiment: train a network, store its linear layers in int8, and measure both forms alike.

What later methods are compared with. Recording is left to `cdlib.study.runs`, which calls `train_and_compress`;
training is `cdlib.train`'s, measuring `cdlib.report`'s. Lines are short, because a chapter prints these functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cdlib import data, models, report, train
from cdlib.quantization import dynamic


def train_and_compress(
    parameters: dict[str, Any],
    seed: int,
    workdir: Path,
) -> dict[str, Any]:
    """Train a network, make an int8 copy, measure both on the test split.

    Parameters
    ----------
    parameters : dict
        `data`, `model`: names for `cdlib.data.load` and
        `cdlib.models.build`; `options`: the latter's options;
        `recipe`: the fields of a `cdlib.train.Recipe`; `runs`:
        forward passes to time.
    seed : int
        Of the training. The initial weights come from torch's global
        generator, which `cdlib.study.runs.run` seeds.
    workdir : Path
        Keeps the checkpoint from which a killed run goes on.

    Returns
    -------
    dict
        `float32`, `int8`: the quantities of `cdlib.report`; `images`:
        in the test split; `lost`, `gained`, `p_value`: McNemar's test
        between the two; `validation_accuracy`: of the float32 network;
        `train_s`; `threads`; `fingerprint`: of the data set.

    Raises
    ------
    CdlibError
        For a name, an option or a field that is unknown, or a training
        that diverges.
    """
    recipe = train.Recipe().changed(parameters["recipe"])
    dataset = data.load(parameters["data"])
    network = models.build(
        parameters["model"],
        len(dataset.classes),
        **parameters["options"],
    )
    fitted = train.fit(
        network,
        dataset,
        recipe,
        seed=seed,
        checkpoint=workdir / "checkpoint.pt",
        progress=False,
    )
    measured = report.measure(
        {"float32": fitted.model, "int8": dynamic(fitted.model)},
        dataset.test,
        runs=parameters["runs"],
    )
    compared = report.compare(measured["float32"], measured["int8"])
    paired = compared.paired
    assert paired is not None  # both have been run on the test split
    validated = fitted.history["validation_accuracy"].iloc[-1]
    return {
        "float32": measured["float32"].quantities(),
        "int8": measured["int8"].quantities(),
        "images": paired.images,
        "lost": paired.lost,
        "gained": paired.gained,
        "p_value": paired.p_value,
        "validation_accuracy": float(validated),
        "train_s": round(fitted.seconds, 1),
        "threads": torch.get_num_threads(),
        "fingerprint": dataset.fingerprint,
    }
