"""What a decision log can teach: calls whose reply is known, as far as it can be, to be right.

A reply counts where a better tier gave it after a cheaper one was doubted, and verification found
nothing wrong with it, or where the user said that it is right. What the user said is wrong never
counts, and neither does what was cut off.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tierwise.routing.decision_log import Logged
from tierwise.routing.splits import prompt_group, split
from tierwise.runtime.chat import Call, Reply
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family
from tierwise.runtime.message_json import (
    call_from_json,
    message_from,
    message_to_json,
    reply_from_json,
)

HELD_OUT = 1 / 3
"""Of the calls, by whole groups: what is judged on is never learned from."""

FEWEST_PROMPTS = 24
"""Different ones that a tier is taught with and judged on. With a third of them held out, six that
are gained and none that is lost are just more than chance."""

MOST_HELD_OUT = 240
"""Calls to judge on, the newest ones: each takes both files the time of a reply."""

MOST_KEPT = 120
"""Of those that the tier did right itself, which it is judged on as well, the newest ones."""


@dataclass(frozen=True, slots=True)
class RightCall:
    """A call with a reply that is right.

    Args:
        id: Of the logged row.
        group: From `prompt_group`; calls of one group are alike.
        call, reply: As logged.
        tier: That replied.
        doubted: Tiers that were asked before and whose replies did not stand.
        confirmed: Whether the user said that the reply is right.
    """

    id: str
    group: str
    call: Call
    reply: Reply
    tier: str
    doubted: tuple[str, ...]
    confirmed: bool


@dataclass(frozen=True, slots=True)
class RightCalls:
    """What was found in logs.

    Args:
        calls: Each once, oldest first.
        left_out: How many rows teach nothing, by the reason.
    """

    calls: tuple[RightCall, ...]
    left_out: Mapping[str, int]

    @property
    def without_text(self) -> int:
        """Rows that hold hashes alone."""
        return self.left_out.get(NO_TEXT, 0)


@dataclass(frozen=True, slots=True)
class Syllabus:
    """What one tier is taught with and judged on.

    Args:
        tier: Its name.
        learned: Calls to learn.
        reviewed: Calls that the tier did right by itself, said the user: what is taught without
            them, it forgets.
        held_out: Calls to judge on, of other groups than those that are taught.
        kept: Calls that it did right by itself, to judge on as well.
    """

    tier: str
    learned: tuple[RightCall, ...]
    reviewed: tuple[RightCall, ...]
    held_out: tuple[RightCall, ...]
    kept: tuple[RightCall, ...]


NO_TEXT = "are without their text"
_WRONG = "have a reply that the user said is wrong"
_CUT = "have a reply that was cut off"
_DOUBTED = "were neither escalated to a reply that stands nor confirmed"
_TWICE = "are there already"
_UNREADABLE = "cannot be read"


def right_calls(rows: Iterable[Logged]) -> RightCalls:
    """The calls of these rows that have a right reply.

    Of rows with the same call the latest confirmed one counts, else the latest. A reply that the
    user said is wrong counts from no row of that call.
    """
    left_out: Counter[str] = Counter()
    wrong: set[tuple[str, str]] = set()
    found: dict[str, RightCall] = {}
    for row in sorted(rows, key=lambda row: (row.at, row.id)):
        if row.call is None or row.reply is None:
            left_out[NO_TEXT] += 1
            continue
        try:
            call, reply = call_from_json(row.call), reply_from_json(row.reply)
            key, doubted = (_key(row.call), _said(reply)), _doubted(row.answer)
        except (ConfigError, AttributeError, LookupError, TypeError):
            left_out[_UNREADABLE] += 1
            continue
        if row.feedback is False:
            left_out[_WRONG] += 1
            wrong.add(key)
        elif reply.finish_reason in ("length", "loop"):
            left_out[_CUT] += 1
        elif not (row.feedback or doubted):
            left_out[_DOUBTED] += 1
        else:
            known = found.get(key[0])
            new = RightCall(
                row.id, prompt_group(call), call, reply, row.tier, doubted, row.feedback is True
            )
            left_out[_TWICE] += known is not None
            if known is None or new.confirmed or not known.confirmed:
                found.pop(key[0], None)
                found[key[0]] = new
    calls = tuple(one for key, one in found.items() if (key, _said(one.reply)) not in wrong)
    left_out[_WRONG] += len(found) - len(calls)
    return RightCalls(calls, {why: count for why, count in left_out.items() if count})


def _doubted(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """The tiers whose replies gave way to one that stands; none if no reply stands."""
    attempts = answer["attempts"]
    good = [at for at, one in enumerate(attempts) if not (one["problem"] or one.get("doubt"))]
    if not good:
        return ()
    stands = attempts[good[-1]]["tier"]
    before = (one["tier"] for one in attempts[: good[-1]])
    return tuple(dict.fromkeys(name for name in before if name != stands))


def _key(call: Mapping[str, Any]) -> str:
    """Stands for all that a tier sees of a call; ids of tool calls are drawn anew each time."""
    messages = [message_to_json(message_from(one)) for one in call["messages"]]
    for message in messages:
        message.pop("tool_call_id", None)
        for one in message.get("tool_calls", ()):
            one.pop("id", None)
    return json.dumps({**call, "messages": messages, "max_tokens": None}, sort_keys=True)


def _said(reply: Reply) -> str:
    calls = [[one.name, dict(one.arguments)] for one in reply.tool_calls]
    return json.dumps([reply.text.strip(), calls], sort_keys=True)


# --- which tier, and with what --------------------------------------------------------------


def choose_tier(found: RightCalls, family: Family) -> str:
    """The local tier that gave way most often in calls which can teach it; of several the
    cheapest.

    Raises:
        ConfigError: No tier of the family can be taught with these calls.
    """
    names = [tier.name for tier in family.tiers]
    counts = Counter(
        name for one in found.calls for name in one.doubted if name in _taught_by(one, family)
    )
    if not counts:
        counts = Counter(name for one in found.calls for name in _taught_by(one, family))
    if not counts:
        raise ConfigError(f"nothing in the log can teach a tier of this family: {_told(found)}")
    return max(names, key=lambda name: (counts[name], -names.index(name)))


def make_syllabus(found: RightCalls, family: Family, tier: str, *, seed: int = 0) -> Syllabus:
    """What the tier is taught with: calls that dearer tiers answered.

    Args:
        found: From one or several logs.
        family: Whose tiers are in order of cost.
        tier: Name of a local one.
        seed: Of what is held out.

    Raises:
        ConfigError: The log has no text, or there are too few calls; the message says how many
            there are, how many are needed, and why others do not count.
    """
    name = family.tier(tier).name
    calls = [one for one in found.calls if name in _taught_by(one, family)]
    kept = [one for one in found.calls if one.tier == name and one.confirmed][-MOST_KEPT:]
    prompts = len({one.group for one in calls})
    if prompts < FEWEST_PROMPTS:
        raise ConfigError(
            f"to teach {name!r}, {FEWEST_PROMPTS} different prompts that a better tier answered "
            f"rightly are needed, and there are {prompts}: {_told(found)}"
        )
    learned, held_out = _parted(calls, seed)
    known = {one.group for one in learned}
    held = {one.group for one in held_out}
    reviewed, kept = _parted([one for one in kept if one.group not in known], seed)
    return Syllabus(
        tier=name,
        learned=tuple(learned),
        reviewed=tuple(one for one in reviewed if one.group not in held),
        held_out=tuple(held_out[-MOST_HELD_OUT:]),
        kept=tuple(kept),
    )


def _parted(calls: Sequence[RightCall], seed: int) -> tuple[list[RightCall], list[RightCall]]:
    """To teach and to hold out."""
    if not calls:
        return [], []
    groups = [one.group for one in calls]
    strata = [bool(one.reply.tool_calls) for one in calls]
    parts = split(groups, strata, shares=(1 - HELD_OUT, 0.0, HELD_OUT), seed=seed)
    taught = sorted([*parts.fit, *parts.calibrate])
    return [calls[row] for row in taught], [calls[row] for row in parts.test]


def _taught_by(one: RightCall, family: Family) -> list[str]:
    """Local tiers that are cheaper than the one that replied; none if the family lacks it."""
    names = [tier.name for tier in family.tiers]
    if one.tier in names:
        return names[: names.index(one.tier)]
    return names if one.tier in {remote.name for remote in family.remotes} else []


def _told(found: RightCalls) -> str:
    """How many calls there are, why others do not count, and what to do about it."""
    reasons = [f"{count:,} {why}" for why, count in found.left_out.items()]
    text = f"of {len(found.calls) + sum(found.left_out.values()):,} logged calls"
    text += f", {len(found.calls):,} have a reply known to be right"
    text += "".join(f", {reason}" for reason in reasons)
    if found.without_text:
        return (
            f"{text}. Text is kept only where it is asked for: "
            "ChatTierwise(decision_log=…, log_text=True)."
        )
    return f"{text}. Let more calls come, or confirm right replies: model.feedback(reply, ok=True)."


__all__ = [
    "FEWEST_PROMPTS",
    "RightCall",
    "RightCalls",
    "Syllabus",
    "choose_tier",
    "make_syllabus",
    "right_calls",
]
