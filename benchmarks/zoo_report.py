"""Say in words and tables what zoo.py found."""

from __future__ import annotations

from typing import Any

import pandas as pd

STEPS = ("captured", "grouped", "removed", "runs", "exact", "trains", "saves", "again", "exports")


def failures(row: dict[str, Any]) -> dict[str, str]:
    """The failures of a network, by step."""
    return row.get("failed", {})


def line(row: dict[str, Any]) -> str:
    """One network in a line."""
    steps = [step for step in STEPS if _known(row, step) and not (step == "exports" and "exports not" in row)]
    marks = " ".join(step if step in row.get("passed", []) else f"{step.upper()}!" for step in steps)
    exact = row.get("exact", {}).get("all", {})
    numbers = " ".join(f"{k}={v:.0e}" for k, v in exact.items() if v is not None)
    seconds = row.get("peer", {}).get("graph seconds", {})
    times = " ".join(f"{way} {s:.2f} s" for way, s in seconds.items())
    reasons = "".join(f"\n      {step}: {why}" for step, why in failures(row).items())
    reasons += "".join(f"\n      torch-pruning {step}: {why}" for step, why in failures(row.get("peer", {})).items())
    groups, total = row.get("groups", {}), sum(row.get("seconds", {}).values())
    some = f"{groups.get('prunable')}/{groups.get('all')} groups, {len(row.get('rewritten', []))} rewritten"
    return f"{row['network']}: {marks} | {numbers} | {some} | {times} | {total:.0f} s{reasons}"


def _peer(row: dict[str, Any]) -> dict[str, str]:
    return failures(row.get("peer", {}))


def _known(row: dict[str, Any], step: str) -> bool:
    return step in row.get("passed", []) or step in failures(row)


def _passed(row: dict[str, Any], step: str) -> bool:
    """Whether a step was done; an export that the full network fails too is neither passed nor failed."""
    return step in row.get("passed", []) and not (step == "exports" and "exports not" in row)


def report(rows: list[dict[str, Any]]) -> str:
    """Counts per family and column, every failure, seconds."""
    frame = pd.DataFrame(
        [{"family": r["family"], "networks": 1, **{s: int(_passed(r, s)) for s in STEPS}} for r in rows]
    )
    frame["torch-pruning graph"] = [int("list" in r.get("peer", {}).get("passed", [])) for r in rows]
    frame["torch-pruning cuts"] = [int("cuts" in r.get("peer", {}).get("passed", [])) for r in rows]
    frame["torch-pruning out of time"] = [int(any("took more" in why for why in _peer(r).values())) for r in rows]
    lines = [frame.groupby("family", sort=False).sum().to_string()]
    lines += [f"{r['network']} {step}: {why}" for r in rows for step, why in failures(r).items()]
    lines += [
        f"{r['network']} exports: nor does the full network: {r['exports not']}" for r in rows if "exports not" in r
    ]
    lines += [
        f"torch-pruning: {r['network']} {step}: {why}"
        for r in rows
        for step, why in failures(r.get("peer", {})).items()
    ]
    for size in ("", " at 224"):
        both = [t for r in rows if len(t := r.get("peer", {}).get(f"graph seconds{size}", {})) == 3]
        if both:
            seconds = pd.DataFrame(both).agg(["sum", "median", "max"])
            lines.append(
                f"\nseconds{size} where both work ({len(both)} networks)\n" + seconds.to_string(float_format="%.3f")
            )
    return "\n".join(lines)
