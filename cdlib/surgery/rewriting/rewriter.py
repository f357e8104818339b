"""Replace modules of a network that was cut, where their Python code does not follow the new widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import nn

from cdlib.errors import CdlibError
from cdlib.graph import Graph, Inputs, record, tensors
from cdlib.grouping import Ids, Key, choose_reshapes
from cdlib.surgery.prediction import Prediction, gone, runs_as
from cdlib.surgery.rewriting.module import Rewritten
from cdlib.surgery.rewriting.recording import (
    SAMPLES,
    NotPossible,
    Recording,
    Unchanged,
    by_itself,
    check_state,
    follows,
    inside,
    placed,
    values,
)
from cdlib.surgery.rewriting.writer import Writer
from cdlib.text import one_line
from cdlib.torch_state import copied


class Rewriter:
    """Replaces modules of a network that was cut; records the whole network when it is first needed."""

    def __init__(self, model: nn.Module, inputs: Inputs, slices: Mapping[Key, Ids], training: Graph | None) -> None:
        self._model, self._inputs, self._slices = model, inputs, slices
        self._training = training
        self._recorded: list[Prediction] = []
        self._done: dict[str, set[str]] = {}  # what was flat when a module was rewritten
        self._flat: set[str] = set()  # modules that cannot be rewritten, whose operators the ones around them run
        self.args = inputs.repeated(SAMPLES[0])
        first: dict[int, str] = {}
        held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self._first = {name: first.setdefault(id(tensor), name) for name, tensor in held}

    @property
    def prediction(self) -> Prediction:
        """What the cut network should do with `args`, a few samples; known once a module was rewritten."""
        return self._recorded[0]

    def rewrite(self, small: nn.Module, name: str, error: Exception | None) -> nn.Module:
        """Return the cut network with one module, and others of its class that are affected, rewritten.

        If the module was rewritten already or cannot be, the one around it is.

        Raises
        ------
        CdlibError
            If even the whole network cannot be rewritten.
        """
        self._look()
        why = one_line(error) if error else "its Python code computes something else"
        while True:
            if self._done.get(name) != self._flat:
                try:
                    small = self._replace(small, name)
                except NotPossible as problem:
                    why = str(problem)
                else:
                    return self._replace_others(small, name)
            self._flat.add(name)
            if not name:
                raise CdlibError(f"{type(self._model).__name__} cannot be cut so that it computes the same ({why}).")
            name = name.rpartition(".")[0]

    def trains_alike(self, small: nn.Module, name: str) -> bool:
        """Whether a module of the cut network also does in training mode what is predicted; False if nothing can be."""
        self._look()
        original, on_meta = self._model.get_submodule(name), self.prediction.graph.on_meta
        for call in self._calls(self.prediction, name):
            try:
                alone = by_itself(original, call, on_meta=on_meta, sizes=Unchanged(call.graph))
                if not call.runs_what(alone):
                    found = placed(call, alone, self._slices, self._first)
                    cut = by_itself(small.get_submodule(name), found, on_meta=on_meta, sizes=found.prediction)
                    if not runs_as(found.prediction, found.graph, cut):
                        return False
            except NotPossible:
                return False
        return True

    def _look(self) -> None:
        if not self._recorded:
            self._recorded = [self._record(samples) for samples in SAMPLES]

    def _replace_others(self, small: nn.Module, name: str) -> nn.Module:
        """Rewrite the other modules of the class of one, those that are affected and can be."""
        kind = type(self._model.get_submodule(name))
        same = [other for other, module in self._model.named_modules() if type(module) is kind]
        same = [other for other in same if other not in self._done and self._affected(other)]
        for other in same:
            if not any(inside(other, outer) for outer in same):
                with suppress(NotPossible):
                    small = self._replace(small, other)
        return small

    def _record(self, samples: int) -> Prediction:
        graph, error = record(self._model, self._inputs.repeated(samples), closely=True)
        if error is not None:
            raise CdlibError(
                f"{type(self._model).__name__} has code that does not follow the new widths, and cannot be rewritten, "
                f"since it does not run on {samples} samples ({one_line(error)})."
            ) from error
        done = choose_reshapes(graph, self._training)
        return Prediction(done, gone(done, self._slices))

    def _affected(self, name: str) -> bool:
        prediction = self._recorded[0]
        return any(
            prediction.changes(op)
            for call in prediction.graph.calls
            if call.module == name
            for op in prediction.graph.ops[call.start : call.stop]
        )

    def _replace(self, small: nn.Module, name: str) -> nn.Module:
        calls = [self._calls(p, name) for p in self._recorded]
        if not calls[0] or len(calls[0]) != len(calls[1]):
            raise NotPossible(f"{name or 'the network'} is not called the same way for every number of samples")
        original = small.get_submodule(name)
        written = [self._written(name, both, original) for both in zip(*calls, strict=True)]
        if not all(writer.same_as(written[0]) for writer in written[1:]):
            raise NotPossible(f"{name} is called for inputs of several sizes, or with other constants")
        new = Rewritten(original, written[0].takes, written[0].code, written[0].types)
        new.keep(written[0].constants)
        self._done[name] = set(self._flat)
        if not name:
            return new
        for module in list(small.modules()):
            for key, child in module._modules.items():
                if child is original:
                    module._modules[key] = new
        return small

    def _calls(self, prediction: Prediction, name: str) -> list[Recording]:
        graph = prediction.graph
        return [Recording(prediction, graph, call, self._flat) for call in graph.calls if call.module == name]

    def _written(self, name: str, both: Sequence[Recording], module: nn.Module) -> Writer:
        """The code of a module from its recordings with few samples and with more; `module` will run it."""
        held = self._model.get_submodule(name)
        own = [*held.named_parameters(remove_duplicate=False), *held.named_buffers(remove_duplicate=False)]
        prefix = f"{name}." if name else ""
        alone = both[0].name != name
        names = {local if alone else self._first[prefix + local]: local for local, _ in reversed(own)}
        return Writer(both[0], both[1], names, module)

    def finish(self, small: nn.Module) -> None:
        """Give the modules that were rewritten their code for training mode, where there can be one, and precision."""
        for name in sorted(self._done, key=lambda name: (-len(name.split(".")) * bool(name), name)):  # inner ones first
            module = small.get_submodule(name)
            assert isinstance(module, Rewritten)
            try:
                module.trains(self._in_training(name, module))
            except NotPossible as problem:
                module.trains("", str(problem))
        if self._done:
            self._keep_precision(small)

    def _in_training(self, name: str, module: Rewritten) -> str:
        """The code of a module for training mode: that for inference, if what it runs is the same.

        Else it is recorded by itself, and tried.
        """
        original, inference = self._model.get_submodule(name), [self._calls(p, name)[0] for p in self._recorded]
        alone = [self._alone(name, r) for r in inference]
        check_state(original, inference[0], alone[0])
        full = [Recording(Unchanged(r.graph), r.graph, r.call, r.flat) for r in inference]
        if self._written(name, alone, original).same_as(self._written(name, full, original)):
            return module.code
        found = [placed(r, a.graph, self._slices, self._first) for r, a in zip(inference, alone, strict=True)]
        writer = self._written(name, found, module)
        module.trains(writer.code)
        module.keep(writer.constants)
        result = by_itself(module, found[0], on_meta=self.prediction.graph.on_meta, sizes=found[0].prediction)
        shapes = [found[0].prediction.shape(value) for value in values(found[0].call.outputs)]
        if [value.shape for value in result.outputs] != shapes:
            raise NotPossible("its results would have other shapes")
        return writer.code

    def _alone(self, name: str, recorded: Recording) -> Recording:
        """A module from which nothing is gone, by itself in training mode."""
        original, unchanged = self._model.get_submodule(name), Unchanged(recorded.graph)
        graph = by_itself(original, recorded, on_meta=self.prediction.graph.on_meta, sizes=unchanged)
        flat = {other[len(name) + 1 :] if name else other for other in self._flat if inside(other, name)}
        return Recording(Unchanged(graph), graph, graph.calls[-1], flat)

    def _keep_precision(self, small: nn.Module) -> None:
        """Record the network in another precision; modules that run other operators then are kept to theirs."""
        own = {t.dtype for t in (*self._model.parameters(), *tensors(self._inputs)) if t.is_floating_point()}
        dtype = torch.float16 if torch.bfloat16 in own else torch.bfloat16
        inputs = self._inputs.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
        follow: set[str] = set()
        with suppress(Exception):
            other = Rewriter(copied(self._model).to(dtype), inputs, {}, None)
            graph, _ = record(other._model, inputs.repeated(SAMPLES[0]), closely=True)
            other._recorded, other._flat = [Unchanged(graph)], self._flat
            both = {name: [r._calls(r.prediction, name)[0] for r in (self, other)] for name in self._done}
            follow = {name for name, (mine, its) in both.items() if follows(mine, its, own, dtype)}
            for name in [name for name in follow if small.get_submodule(name).training_code]:
                mine, its = (r._alone(name, called) for r, called in zip((self, other), both[name], strict=True))
                follow -= set() if follows(mine, its, own, dtype) else {name}
        for name in self._done.keys() - follow:
            module = small.get_submodule(name)
            assert isinstance(module, Rewritten)
            module.keep_precision([value.dtype for value in self._calls(self.prediction, name)[0].inputs()])
