"""Joules for a call: read from the processor's own counter where it can be, else estimated, and always said which."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cdlib.errors import CdlibError

RAPL = Path("/sys/class/powercap")
"""Where Linux has the counters of Intel's and AMD's processors (running average power limit)."""


@dataclass(frozen=True)
class Energy:
    """What a call takes."""

    joules: float  #: For one call.
    how: str  #: "measured" or "estimated",
    method: str  #: and by what, in words.
    watts: float  #: Mean power meanwhile.
    utilisation: list[float]  #: Cores that this process kept busy, in each tenth of the time.

    def __str__(self) -> str:
        return f"{1e3 * self.joules:.3g} mJ a call, {self.how}: {self.method}"


def energy(
    call: Callable[[], object], *, seconds: float = 2.0, watts: float | None = None, root: Path = RAPL
) -> Energy:
    """Call something for some seconds, and say how many joules a call takes.

    Parameters
    ----------
    call : callable
        Without arguments.
    seconds : float, default 2
        The processor's counter is renewed about a thousand times a second.
    watts : float, optional
        What all cores draw together at full load, from a data sheet (`cdlib.edge.device`). For an estimate, where no
        counter can be read: watts, times the share of the cores that this process kept busy, times the time.
    root : path
        Where the counters lie. They count the whole processor package, memory apart, whatever else it does meanwhile;
        most systems let only root read them: ``sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj``.

    Raises
    ------
    CdlibError
        If no counter can be read and no watts are given, or they or the seconds are no positive number.
    """
    for name, value in (("watts", 1.0 if watts is None else watts), ("seconds", seconds)):
        if not (value > 0 and math.isfinite(value)):
            raise CdlibError(f"{name}={value!r}: give a positive number.")
    counters = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    before = _read(counters)
    if not before and watts is None:
        why = "may not be read by this user" if counters else "does not exist here"
        raise CdlibError(f"the energy counter under {root} {why}: give watts=, from the processor's data sheet.")
    start, marks, calls = time.perf_counter(), [(time.perf_counter(), time.process_time())], 0
    while (now := time.perf_counter()) - start < seconds or not calls:
        call()
        calls += 1
        if now - marks[-1][0] > seconds / 10:
            marks.append((now, time.process_time()))
    marks.append((time.perf_counter(), time.process_time()))
    taken, used = (marks[-1][k] - marks[0][k] for k in (0, 1))
    shares = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(marks) if b[0] > a[0]]
    if before:
        after = _read(counters)
        spent = sum((after[zone] - value) % _range(zone) for zone, value in before.items()) / 1e6
        return Energy(spent / calls, "measured", "RAPL, the whole processor package", spent / taken, shares)
    assert watts is not None
    drawn = watts * used / (taken * (os.cpu_count() or 1))
    method = f"{watts:g} W at full load x the share of the cores that was busy x time"
    return Energy(drawn * taken / calls, "estimated", method, drawn, shares)


def _read(zones: list[Path]) -> dict[Path, int]:
    found = {}
    for zone in zones:
        try:
            found[zone] = int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            return {}
    return found


def _range(zone: Path) -> int:
    """At how many microjoules a counter starts over."""
    return int((zone / "max_energy_range_uj").read_text()) + 1
