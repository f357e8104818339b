"""The four arms of a network, dense, pruned, in integers and both, in every engine at hand, in turns.

    python benchmarks/arms.py [--network plain-16] [--pruned plain-16-relu] [--batch 1] [--threads 1] [--rounds 200]

Ratios are to the dense network in PyTorch, with the 95 % interval. `--pruned` is a network that ships as
results/networks/NAME.cdlib, or the share of the parameters that uniform widths leave out. ExecuTorch takes part where
it is installed. A record of the same is made by `cdlib.study.time_arms`.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from cdlib import report
from cdlib.study import time_arms


def share_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="plain-16", help="one that ships, or that cdlib.models.build knows")
    parser.add_argument("--pruned", default="plain-16-relu", type=share_or_name)
    parser.add_argument("--batch", default=1, type=int)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--rounds", default=200, type=int)
    given = parser.parse_args()
    engines = ["eager", "onnxruntime", *(["executorch"] if importlib.util.find_spec("executorch") else [])]
    parameters: dict[str, Any] = {
        **{"network": given.network, "pruned": given.pruned, "data": "cifar10-sample", "engines": engines},
        **{"batch": given.batch, "threads": given.threads, "runs": given.rounds, "sustained": 1.0},
    }
    found = time_arms(parameters, 0, Path())
    print(f"{report.machine()}; instructions: {', '.join(found['instructions'] or ['unknown'])}")
    for name, arm in found["arms"].items():
        value, low, high = arm["faster"]
        size = f"{arm['file_bytes'] / 1e3:8.1f} kB"
        print(f"{name:28} {arm['p50_ms']:8.3f} ms  {value:6.2f} ({low:.2f} to {high:.2f})  {size}")
    print(f"other processes kept {found['others']:.2f} cores busy")
