"""`Accepts`: what a call's grammar allows, told of whole replies."""

from __future__ import annotations

from tierwise.runtime.grammar import Constraint, GrammarCompiler
from tierwise.runtime.llama import Model


class Accepts:
    """Whether a reply is one that the constraint of a call allows, from start to end."""

    def __init__(self, grammars: GrammarCompiler, model: Model, constraint: Constraint | None):
        assert constraint is not None
        self._grammars, self._model, self._lark = grammars, model, constraint.lark

    def __call__(self, reply: str) -> bool:
        matcher = self._grammars.matcher(self._lark)
        tokens = self._model.tokenize(reply, special=False)
        return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())
