"""What `import cdlib`, and the first use of its profiler, take beyond `import torch`, each in a fresh process.

    python benchmarks/import_time.py

The project asks for under 0.3 s for the import. The profiler also imports pandas, which takes most of its time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = "import time, torch; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
STATEMENTS = ("import cdlib", "import pandas", "import cdlib; cdlib.profile")
RUNS = 7


def seconds(statement: str) -> float:
    command = [sys.executable, "-c", CODE.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    for statement in STATEMENTS:
        times = [seconds(statement) for _ in range(RUNS)]
        print(f"{statement:30} median {statistics.median(times):.3f} s, slowest {max(times):.3f} s beyond import torch")
