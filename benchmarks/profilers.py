"""cdlib.profile against torch's FlopCounterMode, ptflops and thop on every torchvision classifier, with the reasons.

    python benchmarks/profilers.py [NAME ...] [--json FILE]

Every network is counted for one image by every tool, in one process and one thread. For each tool the table gives its
count minus ours, and what it consists of. A difference is explained when its parts, each found apart, add up to it:

All but ours count products of weights alone (the tables of positions of Swin v2), which do not depend on the image.

FlopCounterMode (on the CPU, halved)
    misses fused attention, for which it has no rule on the CPU; on the meta device, where it is not fused, they agree.
ptflops, backend "pytorch"
    adds biases, and the elements that normalisation, activations, pooling and softmax handle; misses functional
    products, except for calls of ``matmul``: ``F.linear``, ``einsum`` and the operator ``@`` are not seen.
ptflops, backend "aten"
    adds biases; misses fused attention.
thop
    adds elements of normalisation, pooling and softmax modules; misses every product outside a Conv or Linear module.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import ptflops
import ptflops.pytorch_ops
import thop
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cdlib
from cdlib.complexity import macs_of, products_of
from cdlib.graph import capture

SIZES = {"inception_v3": 299, "swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256}
INITIALISERS = ("trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "normal_", "xavier_uniform_", "uniform_")
PRODUCTS = (nn.modules.conv._ConvNd, nn.Linear)
Parts = dict[str, int]


def build(name: str) -> nn.Module:
    """A network with unset weights: counting does not look at them, and drawing them takes most of the time."""
    with contextlib.ExitStack() as stack:
        for initialiser in (
            "trunc_normal_",
            "kaiming_normal_",
            "kaiming_uniform_",
            "normal_",
            "xavier_uniform_",
            "uniform_",
        ):
            stack.enter_context(mock.patch.object(nn.init, initialiser, lambda tensor, *a, **k: tensor))
        kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, **kwargs).eval()


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = function()
    return result, time.perf_counter() - start


def torch_count(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def ptflops_count(model: nn.Module, x: torch.Tensor, backend: str) -> int:
    count, _ = ptflops.get_model_complexity_info(
        model, tuple(x.shape[1:]), as_strings=False, print_per_layer_stat=False, backend=backend
    )
    return int(count)


@contextlib.contextmanager
def ptflops_ledger(ledger: Counter[str]) -> Iterator[None]:
    """While this lasts, what every rule of ptflops adds is written down under the rule's name."""
    rules = ptflops.pytorch_ops

    def of_module(rule: Any) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            before = module.__flops__
            rule(module, inputs, output)
            ledger[getattr(rule, "__name__", "conv_flops_counter_hook")] += module.__flops__ - before

        return hook

    def of_function(rule: Any) -> Any:
        def hook(*args: Any, **kwargs: Any) -> Any:
            count = rule(*args, **kwargs)
            ledger[rule.__name__] += int(count)
            return count

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch.dict(rules.MODULES_MAPPING, {k: of_module(v) for k, v in rules.MODULES_MAPPING.items()})
        )
        for table in (rules.FUNCTIONAL_MAPPING, rules.TENSOR_OPS_MAPPING):
            stack.enter_context(mock.patch.dict(table, {k: of_function(v) for k, v in table.items()}))
        yield


