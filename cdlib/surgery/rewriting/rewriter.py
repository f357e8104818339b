"""Replace modules of a network that was cut, where their Python code does not follow the new widths."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from cdlib.errors import CdlibError
from cdlib.graph import Graph, Inputs, record
from cdlib.grouping import Ids, choose_reshapes
from cdlib.surgery.prediction import Prediction, gone
from cdlib.surgery.rewriting.program import Rewritten
from cdlib.surgery.rewriting.writer import NotPossible, Writer, inside
from cdlib.text import one_line


class Rewriter:
    """Replaces modules of a network that was cut; records the whole network when it is first needed."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        slices: Mapping[tuple[str, int], Ids],
        training: Graph | None,
    ) -> None:
        self._model, self._inputs, self._slices = model, inputs, slices
        self._training = training
        self._recorded: list[Prediction] = []
        self._done: set[str] = set()
        self.args = inputs.repeated(2)

    @property
    def prediction(self) -> Prediction:
        """What the cut network should do with `args`, two samples; known once a module was rewritten."""
        return self._recorded[0]

    def rewrite(self, small: nn.Module, name: str, error: Exception | None) -> nn.Module:
        """Return the cut network with one module, and others of its class that are affected, rewritten.

        If the module was rewritten already or cannot be, the one around it is.

        Raises
        ------
        CdlibError
            If even the whole network cannot be rewritten.
        """
        if not self._recorded:
            self._recorded = [self._record(samples) for samples in (2, 3)]
        why = f"{type(error).__name__}: {error}" if error else "its Python code computes something else"
        while True:
            if name not in self._done and all(not done or not name.startswith(f"{done}.") for done in self._done):
                kind = type(self._model.get_submodule(name))
                same = [
                    other
                    for other, module in self._model.named_modules()
                    if type(module) is kind and self._affected(other)
                ]
                same = [other for other in same if not any(inside(other, outer) for outer in same)]
                try:
                    for other in dict.fromkeys([name, *same]):
                        if other not in self._done:
                            small = self._replace(small, other)
                    return small
                except NotPossible as problem:
                    why = str(problem)
            if not name:
                line = " ".join(why.split())
                raise CdlibError(f"{type(self._model).__name__} cannot be cut so that it computes the same ({line}).")
            name = name.rpartition(".")[0]

    def _record(self, samples: int) -> Prediction:
        args = self._inputs.repeated(samples)
        graph, error = record(self._model, args)
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
        two, three = self._recorded
        calls = [[call for call in p.graph.calls if call.module == name] for p in (two, three)]
        if not calls[0] or len(calls[0]) != len(calls[1]):
            raise NotPossible(f"{name or 'the network'} is not called the same way for every number of samples")
        made = [Writer(name, two, three, a, b) for a, b in zip(*calls, strict=True)]
        if any(writer.program != made[0].program for writer in made[1:]):
            raise NotPossible(f"{name} is called for inputs of several sizes")
        original = small.get_submodule(name)
        new = Rewritten(original, made[0].program, made[0].constants)
        self._done.add(name)
        if not name:
            return new
        for module in list(small.modules()):
            for key, child in module._modules.items():
                if child is original:
                    module._modules[key] = new
        return small
