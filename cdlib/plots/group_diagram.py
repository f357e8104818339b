"""A network's operators as a drawing shows them: what each is, which groups it belongs to, and who reads whom.

What only looks at a tensor in another shape, or copies it, is left out. Where things stand is decided in
`cdlib.plots.layering`, how they look in `cdlib.plots.group_drawing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cdlib.errors import CdlibError, check_choice
from cdlib.graph import Op, Value
from cdlib.grouping import Groups, Ids, arguments

Kind = Literal["stem", "accessory", "joint", "end"]

WORDS = {
    "convolution": "conv",
    "addmm": "linear",
    "mm": "linear",
    "native_batch_norm": "batch norm",
    "native_layer_norm": "layer norm",
    "native_group_norm": "group norm",
    "scaled_dot_product_attention": "attention",
    "max_pool2d_with_indices": "max pool",
    "_adaptive_avg_pool2d": "mean pool",
    "avg_pool2d": "mean pool",
    "cat": "concat",
    "mul": "×",
    "add": "+",
    "sub": "-",
    "div": "/",
}
_COPIES = {"clone", "contiguous", "_to_copy", "_reshape_alias", "detach", "alias"}


@dataclass(frozen=True)
class Node:
    """Something to draw: what it says, its kind, and the groups whose channels it hands on."""

    text: str
    kind: Kind
    groups: tuple[str, ...] = ()


def diagram(groups: Groups, inside: str = "") -> Diagram:
    """Return the operators of a network, or of one of its modules, and the groups they belong to.

    A CdlibError if there are no groups, no such module, or it runs no operators.
    """
    if not isinstance(groups, Groups):
        raise CdlibError(f"groups is {type(groups).__name__!r}: give what cdlib.find_groups returns.")
    if not len(groups):
        raise CdlibError(f"{groups!r}: there is nothing to draw.")
    check_choice("module", inside, groups.graph.modules)
    found = Diagram(groups, inside)
    if all(node.kind == "end" for node in found.nodes):
        raise CdlibError(f"module {inside!r} runs no operators; there is nothing to draw.")
    return found


class Diagram:
    """What is drawn: `nodes`, and `edges`, each from one number in `nodes` to a higher one.

    It is made by going through the operators in the order of the run; `_source` holds the nodes that each tensor comes
    from, `_outer` the operators outside of the module that is drawn.
    """

    def __init__(self, groups: Groups, inside: str) -> None:
        self.nodes: list[Node] = []
        self.edges: list[tuple[int, int]] = []
        self._groups, self._inside = groups, inside
        self._names = _group_of_label(groups)
        self._made = groups.walk.ledger.marked(groups.walk.ledger.produced)
        self._source: dict[int, list[int]] = {}
        self._outer: dict[int, Op] = {}
        if not inside:
            for value in groups.graph.inputs:
                self._add(Node("input", "end"), [value])
        for op in groups.graph.ops:
            data = [value for value in op.inputs if value.kind in ("activation", "input")]
            if data and op.outputs:
                within = not inside or f"{op.module}.".startswith(f"{inside}.")
                self._enter(op, data) if within else self._leave(op, data)
        if sources := self._from(groups.graph.outputs, enter=False):
            self._new(Node("output", "end"), sources)

    def _enter(self, op: Op, data: list[Value]) -> None:
        sources = self._from(data)
        if not _is_drawn(op):
            self._pass_on(op, sources)
            return
        kind = self._kind(op, sources)
        self._add(Node(self._text(op, kind), kind, self._of(op.outputs)), op.outputs, sources)
        if op.target._schema.is_mutable:
            for value in self._groups.graph.values:
                if value.storage == op.outputs[0].storage and value.index in self._source:
                    self._source[value.index] = self._source[op.outputs[0].index]

    def _leave(self, op: Op, data: list[Value]) -> None:
        """An operator outside: noted as a source; an end of the edges that lead to it."""
        self._outer |= {value.index: op for value in op.outputs}
        sources = [node for node in self._from(data, enter=False) if self.nodes[node].kind != "end"]
        if sources and _is_drawn(op):
            self._new(Node(f"to {op.module or op.name}", "end"), sources)
            for value in data:
                self._source.pop(value.index, None)
        elif sources:
            self._pass_on(op, sources)

    def _from(self, values: Iterable[Value], *, enter: bool = True) -> list[int]:
        """The nodes that some tensors come from; an end is made for what comes from outside."""
        found: dict[int, None] = {}
        for value in values:
            if enter and value.index not in self._source and self._inside:
                op = self._outer.get(value.index)
                self._add(Node(f"from {op.module or op.name}" if op else "from the input", "end"), [value])
            found |= dict.fromkeys(self._source.get(value.index, []))
        return list(found)

    def _new(self, node: Node, sources: Iterable[int] = ()) -> int:
        number = len(self.nodes)
        self.nodes.append(node)
        self.edges += [(source, number) for source in sources]
        return number

    def _add(self, node: Node, values: Iterable[Value], sources: Iterable[int] = ()) -> None:
        number = self._new(node, sources)
        self._source |= {value.index: [number] for value in values}

    def _pass_on(self, op: Op, sources: list[int]) -> None:
        self._source |= {value.index: sources for value in op.outputs}

    def _kind(self, op: Op, sources: list[int]) -> Kind:
        """A stem makes channels by a product with a weight; a joint has several sources; accessories are the rest."""
        walk = self._groups.walk
        for value in op.inputs:
            if value.kind == "parameter" and len(value.shape) > 1:
                axes = walk.of(value).axes
                if any(axis is not None and self._made[axis.ids[axis.ids >= 0]].any() for axis in axes):
                    return "stem"
        return "joint" if len(sources) > 1 else "accessory"

    def _of(self, values: Iterable[Value]) -> tuple[str, ...]:
        """The groups of the labels that tensors carry, in the order of the labels."""
        ids = [a.ids for v in values for a in self._groups.walk.of(v).axes if a is not None]
        found = dict.fromkeys(self._names[i] for line in ids for i in line[line >= 0].tolist())
        return tuple(name for name in found if name)

    def _text(self, op: Op, kind: Kind) -> str:
        """The operator, and the layer: by its weight, or by its module if that does nothing else."""
        word = WORDS.get(op.name.rstrip("_"), op.name.removeprefix("native_").strip("_").replace("_", " "))
        weights = [v.name for v in op.inputs if v.kind == "parameter" and len(v.shape) > (kind == "stem")]
        if kind == "stem":
            layer = weights[0].removesuffix(".weight")
            word += _kernel(op) if word == "conv" else ""
        elif word in ("×", "+") and weights:
            return f"{word} {weights[0].rpartition('.')[2]}"
        else:
            only = not any(True for _ in self._groups.graph.modules[op.module].children())
            layer = op.module if only else ""
        layer = layer.removeprefix(self._inside).strip(".")
        return f"{word} · {layer}" if layer else word


def _is_drawn(op: Op) -> bool:
    return op.does_work and op.name not in _COPIES


def _kernel(op: Op) -> str:
    args = arguments(op)
    weight, count = args["weight"], args["groups"]
    size = "×".join(str(n) for n in weight.shape[2:])
    return f" {size}" + ("" if count == 1 else " dw" if count == args["input"].shape[1] else f" /{count}")


def _group_of_label(groups: Groups) -> list[str]:
    """For each label, the group that it vanishes with, or nothing."""
    ledger = groups.walk.ledger
    of: Ids = ledger.components()
    name_of = dict[int, str]()
    for group in groups:
        for key in group.tensors:
            labels = ledger.atoms[key][0] + group.indices(range(group.size), key)
            name_of |= dict.fromkeys(of[labels].tolist(), group.name)
    return [name_of.get(root, "") for root in of.tolist()]
