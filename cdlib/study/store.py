"""The records of the study: small JSON files, one a run, named by what was run, never overwritten.

A record holds the experiment, its parameters and seed, the metrics, the wall time and the provenance (see
`cdlib.study.runs`, which makes them). It lies at ``FOLDER/EXPERIMENT/KEY.json`` and is either whole or absent, whatever
happened to its writer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cdlib import files
from cdlib.errors import CdlibError, check_seed
from cdlib.text import digest

Record = dict[str, Any]

FIELDS = ("key", "experiment", "parameters", "seed", "metrics", "wall_s", "provenance")
ORIGIN = ("date", "commit", "dirty", "command", "versions", "machine", "data", "resumed")
LAST = ("wall_s", "machine", "commit", "date")  # the columns that close the table of records
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# An absolute path: at the start or after a separator, "/x", "~/x" or "C:\\x", but not the "//" of a web address.
_PATH = re.compile(r"(?:^|[\s=:,;'\"(\[])(?:~?/(?![/\s])|[A-Za-z]:[\\/](?!/))\S")


def folder() -> Path:
    """Return the folder of the records: ``$CDLIB_RESULTS``, else ``results/`` of the checkout one is in.

    A CdlibError if the variable is not set and no folder from the current one upwards holds a ``_config.yml``.
    """
    if given := os.environ.get("CDLIB_RESULTS"):
        return Path(given).expanduser().absolute()
    if place := files.checkout():
        return place / "results"
    raise CdlibError(
        f"no results folder: no _config.yml in {Path.cwd()} or above; run inside the checkout or set CDLIB_RESULTS."
    )


def key(experiment: str, parameters: Mapping[str, Any], seed: int) -> str:
    """Return the name of a run: the first 16 hex digits of the SHA-256 of what was run, as canonical JSON.

    Canonical means sorted keys, no spaces, lists for tuples, and whole floats written as integers: ``1`` and ``1.0``
    are the same parameter, since YAML, JSON and command lines do not keep them apart. ``true`` and ``1`` differ.

    A CdlibError unless the experiment, which names a folder, is made of letters, digits, ``_``, ``-`` and ``.``, the
    parameters are JSON values under string keys, and the seed is from 0 to 2^63 - 1.
    """
    if not isinstance(experiment, str) or not _NAME.fullmatch(experiment):
        raise CdlibError(
            f"experiment {experiment!r} names a folder; use letters, digits, '_', '-' and '.', a letter or digit first."
        )
    check_seed(seed)
    what = {"experiment": experiment, "parameters": checked(parameters, "parameters"), "seed": seed}
    text = json.dumps(_canonical(what), sort_keys=True, separators=(",", ":"))
    return digest([text])[:16]


def checked(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a deep copy of `values` as JSON will give them back (lists for tuples); `name` is for the message.

    A CdlibError if a value is no JSON value, is NaN or infinite, or holds an absolute path, which means nothing on
    another machine.
    """
    if not isinstance(values, Mapping):
        raise CdlibError(f"{name} is a {type(values).__name__}; give a dict of JSON values.")
    return _checked(values, name)


def find(experiment: str, parameters: Mapping[str, Any], seed: int, results: Path) -> Record | None:
    """Return the record of a run in the folder `results`, or None if there is none."""
    path = results / experiment / f"{key(experiment, parameters, seed)}.json"
    return read(path) if path.exists() else None


def read(path: Path) -> Record:
    """Return the record in a file.

    A CdlibError if the file cannot be read, is no whole record, or does not belong under its name.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        _validate(record)
        place = f"{record['experiment']}/{record['key']}.json"
        if path.parts[-2:] != tuple(place.split("/")):
            raise ValueError(f"it belongs at {place}")
    except OSError as error:
        raise CdlibError(f"cannot read the record {path}: {error.strerror}.") from error
    except ValueError as error:  # not a record, not JSON, or not even text
        reason = str(error).rstrip(".")
        raise CdlibError(f"{path} is not a record: {reason}; restore it from version control or delete it.") from error
    return record


def write(record: Mapping[str, Any], results: Path) -> Path:
    """Write a record with all `FIELDS` into the folder `results` for good, and return its file.

    A reader sees a whole file or none. A FileExistsError if the run is recorded already: of several writers of one
    record exactly one succeeds. A CdlibError if the record is not fit to be written or the folder cannot be written to.
    """
    record = checked(record, "record")
    _validate(record)
    path = results / record["experiment"] / f"{record['key']}.json"
    check_writable(path.parent)
    text = json.dumps({name: record[name] for name in FIELDS}, indent=2, ensure_ascii=False)
    with files.atomic(path, new=True) as file:
        file.write(f"{text}\n".encode())
    for stale in path.parent.glob(f"{path.name}.*.tmp"):  # of writers that were killed, or that have lost by now
        with contextlib.suppress(OSError):
            stale.unlink()
    return path


def check_writable(place: Path) -> None:
    """Make a folder if need be and raise `CdlibError` unless files can be written there."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise CdlibError(
            f"cannot write to {place}: {error.strerror}; choose another folder (CDLIB_RESULTS)."
        ) from error


