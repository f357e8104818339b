"""The command `quantize`: few bits for a trained network, as a file of the library or of a runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cdlib
from cdlib.cli import options
from cdlib.cli.options import Json, Model, Option, Weights
from cdlib.cli.output import print_json, print_table, say
from cdlib.errors import CdlibError, check_choice, check_seed, check_whole


def quantize(
    model: Model,
    data: Annotated[str, typer.Option(help="Images: digits, cifar10-sample, cifar10, cifar100 or folder:PATH.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write: small.cdlib or small.onnx.")],
    bits: Annotated[int, typer.Option(help="Of the weights, 2 to 8; 7 for CPUs without VNNI.")] = 8,
    ranges: Annotated[str, typer.Option(help="Of activations: mse, minmax or percentile.")] = "mse",
    images: Annotated[int, typer.Option(help="Training images that show the ranges.")] = 512,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="One scale for all channels of a layer.")] = False,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="NAME", help="A layer that stays in float32; repeatable.")
    ] = None,
    option: Option = None,
    weights: Weights = None,
    seed: Annotated[int, typer.Option(help="Of the choice of images.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Round weights and activations to integers, say what that costs, and save the network."""
    from cdlib import quantization, train

    check_whole("--bits", bits, 2, 8)
    check_choice("--ranges", ranges, quantization.RANGES)
    check_whole("--images", images, 1)
    check_seed(seed, "--seed")
    options.check_output(output, force, ".cdlib", ".onnx")
    with options.status(f"reading {data}"):
        dataset = cdlib.data.load(data)
    one = dataset.test.input(1)
    network = options.build(model, len(dataset.classes), one, option, weights)
    card = cdlib.edge.card_for(options.called(model), dataset, network)
    with train.evaluating(network):
        outputs = train.logits_of(network, one).shape[1]
    if outputs != len(dataset.classes):
        raise CdlibError(f"{model} has {outputs} outputs, but {data} {len(dataset.classes)} classes.")
    with options.status("finding the ranges"):
        some = dataset.train.sample(min(images, len(dataset.train)), seed)
        small = quantization.static(
            network, some, bits=bits, per_channel=not per_tensor, ranges=ranges, keep=keep or ()
        )
    with options.status(f"writing {output}"):
        if output.suffix.lower() == ".onnx":
            checked = dataset.test.input(min(1000, len(dataset.test)))
            cdlib.edge.export(small, checked, output, card=card)
        else:
            cdlib.save(small, output)
    networks = {"before": network, "after": small}
    with options.status("evaluating"):
        accuracy = {when: train.evaluate(each, dataset.test).accuracy for when, each in networks.items()}
    facts: dict[str, Any] = {
        "model": model,
        "data": dataset.name,
        "file": output,
        "file_bytes": output.stat().st_size,
        "bits": small.bits,
        "in_float": small.in_float,
        "accuracy": accuracy,
        "weight_bytes": {when: cdlib.profile(net, one).weight_bytes for when, net in networks.items()},
    }
    if not options.has_weights(model, weights):
        print(f"note: {model} had random weights: give --weights to quantize a trained network", file=sys.stderr)
    print_json(facts) if as_json else _print(facts)


def _print(facts: dict[str, Any]) -> None:
    in_units = cdlib.complexity.in_units
    found, held = facts["accuracy"], facts["weight_bytes"]
    rows = [
        [f"accuracy on {facts['data']} (test)", *(f"{100 * found[when]:.2f} %" for when in ("before", "after"))],
        ["weights", *(in_units(held[when], "B") for when in ("before", "after"))],
    ]
    print_table(["", "before", "after"], rows, right=[1, 2])
    for name, why in facts["in_float"].items():
        say(f"{name} stays in float32: {why}")
    say(f"wrote {facts['file']}, {in_units(facts['file_bytes'], 'B')}")
