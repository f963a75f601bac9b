"""A conversation too long for the context, cut in its middle.

What stays: the system prompts at the start, the first request with the end of its answer, the
latest request with the last step taken for it, and as much before that as there is room for.
Nothing is made up to fill the gap. Whole pieces go, the oldest first:

* of the first and the latest exchange, single steps: an assistant turn with its tool results;
* exchanges in between as a whole: a user turn and all that follows it up to the next.

So no tool result is parted from its call and no answer from its question, and user and
assistant take turns as they did before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from tierwise.runtime.chat import Call, Message

STEP_SHARE = 1 / 4
"""What goes is a multiple of this share of the room, rounded up to whole pieces. The cut then
stays where it is while the conversation grows by so much, and with it the prefix that the
engine has cached."""

Messages = tuple[Message, ...]


def trim(call: Call, count: Callable[[Call], int], room: int) -> Call:
    """The call without what must go for its prompt to have at most ``room`` tokens.

    It is the very same call if it fits, or if nothing may go. Where what has to stay is too
    long by itself, all else goes: the caller must look again.

    Args:
        call: The call.
        count: Tokens of a call's prompt; asked about log2(pieces) times.
        room: Tokens.
    """
    length = count(call)
    pieces = list(_pieces(call.messages))
    optional = sum(may_go for may_go, _ in pieces)
    if length <= room or not optional:
        return call
    step = max(1, int(room * STEP_SHARE))
    surplus = -((room - length) // step) * step

    def shorter(gone: int) -> Call:
        kept: list[Message] = []
        for may_go, messages in pieces:
            if may_go and gone > 0:
                gone -= 1
            else:
                kept.extend(messages)
        return replace(call, messages=tuple(kept))

    # The fewest pieces whose going is enough, or all of them.
    fewer = bisect_left(range(1, optional), surplus, key=lambda n: length - count(shorter(n)))
    return shorter(1 + fewer)


def _pieces(messages: Messages) -> Iterator[tuple[bool, Messages]]:
    """The conversation in order, cut into pieces, and whether each may go."""
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    for start, end in pairwise((0, *users[1:], len(messages))):
        if start == 0 or end == len(messages):
            yield from _steps(messages[start:end])
        else:
            yield True, messages[start:end]


def _steps(exchange: Messages) -> Iterator[tuple[bool, Messages]]:
    """An exchange cut before its assistant turns; all may go but the request and the last."""
    asked = next((i for i, message in enumerate(exchange) if message.role == "user"), 0)
    turns = [i for i, message in enumerate(exchange) if message.role == "assistant"]
    for start, end in pairwise((0, *turns, len(exchange))):
        yield asked < start < turns[-1], exchange[start:end]
