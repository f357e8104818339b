"""Cut half of every group out of every network of torchvision (or of 60 families of timm), and check what comes out.

    python benchmarks/zoo.py [--timm] [--only NAME_OR_FAMILY ...] [--limit N] [--failed] [--json FILE]

Networks get random weights, and run on the smallest input that suits them. Columns:

captured, grouped
    `cdlib.graph.capture` and `cdlib.find_groups` come to their end, and something is prunable.
removed, runs
    `cdlib.remove` of half of the units (random) of every prunable group; the result runs, on two samples too.
exact
    `cdlib.surgery.check_exact` in double precision: all groups against the masked network, and those that
    are zero-invariant against the zeroed one, both below 1e-9; one wrong unit, of up to three that are tried, must
    give 1e-6 or more. RAFT, which needs float32, 1e-4 and 1e-3.
trains
    One step of SGD on two samples in training mode: all parameters stay finite, and those get gradients that get some
    in the full network.
saves
    `cdlib.load` of what `cdlib.save` wrote computes the same.
again
    Half of what is left is removed again, and is exact.
exports
    ``torch.export.export(strict=False)`` of the result computes the same. Not counted where the full network fails.

Torch-Pruning stands beside it. In turns with `find_groups`, in one process and one thread, its `build_dependency` is
timed, and that together with `get_all_groups`, since only then it knows its groups (the median of 3, or a single one
that takes more than 10 s); classifiers are timed at their usual 224 pixels too. Its MagnitudePruner cuts half of every
group, ignores the layers that cdlib finds not prunable, and is told the number of heads of attention layers.

Each network is checked in a process of its own, with limits of time and memory. With ``--json``, results are written
after each network, and a run goes on where the last one ended; ``--failed`` repeats networks with a failure.
``--record`` makes the records that the book shows, one a network, or prints those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any

import zoo_report
from zoo_networks import FAMILIES, timm_names

from cdlib.study import run

SECONDS = {"cdlib": 1800, "torch-pruning": 60}
MEMORY = 20 * 2**30
"""For all networks at a time together."""


def child(part: str, family: str, name: str, jobs: int) -> dict[str, Any]:
    """Check a network in another process, and say so if that ends badly."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [
            sys.executable,
            str(Path(__file__).with_name("zoo_checks.py")),
            part,
            family,
            name,
            str(path),
            str(MEMORY // jobs),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder}
        why = ""
        try:
            done = subprocess.run(
                command,
                env=environment,
                timeout=SECONDS[part],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                why = f"the process ended with {done.returncode}: {last[:200]}"
        except subprocess.TimeoutExpired:
            why = f"took more than {SECONDS[part]} s"
        row: dict[str, Any] = json.loads(path.read_text().replace(f"{folder}/", "")) if path.exists() else {}
    if why:
        row.setdefault("failed", {})[row.get("at", "start")] = why
    return row


def check(family: str, name: str, peer: bool, jobs: int) -> dict[str, Any]:
    row = {"network": name, "family": family, **child("cdlib", family, name, jobs)}
    row["peer"] = child("torch-pruning", family, name, jobs) if peer else {}
    return row


def sweep(
    wanted: list[tuple[str, str]], jobs: int, path: Path | None, failed: bool = False, peer: bool = True
) -> list[dict[str, Any]]:
    """Check networks that the file does not hold yet (or that failed), and add them to it."""
    rows = {row["network"]: row for row in (json.loads(path.read_text()) if path and path.exists() else [])}
    left = [(f, n) for f, n in wanted if n not in rows or (failed and zoo_report.failures(rows[n]))]
    with ThreadPoolExecutor(jobs) as pool:
        checks = [pool.submit(check, family, name, peer and family != "timm", jobs) for family, name in left]
        for number, done in enumerate(as_completed(checks), 1 + len(wanted) - len(left)):
            row = done.result()
            rows[row["network"]] = row
            print(f"{number}/{len(wanted)} {zoo_report.line(row)}", flush=True)
            if path:
                path.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    return [rows[name] for _, name in wanted if name in rows]


def recorded(wanted: list[tuple[str, str]], jobs: int) -> list[dict[str, Any]]:
    """The rows of networks from their records, which are made where there are none."""
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "torch-pruning")}

    def one(family: str, name: str) -> dict[str, Any]:
        used = ("torch", "timm") if family == "timm" else ("torch", "torchvision", "torch-pruning")
        parameters = {"family": family, "network": name, **{library: versions[library] for library in used}}
        record = run("zoo", lambda *_: {"row": check(family, name, family != "timm", jobs)}, parameters)
        return record["metrics"]["row"]

    rows = []
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(one, family, name) for family, name in wanted]):
            rows.append(done.result())
            print(f"{len(rows)}/{len(wanted)} {zoo_report.line(rows[-1])}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", action="store_true", help="60 families of timm instead of torchvision")
    parser.add_argument("--only", nargs="+", default=[], help=f"networks or families (default: all): {list(FAMILIES)}")
    parser.add_argument("--limit", type=int, help="so many networks of each family")
    parser.add_argument(
        "--jobs", type=int, default=2, help="networks at a time, each in one thread and with its share of 20 GiB"
    )
    parser.add_argument("--no-peer", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--failed", action="store_true", help="repeat networks that failed somewhere")
    parser.add_argument("--json", type=Path, help="write results to this file, and go on with what it holds")
    parser.add_argument("--record", action="store_true", help="as records of the study, one a network")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}: give 1 or more")
    if arguments.record and any((arguments.failed, arguments.json, arguments.no_peer)):
        parser.error("--record keeps files of its own: leave out --failed, --json and --no-peer")
    families = {"timm": timm_names()} if arguments.timm else FAMILIES
    only = set(arguments.only)
    if unknown := only - {*families, *(name for names in families.values() for name in names)}:
        parser.error(f"neither a network nor a family: {', '.join(sorted(unknown))}")
    wanted = [
        (family, name)
        for family, names in families.items()
        for name in [n for n in names if not only or {n, family} & only][: arguments.limit]
    ]
    rows = (
        recorded(wanted, arguments.jobs)
        if arguments.record
        else sweep(wanted, arguments.jobs, arguments.json, arguments.failed, not arguments.no_peer)
    )
    print("\n" + zoo_report.report(rows))


if __name__ == "__main__":
    main()