def load(results: Path | None = None, experiment: str | None = None) -> pd.DataFrame:
    """Return the records as a table, a row each, sorted by experiment, parameters and seed.

    Parameters
    ----------
    results : Path, optional
        The folder of the records; default `folder()`. One that does not exist holds none.
    experiment : str, optional
        Only this one.

    Returns
    -------
    pandas.DataFrame
        Index `key`. Columns: `experiment`, `seed`, a column per parameter, a column per metric, `wall_s`, `machine`,
        `commit`, `date`. Nested values have dotted names (``recipe.lr``). A name that a parameter shares with a metric
        or with one of the fixed columns is written ``parameters.NAME``, ``metrics.NAME``.

    Raises
    ------
    CdlibError
        If a file in the folder is no record.
    """
    results = results or folder()
    patterns = [f"{experiment}/*.json"] if experiment else ["*.json", "*/*.json"]  # a stray file is an error, not a run
    records = [read(path) for pattern in patterns for path in sorted(results.glob(pattern))]
    records.sort(key=lambda r: (r["experiment"], json.dumps(_canonical(r["parameters"]), sort_keys=True), r["seed"]))
    given, found = ([dict(_flat(record[part])) for record in records] for part in ("parameters", "metrics"))
    clash = set().union(*given) & set().union(*found) | {"key", "experiment", "seed", *LAST}
    given = [_renamed(values, clash, "parameters") for values in given]
    found = [_renamed(values, clash, "metrics") for values in found]
    rows = [
        {"experiment": record["experiment"], "seed": record["seed"], **one, **other, **_closing(record)}
        for record, one, other in zip(records, given, found, strict=True)
    ]
    middle = dict.fromkeys(name for values in (*given, *found) for name in values)
    frame = pd.DataFrame(rows, index=pd.Index([record["key"] for record in records], name="key", dtype=str))
    return frame.reindex(columns=["experiment", "seed", *middle, *LAST])


def _checked(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        for label in value:
            if not isinstance(label, str):
                kind = type(label).__name__
                raise CdlibError(f"{name} has the key {label!r}, a {kind}; JSON takes only strings as keys.")
        return {label: _checked(inner, f"{name}.{label}") for label, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(inner, f"{name}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, str) and _PATH.search(value):
        raise CdlibError(f"{name} is {value!r}, a path of this machine; give a name or a relative path.")
    if isinstance(value, float) and not math.isfinite(value):
        raise CdlibError(f"{name} is {value}, which JSON cannot hold; record None, or find out why it is not a number.")
    if value is None or type(value) in (bool, int, float, str):
        return value
    hint = "use .item()" if hasattr(value, "item") else "use numbers, strings, lists and dicts"
    raise CdlibError(f"{name} is a {type(value).__name__}, not a JSON value; {hint}.")


def _canonical(value: Any) -> Any:
    """Return checked values with whole floats as integers, so that 1 and 1.0 give one key."""
    if isinstance(value, dict):
        return {label: _canonical(inner) for label, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _validate(record: Any) -> None:
    """Raise `CdlibError` unless `record` has all fields of a record and its own key."""
    fields = record if isinstance(record, dict) else {}
    missing = [name for name in FIELDS if name not in fields]
    origin = fields.get("provenance")
    missing += [f"provenance.{name}" for name in ORIGIN if not isinstance(origin, dict) or name not in origin]
    if not missing and not isinstance(record["provenance"]["machine"], dict):
        missing = ["provenance.machine.cpu"]
    if missing:
        raise CdlibError(f"it lacks {', '.join(missing)}")
    if record["key"] != key(record["experiment"], record["parameters"], record["seed"]):
        raise CdlibError(f"its key {record['key']} is not that of its experiment, parameters and seed")
    checked(record["metrics"], "metrics")


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for label, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{label}.")
        else:
            yield f"{prefix}{label}", value


def _renamed(values: dict[str, Any], clash: set[str], prefix: str) -> dict[str, Any]:
    return {f"{prefix}.{name}" if name in clash else name: value for name, value in values.items()}


def _closing(record: Record) -> dict[str, Any]:
    origin = record["provenance"]
    commit = origin["commit"] and origin["commit"][:12] + ("-dirty" if origin["dirty"] else "")
    machine = ", ".join(str(part) for part in (origin["machine"].get("gpu"), origin["machine"].get("cpu")) if part)
    return {"wall_s": record["wall_s"], "machine": machine, "commit": commit, "date": origin["date"]}
