"""The checks of one network, in a process of its own: see zoo.py.

    python benchmarks/zoo_checks.py PART FAMILY NAME FILE BYTES

PART is cdlib or torch-pruning. What is known so far is written to FILE before every step.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from zoo_networks import loss, several, zoo_network

import cdlib
from cdlib.graph import capture, tensors
from cdlib.grouping import Groups, parameter_share
from cdlib.surgery import Exactness, check_exact, difference, randomised, rewritten

SEED = 0


class Log:
    """What is known about a network, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row: dict[str, Any] = {"passed": [], "failed": {}, "seconds": {}}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note whether what is done inside comes to its end, and how long it takes."""
        self.row["at"] = name
        passed = name in self.row["passed"]
        self.write()
        start = time.perf_counter()
        try:
            yield
            self.row["passed"] += [] if passed else [name]
        except Exception as error:
            text = " ".join(str(error).split()) or "no message"
            self.row["failed"][name] = f"{type(error).__name__}: {text[:400]}"
        self.row["seconds"][name] = time.perf_counter() - start

    def write(self) -> None:
        self.path.write_text(json.dumps(self.row))


def half(groups: Groups, invariant_only: bool = False) -> dict[str, list[int]]:
    """Half of the units of every prunable group, at random."""
    rng = torch.Generator().manual_seed(SEED)
    chosen = {g.name: torch.randperm(g.size, generator=rng)[: g.size // 2].tolist() for g in groups.prunable}
    return {
        name: units for name, units in chosen.items() if units and (groups[name].zero_invariant or not invariant_only)
    }


def assert_(condition: bool, message: str) -> None:
    """Raise an error that is noted in the row."""
    if not condition:
        raise AssertionError(message)


def run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    with torch.no_grad():
        return model(*inputs)


def cdlib_checks(log: Log, family: str, name: str) -> None:
    row = log.row
    row["family"] = family
    model, inputs, batch_dim = zoo_network(family, name)
    precision = torch.float32 if family == "optical flow" else torch.float64
    limits = (1e-4, 1e-3) if family == "optical flow" else (1e-9, 1e-6)
    with log.step("random numbers"):
        model = randomised(model, inputs, seed=SEED, dtype=torch.float32)
    row["parameters"] = sum(p.numel() for p in model.parameters())
    with log.step("captured"):
        row["on meta"] = capture(model, inputs, batch_dim=batch_dim).on_meta
    with log.step("grouped"):
        groups = cdlib.find_groups(model, inputs, batch_dim=batch_dim)
        prunable, invariant = groups.prunable, [g for g in groups if g.zero_invariant]
        row["groups"] = {"all": len(groups), "prunable": len(prunable), "zero-invariant": len(invariant)}
        row["share"] = {
            "prunable": parameter_share(model, prunable),
            "zero-invariant": parameter_share(model, invariant),
        }
        assert_(bool(prunable), "nothing is prunable")
    if "grouped" not in row["passed"]:
        return
    with log.step("removed"):
        small = cdlib.remove(model, groups, half(groups))
        row["parameters left"] = sum(p.numel() for p in small.parameters())
        row["rewritten"] = rewritten(small)
    if "removed" not in row["passed"]:
        log.write()
        exact(log, "exact", model, inputs, batch_dim, precision, limits)
        return
    with log.step("runs"):
        for given in (inputs, several(inputs, 2)):
            ours, full = run(small, given), run(model, given)
            assert_(all(bool(t.isfinite().all()) for t in tensors(ours)), "an output is not finite")
            same = family == "detection" or [t.shape for t in tensors(ours)] == [t.shape for t in tensors(full)]
            assert_(same, f"outputs have shapes {[tuple(t.shape) for t in tensors(ours)]}")
    with log.step("trains"):
        wanted = gradients(family, model, inputs)
        found = gradients(family, small, inputs)
        assert_(wanted <= found, f"no gradient for {sorted(wanted - found)[:3]}, which have one in the full network")
    with log.step("saves"):
        saved(small, model, inputs)
    with log.step("exports"):
        try:
            difference_exported(small, inputs)
        except Exception:
            try:
                difference_exported(model, inputs)
            except Exception as error:
                row["exports not"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            else:
                raise
    exact(log, "exact", model, inputs, batch_dim, precision, limits)
    del model
    exact(log, "again", small, inputs, batch_dim, precision, limits)


def exact(
    log: Log, step: str, model: nn.Module, inputs: Any, batch_dim: int | None, precision: torch.dtype, limits: Any
) -> None:
    """All prunable groups; and those that are zero-invariant by themselves, if others are not."""
    found: dict[str, Exactness] = {}
    compare = apart_in_any_order if log.row["family"] == "detection" else None
    with log.step(step):
        groups = cdlib.find_groups(model, inputs, batch_dim=batch_dim)
        drops = {"all": half(groups), "zero-invariant": half(groups, invariant_only=True)}
        if drops["all"] == drops["zero-invariant"]:
            del drops["zero-invariant"]
        for kind, drop in drops.items():
            if not drop:
                continue
            found[kind] = check_exact(model, groups, drop, seed=SEED, dtype=precision, compare=compare)
            numbers = vars(found[kind]).items()
            log.row.setdefault(step, {})[kind] = {
                k: v if v is not None and math.isfinite(v) else None for k, v in numbers
            }
            log.write()
        for kind, result in found.items():
            for reference in ("zeroed", "masked"):
                value = getattr(result, reference)
                if value is not None:
                    assert_(value < limits[0], f"{kind}: off by {value:.1e} from {reference}")
            assert_(result.effect > limits[1], f"{kind}: masking changes the output by {result.effect:.1e} only")
            assert_(
                not result.control <= limits[1], f"{kind}: a wrong unit changes the output by {result.control:.1e} only"
            )
        assert_(any(r.zeroed is not None or r.masked is not None for r in found.values()), "no reference")


def apart_in_any_order(ones: Any, others: Any) -> float:
    """How far lists of detections are from each other, one list an image, in whatever order they come."""
    matched = []
    for a, b in zip(ones, others, strict=True):
        if len(a["boxes"]) != len(b["boxes"]):
            return math.inf
        apart = torch.cdist(*(torch.cat([x["boxes"], x["labels"][:, None] * 1e3], 1).double() for x in (a, b)))
        closest = apart.argmin(1)
        if len(closest.unique()) < len(closest):
            return difference(ones, others)
        matched.append({field: values[closest] for field, values in b.items()})
    return difference(ones, matched)


def gradients(family: str, model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    """Train a copy for a step, and return the parameters that got a gradient."""
    model = copy.deepcopy(model).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    torch.manual_seed(SEED)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    value = loss(family, model, several(inputs, 2))
    assert_(math.isfinite(value.item()), f"the loss is {value.item()}")
    value.backward()
    optimizer.step()
    assert_(all(bool(p.isfinite().all()) for p in model.parameters()), "a parameter is not finite after a step")
    return {name for name, p in model.named_parameters() if p.grad is not None}


def saved(small: nn.Module, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Save, load into a network with other weights, compare."""
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in fresh.parameters():
            tensor.zero_()
    with tempfile.TemporaryDirectory() as folder:
        cdlib.save(small, Path(folder) / "small.cdlib")
        same = cdlib.load(Path(folder) / "small.cdlib", model=fresh)
    apart = difference(run(small.eval(), inputs), run(same.eval(), inputs))
    assert_(apart == 0, f"what is loaded differs by {apart:.1e}")


