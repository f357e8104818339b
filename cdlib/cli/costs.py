"""The commands `profile` and `compare`: what networks cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cdlib
from cdlib.cli import options, output
from cdlib.cli.options import INPUT, Classes, Json, Model, Option, Settings, Shape, Weights
from cdlib.errors import CdlibError


def profile(
    model: Model,
    shape: Shape = None,
    classes: Classes = None,
    layers: Annotated[bool, typer.Option(help="Show a row per layer.")] = True,
    option: Option = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Count parameters, MACs and memory, layer by layer."""
    network, example = options.network(model, shape, classes, option, weights)
    found = cdlib.profile(network, example)
    width = getattr(network, cdlib.models.RECIPE, {}).get("classes")
    if as_json:
        rows = [{"layer": name, **row} for name, row in found.layers.to_dict("index").items()]
        facts = {"model": model, "input": list(example.shape[1:]), "classes": width, "totals": found.totals()}
        output.print_json({**facts, "layers": rows} if layers else facts)
        return
    if layers:
        output.print_layers(found)
    output.say(f"{model}, one sample of {output.times(example.shape[1:])}" + (f", {width} classes" if width else ""))
    output.print_totals(found)


def compare(
    before: Model,
    after: Annotated[str, typer.Argument(help="The same for the other network.")],
    data: Annotated[str | None, typer.Option(help="Data set on whose test split they are measured.")] = None,
    shape: Annotated[str | None, typer.Option("--input", help=f"Shape of a sample without --data ({INPUT}).")] = None,
    classes: Annotated[int | None, typer.Option(help="Width of the classifiers (the data set's, or 10).")] = None,
    weights_a: Annotated[Path | None, typer.Option(help="Weights of the first network, as for profile.")] = None,
    weights_b: Annotated[Path | None, typer.Option(help="Weights of the second network.")] = None,
    option_a: Annotated[Settings, typer.Option(metavar="NAME=VALUE", help="An option of the first network.")] = None,
    option_b: Annotated[Settings, typer.Option(metavar="NAME=VALUE", help="An option of the second network.")] = None,
    runs: Annotated[int, typer.Option(help="Timed forward passes of each network.")] = 50,
    as_json: Json = False,
) -> None:
    """Measure two networks alike and show what changes.

    That is size, MACs, latency, memory and, with --data, accuracy. A network without a checkpoint has random weights,
    and then no accuracy is measured, unless it comes from path/to/file.py:function, which may load its own, or from a
    saved FILE.cdlib.
    """
    import torch

    split: Any = None
    if data is None:
        saved = [Path(name) for name in (before, after, weights_a, weights_b) if name is not None]
        example = options.sample(shape, saved)
    else:
        dataset = cdlib.data.load(data)
        split, example = dataset.test, dataset.test.input()
        classes = classes or len(dataset.classes)
        if shape is not None and options.zeros(shape).shape != example.shape:
            wanted = output.times(dataset.shape)
            raise CdlibError(f"--input {shape} is not the shape of {data}, {wanted}: leave it out.")
    networks: dict[str, Any] = {}
    for name, weights, option in ((before, weights_a, option_a), (after, weights_b, option_b)):
        torch.manual_seed(0)
        network = options.build(name, classes or 10, example, option, weights)
        if split is not None and not options.has_weights(name, weights):
            note = f"note: no accuracy, since {name} has random weights: give --weights-a and --weights-b"
            print(note, file=sys.stderr)
            split = None
        label = " ".join([name, *(option or []), *([weights.name] if weights else [])])
        networks[label if label not in networks else f"{label} (again)"] = network
    measured = cdlib.report.measure(networks, split, example_input=example, runs=runs, progress=sys.stderr.isatty())
    comparison = cdlib.report.compare(*measured.values())
    if not as_json:
        output.say(comparison)
        return
    frame = comparison.frame.astype(object).where(comparison.frame.notna(), None)
    first, second = measured.values()
    facts: dict[str, Any] = {"before": first.name, "after": second.name, "input": list(first.input_shape[1:])}
    facts |= {"data": first.data, "machine": first.machine, "runs": runs, "quantities": frame.to_dict("index")}
    output.print_json({**facts, "mcnemar": None if comparison.paired is None else vars(comparison.paired)})
