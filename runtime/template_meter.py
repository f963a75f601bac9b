"""Counts the work of a chat template, so that one that never ends is ended.

Every loop turn, call and filter, and every text copied, is charged to a meter. It counts steps
and not seconds, so what renders once always renders. `metered` changes a template's syntax
tree where Jinja offers no other place to count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jinja2.nodes as nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

STEPS = 1_000_000
"""Steps that one rendering may take; a prompt of a million tokens takes about a third."""
LONGEST_TEXT = 8_000_000
"""Characters of the longest text that a template may make."""
LONGEST_LIST = 100_000
HEAVIEST = 10_000
"""Parts of a nested value that a template makes, shared parts counted every time."""
CHARS_PER_STEP = 64
TICK, CONCAT, WEIGH, BUILT = "_tick", "_concat", "_weigh", "_built"
"""Names of the filters that `metered` puts into the tree."""


class Meter(threading.local):
    """What the rendering that runs in this thread has left."""

    def __init__(self) -> None:
        self.refill()

    def refill(self) -> None:
        self._left = STEPS
        # Weights of the nested values that the template made, by id. The values are kept, so
        # that no id comes back as another value's.
        self._weights: dict[int, int] = {}
        self._kept: list[Any] = []

    def charge(self, steps: int) -> None:
        """Raises SecurityError where the meter is empty."""
        self._left -= steps
        if self._left < 0:
            raise SecurityError(
                f"it does not come to an end within {STEPS:,} steps (loop turns, calls, texts "
                "copied)"
            )

    def size(self, value: Any) -> int:
        """Steps that it takes to go through a value once."""
        if isinstance(value, str):
            return len(value) // CHARS_PER_STEP
        if isinstance(value, list | tuple | dict | range):
            parts = self._weights.get(id(value), len(value))
            return parts + sum(len(v) for v in value if isinstance(v, str)) // CHARS_PER_STEP
        return 0

    def made(self, result: Any, parents: Iterable[Any] = ()) -> Any:
        """Charges for a new value; what is made of heavy values is heavy too."""
        if isinstance(result, str):
            self.charge(len(result) // CHARS_PER_STEP)
        elif self._weights and result is not None and not isinstance(result, bool | int | float):
            if isinstance(result, list | tuple | dict):
                return self.built(result)
            weight = max((self._weights.get(id(parent), 0) for parent in parents), default=0)
            if weight:  # say, a generator over a heavy list
                self._note(result, weight)
        return result

    def built(self, value: Any) -> Any:
        """Weighs a new container of values."""
        weight = self._weight(value, depth=3)
        if weight > HEAVIEST:
            raise SecurityError(f"it makes nested values of more than {HEAVIEST:,} parts")
        self.charge(weight)
        self._note(value, weight)
        return value

    def _note(self, value: Any, weight: int) -> None:
        self._weights[id(value)] = weight
        self._kept.append(value)

    def _weight(self, value: Any, depth: int) -> int:
        known = self._weights.get(id(value))
        if known is not None:
            return known
        if not depth or not isinstance(value, list | tuple | dict):
            return 1
        inner = value.values() if isinstance(value, dict) else value
        return 1 + sum(self._weight(part, depth - 1) for part in inner)


def check_length(length: int, *, of_list: bool = False) -> None:
    """Raises SecurityError for a text or list that would be too long to make."""
    most, what = (LONGEST_LIST, "list") if of_list else (LONGEST_TEXT, "text")
    if length > most:
        raise SecurityError(f"it makes a {what} of length {length:,}, of at most {most:,}")


def metered(tree: nodes.Template) -> nodes.Template:
    """The tree, changed so that its work is charged.

    Raises:
        SecurityError: It reads other files, or nests values unseen.
    """
    changed = _Metering().visit(tree)
    assert isinstance(changed, nodes.Template)
    return changed


class _Metering(NodeTransformer):
    def get_visitor(self, node: nodes.Node) -> Callable[..., Any] | None:
        return self._changes.get(type(node))

    def _body(self, node: Any) -> Any:
        """Every turn of a body costs a step, and what its fixed texts cost."""
        fixed = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        steps = nodes.Const(1 + fixed // CHARS_PER_STEP, lineno=node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filtered(steps, TICK), lineno=node.lineno))
        return node

    def _for(self, node: nodes.For) -> nodes.Node:
        self._body(node)
        if node.test is not None:  # tried for turns that never reach the body
            turn = _filtered(nodes.Const(1, lineno=node.lineno), TICK)
            node.test = nodes.And(turn, node.test, lineno=node.lineno)
        return node

    def _concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node.nodes[0], CONCAT, *node.nodes[1:])

    def _compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        if not any(isinstance(side, nodes.Const) for side in sides):
            node.expr = _filtered(node.expr, WEIGH)
        for operand in node.ops:
            if operand.op in ("in", "notin"):
                operand.expr = _filtered(operand.expr, WEIGH)
        return node

    def _item(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, WEIGH) if isinstance(node.arg, nodes.Slice) else node

    def _container(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        target = getattr(node, "ctx", "load") != "load"
        fixed = all(isinstance(item, nodes.Const) for item in node.items)
        return node if target or fixed else _filtered(node, BUILT)

    def _name(self, node: nodes.Name) -> nodes.Node:
        if node.name in ("varargs", "kwargs"):
            raise SecurityError(f"it uses {node.name}, which is not offered here")
        return node

    def _files(self, node: nodes.Node) -> NoReturn:
        raise SecurityError("it wants to read other files (include, import or extends)")

    @property
    def _changes(self) -> dict[type[nodes.Node], Callable[..., Any]]:
        return {
            **dict.fromkeys((nodes.Macro, nodes.CallBlock, nodes.FilterBlock), self._body),
            **dict.fromkeys((nodes.List, nodes.Tuple, nodes.Dict), self._container),
            **dict.fromkeys(
                (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends), self._files
            ),
            nodes.For: self._for,
            nodes.Concat: self._concat,
            nodes.Compare: self._compare,
            nodes.Getitem: self._item,
            nodes.Name: self._name,
        }


def _filtered(node: nodes.Expr, name: str, *more: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, list(more), [], None, None, lineno=node.lineno)
