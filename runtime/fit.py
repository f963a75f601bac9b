"""Whether a tier fits in memory, and with keys and values of which type.

Where a tier does not fit with the type that is its own, it may with q8_0, which keeps keys and
values in about half the bytes. It goes back to its own type when it is loaded again and there is
the memory; or while it stays loaded, with hysteresis, because that costs a load and all that it
has read: it must be idle, have answered `BACK_AFTER` calls as it is, and fit with `BACK_SPARE` of
its need to spare, at the context that it has.
"""

from __future__ import annotations

from dataclasses import dataclass

from tierwise.runtime.context import KVType
from tierwise.runtime.errors import ContextOverflowError, UnsupportedModelError
from tierwise.runtime.family import Tier
from tierwise.runtime.lease import Entry, megabytes
from tierwise.runtime.resources import Resources
from tierwise.runtime.room import Room, power_of_two

SMALLEST_CONTEXT = 2048
"""Contexts are powers of two from here on, so that they grow a few times only."""

BACK_AFTER = 4
"""Calls that a tier answers with narrower keys and values before it may go back to its own."""

BACK_SPARE = 0.25
"""Of what the tier needs with its own type: so much more must there be for it to go back."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a tier can be had, and how.

    Args:
        ok: Whether it can.
        why: In English.
        kv_type: How keys and values would be stored.
        bytes: What it would take; 0 if its file cannot be used.
        most_bytes: What it could have, all idle tiers unloaded; 0 if that was not asked.
        cold: Whether it is to be loaded, or loaded anew with keys and values of another type.
        note: Why they are not of its own type; "" if they are.
    """

    ok: bool
    why: str
    kv_type: KVType
    bytes: int = 0
    most_bytes: int = 0
    cold: bool = True
    note: str = ""


def fit(
    room: Room, tier: Tier, n_ctx: int, resources: Resources, cap: int | None, *, narrow: bool
) -> Fit:
    """Whether a tier can be had with ``n_ctx`` tokens of context.

    Memory that unloading idle tiers would free counts as free. A tier in use keeps the type of
    keys and values that it was loaded with.

    Args:
        cap: Most bytes of all tiers together; None for what is available.
        narrow: Whether keys and values may be narrower than the tier's own.

    Raises:
        FamilyIncompleteError, ModelError: Its file cannot be used.
    """
    usual = room.kv_type(tier)
    with room.changed:
        own = room.entries.get(tier.name)
        loaded = own.tier.kv_type if own is not None else usual
        in_use, calls = own is not None and bool(own.holders), own.calls if own is not None else 0
    if loaded == usual:
        found = _as(usual, room, tier, own, n_ctx, resources, cap)
        if found.ok or in_use or not narrow or (less := room.narrower(tier)) is None:
            return found
        try:
            narrowed = _as(less, room, tier, own, n_ctx, resources, cap)
        except UnsupportedModelError:
            room.keep_wide(tier)
            return found
        return narrowed if narrowed.ok else found
    assert own is not None
    if in_use:
        if narrow:
            return _as(loaded, room, tier, own, n_ctx, resources, cap)
        return Fit(False, f"{tier.name} is in use with keys and values as {loaded}", usual)
    if not narrow:
        return _as(usual, room, tier, own, n_ctx, resources, cap)
    if calls >= BACK_AFTER:
        wide = _as(usual, room, tier, own, max(n_ctx, own.tier.n_ctx), resources, cap)
        if wide.bytes * (1 + BACK_SPARE) <= wide.most_bytes:
            return wide
    return _as(loaded, room, tier, own, n_ctx, resources, cap)


def _as(
    kv_type: KVType,
    room: Room,
    tier: Tier,
    own: Entry | None,
    n_ctx: int,
    resources: Resources,
    cap: int | None,
) -> Fit:
    """With keys and values of one type, ``own`` being what is loaded of the tier."""
    need = room.predict(tier, n_ctx, 1, kv_type)
    same = own is not None and own.tier.kv_type == kv_type
    with room.changed:
        freed = {entry for entry in room.entries.values() if not entry.holders}
        if own is not None:  # its context will grow, or it is loaded anew
            freed.add(own)
        now = room.free(resources, (), cap)
        most = room.free(resources, freed, cap) + room.spare(freed)
        held = own.bytes if own is not None else 0
    usual = room.kv_type(tier)

    def found(ok: bool, why: str, *, cold: bool = not same) -> Fit:
        note = ""
        if kv_type != usual:
            wide = room.predict(tier, n_ctx, 1, usual)
            note = (
                f"with keys and values as {kv_type}: as {usual} it would need {megabytes(wide)} "
                f"and could have {megabytes(most)}"
            )
        return Fit(ok, why, kv_type, need, most, cold, note)

    if own is not None and same and own.tier.n_ctx >= n_ctx:
        if cap is not None and held > cap:
            return found(False, f"{tier.name} holds {megabytes(held)} of {megabytes(cap)}")
        return found(True, f"{tier.name} is loaded with {own.tier.n_ctx:,} tokens of context")
    if need <= now:
        return found(True, f"{tier.name} needs {megabytes(need)} of {megabytes(now)} free")
    if need <= most:
        names = ", ".join(sorted(entry.name for entry in freed)) or "nothing"
        return found(True, f"{tier.name} needs {megabytes(need)}, free once {names} is unloaded")
    why = f"{tier.name} needs {megabytes(need)}, but only {megabytes(most)} can be had"
    return found(False, why)


def rounded_context(tier: Tier, context_tokens: int) -> int:
    """The context that a pool opens: the next power of two from 2048, at most the tier's own.

    Raises:
        ContextOverflowError: More than the tier was trained for.
    """
    if context_tokens > tier.context_tokens:
        raise ContextOverflowError(
            f"{context_tokens:,} tokens of context were asked for, but tier {tier.name!r} was "
            f"trained for {tier.context_tokens:,}. Shorten the conversation, lower max_tokens, or "
            "use a tier with a longer context."
        )
    return min(max(SMALLEST_CONTEXT, power_of_two(context_tokens)), tier.context_tokens)
