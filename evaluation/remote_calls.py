"""Asks a tier on another machine many things, several at once, as fast as its server likes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from tierwise.runtime.chat import Call, Reply
from tierwise.runtime.errors import RemoteError, RemoteReplyError, ThrottledError
from tierwise.runtime.profile import Profile, utc_now
from tierwise.runtime.remote import RemoteClient, remote_profile
from tierwise.runtime.remote_tier import RemoteTier

AT_ONCE = 4
"""Calls that one server is asked at the same time."""

BREAK_S = 1.0
"""The first break after a failure; each further one is twice as long."""

LONGEST_BREAK_S = 120.0
"""A server that wants to be left alone for longer is given up."""

THROTTLED_BREAKS, OTHER_BREAKS = 6, 2
"""Breaks in a row after which not one reply came: then the server is given up."""


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """What came of one call.

    Args:
        reply: Empty where the server refused the call or wrote what cannot be read.
        seconds: That it took, breaks left out.
        fault: Why the reply is empty; None where there is one.
    """

    reply: Reply
    seconds: float
    fault: RemoteReplyError | None = None


class RemoteAsker:
    """Asks one server.

    Args:
        tier: Where it is and what it is asked for.
        works: Whether it is known to answer: one that refuses every call is asked in the wrong
            way, and says nothing of its model.
        ends: Value of ``time.monotonic()`` after which no break is taken any more.
        break_s: The first break.
    """

    def __init__(
        self,
        tier: RemoteTier,
        *,
        works: bool = False,
        ends: float | None = None,
        break_s: float = BREAK_S,
    ) -> None:
        self.tier = tier
        self._client = RemoteClient(tier)
        self._works = works
        self._ends = ends
        self._break_s = break_s
        self._at_once = AT_ONCE
        self._breaks = 0

    def ask(self, calls: Sequence[Call]) -> Iterator[tuple[int, RemoteAnswer]]:
        """Yields the answers as they come, each with the number of its call.

        Raises:
            RemoteError: The server is out of reach, or throttles for too long. Answers that came
                before were yielded.
            MissingExtraError: langchain-openai is not installed.
        """
        waiting = list(range(len(calls)))
        while waiting:
            failure: RemoteError | None = None
            refused: list[tuple[int, RemoteAnswer]] = []
            left: list[int] = []
            stop = threading.Event()
            with ThreadPoolExecutor(self._at_once) as threads:
                asked = {threads.submit(self._one, calls[at], stop): at for at in waiting}
                try:
                    for done in as_completed(asked):
                        answer, at = done.result(), asked[done]
                        if isinstance(answer, RemoteAnswer) and answer.fault is None:
                            self._works, self._breaks = True, 0
                            yield at, answer
                        elif isinstance(answer, RemoteAnswer):
                            refused.append((at, answer))
                        else:
                            failure = answer or failure
                            left.append(at)
                finally:
                    stop.set()  # whoever leaves early waits for no more than what runs
            if refused and not self._works:
                assert refused[0][1].fault is not None
                raise refused[0][1].fault
            yield from refused
            waiting = sorted(left)
            if failure is not None:
                self._rest(failure)
            else:
                self._at_once = min(AT_ONCE, self._at_once + 1)

    def _one(self, call: Call, stop: threading.Event) -> RemoteAnswer | RemoteError | None:
        """None where the server is to be left alone; an error where it is from now on."""
        if stop.is_set():
            return None
        began = time.perf_counter()
        try:
            reply = self._client.stream(call).reply()
        except RemoteReplyError as error:
            return RemoteAnswer(Reply(), time.perf_counter() - began, error)
        except RemoteError as error:
            stop.set()
            return error
        return RemoteAnswer(reply, time.perf_counter() - began)

    def _rest(self, failure: RemoteError) -> None:
        """Takes a break, and asks less at once from then on; or gives the server up."""
        throttled = isinstance(failure, ThrottledError)
        pause = max(failure.retry_s, self._break_s * 2.0**self._breaks)
        self._breaks += 1
        if (
            self._breaks > (THROTTLED_BREAKS if throttled else OTHER_BREAKS)
            or pause > LONGEST_BREAK_S
            or (self._ends is not None and time.monotonic() + pause > self._ends)
        ):
            raise failure
        self._at_once = max(1, self._at_once // 2)
        time.sleep(pause)


def timed_profile(tier: RemoteTier, calls: Sequence[tuple[int, int, float]]) -> Profile:
    """A server's speed by what calls took: so much until the first token, so much for each.

    Args:
        tier: The server.
        calls: Prompt tokens (as this machine counts them), reply tokens and seconds of each; at
            least one, and none of 0.
    """
    prompts, lengths, seconds = np.array(calls, float).T
    spread = lengths - lengths.mean()
    # Where all replies are of one length, the first token counts like any other.
    step = seconds.mean() / (lengths.mean() + 1)
    if (spread**2).sum() > 0:
        step = min(2 * step, max(step / 10, (spread * seconds).sum() / (spread**2).sum()))
    first = max(seconds.mean() / 10, seconds.mean() - step * lengths.mean())
    return remote_profile(tier).model_copy(
        update={
            "prefill_tokens_per_s": float(prompts.mean() / first),
            "decode_tokens_per_s": float(1 / step),
            "measured_at": utc_now(),
            "runs": len(calls),
            "estimated": False,
        }
    )
