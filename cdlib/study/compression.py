"""From a trained network and images to a checked ONNX file that meets bounds, by the least that has to be done.

The ladder: int8; then cuts by rank, growing, in blocks of channels if time is bounded, each with training after it and
int8 again. The first rung that meets all bounds is taken. Size and time follow from shapes, so they are found out
before a rung is trained. What each rung gave stands in ``work/``, beside the checkpoint of its training: a run that was
killed goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cdlib import files, models, pruning, quantization, report, train
from cdlib.complexity import profile
from cdlib.data import Dataset, Split
from cdlib.edge import Deployed, Device, bench, card_for, export, roofline
from cdlib.errors import CdlibError, check_seed, check_share, check_whole
from cdlib.grouping import find_groups
from cdlib.study.advice import advise
from cdlib.study.compression_page import page, told
from cdlib.text import digest
from cdlib.torch_state import bytes_of, copied, tensors_of

AMOUNTS = (0.3, 0.5, 0.7, 0.85)
CALIBRATION, DRAFT = 512, 16  # images
MARGIN = 0.01
BLOCK = 8  # channels that the kernels of runtimes compute together
GIVEN = ("network.onnx", "report.html", "report.txt", "report.json")  # the last says that all is there
OWN = r"(plan\.txt|float\.onnx|(int8|cut-[-\d.e]+)\.(json|onnx|pt))(\.\w+\.tmp)?"  # what may be removed from work/


def compress(
    model: nn.Module,
    dataset: Dataset,
    out: Path | str,
    *,
    max_bytes: float | None = None,
    max_ms: float | None = None,
    min_accuracy: float | None = None,
    device: Device | None = None,
    name: str = "network",
    amounts: Iterable[float] = AMOUNTS,
    epochs: int = 4,
    lr: float = 0.02,
    bits: int = 8,
    seed: int = 0,
    keep: bool = False,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Compress a trained network until it meets the bounds; write ``network.onnx`` and a report into a folder.

    Parameters
    ----------
    model : nn.Module
        Trained on images normalised as those of `dataset`; left as it is.
    dataset : Dataset
        Decisions are made on its validation split; its test split is looked at once, at the end.
    out : path
        A folder, made if need be. It gets ``network.onnx`` with its card, ``report.json``, ``.txt`` and ``.html``.
    max_bytes, max_ms : float, optional
        Of the file; for one image: p50 in onnxruntime on this machine, or with `device` the estimate of `roofline`.
    min_accuracy : float, optional
        On the validation split, above 0 to 1; by default a point (`MARGIN`) below the network given.
    device : Device, optional
        Whose RAM and storage must suffice as well; by default this machine, without such bounds.
    name : str, default "network"
        For card and report, and to find the network's own records.
    amounts : iterable of float, default `AMOUNTS`
        Shares to cut, in this order; of what, `cdlib.study.advise` says.
    epochs, lr : int, float, defaults 4 and 0.02
        Of the training after a cut: SGD, half towards the labels and half towards the outputs of the network given.
    bits : int, default 8
        Of weights; 7 for CPUs without VNNI.
    seed : int, default 0
    keep, force : bool, default False
        Leave ``work/`` in the folder; replace an earlier result.
    progress : bool, default True
        Show progress bars on standard error.

    Returns
    -------
    dict
        What ``report.json`` holds. `met` is False if no rung meets the bounds: then the file is the nearest.

    Raises
    ------
    CdlibError
        If a value is out of range; the network does not fit the data, or cannot be grouped, quantized or exported; the
        folder cannot be written to, holds a result or files of these names, or the work of another run.
    """
    from tqdm import tqdm

    shares = [0.0, *amounts]
    for share in shares:
        check_share("amount", share)
    limits = {"accuracy": min_accuracy, "file": max_bytes, "time": max_ms}
    ladder = _Ladder(model, dataset, Path(out).expanduser(), name, device, limits, (epochs, lr, bits, seed))
    rungs, advice = list[dict[str, Any]](), advise(ladder.counted, device, names=ladder.names)
    ladder.open(force, shares)
    for share in tqdm(shares, unit="rung", disable=not progress):
        rungs.append(ladder.rung(share, advice.resource, last=share == shares[-1], progress=progress))
        missed = rungs[-1]["missed"]
        if not missed or ("accuracy" in missed and (share or len(missed) == 1)):
            break  # met; or the accuracy is too low, and a further cut will not raise it
        if not share:
            short = next(what for what in ("storage", "ram", "file", "time") if what in missed)
            advice = advise(ladder.counted, device, names=ladder.names, short=short)
    found = ladder.close(rungs, advice.reasons)
    if not keep:
        ladder.clean()
    return found


