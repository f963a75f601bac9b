"""Notices a reply that goes round in circles while it is made.

Small models that must write valid JSON can be caught in a string or a list that they never close:
of the replies of SmolLM2-135M one in twelve was (README, "Ending loops"). Such a reply is wrong and
the longest of all.
"""

from __future__ import annotations

from collections import deque

LONGEST_PERIOD = 32
"""Tokens."""

LOOP_TOKENS = 48
"""So many in a row must each be the one that stood a period before. Of 1,808 replies of five tiers
154 came so far; none of them was right, but for refusals in words."""


class LoopWatch:
    """Looks at one reply, token by token; about 2 µs each."""

    def __init__(self) -> None:
        self._recent = deque([-1] * LONGEST_PERIOD, maxlen=LONGEST_PERIOD)  # the latest first
        self._runs = [0] * LONGEST_PERIOD
        self.found = False
        """Whether the reply goes round in circles."""

    def push(self, token: int) -> None:
        """Takes the next token."""
        self._runs = [
            run + 1 if before == token else 0
            for run, before in zip(self._runs, self._recent, strict=True)
        ]
        self._recent.appendleft(token)
        self.found = self.found or max(self._runs) >= LOOP_TOKENS
