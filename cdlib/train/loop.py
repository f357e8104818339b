"""One training run, epoch by epoch: what `cdlib.train.fit` drives. The formulas are in `cdlib.train.recipe`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.data import Dataset, batches, bits, draws
from cdlib.errors import CdlibError, check_seed
from cdlib.text import digest
from cdlib.torch_state import bytes_of, copied, mask_name, tensors_of
from cdlib.train import checkpoint as checkpoints
from cdlib.train.evaluation import checked, evaluate, evaluating, logits_of
from cdlib.train.recipe import Recipe, average_decay, distilled, learning_rate, loss, mixed, optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOOK = 20
"""Steps between two looks at the loss: each look waits for the GPU."""


class Run:
    """A training run: all that changes from epoch to epoch, and the data on the device.

    Each epoch reseeds PyTorch's global generators from (seed, epoch, process), so that it does not matter whether the
    epochs before it were run by this process or came out of a checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        seed: int,
        accelerator: Accelerator,
        path: Path | None,
        wrap: Callable[[torch.optim.Optimizer], torch.optim.Optimizer] | None = None,
        after_step: Callable[[int], None] | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.recipe, self.seed, self.accelerator, self.path = recipe, seed, accelerator, path
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        _check(dataset, recipe, seed, self.world)
        for name, value in {"optimizer": wrap, "after_step": after_step}.items():
            if value is not None and not callable(value):
                raise CdlibError(f"{name}={value!r} cannot be called: give a function, see cdlib.train.fit.")
        if (teacher is None) != (recipe.distill == 0):
            given = "no teacher" if teacher is None else "a teacher"
            raise CdlibError(f"distill={recipe.distill} and {given}: a share of the loss and a teacher go together.")
        self.teacher = copied(teacher).to(self.device).eval() if teacher is not None else None
        layout = torch.channels_last if recipe.channels_last else torch.preserve_format
        self.model = model.to(self.device).to(memory_format=layout)
        self.data, self.validation = dataset.train.to(self.device), dataset.validation.to(self.device)
        self.steps = len(self.data) // recipe.batch_size
        with evaluating(model):
            outputs = logits_of(model, self.data.input()).shape[1]
        if outputs != len(dataset.classes):
            raise CdlibError(
                f"the model has {outputs} outputs, but {dataset.name} has {len(dataset.classes)} classes; "
                f"build it with classes={len(dataset.classes)}."
            )
        self.optimizer = optimizer(recipe, model)
        if wrap:
            self.optimizer = _wrapped(wrap, self.optimizer)
        for what, end in ((self.optimizer, "ends"), (after_step, "end")):
            _check_length(type(what).__name__, getattr(what, end, 0), recipe, self.steps)
        net = accelerator.prepare_model(model) if self.world > 1 else model
        self.net: Any = torch.compile(net) if recipe.compile else net
        kind = type(self.optimizer).__name__ if wrap else None
        self.identity = {**checkpoints.identity(model, dataset, recipe, seed), "optimizer": kind} if path else {}
        if path and teacher is not None:
            self.identity["teacher"] = digest([bytes_of(tensor) for tensor in tensors_of(teacher).values()])
        held = tensors_of(model)
        masks = {mask_name(name) for name in held}  # 0 or 1: no average
        floats = {name: t for name, t in held.items() if t.is_floating_point() and name not in masks}
        self.average = {name: t.detach().clone() for name, t in floats.items()} if recipe.ema else {}
        self.history: list[dict[str, float]] = []
        self.after_step = after_step
        self.begins = getattr(self.optimizer, "ends", 0)  # the average, when all units that go are zero

    def train(self, progress: bool) -> None:
        """Train from the checkpoint, or the start, to the end, and put the averaged weights into the model."""
        from tqdm import tqdm

        self._resume()
        seen = self.steps * self.recipe.batch_size
        with tqdm(
            total=self.recipe.epochs * seen,
            initial=len(self.history) * seen,
            unit="img",
            unit_scale=True,
            disable=not (progress and self.accelerator.is_main_process),
        ) as bar:
            for epoch in range(len(self.history), self.recipe.epochs):
                self.history.append(self._epoch(epoch, bar))
                self._save()
        _assign(self.model, self.average)

    def _epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        """Train for one epoch, validate, and return its row of the history."""
        started = time.perf_counter()
        torch.manual_seed(int(draws("torch", 1, self.seed, epoch, self.rank)[0]))
        self.net.train()
        data = batches(
            self.data,
            self.recipe.batch_size,
            augment=self.recipe.augment,
            shift=self.recipe.shift,
            alternate=self.recipe.flips == "alternating",
            seed=self.seed,
            epoch=epoch,
            rank=self.rank,
            world=self.world,
            drop_last=True,
        )
        losses: list[float] = []
        recent: list[Tensor] = []
        for i, ((x, y), share) in enumerate(zip(data, self._mixup_shares(epoch), strict=True)):
            recent.append(self._step(epoch * self.steps + i, x, y, share))
            bar.update(self.recipe.batch_size)
            if len(recent) == _LOOK or i + 1 == self.steps:
                losses += self._finite(recent, epoch, len(losses))
                bar.set_postfix_str(self._words(epoch, losses[-1]), refresh=False)
                recent = []
        self._agree()
        last = self._rate((epoch + 1) * self.steps - 1)
        row = {"epoch": epoch + 1, "lr": last, "train_loss": sum(losses) / self.steps, **self._validate(epoch)}
        return {**row, "seconds": time.perf_counter() - started}

    def _step(self, step: int, x: Tensor, y: Tensor, share: float) -> Tensor:
        """Do one step of the optimizer and of the running average; return the loss, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step) * group.get("lr_scale", 1.0)
        x = mixed(x, share)
        if self.recipe.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits = self.net(x)
            with torch.no_grad():
                wanted = None if self.teacher is None else logits_of(self.teacher, x)
        value = loss(self.recipe, checked(logits, len(x)), y, share)
        if wanted is not None:
            value = distilled(self.recipe, value, logits, wanted)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(value)
        self.optimizer.step()
        if self.average:
            now, weight = tensors_of(self.model), 1 - average_decay(self.recipe, step - self.begins)
            for name, average in self.average.items():
                average.lerp_(now[name].detach(), weight)
        if self.after_step:
            self.after_step(step + 1)
        return value.detach()

    def _validate(self, epoch: int) -> dict[str, float]:
        """Evaluate what `fit` would return if this epoch were the last."""
        if not len(self.validation):
            return {"validation_loss": math.nan, "validation_accuracy": math.nan}
        now = tensors_of(self.model)
        own = {name: now[name].detach().clone() for name in self.average}
        _assign(self.model, self.average)
        result = evaluate(self.model, self.validation)
        _assign(self.model, own)
        if not math.isfinite(result.loss):
            raise self._diverged("validation loss", result.loss, epoch, self.steps - 1)
        return {"validation_loss": result.loss, "validation_accuracy": result.accuracy}

    def _finite(self, recent: list[Tensor], epoch: int, before: int) -> list[float]:
        """Return the losses of the last steps, averaged over the processes, `before` of this epoch being known."""
        values: list[float] = self.accelerator.reduce(torch.stack(recent), "mean").tolist()
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise self._diverged("loss", value, epoch, before + i)
        return values

    def _diverged(self, what: str, value: float, epoch: int, step: int) -> CdlibError:
        kept = f" The checkpoint {self.path} keeps epoch {epoch}." if self.path and epoch else ""
        return CdlibError(
            f"the {what} is {value} in epoch {epoch + 1} of {self.recipe.epochs}, step {step + 1} of {self.steps}, at "
            f"learning rate {self._rate(epoch * self.steps + step):.3g}: lower lr, lengthen warmup_epochs, or check "
            f"that the model's outputs are finite.{kept}"
        )

    def _rate(self, step: int) -> float:
        return learning_rate(self.recipe, step, self.steps)

    def _mixup_shares(self, epoch: int) -> list[float]:
        if not self.recipe.mixup:
            return [1.0] * self.steps
        random = np.random.Generator(bits("mixup", self.seed, epoch))
        return random.beta(self.recipe.mixup, self.recipe.mixup, self.steps).tolist()

    def _words(self, epoch: int, value: float) -> str:
        accuracy = f", validation {self.history[-1]['validation_accuracy']:.4f}" if self.history else ""
        return f"epoch {epoch + 1}/{self.recipe.epochs}, loss {value:.4f}{accuracy}"

    def _agree(self) -> None:
        """Give every process the first one's buffers and averages: batch norm's statistics differ between them."""
        if self.world > 1:
            for tensor in (*self.model.buffers(), *self.average.values()):
                torch.distributed.broadcast(tensor, src=0)

    def _save(self) -> None:
        if self.path and self.accelerator.is_main_process:
            content = {
                "tensors": {name: tensor.detach() for name, tensor in tensors_of(self.model).items()},
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "history": self.history,
            }
            checkpoints.save(self.path, self.identity, content)

    def _resume(self) -> None:
        """Take over the checkpoint, if there is one; the first process reads it for all, and all raise its error."""
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [None]
        if self.path and self.accelerator.is_main_process:
            try:
                checkpoints.prepare(self.path)
                found = [checkpoints.load(self.path, self.identity)]
            except CdlibError as error:
                found = [error]
        content = broadcast_object_list(found)[0] if self.path else None
        if isinstance(content, CdlibError):
            raise content
        if content is not None:
            _assign(self.model, content["tensors"])
            self.optimizer.load_state_dict(content["optimizer"])
            for name, average in self.average.items():
                average.copy_(content["average"][name])
            self.history = content["history"]


def _assign(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy `values` into the parameters and buffers of these names."""
    own = tensors_of(model)
    for name, value in values.items():
        own[name].detach().copy_(value)