class _Ladder:
    def __init__(self, model: nn.Module, dataset: Dataset, out: Path, name: str, on: Device | None, *rest: Any) -> None:
        self.model, self.dataset, self.out, self.work = copied(model).eval(), dataset, out, out / "work"
        self.name, self.on, (limits, self.options) = name, on, rest
        epochs, lr, self.bits, self.seed = self.options
        check_whole("bits", self.bits, 2, 8)
        check_seed(self.seed)
        size = min(128, len(dataset.train))
        self.recipe = train.Recipe(epochs, size, "sgd", lr, 5e-4, warmup_epochs=0.5, distill=0.5)
        self.one = dataset.test.input(1)
        with train.evaluating(self.model):
            outputs = train.logits_of(self.model, self.one).shape[1]
        if outputs != len(dataset.classes):
            raise CdlibError(f"{name} has {outputs} outputs, but {dataset.name} {len(dataset.classes)} classes.")
        given: models.Card | None = getattr(model, models.CARD, None)
        self.card = card_for(f"{name}-small", dataset, model)
        self.names = {name, *([given.name, given.model] if given else [])}
        self.counted = profile(self.model, self.one)
        self.before = train.evaluate(self.model, dataset.validation).accuracy
        known = on.figures() if on else {}
        self.limits = {"accuracy": max(self.before - MARGIN, MARGIN)}
        self.limits |= {what: limit for what, limit in limits.items() if limit is not None}
        self.limits |= {what: known[f"{what}_bytes"].value for what in ("ram", "storage") if f"{what}_bytes" in known}
        for what, limit in self.limits.items():
            if not 0 < limit < float("inf") or (what == "accuracy" and limit > 1):
                raise CdlibError(f"the bound of {what} is {limit:g}: give a positive number, of accuracy one up to 1.")

    def open(self, force: bool, shares: list[float]) -> None:
        """See that the folders hold nothing else, and make them."""
        asked = json.dumps([self.name, self.limits, shares, self.options, self.dataset.fingerprint])
        mine, plan = digest([asked, *map(bytes_of, tensors_of(self.model).values())]), self.work / "plan.txt"
        begun = plan.is_file()
        if there := [n for n in GIVEN[3 * begun :] if (self.out / n).exists() and not force]:  # begun: they are its own
            raise CdlibError(f"{self.out} holds a result, {there[0]}: give another folder, or --force to replace it.")
        if plan.read_text() != mine if begun else {*self.work.glob("*")} - {*self.work.glob("plan.txt.*.tmp")}:
            raise CdlibError(f"{self.work} holds the work of another run or your own: move it, or give another folder.")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            with files.atomic(plan) as file:
                file.write(mine.encode())
        except OSError as error:
            raise CdlibError(f"cannot write to {self.out}: {error.strerror}; give another folder.") from error

    def clean(self) -> None:
        """Remove what the ladder made in ``work/``, and the folder if nothing else is there."""
        for path in [path for path in self.work.iterdir() if re.fullmatch(OWN, path.name)]:
            path.unlink()
        if not any(self.work.iterdir()):
            self.work.rmdir()

    def rung(self, share: float, resource: str, *, last: bool, progress: bool) -> dict[str, Any]:
        """Return what a rung gives, made now or in an attempt before."""
        name = f"cut-{100 * share:g}" if share else "int8"
        record, target = self.work / f"{name}.json", self.work / f"{name}.onnx"
        if record.exists():
            return dict(json.loads(record.read_text(encoding="utf-8")))
        small, trained = self.model, True
        if share:
            small = self._cut(share, resource)
            trained = last or not self._missed(self._shape(small, target, DRAFT))
        if share and trained:
            options: dict[str, Any] = {"checkpoint": self.work / f"{name}.pt", "teacher": self.model}
            train.fit(small, self.dataset, self.recipe, seed=self.seed, progress=progress, **options)
        found: dict[str, Any] = {"rung": name, "resource": resource if share else "", "accuracy": None}
        found |= self._shape(small, target, CALIBRATION if trained else DRAFT)
        if trained:
            found["accuracy"] = float(_right(target, self.dataset.validation).mean())
        found["missed"] = self._missed(found)
        with files.atomic(record) as file:
            file.write(json.dumps(found).encode())
        return found

    def _cut(self, share: float, resource: str) -> nn.Module:
        """The network without a share; if time is bounded, of `BLOCK` channels at a time where that can be."""
        groups = find_groups(self.model, self.one, keep=pruning.layers_of(self.model, trained=False))
        if "time" in self.limits:
            with contextlib.suppress(CdlibError):  # out of reach
                return pruning.ranking(self.model, groups, share, resource=resource, round_to=BLOCK)
        return pruning.ranking(self.model, groups, share, resource=resource)

    def _shape(self, network: nn.Module, target: Path, images: int) -> dict[str, Any]:
        """Write a network's file in int8; return what follows from shapes."""
        some = self.dataset.train.sample(min(images, len(self.dataset.train)), self.seed)
        export(quantization.static(network, some, bits=self.bits), some.input(len(some)), target, card=self.card)
        counted, size = profile(network, self.one), target.stat().st_size
        line = roofline(counted, self.on, "int8", file_bytes=size) if self.on else None
        found = {"params": counted.params, "macs": counted.macs, "file": size, "storage": size}
        return found | {"time": line.latency_ms if line else self._p50(target), "ram": line and line.ram_bytes}

    def _p50(self, target: Path) -> float:
        """Milliseconds of a file for an image in onnxruntime on this machine, the median."""
        made = bench({"it": target}, self.one, engines=["onnxruntime"], runs=50, sustained=0.05, fresh=False)
        return float(np.median(made.arms["it, onnxruntime"].times))

    def _missed(self, found: dict[str, Any]) -> dict[str, float]:
        """By how much of each bound a rung misses it."""
        over = {what: found[what] / limit - 1 for what, limit in self.limits.items() if found.get(what) is not None}
        return {what: abs(share) for what, share in over.items() if (share < 0 if what == "accuracy" else share > 0)}

    def close(self, rungs: list[dict[str, Any]], reasons: list[str]) -> dict[str, Any]:
        """Look at the test split for the first time, and write what is to stay."""
        best = min((r for r in rungs if r["accuracy"] is not None), key=lambda rung: sum(rung["missed"].values()))
        chosen, whole, test = self.work / f"{best['rung']}.onnx", self.work / "float.onnx", self.dataset.test
        export(self.model, test.input(min(DRAFT, len(test))), whole)
        right, labels = _right(chosen, test), np.array(self.dataset.classes)[test.labels]
        tested = {
            **{"images": len(test), "before": train.evaluate(self.model, test).accuracy},
            "accuracy": float(right.mean()),
            "interval": report.wilson(int(right.sum()), len(right)),
            "by class": {c: float(right[labels == c].mean()) for c in self.dataset.classes if c in labels},
        }
        found = {
            **{"name": self.name, "met": not best["missed"], "chosen": best["rung"], "data": self.card.data},
            **{"device": self.on.title if self.on else report.machine(), "limits": self.limits, "rungs": rungs},
            "time is": "estimated by the roofline" if self.on else "measured here, p50 in onnxruntime",
            "before": {"accuracy": self.before, "file": whole.stat().st_size, "macs": self.counted.macs},
            **{"test": tested, "reasons": reasons, "options": self.options},
        }
        html, text = page(found, Deployed(chosen), test, self.seed), json.dumps(found, indent=2, ensure_ascii=False)
        contents = [chosen.read_bytes(), *(part.encode() for part in (html, told(found), text))]
        with contextlib.ExitStack() as stack:  # the first takes its name after the last is written
            for name, content in reversed([*zip(GIVEN, contents, strict=True)]):
                (file := stack.enter_context(files.atomic(self.out / name))).write(content)
                file.flush()
        return found


def _right(file: Path, split: Split) -> np.ndarray:
    """Which images of a split a file gets right."""
    net, images = Deployed(file), split.input(len(split))
    found: np.ndarray = np.concatenate([net.logits(part.numpy()).argmax(1) for part in images.split(250)])
    return found == split.labels.numpy()
