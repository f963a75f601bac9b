"""Renders a conversation turn by turn where its chat template allows that, and remembers turns.

Many templates are one loop over the messages whose body looks at nothing but the message itself,
the first message, and whether the turn is the first or the last. Then a turn's text can be told
from these alone, and the next prompt of a conversation renders its new turns only. Whether a
template is of this kind is read off its syntax tree, so that the text is exactly what the whole
template gives; others (that count turns, or keep notes from one to the next) are rendered whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2
import jinja2.nodes as nodes

from tierwise.runtime.template_sandbox import Sandbox

REMEMBERED_CHARS = 4_000_000
"""Of all turns together; beyond that, all are forgotten."""

_FIXED = ("bos_token", "eos_token", "add_generation_prompt")
_CONSTANT = {*_FIXED, "raise_exception"}
_PLACES = {"first", "last"}


@dataclass(slots=True)
class _Around:
    """A part of a template outside of its loop.

    Args:
        template: None for nothing.
        fixed: Whether it looks at nothing that messages bring, so that its text is remembered.
    """

    template: jinja2.Template | None
    fixed: bool
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)

    @classmethod
    def of(cls, sandbox: Sandbox, part: list[nodes.Node]) -> _Around:
        names = {node.name for node in _found(part, nodes.Name)}
        return cls(sandbox.part(part) if part else None, names <= set(_FIXED))

    def render(self, sandbox: Sandbox, variables: Mapping[str, Any]) -> str:
        if self.template is None:
            return ""
        if not self.fixed:
            return sandbox.run(self.template, variables)
        key = tuple(map(variables.get, _FIXED))
        if key not in self._known:
            self._known[key] = sandbox.run(self.template, variables)
        return self._known[key]


@dataclass(slots=True)
class TurnTemplate:
    """A template in three parts. Safe to use from many threads.

    Args:
        sandbox: That runs them.
        before: What stands before the loop over the messages.
        turn: The loop's body.
        after: What stands behind the loop.
        name: Of the loop's variable.
        places: Which of ``loop.first`` and ``loop.last`` the body asks for.
        heads: Whether the body asks for the first message.
    """

    sandbox: Sandbox
    before: _Around
    turn: jinja2.Template
    after: _Around
    name: str
    places: frozenset[str]
    heads: bool
    _known: dict[tuple[Any, ...], dict[tuple[Any, ...], str]] = field(default_factory=dict)
    """By the first message where that counts, then by place and message."""
    _held: int = 0

    @classmethod
    def of(cls, sandbox: Sandbox, source: str) -> TurnTemplate | None:
        """A template that the sandbox has compiled already in parts; None where its turns depend
        on more."""
        body = sandbox.parse(source).body
        loops = [at for at, node in enumerate(body) if _goes_over_messages(node)]
        if len(loops) != 1:
            return None
        at = loops[0]
        loop = body[at]
        assert isinstance(loop, nodes.For) and isinstance(loop.target, nodes.Name)
        name = loop.target.name
        if not loop.body or _keeps_notes(body) or not _looks_at_itself(loop.body, name):
            return None
        places = {node.attr for node in _found(loop.body, nodes.Getattr) if _of(node, "loop")}
        heads = any(_of(node, "messages") for node in _found(loop.body, nodes.Getitem))
        before, after = (_Around.of(sandbox, part) for part in (body[:at], body[at + 1 :]))
        turn = sandbox.part(loop.body)
        return cls(sandbox, before, turn, after, name, frozenset(places), heads)

    def render(self, variables: Mapping[str, Any]) -> str:
        """What the whole template makes of the variables. Raises what it makes go wrong."""
        messages = variables["messages"]
        known = self._of_head(messages[0] if self.heads and messages else {})
        last = len(messages) - 1
        texts = [self.before.render(self.sandbox, variables)]
        for index, message in enumerate(messages):
            first = index == 0 and "first" in self.places
            final = index == last and "last" in self.places
            key = (first, final, *message.items())
            try:
                text = known.get(key)
            except TypeError:  # a turn with calls, whose arguments cannot be hashed
                key, text = (), None
            if text is None:
                place = {"first": first, "last": final}
                text = self.sandbox.run(self.turn, {**variables, self.name: message, "loop": place})
                if key:
                    known[key] = text
                    self._held += len(text)
            texts.append(text)
        texts.append(self.after.render(self.sandbox, variables))
        return "".join(texts)

    def _of_head(self, head: Mapping[str, Any]) -> dict[tuple[Any, ...], str]:
        """What is known of turns in conversations with this first message."""
        if self._held > REMEMBERED_CHARS:
            self._known, self._held = {}, 0
        key = tuple(head.items())
        try:
            if key not in self._known:
                self._held += len(str(key))
            return self._known.setdefault(key, {})
        except TypeError:
            return {}


def _goes_over_messages(node: nodes.Node) -> bool:
    return (
        isinstance(node, nodes.For)
        and isinstance(node.iter, nodes.Name)
        and node.iter.name == "messages"
        and isinstance(node.target, nodes.Name)
        and node.target.name not in {"loop", "messages", *_CONSTANT}
        and node.test is None
        and not node.else_
        and not node.recursive
    )


def _keeps_notes(body: Iterable[nodes.Node]) -> bool:
    """Whether anything is given a name that something else may read, or the loop may be left."""
    kinds = (
        *(nodes.Assign, nodes.AssignBlock, nodes.Macro, nodes.CallBlock, nodes.With),
        *(nodes.Break, nodes.Continue, nodes.Block, nodes.Scope, nodes.FilterBlock),
    )
    return any(True for _ in _found(body, kinds))


def _looks_at_itself(body: Iterable[nodes.Node], name: str) -> bool:
    """Whether a loop's body reads its message, the first one, its place, and nothing else."""
    body = list(body)
    if any(True for _ in _found(body, nodes.For)):  # its `loop` would be another
        return False
    places = [n for n in _found(body, nodes.Getattr) if _of(n, "loop") and n.attr in _PLACES]
    heads = [n for n in _found(body, nodes.Getitem) if _of(n, "messages") and _is_zero(n.arg)]
    names = [node.name for node in _found(body, nodes.Name)]
    return (
        set(names) <= {name, "loop", "messages", *_CONSTANT}
        and names.count("loop") == len(places)
        and names.count("messages") == len(heads)
    )


def _found(body: Iterable[nodes.Node], kind: Any) -> Iterable[Any]:
    """All nodes of a kind, those of the body itself too."""
    for node in body:
        if isinstance(node, kind):
            yield node
        yield from node.find_all(kind)


def _of(node: Any, name: str) -> bool:
    return isinstance(node.node, nodes.Name) and node.node.name == name


def _is_zero(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and node.value == 0 and not isinstance(node.value, bool)
