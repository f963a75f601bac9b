"""A hint: what another tier of the same vocabulary replied to the same call.

A reply that was given up is wrong in a part, and right in most others: the tool's name, the other
arguments, the form. The better tier reads what it would write just so in a few steps of many
tokens; where it disagrees, its own tokens count, and the hint is taken up again behind the
passage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHORTEST = 3
"""Tokens that must have stood in the hint before it is taken up again."""

LONGEST = 12
"""Tokens in common beyond which more say no more."""


class Hint:
    """Follows a reply through a hint.

    Args:
        tokens: Of the hint, its end token left out.
        start: Where the reply begins: the length of its prompt.
    """

    def __init__(self, tokens: Sequence[int], start: int) -> None:
        self._tokens = list(tokens)
        self._ids = np.array(self._tokens, np.int32)
        self._start = self._seen = start
        self._next: int | None = 0
        """Place in the hint of what should come next; None after a disagreement."""
        self._agreed = 0
        self._furthest = 0
        """Behind all that reply and hint had in common."""

    def guess(self, tokens: Sequence[int], most: int) -> tuple[int, list[int]]:
        """How many tokens, up to `LONGEST`, reply and hint have in common here, and what the hint
        has next.

        Args:
            tokens: Prompt and reply so far; at each call those of the last and more.
            most: Tokens to return.
        """
        for token in tokens[self._seen :]:
            at = self._next
            if at is not None and at < len(self._tokens) and self._tokens[at] == token:
                self._next = self._furthest = at + 1
                self._agreed += 1
            else:
                self._next, self._agreed = None, 0
        self._seen = len(tokens)
        if self._next is None:
            self._find(tokens)
        if self._next is None:
            return 0, []
        return min(self._agreed, LONGEST), self._tokens[self._next : self._next + most]

    def _find(self, tokens: Sequence[int]) -> None:
        """Takes the hint up again where the reply's latest tokens stand in it: in the longest of
        such places, of equal ones in the first behind all that reply and hint had in common."""
        reply = len(tokens) - self._start
        if min(reply, len(self._tokens)) < SHORTEST:
            return
        found = self._ids[SHORTEST - 1 :] == tokens[-1]
        for back in range(1, SHORTEST):
            found &= self._ids[SHORTEST - 1 - back : -back] == tokens[-1 - back]
        best = (0, False, 0)
        for place in found.nonzero()[0].tolist():
            match, end = SHORTEST, place + SHORTEST
            most = min(end, reply, LONGEST)
            while match < most and self._tokens[end - match - 1] == tokens[-match - 1]:
                match += 1
            best = max(best, (match, end > self._furthest, -end))
        if best[0]:
            self._agreed, self._next = best[0], -best[2]
