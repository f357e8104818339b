"""A network before a camera, a video or a folder of pictures: each frame classified and drawn upon."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdlib import files
from cdlib.edge.deployed import Deployed, opened
from cdlib.errors import CdlibError


@dataclass(frozen=True)
class Shot:
    """What a network says of one frame."""

    frame: str  #: The frame's number from 000000, or the name of a picture's file.
    label: str  #: The likeliest class,
    confidence: float  #: and its probability, in 0..1.
    milliseconds: float  #: From the frame in memory to the probabilities; neither reading nor drawing is in it.
    picture: Any  #: PIL image: the frame, small ones enlarged, with all this and the part that the network sees.


def watch(deployed: Deployed, source: str | Path, output: Path | None = None) -> Iterator[Shot]:
    """Classify the frames of a camera (its number, from "0"), of a video, or of a folder of pictures, by their names.

    With `output`, a folder that is made when the first frame is there, it gets each picture as FRAME.jpg, and then a
    line in ``shots.csv`` (frame, label, confidence, milliseconds), so that an interruption leaves whole ones of both.
    A CdlibError if the source cannot be opened, has no pictures or a damaged one, or the folder cannot be made; if
    OpenCV is missing, a camera gives no more frames, or a video ends before 90 % of those that its header says, which
    is often off by a few.
    """
    for count, (name, frame) in enumerate(_frames(str(source))):
        start = time.perf_counter_ns()
        label, confidence = next(iter(deployed.classify(frame).items()))
        spent = (time.perf_counter_ns() - start) / 1e6
        picture = _drawn(frame, f"{label}\n{100 * confidence:.0f} %, {spent:.1f} ms", deployed.card.shape)
        if output is not None:
            picture.save(jpeg := io.BytesIO(), "JPEG", quality=90)  # Pillow takes half a write to a full disk for whole
            try:
                if not count:
                    output.mkdir()
                    _add_line(output, ("frame", "label", "confidence", "milliseconds"))
                with files.atomic(output / f"{name}.jpg") as out:
                    out.write(jpeg.getvalue())
                _add_line(output, (name, label, f"{confidence:.6f}", f"{spent:.3f}"))
            except OSError as error:
                raise CdlibError(
                    f"{output} cannot be written: {error.strerror}; give the path of a new folder."
                ) from error
        yield Shot(name, label, confidence, spent, picture)


def _add_line(output: Path, values: tuple[str, ...]) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    with open(output / "shots.csv", "ab", buffering=0) as file:
        file.write(line.getvalue().encode())  # at once


def _frames(source: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and frames, RGB uint8 [height, width, 3], of a source."""
    from PIL import Image

    place, camera = Path(source).expanduser(), source.isdecimal()
    if place.is_dir():
        Image.init()
        known = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
        found = sorted(p for p in place.iterdir() if p.suffix.lower() in known and not p.name.startswith("."))
        if not found:
            raise CdlibError(f"{place} has no pictures: give a folder of files such as .jpg or .png.")
        yield from ((path.name, np.asarray(opened(path))) for path in found)
        return
    if not camera and not place.is_file():
        raise CdlibError(f"there is no {place}: give the number of a camera, a video or a folder of pictures.")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what goes wrong is said below
    try:
        import cv2
    except ImportError as error:
        raise CdlibError("OpenCV is not installed: pip install opencv-python-headless.") from error
    cv2.utils.logging.setLogLevel(0)
    capture = (
        cv2.VideoCapture() if camera and len(source) > 9 else cv2.VideoCapture(int(source) if camera else str(place))
    )
    if not capture.isOpened():
        why = "there is none, another program uses it, or the system's privacy settings do not permit it"
        raise CdlibError(f"camera {source} cannot be opened: {why}." if camera else f"{place} is no video, or damaged.")
    total, count = 0 if camera else int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0
    try:
        while (taken := capture.read())[0]:
            yield f"{count:06}", np.ascontiguousarray(taken[1][..., ::-1])  # OpenCV's are BGR
            count += 1
    finally:
        capture.release()
    if camera or not count or count < 0.9 * total:
        raise CdlibError(f"{'camera ' * camera}{source} broke off after {count} frames{f' of {total}' * (total > 0)}.")


def _drawn(frame: np.ndarray, text: str, shape: list[int]) -> Any:
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    picture = Image.fromarray(frame)
    zoom = max(1, min(240 // min(picture.size), 2000 // max(picture.size)))
    picture = ImageOps.scale(picture, zoom, Image.Resampling.NEAREST)
    (width, height), ratio = picture.size, shape[2] / shape[1]
    seen = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    left, top = (width - seen[0]) // 2, (height - seen[1]) // 2  # the middle, as Deployed.prepared cuts it
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(10, min(width, height) // 14))
    draw.rectangle((left, top, left + seen[0] - 1, top + seen[1] - 1), outline="yellow", width=2)
    draw.text((left + 6, top + 4), text, "white", font, stroke_width=2, stroke_fill="black")
    return picture
