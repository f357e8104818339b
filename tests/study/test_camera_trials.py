"""Pictures before a simulated camera: what is recorded of them follows from what each network said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cdlib import edge
from cdlib.study import show_to_camera

PARAMETERS = {"network": "plain-16", "data": "cifar10-sample", "strength": 0.5, "bits": [2], "calibration": 64}


def test_counts_and_costs_follow_from_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten pictures float has 9 right on files and 8 before the camera; integers 8 and 5, none that float missed."""
    said = {("float", 0.0): 9, ("float", 0.5): 8, ("2 bits", 0.0): 8, ("2 bits", 0.5): 5}

    def known(deployed: edge.Deployed, split: object, strength: float, **_: object) -> edge.Simulation:
        right = np.arange(10) < said[deployed.file.stem, strength]
        return edge.Simulation(pd.DataFrame({"right": right}), float(right.mean()), (0.0, 1.0))

    monkeypatch.setattr(edge, "simulate", known)
    monkeypatch.setattr(edge, "export", lambda net, images, file, card: file.touch())
    monkeypatch.setattr(edge, "Deployed", lambda file: type("Known", (), {"file": file}))
    found = show_to_camera({**PARAMETERS, "shots": 10}, 0, tmp_path)
    assert found["accuracy"] == {"float": [0.9, 0.8], "2 bits": [0.8, 0.5]}
    assert found["changed"] == {"2 bits": [[1, 0], [3, 0]]}
    mean, low, high = found["more"]["2 bits"]  # the cost grew by 1 for three pictures and fell by 1 for one, of ten
    assert mean == pytest.approx(0.2) and (low + high) / 2 == pytest.approx(0.2)
    assert high - mean == pytest.approx(1.96 * np.std([1, 1, 1, -1, 0, 0, 0, 0, 0, 0], ddof=1) / 10**0.5)


def test_two_bits_cost_and_float_is_the_network_that_ships(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = show_to_camera({**PARAMETERS, "shots": 60}, 0, tmp_path)
    assert found["accuracy"]["float"][0] > 0.7 > found["accuracy"]["2 bits"][0]
    for at in (0, 1):
        lost, gained = found["changed"]["2 bits"][at]
        assert found["accuracy"]["float"][at] - found["accuracy"]["2 bits"][at] == pytest.approx((lost - gained) / 60)
