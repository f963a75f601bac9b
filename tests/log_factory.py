"""Decision logs whose calls are known, written as the router writes them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tierwise.routing.answer import Answer, Attempt
from tierwise.routing.decision import Decision, Forecast
from tierwise.routing.decision_log import DecisionLog
from tierwise.runtime.chat import Call, Reply


@dataclass(frozen=True)
class Row:
    """A call that was answered.

    Args:
        tiers: That were asked, one after the other.
        problem: That was found with the last one's reply; those before it were empty.
        doubt: That remained about it.
        feedback: What the user said.
    """

    call: Call
    reply: Reply
    tiers: tuple[str, ...] = ("small", "large")
    problem: str = ""
    doubt: str = ""
    feedback: bool | None = None


def write_log(path: Path, rows: Sequence[Row], *, text: bool = True) -> Path:
    """Appends the rows."""
    with DecisionLog(path, text=text) as log:
        for row in rows:
            *before, last = row.tiers
            attempts = [_attempt(tier, Reply(), "the reply is empty") for tier in before]
            attempts.append(_attempt(last, row.reply, row.problem, row.doubt))
            answer = Answer(tuple(attempts), uuid.uuid4().hex)
            log.add(row.call, answer)
            if row.feedback is not None:
                log.feedback(answer.id, row.feedback)
    assert log.dropped == 0
    return path


def _attempt(tier: str, reply: Reply, problem: str, doubt: str = "") -> Attempt:
    forecast = Forecast(
        tier=tier,
        success=0.5,
        seconds=1.0,
        first_token_s=0.5,
        joules=1.0,
        memory_bytes=1,
        new_tokens=1,
        cold=False,
        feasible=True,
        verdict="",
    )
    decision = Decision(tier, "because", 0.5, 1, (forecast,), prompt=(1,))
    return Attempt(decision, reply, 0.1, problem, doubt=doubt)
