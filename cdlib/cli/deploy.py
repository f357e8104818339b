"""The commands `compress`, `advise` and `devices`: from a trained network to a file for a device, and what is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cdlib
from cdlib.cli import options
from cdlib.cli.options import Json, Model, Option, Weights
from cdlib.cli.output import print_frame, print_json, print_table, say

Images = Annotated[str, typer.Option(help="Images: digits, cifar10-sample, cifar10, cifar100 or folder:PATH.")]
OnDevice = Annotated[str | None, typer.Option("--device", help="What it is for: a name that `cdlib devices` lists.")]


def compress(
    model: Model,
    data: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for network.onnx and the report.")],
    weights: Weights = None,
    option: Option = None,
    device: OnDevice = None,
    max_mb: Annotated[float | None, typer.Option(help="Most megabytes (10^6 bytes) of the file.")] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="Most milliseconds for an image: measured here, or estimated for --device.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Least accuracy on the validation split, to 1 (a point below the network's).")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Of training after each cut.")] = 4,
    lr: Annotated[float, typer.Option(help="The highest learning rate of it.")] = 0.02,
    bits: Annotated[int, typer.Option(help="Of weights; 7 for CPUs without VNNI.")] = 8,
    seed: Annotated[int, typer.Option(help="Of training and of the choice of images.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder work/ with every file that was made.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier result in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Compress a trained network until it meets bounds, and export, check and measure it.

    Int8 comes first, then growing cuts, each trained again; the first that meets all bounds is taken. Stopped and
    started again with the same arguments, it goes on. Exit code 1: no network met the bounds, and the nearest was kept.
    """
    for bound, value in {"--max-mb": max_mb, "--max-ms": max_ms, "--min-accuracy": min_accuracy}.items():
        if value is not None and not 0 < value < float("inf"):
            raise cdlib.CdlibError(f"{bound}={value:g}: give a positive number.")
    on = cdlib.edge.device(device) if device else None
    dataset, network = _given(model, data, option, weights)
    if not options.has_weights(model, weights):
        raise cdlib.CdlibError(
            f"{model} has random weights, and there is nothing to keep of them: give --weights, or one that ships: "
            f"{', '.join(cdlib.models.shipped_names()) or 'none is here'}."
        )
    found = cdlib.study.compress(
        network,
        dataset,
        output,
        max_bytes=None if max_mb is None else 1e6 * max_mb,
        max_ms=max_ms,
        min_accuracy=min_accuracy,
        device=on,
        name=options.called(model),
        epochs=epochs,
        lr=lr,
        bits=bits,
        seed=seed,
        keep=keep,
        force=force,
        progress=sys.stderr.isatty(),
    )
    print_json(found) if as_json else say((output / "report.txt").read_text(encoding="utf-8"))
    if not found["met"]:
        raise typer.Exit(1)


def advise(
    model: Model,
    data: Images,
    weights: Weights = None,
    option: Option = None,
    device: OnDevice = None,
    margin: Annotated[float, typer.Option(help="Points of accuracy that may be lost.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Say from recorded runs and the card of a device how to compress a network; nothing is trained."""
    on = cdlib.edge.device(device) if device else None
    dataset, network = _given(model, data, option, weights)
    known = getattr(network, cdlib.models.CARD, None)
    names = {options.called(model), *([known.name, known.model] if known else [])}
    counted = cdlib.profile(network, dataset.test.input(1))
    found = cdlib.study.advise(counted, on, names=names, margin=margin)
    if as_json:
        table = found.evidence.astype(object).where(found.evidence.notna(), None)
        print_json({"resource": found.resource, "reasons": found.reasons, "evidence": table.to_dict("records")})
        return
    for reason in found.reasons:
        say(f"- {reason}")
    print_frame(found.evidence)


def devices(as_json: Json = False) -> None:
    """List the devices whose cards are known, with their figures; --json says where each figure comes from."""
    cards = cdlib.edge.devices()
    if as_json:
        figures = {name: {k: f._asdict() for k, f in card.figures().items()} for name, card in cards.items()}
        print_json({name: {"title": card.title, **figures[name]} for name, card in cards.items()})
        return
    units = {"ram_bytes": "B", "storage_bytes": "B", "macs_float32": "MAC/s", "macs_int8": "MAC/s", "bandwidth": "B/s"}
    rows = []
    for name, card in cards.items():
        known = card.figures()
        cells = [
            cdlib.complexity.in_units(int(known[k].value), unit) if k in known else "" for k, unit in units.items()
        ]
        rest = [f"{known[k].value:g}" if k in known else "" for k in ("price_usd", "power_w")]
        rows.append([name, card.title, *cells, *rest])
    print_table(["name", "device", "RAM", "storage", "float32", "int8", "bandwidth", "US$", "W"], rows, range(2, 9))


def _given(model: str, data: str, option: Any, weights: Path | None) -> tuple[Any, Any]:
    """Return the data set and the network."""
    with options.status(f"reading {data}"):
        dataset = cdlib.data.load(data)
    return dataset, options.build(model, len(dataset.classes), dataset.test.input(1), option, weights)


def bench(
    models: Annotated[
        list[str], typer.Argument(help="Networks: FILE.onnx, FILE.pte, one that ships, or as elsewhere.")
    ],
    shape: Annotated[
        str | None, typer.Option("--input", help="Shape of one sample (3x32x32, or that of a card).")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="eager, compile, onnxruntime or executorch; repeatable (eager, onnxruntime)."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    threads: Annotated[int, typer.Option(help="Of every engine.")] = 1,
    cores: Annotated[str | None, typer.Option("--affinity", help="Cores to run on, as 0,1.")] = None,
    runs: Annotated[int, typer.Option(help="Rounds, in which every network runs once.")] = 100,
    sustained: Annotated[float, typer.Option(help="Seconds of unbroken load for each.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Time networks in engines, in turns: latency, cold start, load, memory, and whether differences are real."""
    cdlib.errors.check_whole("--batch", batch, 1)
    try:
        chosen = None if cores is None else tuple(int(part) for part in cores.split(","))
    except ValueError as error:
        raise cdlib.CdlibError(f"--affinity {cores!r}: give numbers of cores with commas between, as 0,1.") from error
    cards = [
        cdlib.edge.Deployed(name).card.shape for name in models if name.lower().endswith(".onnx") and shape is None
    ]
    one = options.zeros("x".join(map(str, cards[0])) if cards else shape or options.INPUT)
    found: dict[str, Any] = {}
    for name in models:
        if name.lower().endswith((".onnx", ".pte")):
            found[Path(name).stem] = Path(name)
        else:
            found[options.called(name)] = options.build(name, 10, one, None)
    if len(found) < len(models):
        raise cdlib.CdlibError(f"of {', '.join(models)} two have the same name: rename a file, or leave one out.")
    given: dict[str, Any] = {"engines": engine or ("eager", "onnxruntime"), "cores": chosen, "runs": runs}
    given |= {"threads": threads, "sustained": sustained, "progress": sys.stderr.isatty()}
    try:
        images = one.repeat(batch, *[1] * (one.dim() - 1))
    except RuntimeError as error:
        raise cdlib.CdlibError(f"--batch {batch} images do not fit into memory: give fewer.") from error
    made = cdlib.edge.bench(found, images, **given)
    print_json(made.facts()) if as_json else say(made)
