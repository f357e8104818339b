"""How much of a training step goes into making its batch: steps on fresh, augmented batches against steps on one batch.

Blocks of steps of both kinds take turns in one run, so that whatever else the machine does weighs on both. Prints the
ratio of their throughputs (median over pairs of blocks); the project asks for at least 0.9, and the exit code says so.

    python benchmarks/data_loading.py                                    # ResNet-18, on a GPU if there is one
    CDLIB_DATA=<image folder> python benchmarks/data_loading.py --data cifar10
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlib import data

TARGET = 0.9


def noise() -> data.Dataset:
    """Return 50,000 random 3x32x32 images: for speed, they are as good as CIFAR-10's."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (50_000, 3, 32, 32), np.uint8), np.arange(50_000) % 10
    train, test = data.Arrays(images, labels), data.Arrays(images[:1000], labels[:1000])
    return data.from_arrays("noise", tuple("0123456789"), train, test, flips=True)


def endless(split: data.Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented batches, epoch after epoch."""
    for epoch in itertools.count():
        yield from data.batches(split, batch_size, augment=True, seed=0, epoch=epoch, drop_last=True)


def seconds(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator, steps: int, precision: str) -> float:
    """Do `steps` training steps and return how long they took."""
    device = next(model.parameters()).device
    started = time.perf_counter()
    for x, y in itertools.islice(batches, steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> int:
    """Measure and print; return 0 if the ratio reaches the target."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="noise", help="noise, or a data set of at least 32x32 (default: noise)")
    parser.add_argument("--model", default="resnet18", help="a torchvision network (default: resnet18)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=0, help="steps in a block (default: 3 on a CPU, 50 on a GPU)")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of blocks (default: 9)")
    options = parser.parse_args()

    import torchvision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = options.steps or (50 if device == "cuda" else 3)
    dataset = noise() if options.data == "noise" else data.load(options.data)
    split = dataset.train.to(device)
    model = torchvision.models.get_model(options.model, num_classes=len(dataset.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    fresh = endless(split, options.batch_size)
    constant = itertools.repeat(next(fresh))
    seconds(model, optimizer, fresh, steps, options.precision)  # warm up
    ratios, speeds = [], []
    for pair in range(options.pairs):
        order = (fresh, constant) if pair % 2 else (constant, fresh)
        took = {id(b): seconds(model, optimizer, b, steps, options.precision) for b in order}
        ratios.append(took[id(constant)] / took[id(fresh)])
        speeds.append(steps * options.batch_size / took[id(fresh)])
    ratio = statistics.median(ratios)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(
        f"{options.model}, {options.data}, batch {options.batch_size}, {options.precision}, {machine}: "
        f"{statistics.median(speeds):.0f} img/s; throughput against a constant batch {ratio:.3f} "
        f"(pairs {min(ratios):.3f} to {max(ratios):.3f}, target {TARGET})"
    )
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
