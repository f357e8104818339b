"""Whether few bits cost more before a camera than on files: all test pictures, seen by a simulated camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cdlib import data, edge, models
from cdlib.quantization import static

EXPERIMENT = "camera"


def show_to_camera(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
    """Show the test pictures to a network and to its integers, as files and as a simulated camera sees them.

    Parameters
    ----------
    parameters : dict
        `network`: one that ships. `data`. `strength`: of all disturbances (`cdlib.edge.disturbed`). `bits`: a list, of
        weights. `calibration`: images for the ranges. `shots`: test pictures, each shown once.
    seed : int
        Of calibration, pictures and disturbances.
    workdir : Path
        Holds the exported files meanwhile.

    Returns
    -------
    dict
        `accuracy`: by network ("float", "8 bits") that on files and that before the camera. `changed`: by network of
        integers, at both, the pictures it lost and gained beside float. `more`: by network, how much more accuracy the
        bits cost before the camera, with the ends of the 95 % interval over pictures (normal approximation).
    """
    dataset, network = data.load(parameters["data"]), models.trained(parameters["network"])
    some = dataset.train.sample(parameters["calibration"], seed)
    nets = {"float": network} | {f"{bits} bits": static(network, some, bits=bits) for bits in parameters["bits"]}
    right: dict[str, list[np.ndarray]] = {}
    for name, net in nets.items():
        file = workdir / f"{name}.onnx"
        edge.export(net, some.input(len(some)), file, card=getattr(network, models.CARD))
        seen = [
            edge.simulate(edge.Deployed(file), dataset.test, strength, shots=parameters["shots"], seed=seed)
            for strength in (0.0, parameters["strength"])
        ]
        right[name] = [result.shots["right"].to_numpy() for result in seen]
    whole = right["float"]
    changed, more = {}, {}
    for name in [name for name in right if name != "float"]:
        pairs = list(zip(whole, right[name], strict=True))
        changed[name] = [[int((one & ~other).sum()), int((~one & other).sum())] for one, other in pairs]
        files, camera = (one.astype(float) - other for one, other in pairs)
        cost = camera - files
        half = 1.96 * cost.std(ddof=1) / len(cost) ** 0.5
        more[name] = [float(value) for value in (cost.mean(), cost.mean() - half, cost.mean() + half)]
    accuracy = {name: [float(seen.mean()) for seen in both] for name, both in right.items()}
    return {"accuracy": accuracy, "changed": changed, "more": more, "fingerprint": dataset.fingerprint}