def thop_parts(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """What thop counts for Conv and Linear modules, and for all others."""
    _, _, layers = thop.profile(model, (x,), verbose=False, ret_layer_info=True)
    products = others = 0
    stack = [(model, layers)]
    while stack:
        module, below = stack.pop()
        for name, (ops, _, children) in below.items():
            child = getattr(module, name)
            if children:
                stack.append((child, children))
            elif isinstance(child, PRODUCTS):
                products += int(ops)
            else:
                others += int(ops)
    return products, others


def parts(model: nn.Module, x: torch.Tensor, macs: int) -> dict[str, Parts]:
    """What each tool adds and misses, found without looking at its total."""
    graph = capture(model, x)
    fused = sum(macs_of(op) for op in graph.ops if "attention" in op.name)
    alone = {"products of weights alone": sum(map(products_of, graph.ops)) - macs}
    biased = [op for op in graph.ops if (op.name == "convolution" and op.args[2] is not None) or op.name == "addmm"]
    biases = sum(op.outputs[0].numel for op in biased)
    in_modules = [op for op in graph.ops if isinstance(graph.modules[op.module], PRODUCTS)]
    in_attention = [op for op in graph.ops if isinstance(graph.modules[op.module], nn.MultiheadAttention)]
    inside = sum(map(products_of, in_modules))
    outside = sum(map(products_of, graph.ops)) - inside
    attention = sum(map(products_of, in_attention))
    ledger: Counter[str] = Counter()
    with ptflops_ledger(ledger):
        ptflops_count(model, x, "pytorch")
    by_modules = ledger.pop("conv_flops_counter_hook", 0) + ledger.pop("linear_flops_counter_hook", 0)
    by_attention = ledger.pop("multihead_attention_counter_hook", 0)
    by_matmul = ledger.pop("_matmul_tensor_flops_hook", 0)
    module_biases = sum(op.outputs[0].numel for op in in_modules if op in biased)
    assert by_modules == inside + module_biases, "ptflops counts modules as we do, but for the bias"
    return {
        "torch": {"fused attention": -fused, **alone},
        "aten": {"biases": biases, "fused attention": -fused, **alone},
        "ptflops": {
            **alone,
            "elements": sum(ledger.values()),
            "biases": module_biases,
            "biases, scaling and softmax of attention": by_attention - attention,
            "functional products": by_matmul - (outside - attention),
        },
        "thop": {"elements": thop_parts(model, x)[1], "products outside modules": -outside, **alone},
    }


def row(name: str) -> dict[str, Any]:
    model = build(name)
    size = SIZES.get(name, 224)
    x = torch.randn(1, 3, size, size)
    x_meta = x.to("meta")
    profile, ours_s = timed(lambda: cdlib.profile(model, x))
    counts: dict[str, int] = {}
    seconds = {"cdlib": ours_s}
    tools: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch_count(model, x),
        "ptflops": lambda: ptflops_count(model, x, "pytorch"),
        "aten": lambda: ptflops_count(model, x, "aten"),
        "thop": lambda: int(thop.profile(model, (x,), verbose=False)[0]),
    }
    for tool, count in tools.items():
        counts[tool], seconds[tool] = timed(count)
    with contextlib.redirect_stdout(io.StringIO()):
        reasons = parts(model, x, profile.macs)
    meta = torch_count(model.to("meta"), x_meta)
    return {
        "network": name,
        "macs": profile.macs,
        "torch on meta": meta - profile.macs - reasons["torch"]["products of weights alone"],
        **{tool: counts[tool] - profile.macs for tool in counts},
        "unexplained": [tool for tool in counts if sum(reasons[tool].values()) != counts[tool] - profile.macs],
        "parts": reasons,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks (default: every classifier of torchvision)")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = arguments.names or torchvision.models.list_models(module=torchvision.models)
    row("alexnet")  # the first run of every tool imports and compiles
    rows = []
    for name in names:
        rows.append(row(name))
        print(f"{len(rows)}/{len(names)} {name}", flush=True)
    frame = pd.DataFrame(rows).set_index("network")
    print(frame.drop(columns=["parts", "seconds"]).to_string())
    seconds = pd.DataFrame([r["seconds"] for r in rows])
    print("\nseconds, median over the networks\n" + seconds.median().to_string(float_format="%.3f"))
    ratio = statistics.median(r["seconds"]["cdlib"] / r["seconds"]["ptflops"] for r in rows)
    print(f"cdlib / ptflops, median of the ratios: {ratio:.2f}")
    print(f"unequal to torch on meta: {int((frame['torch on meta'] != 0).sum())} of {len(rows)}")
    print(f"differences left unexplained: {sum(len(r['unexplained']) for r in rows)} of {4 * len(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
