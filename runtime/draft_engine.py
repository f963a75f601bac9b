"""A smaller tier that guesses for a larger one: its engine is asked like by any caller.

So the guesses use what the smaller tier has in its prefix cache already (in a cascade it has
often read the very prompt), take no memory of their own, and end with its unloading.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import ref

from tierwise.runtime.errors import TierwiseError
from tierwise.runtime.generation import GenerationRequest

if TYPE_CHECKING:
    from tierwise.runtime.engine import Engine

_PATIENCE = 4.0
"""Times as long as a guess should take, after which the engine is taken to be busy."""


class DraftEngine:
    """The `Guesser` that an engine is to a larger model. Keeps nobody from unloading it.

    Args:
        engine: Of a model with the same vocabulary.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = ref(engine)
        self.costs = engine.drafter.costs

    def lag(self, tokens: Sequence[int]) -> int:
        """How many of the tokens it has yet to read."""
        engine = self._engine()
        return len(tokens) - (engine.cached_prefix(tuple(tokens)) if engine is not None else 0)

    def guess(self, tokens: Sequence[int], length: int) -> list[int]:
        """The next tokens, the likeliest each time; none if it is busy, too short or gone."""
        engine = self._engine()
        if engine is None or engine.busy or len(tokens) + length > engine.n_ctx:
            return []
        expected_s = self.costs[self.lag(tokens)] + length * self.costs[1]
        request = GenerationRequest(
            tuple(tokens), max_tokens=length, deadline=time.monotonic() + _PATIENCE * expected_s
        )
        try:
            return list(engine.submit(request).result().tokens)
        except TierwiseError:
            return []
