"""What `cdlib.study.compress` tells of a run: as text, and as one page with pictures that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from pathlib import Path
from string import Template
from typing import Any

from cdlib.complexity import in_units
from cdlib.data import Split
from cdlib.edge import Deployed


def told(found: dict[str, Any]) -> str:
    """Return the report of a run as text."""
    test, before, verdict = found["test"], found["before"], "meets all bounds" if found["met"] else "NOT ALL BOUNDS MET"
    bounds = ", ".join(f"{what} {_text(what, limit)}" for what, limit in found["limits"].items())
    lines = [
        f"{found['name']}: {found['chosen']} {verdict}{'' if found['met'] else ', this is the nearest'}",
        f"For {found['device']}; bounds: {bounds}. Time is {found['time is']}; accuracies are of the validation split.",
        f"float32: accuracy {_text('accuracy', before['accuracy'])}, file {_text('file', before['file'])}",
    ]
    for rung in found["rungs"]:
        parts = [f"{what} {_text(what, rung[what])}" for what in ("accuracy", "file", "time") if rung[what] is not None]
        over = [f"{what} by {100 * share:.1f} % of it" for what, share in rung["missed"].items()]
        end = f"misses the bound of {', '.join(over)}" if over else "meets all bounds"
        trained = "; not trained, since its shape does not do" if rung["accuracy"] is None else ""
        cut = f" ({rung['resource']})" if rung["resource"] else ""
        lines.append(f"{rung['rung']}{cut}: {', '.join(parts)}: {end}{trained}")
    low, high = (_text("accuracy", end) for end in test["interval"])
    classes = ", ".join(f"{name} {_text('accuracy', share)}" for name, share in test["by class"].items())
    lines += [
        f"Test split, {test['images']} images, looked at once: {_text('accuracy', test['accuracy'])}, 95 % interval "
        f"{low} to {high}; the network given {_text('accuracy', test['before'])}. By class: {classes}.",
        *found["reasons"],
    ]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="    ") for line in lines)


def page(found: dict[str, Any], net: Deployed, test: Split, seed: int) -> str:
    """Return the report as HTML, with the sizes as a figure and twelve test images with what `net` says of them."""
    some, examples = test.sample(min(12, len(test)), seed), []
    for image, label in zip(some.images, some.labels, strict=True):
        pixels, name = image.permute(1, 2, 0).squeeze(2).numpy(), net.card.classes[int(label)]
        [(said, share), *_] = net.classify(pixels).items()
        text = html.escape(f"{said}, {100 * share:.0f} % sure" + ("" if said == name else f"; it is {name}"))
        picture = f'<img src="data:image/png;base64,{_picture(pixels)}" alt="A test image of {html.escape(name)}">'
        examples.append(f"<li>{picture}<br>{text}</li>")
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    title, text = html.escape(f"{found['name']}, compressed"), html.escape(told(found))
    return template.substitute(title=title, text=text, figure=_bars(found), examples="\n".join(examples))


def _text(what: str, value: float) -> str:
    given = {"accuracy": f"{100 * value:.1f} %", "time": f"{value:.3g} ms"}
    return given.get(what) or in_units(int(value), "B")


def _picture(pixels: Any) -> str:
    from PIL import Image

    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return base64.b64encode(file.getvalue()).decode()


def _bars(found: dict[str, Any]) -> str:
    from matplotlib.figure import Figure

    sizes = {"float32": found["before"]["file"], **{rung["rung"]: rung["file"] for rung in found["rungs"]}}
    figure = Figure((6, 0.6 + 0.4 * len(sizes)), layout="constrained")
    axis = figure.subplots()
    axis.barh([*sizes], [*sizes.values()], color=["k" if name == found["chosen"] else "0.7" for name in sizes])
    for name, size in sizes.items():
        axis.text(size, name, f" {in_units(size, 'B')}", va="center")
    axis.set(xticks=[], xlim=(0, 1.2 * max(sizes.values())))
    axis.invert_yaxis()
    figure.savefig(file := io.BytesIO(), format="svg")
    return base64.b64encode(file.getvalue()).decode()
