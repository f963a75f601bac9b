"""Turns token bytes into text as they come: whole characters only, and stop texts held back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Incremental detokeniser of one reply.

    A character whose bytes lie in several tokens is given out when it is whole. Text that may
    be the start of a stop text is held back until it is known not to be.

    Args:
        stop: Texts that end the reply; empty ones are ignored.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes, *, final: bool = False) -> str:
        """Takes the next token's bytes; returns the text that is safe to show.

        Sets `stopped` when a stop text is complete; that text and what follows are dropped.
        """
        if self.stopped:
            return ""
        self._held += self._decoder.decode(piece, final=final)
        ends = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if ends:
            self.stopped = True
            out, self._held = self._held[: min(ends)], ""
            return out
        keep = 0 if final else max((overlap(self._held, text) for text in self._stop), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
