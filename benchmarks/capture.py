"""Two ways to get the graph of a network, on the networks of torchvision: cdlib's one run, and torch.export.

    python benchmarks/capture.py [--only NAME_OR_FAMILY ...] [--limit N] [--operators] [--json FILE]

capture
    `cdlib.graph.capture`: the network runs once under a dispatch mode, on meta tensors where it can (``on meta``).
export
    ``torch.export.export(model, inputs, strict=False).run_decompositions({})``: traced with fake tensors, then traced
    again to get functional ATen operators. The empty table leaves composite operators such as ``linear`` whole.

Networks have unset weights, are in evaluation mode without gradients, and get the smallest input that suits them. Each
way is timed once on each network, after a first network that is not counted; the time to build it is left out. An
operator is counted as often as it occurs in the graph, views included, and ``getitem`` left out. Distinct operators
are told apart by their overloads too. Ctrl-C ends the run with the summary of what is done.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision
from profilers import SIZES, build, timed
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from cdlib.graph import capture

MODULES = {
    "classification": torchvision.models,
    "segmentation": torchvision.models.segmentation,
    "video": torchvision.models.video,
    "detection": torchvision.models.detection,
    "optical flow": torchvision.models.optical_flow,
}
FAMILIES = {family: torchvision.models.list_models(module=module) for family, module in MODULES.items()}
AT_224 = ("vit_", "maxvit_", "swin_", "mvit_", "s3d")
"""Networks that are made for one size, or that look at less when it is smaller."""
WAYS = ("capture", "export")
Inputs = tuple[Any, ...]


def network(family: str, name: str) -> tuple[nn.Module, Inputs]:
    """A network and the arguments to call it with. Only a detector's course depends on its weights, so it gets some."""
    size = SIZES.get(name, 224 if name.startswith(AT_224) else 64)
    if family in ("detection", "segmentation"):  # whose backbones would be downloaded
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    else:
        model = build(name)
    if family == "video":
        return model, (torch.randn(1, 3, 16, size, size),)
    if family == "optical flow":
        return model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if family == "detection":
        model.transform.min_size, model.transform.max_size = (128,), 128  # instead of about 800
        return model, ([torch.randn(3, 128, 128)],)
    return model, (torch.randn(1, 3, size, size),)


def captured(model: nn.Module, inputs: Inputs) -> tuple[Counter[str], bool]:
    graph = capture(model, inputs, batch_dim=0 if isinstance(inputs[0], Tensor) else None)
    return Counter(str(op.target) for op in graph.ops), graph.on_meta


def exported(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, inputs, strict=False).run_decompositions({})


def operators(program: ExportedProgram) -> Counter[str]:
    """Those of the graphs inside the graph too, which stand for blocks without gradients."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.nodes]
    return Counter(str(node.target) for node in nodes if isinstance(node.target, torch._ops.OpOverload))


def attempt(function: Callable[[], Any]) -> tuple[Any, float | None, str]:
    """What it returns, its seconds, and no reason; or nothing, no time, and the reason."""
    gc.collect()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where export prints the whole graph when it fails
            return *timed(function), ""
    except Exception as error:
        first, *more = str(error).strip().splitlines() or ["no message"]
        causes = [line for line in more if line.startswith("Caused by:")]
        return None, None, " ".join([f"{type(error).__name__}: {first[:120]}", *causes[:1]])


def row(family: str, name: str) -> dict[str, Any]:
    model, inputs = network(family, name)
    ours, ours_s, ours_failed = attempt(lambda: captured(model, inputs))
    program, theirs_s, theirs_failed = attempt(lambda: exported(model, inputs))
    return {
        "network": name,
        "family": family,
        "on meta": ours and ours[1],
        "seconds": {"capture": ours_s, "export": theirs_s},
        "operators": {"capture": ours and ours[0], "export": program and operators(program)},
        "failed": {"capture": ours_failed, "export": theirs_failed},
    }


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)[["network", "family", "on meta"]].set_index("network")
    for way in WAYS:
        seen = [r["operators"][way] for r in rows]
        frame[f"{way} s"] = pd.array([r["seconds"][way] for r in rows], dtype="float")
        frame[f"{way} operators"] = pd.array([ops and ops.total() for ops in seen], dtype="Int64")
        frame[f"{way} distinct"] = pd.array([ops and len(ops) for ops in seen], dtype="Int64")
    return frame


def summary(rows: list[dict[str, Any]]) -> None:
    frame = table(rows)
    seconds = frame[[f"{way} s" for way in WAYS]]
    both = seconds.dropna()
    shared = [r for r in rows if r["network"] in both.index]
    families = frame.groupby("family", sort=False)
    counts = families[list(seconds)].count().assign(of=families.size(), on_meta=families["on meta"].sum())
    print("\n" + frame.to_string(float_format="%.3f"))
    print("\nnetworks captured\n" + counts.rename(columns=lambda c: c.removesuffix(" s")).to_string())
    print("\nseconds, median of each family\n" + families[list(seconds)].median().to_string(float_format="%.3f"))
    print(f"\nthe {len(both)} networks that both capture\n" + both.agg(["median", "max", "sum"]).to_string())
    ratio = both["export s"] / both["capture s"]
    print(f"export / capture: median of the ratios {ratio.median():.1f}, {ratio.min():.1f} to {ratio.max():.1f}")
    for way in WAYS:
        seen = [set().union(*(r["operators"][way] or () for r in some)) for some in (rows, shared)]
        print(
            f"distinct operators of {way}: {len(seen[1])} over the networks that both capture, {len(seen[0])} over all"
        )
    for r in rows:
        for way in filter(r["failed"].get, WAYS):
            print(f"{way} failed on {r['network']}: {r['failed'][way]}")


def differences(r: dict[str, Any]) -> None:
    """The operators that the two ways see unequally often."""
    frame = pd.DataFrame(r["operators"]).fillna(0).astype(int)
    print(f"\n{r['network']}\n" + frame[frame["capture"] != frame["export"]].to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help=f"networks or families (default: all): {list(MODULES)}")
    parser.add_argument("--limit", type=int, help="so many networks of each family")
    parser.add_argument("--operators", action="store_true", help="also print what operators each network differs in")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    arguments = parser.parse_args()
    only = set(arguments.only)
    if unknown := only - {*FAMILIES, *(name for names in FAMILIES.values() for name in names)}:
        parser.error(f"neither a network nor a family: {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = [
        (family, name)
        for family, names in FAMILIES.items()
        for name in [n for n in names if not only or {n, family} & only][: arguments.limit]
    ]
    row("classification", "squeezenet1_1")  # the first run of either way imports and compiles
    rows: list[dict[str, Any]] = []
    try:
        for family, name in wanted:
            rows.append(row(family, name))
            took = [f"{way} " + (f"{s:.3f} s" if s else "failed") for way, s in rows[-1]["seconds"].items()]
            print(f"{len(rows)}/{len(wanted)} {name}: {', '.join(took)}", flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {len(rows)} of {len(wanted)} networks")
    if rows:
        summary(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    for r in rows:
        if arguments.operators and all(r["operators"].values()):
            differences(r)


if __name__ == "__main__":
    main()
