"""What a walk through a network knows: the labels of every value so far, and the ledger of what was found out.

This is what a rule (`cdlib.grouping.rules`) sees and notes things with; `cdlib.grouping.propagation` drives the walk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping

import numpy as np
from torch import nn

from cdlib.graph import Graph, Op, Value
from cdlib.grouping.labels import Axis, Ids, Key, Labels, Ledger, unlabelled
from cdlib.grouping.ops import is_weight, uses

STRUCTURAL = "would have to change a dimension that is not channels"
"""How the reasons begin that another way to split a dimension may avoid."""


class Walk:
    """One walk: `labels` holds the labels of every value of the graph, `ledger` what was found out about them.

    Parameters
    ----------
    graph : Graph
        Of the network.
    splits : dict
        For reshapes (by the operator's index), which of the possible dimensions carries the labels.
    training : Graph or None
        Of the same network in training mode, if it uses weights then that it does not use at inference (auxiliary
        classifiers): they go along, but what training does is nothing that zeros could change.
    consumed_only : set, optional
        The parameter dimensions that are read by products and never made by them: the input side of layers, which is
        not zeroed with a unit. A first walk finds out which they are, see `cdlib.grouping.choose_reshapes`.
    """

    def __init__(
        self, graph: Graph, splits: Mapping[int, int], training: Graph | None, consumed_only: Container[Key] = ()
    ) -> None:
        self.graph, self.training, self.ledger, self.uses = graph, training, Ledger(), uses(graph)
        self.splits, self.consumed_only = dict(splits), consumed_only
        self.choices: dict[int, tuple[int, Ids]] = {}
        self.asked_weights = False
        self.labels: dict[int, Labels] = {}
        self._of_storage: dict[int, list[int]] = defaultdict(list)

    # Labels of values.

    def of(self, value: Value) -> Labels:
        """The labels of a value; those of parameters, buffers and inputs are made when they are first asked for."""
        if value.index not in self.labels:
            self._put(value, self._first(value))
        return self.labels[value.index]

    def labelled(self, value: Value) -> bool:
        """Whether some dimension of a value has labels."""
        return any(axis is not None for axis in self.of(value).axes)

    def _first(self, value: Value) -> Labels:
        if value.kind in ("parameter", "buffer"):
            axes = [
                Axis(self.ledger.atom(value.name, k, size), np.full(size, (value.name, k) not in self.consumed_only))
                for k, size in enumerate(value.shape[: self._channel_dims(value)])
            ]
            positions = [None] * (len(value.shape) - len(axes))
            return Labels((*axes, *positions), f"meets the positions of {value.name}")
        why = "meets the network's input" if value.kind == "input" else "meets a constant of fixed size"
        return unlabelled(value.shape, why)

    def _channel_dims(self, value: Value) -> int:
        """How many dimensions of a parameter may be channels: all, but for the positions of a convolution's kernel."""
        owner = value.name.partition(".parametrizations.")[0]
        owner = value.name.rpartition(".")[0] if owner == value.name else owner
        is_kernel = isinstance(self.graph.modules.get(owner), nn.modules.conv._ConvNd)
        return 2 if is_kernel else len(value.shape)

    def _put(self, value: Value, labels: Labels) -> None:
        if value.index not in self.labels:
            self._of_storage[value.storage].append(value.index)
        self.labels[value.index] = labels

    def assign(self, value: Value, labels: Labels, op: Op) -> None:
        """Give a value its labels. What was written into shared memory is no longer zero in the other views of it."""
        self._put(value, labels)
        shared = self._of_storage[value.storage]
        if len(shared) > 1 and op.target._schema.is_mutable:
            if all(axis is None or axis.zero.all() for axis in labels.axes) and self.labelled(value):
                return
            for index in shared:
                if index != value.index:
                    self.labels[index] = self.labels[index].not_zero()

    # What rules note.

    def freeze(self, labels: Labels, op: int, reason: str, dims: range | list[int] | None = None) -> None:
        """Note that the labels of a tensor, or of some of its dimensions, must stay."""
        for dim in range(len(labels.axes)) if dims is None else dims:
            if (axis := labels.axes[dim]) is not None:
                self.ledger.freeze(axis.ids, op, reason)

    def aligned(self, value: Value, shape: tuple[int, ...], op: Op) -> list[tuple[Axis | None, str] | None]:
        """For each dimension of a shape that a value is broadcast to, its labels, and why where there are none.

        Where it is repeated, there is None, and a label that is spread over several positions must stay.
        """
        axes, why = self.of(value)
        found: list[tuple[Axis | None, str] | None] = []
        for back in range(len(shape), 0, -1):
            same = len(axes) >= back and value.shape[-back] == shape[-back]
            found.append((axes[-back], why) if same else None)
            if not same and len(axes) >= back:
                self.spread(axes[-back], op)
        return found

    def spread(self, axis: Axis | None, op: Op) -> None:
        """Note that a dimension of size 1 is repeated over several positions, so that its label must stay."""
        if axis is not None:
            self.ledger.freeze(axis.ids, op.index, f"is spread over several positions by {self.place(op)}")

    def join(self, found: list[tuple[Axis | None, str]], op: Op, either: bool = False) -> Axis | None:
        """Couple dimensions of equal size that are used together; where one cannot change, none can.

        Returns the labels of the first of them, zero where all are (`either`: where one is), or None where nothing can
        vanish.
        """
        labelled = [axis for axis, _ in found if axis is not None]
        if not labelled:
            return None
        zero = labelled[0].zero
        for axis in labelled[1:]:
            self.ledger.couple(labelled[0].ids, axis.ids, op.index)
            zero = zero | axis.zero if either else zero & axis.zero
        fixed = [why for axis, why in found if axis is None]
        for why in fixed:
            self.ledger.freeze(labelled[0].ids, op.index, why)
        return None if fixed else labelled[0].known(zero)

    def alike(self, rows: Axis, op: Op) -> Axis:
        """Couple the rows of a matrix of labels, index by index; return those of one row, zero where all are.

        The smallest label stands for a column: that of an index that stays, if there is one.
        """
        for row in rows.ids[1:]:
            self.ledger.couple(rows.ids[0], row, op.index)
        return Axis(rows.ids.min(axis=0), np.asarray(rows.zero.all(axis=0)))

    def across(self, op: Op, axis: Axis | None, groups: int) -> Axis | None:
        """Couple the indices that are at the same place in each group, and return the labels of one group."""
        return axis and self.alike(axis.each(lambda part: part.reshape(groups, -1)), op)

    def contract(self, op: Op, a: Value, dim_a: int, b: Value, dim_b: int) -> None:
        """Note that a product sums over a dimension of `a` together with one of `b`."""
        self.contract_axes(op, (a, self.of(a).axes[dim_a]), (b, self.of(b).axes[dim_b]))

    def contract_axes(self, op: Op, a: tuple[Value, Axis | None], b: tuple[Value, Axis | None]) -> None:
        """The same with the labels of the dimensions given."""
        self.join([(axis, self.of(value).why) for value, axis in (a, b)], op)
        zero = np.zeros(1, dtype=bool)
        two_weights = is_weight(a[0]) and is_weight(b[0])
        self.asked_weights |= two_weights
        labelled = [(value, axis) for value, axis in (a, b) if axis is not None]
        for value, axis in labelled:
            if is_weight(value):
                self.ledger.consumed.append(axis.ids)
            if two_weights or not is_weight(value):
                zero = zero | axis.zero
        for _, axis in labelled:
            bad = np.broadcast_to(~zero, axis.ids.shape)
            self.ledger.notice(axis.ids[bad], op.index, f"is not zero where {self.place(op)} reads it")

    def emit(self, value: Value, dim: int) -> Axis | None:
        """The labels of a dimension of a product's operand that the result has too."""
        axis = self.of(value).axes[dim]
        if axis is not None and is_weight(value):
            self.ledger.produced.append(axis.ids)
        return axis

    def statistics(self, op: Op, labels: Labels, dims: Iterable[int]) -> None:
        """Note that an operator takes statistics over some dimensions: zeros count in them."""
        for dim in dims:
            if (axis := labels.axes[dim]) is not None:
                self.ledger.notice(axis.ids, op.index, f"{self.place(op)} takes statistics over it")

    def place(self, op: Op) -> str:
        """An operator in words: its name and its module."""
        return f"{op.name} in {op.module}" if op.module else op.name