def _check(dataset: Dataset, recipe: Recipe, seed: int, world: int) -> None:
    n = len(dataset.train)
    if recipe.batch_size > n:
        raise CdlibError(
            f"batch_size {recipe.batch_size} is more than the {n} images of {dataset.train.name}; lower it."
        )
    if recipe.batch_size % world:
        raise CdlibError(f"batch_size {recipe.batch_size} cannot be cut into {world} equal parts, one per process.")
    check_seed(seed)


def _wrapped(
    wrap: Callable[[torch.optim.Optimizer], torch.optim.Optimizer], base: torch.optim.Optimizer
) -> torch.optim.Optimizer:
    """Return what `wrap` makes of an optimizer; raise if it trains something else."""
    made: Any = wrap(base)
    sets = [{id(p) for g in getattr(o, "param_groups", ()) for p in g["params"]} for o in (base, made)]
    if not isinstance(made, torch.optim.Optimizer) or sets[0] != sets[1]:
        raise CdlibError(
            f"optimizer returned {type(made).__name__}: return an optimizer over the parameters of the one it gets."
        )
    return made


def _check_length(name: str, ends: int, recipe: Recipe, steps: int) -> None:
    """Raise if what says at which step it is done is not done when training ends."""
    if ends > recipe.epochs * steps:
        raise CdlibError(
            f"{name} is done after {ends} steps, but {recipe.epochs} epochs are only "
            f"{recipe.epochs * steps}: give fewer steps, or train for {math.ceil(ends / steps)} epochs."
        )