def difference_exported(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Export, run, compare."""
    with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        program = torch.export.export(model, inputs, strict=False)
        apart = difference(run(model, inputs), program.module()(*inputs))
    assert_(apart < 1e-3, f"what is exported differs by {apart:.1e}")


# The peer.


def peer_checks(log: Log, family: str, name: str) -> None:
    import torch_pruning as tp

    warm, x, _ = zoo_network("classification", "squeezenet1_1")
    for parameter in warm.parameters():
        parameter.requires_grad_(True)
    graphs(tp, Log(log.path), warm, x, 0)
    model, inputs, batch_dim = zoo_network(family, name)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    log.row["graph seconds"] = graphs(tp, log, model, inputs, batch_dim)
    if family == "classification" and inputs[0].shape[-1] < 224:
        log.row["graph seconds at 224"] = graphs(tp, log, model, (torch.randn(1, 3, 224, 224),), batch_dim)
    if "MemoryError" in log.row["failed"].get("list", ""):
        return
    with log.step("cuts"):
        model, inputs, batch_dim = zoo_network(family, name)
        cut_by_peer(tp, model, inputs, batch_dim, log.row)


def graphs(tp: Any, log: Log, model: nn.Module, inputs: Any, batch_dim: int | None) -> dict[str, float]:
    """Seconds of both to build the graph, and of Torch-Pruning to list its groups too: the median of some turns."""
    times: dict[str, list[float]] = {"cdlib": [], "build": [], "build and list": []}
    roots = [tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR]
    for _ in range(3):
        start = time.perf_counter()
        with log.step("find_groups"):
            cdlib.find_groups(model, inputs, batch_dim=batch_dim)
            times["cdlib"].append(time.perf_counter() - start)
        start = time.perf_counter()
        with log.step("build"):
            graph = tp.DependencyGraph().build_dependency(model, inputs, verbose=False)
            times["build"].append(time.perf_counter() - start)
        if "build" not in log.row["failed"]:
            with log.step("list"):
                list(graph.get_all_groups(root_module_types=roots))
                times["build and list"].append(time.perf_counter() - start)
        if log.row["failed"] or time.perf_counter() - start > 10:
            break
    return {way: statistics.median(t) for way, t in times.items() if t}


def cut_by_peer(tp: Any, model: nn.Module, inputs: Any, batch_dim: int | None, row: dict[str, Any]) -> None:
    """Cut half of every group, as the examples of Torch-Pruning do, and run."""
    frozen = {
        stem.rpartition(".")[0]
        for g in cdlib.find_groups(model, inputs, batch_dim=batch_dim)
        if not g.prunable
        for stem in g.stems
    }
    modules = dict(model.named_modules())
    ignored = [modules[m] for m in sorted(frozen) if m in modules and m]
    for auxiliary in ("aux1", "aux2", "AuxLogits", "aux_classifier"):
        if hasattr(model, auxiliary):
            setattr(model, auxiliary, None)
    heads: dict[nn.Module, int] = {}
    for module in modules.values():
        if isinstance(module, nn.MultiheadAttention):
            heads[module] = module.num_heads
        elif isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(
            getattr(module, "num_heads", None), int
        ):
            heads[module.qkv] = module.num_heads
    before = sum(p.numel() for p in model.parameters())
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        num_heads=heads,
        ignored_layers=ignored,
    )
    pruner.step()
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):  # as its example does for ViT
        model.hidden_dim = model.conv_proj.out_channels
    run(model, inputs)
    row["parameters left"] = sum(p.numel() for p in model.parameters())
    assert_(row["parameters left"] < before, "nothing was cut")


def main() -> None:
    part, family, name, path, limit = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    log = Log(Path(path))
    log.row["at"] = "build"
    (cdlib_checks if part == "cdlib" else peer_checks)(log, family, name)
    log.row["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    del log.row["at"]
    log.write()


if __name__ == "__main__":
    main()
