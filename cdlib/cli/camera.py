"""The commands `camera`, `print-samples` and `simulate`: an exported network before a camera, or as if it were."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cdlib
from cdlib.cli import options
from cdlib.cli.options import Json
from cdlib.cli.output import print_json, print_table, say
from cdlib.errors import CdlibError, check_choice, check_seed, check_whole

File = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A network that the library exported, with its card.")]
Data = Annotated[str, typer.Option(help="Images: digits, cifar10-sample, cifar10, cifar100 or folder:PATH.")]


def camera(
    model: File,
    source: Annotated[str, typer.Option(help="The number of a camera, a video, or a folder of pictures.")] = "0",
    headless: Annotated[bool, typer.Option("--headless", help="Open no window.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A new folder for frames and a table.")] = None,
    frames: Annotated[int | None, typer.Option(help="Stop after so many.")] = None,
    threads: Annotated[int, typer.Option(help="Of the runtime.")] = 1,
    as_json: Json = False,
) -> None:
    """Say what a network sees: in a window (Q ends it), and with -o as annotated frames and shots.csv.

    The window needs the package opencv-python, without a window opencv-python-headless is enough; a folder of pictures
    needs neither. The network sees the square that is drawn on the frame.
    """
    import numpy as np
    from tqdm import tqdm

    check_whole("--frames", 1 if frames is None else frames, 1)
    if headless and output is None:
        raise CdlibError("--headless shows nothing: give a folder to write to with -o.")
    spent: list[float] = []  # and not the pictures: a camera may run for hours
    with options.status(f"reading {model}"):
        stream = cdlib.edge.watch(cdlib.edge.Deployed(model, threads=threads), source, output)
    for shot in tqdm(stream, desc=source, unit=" frames", leave=False, disable=not sys.stderr.isatty()):
        spent.append(shot.milliseconds)
        if (not headless and _closed(shot.picture, Path(source).is_dir())) or len(spent) == frames:
            break
    times = np.percentile(spent, [50, 95]).round(3).tolist()
    facts: dict[str, Any] = {"model": model, "source": source, "frames": len(spent), "folder": output}
    facts["milliseconds"] = dict(zip(("p50", "p95"), times, strict=True))
    if as_json:
        print_json(facts)
        return
    say(f"{len(spent)} frames of {source}, {times[0]:.1f} ms each (p50; p95 {times[1]:.1f} ms) to prepare and classify")
    if output is not None:
        say(f"wrote {output}")


def _closed(picture: Any, wait: bool) -> bool:
    """Show a picture in the window, and say whether that was closed; `wait` for a key, or go on."""
    import numpy as np

    try:
        import cv2
    except ImportError as error:
        raise CdlibError("no window without OpenCV: pip install opencv-python; or use --headless -o FOLDER.") from error
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        raise CdlibError("there is no screen for a window: use --headless -o FOLDER.")
    try:
        cv2.imshow("cdlib", np.asarray(picture)[..., ::-1].copy())
        pressed = cv2.waitKey(0 if wait else 1) & 0xFF
        return pressed in (27, ord("q")) or cv2.getWindowProperty("cdlib", cv2.WND_PROP_VISIBLE) < 1
    except cv2.error as error:
        cure = "pip uninstall opencv-python-headless, then pip install opencv-python"
        raise CdlibError(f"this OpenCV opens no windows: {cure}; or use --headless -o FOLDER.") from error


def print_samples(
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PDF to write.")],
    each: Annotated[int, typer.Option(help="Pictures of each class.")] = 2,
    side: Annotated[float, typer.Option(help="Of a picture, in mm.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the choice of pictures and their order.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Make a PDF of test pictures to hold before a camera, with a score sheet and, on the last page, the answers."""
    options.check_output(output, force)
    with options.status(f"writing {output}"):
        key = cdlib.edge.print_samples(cdlib.data.load(data), output, each=each, side=side, seed=seed)
    facts = {"file": output, "pictures": key.reset_index().to_dict("records")}
    print_json(facts) if as_json else say(f"wrote {output}: {len(key)} pictures of {side:g} mm; the answers come last")


def simulate(
    model: File,
    data: Data,
    strength: Annotated[float, typer.Option(help="Of the disturbances, from 0 to 1.")] = 0.5,
    only: Annotated[list[str] | None, typer.Option(metavar="STEP", help="Of the steps these; repeatable.")] = None,
    shots: Annotated[int | None, typer.Option(help="Test pictures, drawn by the seed (all).")] = None,
    seed: Annotated[int, typer.Option(help="Of pictures and disturbances.")] = 0,
    as_json: Json = False,
) -> None:
    """Classify test pictures as a camera might see their prints, beside the plain pictures.

    The steps are perspective, blur, light, noise and resampling.
    """
    check_seed(seed, "--seed")
    for step in only or ():
        check_choice("step", step, cdlib.edge.STEPS)
    if not 0 <= strength <= 1:
        raise CdlibError(f"--strength={strength:g}: give a number from 0 to 1.")
    deployed, dataset = cdlib.edge.Deployed(model), cdlib.data.load(data)
    if list(dataset.classes) != deployed.card.classes:
        raise CdlibError(f"{data} has other classes than {model}, or in another order: give the data it was made for.")
    amount = dict.fromkeys(only or cdlib.edge.STEPS, strength)
    bar = sys.stderr.isatty()
    results = {
        name: cdlib.edge.simulate(deployed, dataset.test, given, shots=shots, seed=seed, progress=bar)
        for name, given in (("plain", 0.0), ("camera", amount))
    }
    if as_json:
        found = {name: {"accuracy": r.accuracy, "interval": r.interval} for name, r in results.items()}
        each = results["camera"].shots.rename_axis("image").reset_index().to_dict("records")
        print_json({"model": model, "strength": amount, "seed": seed, **found, "shots": each})
        return
    rows = [
        [name, *(f"{100 * value:.1f}" for value in (result.accuracy, *result.interval))]
        for name, result in results.items()
    ]
    print_table(["pictures", "right (%)", "95 % from", "to"], rows, right=range(1, 4))
    count = len(results["plain"].shots)
    say(f"{count} shots, of which each is {100 / count:.3g} points; {', '.join(amount)} of strength {strength:g}")
