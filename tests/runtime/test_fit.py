"""Tiers that fit only with narrower keys and values, and that go back to their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from tiny_models import write_tiny_gguf

from tierwise.runtime.chat import Call, Message
from tierwise.runtime.context import KVType
from tierwise.runtime.errors import OutOfMemoryError
from tierwise.runtime.family import Family
from tierwise.runtime.fit import BACK_AFTER, BACK_SPARE
from tierwise.runtime.lease import Lease, megabytes
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.pool import Pool
from tierwise.runtime.resources import Resources
from tierwise.runtime.room import MARGIN_SHARE

LONG = 8192
"""Tokens of context in which keys and values take more than weights."""

CALL = Call((Message("user", "hello Paris"),), max_tokens=4)


class Machine:
    """A machine whose memory other processes take and give back."""

    def __init__(self) -> None:
        self.pool: Pool | None = None
        self.left = 4 * 2**30
        """Bytes for this process, what it has taken already included."""

    def __call__(self) -> Resources:
        taken = sum(one.bytes for one in self.pool.resident().values()) if self.pool else 0
        free = max(0, self.left - taken)
        return Resources(available_bytes=free, total_bytes=8 * 2**30, threads=1)

    def room_for(self, need: float) -> None:
        self.left = int(need / (1 - MARGIN_SHARE)) + 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Heads of 32 values, which q8_0 can hold, and of 16, which it cannot."""
    folder = tmp_path_factory.mktemp("ggufs")
    return {
        "only": write_tiny_gguf(folder / "only.gguf", layers=6, width=128, context=LONG),
        "rigid": write_tiny_gguf(folder / "rigid.gguf", layers=6, context=LONG),
    }


@pytest.fixture
def family(files: dict[str, Path], tmp_path: Path) -> Family:
    return make_family(tmp_path / "family", [TierSpec(name, file) for name, file in files.items()])


@pytest.fixture
def machine() -> Machine:
    return Machine()


Open = Callable[..., Pool]


@pytest.fixture
def open_pool(family: Family, machine: Machine) -> Iterator[Open]:
    pools: list[Pool] = []

    def opened(kv_type: KVType | None = None) -> Pool:
        pools.append(Pool(family, probe=machine, threads=1, kv_type=kv_type))
        machine.pool = pools[-1]
        return pools[-1]

    yield opened
    for pool in pools:
        pool.close()


def need(family: Family, kv_type: KVType, context: int = LONG, name: str = "only") -> int:
    return predict_memory(family.path(name), context, kv_type=kv_type).total_bytes


def between(family: Family, context: int = LONG) -> float:
    """Bytes with which q8_0 fits and f16 does not."""
    narrow, wide = need(family, "q8_0", context), need(family, "f16", context)
    assert narrow < 0.9 * wide
    return (narrow + wide) / 2


def used(pool: Pool, machine: Machine, context: int = LONG) -> Lease:
    """Takes the tier as a router does: as it fits now."""
    found = pool.fit("only", context, machine())
    assert found.ok, found.why
    lease = pool.acquire("only", context_tokens=context, kv_type=found.kv_type)
    assert lease.tier.reply(CALL).usage.completion_tokens > 0
    lease.release()
    assert lease.cold == found.cold
    assert lease.tier.kv_type == found.kv_type == pool.resident()["only"].kv_type
    return lease


def test_narrower_where_only_that_fits_and_back(
    open_pool: Open, family: Family, machine: Machine
) -> None:
    pool = open_pool()
    machine.room_for(between(family))
    found = pool.fit("only", LONG, machine())
    could = megabytes(found.most_bytes)
    assert (found.ok, found.kv_type, found.bytes) == (True, "q8_0", need(family, "q8_0"))
    assert found.note == (
        "with keys and values as q8_0: as f16 it would need "
        f"{megabytes(need(family, 'f16'))} and could have {could}"
    )
    first = used(pool, machine)
    assert pool.resident()["only"].bytes == need(family, "q8_0")
    # It stays so while memory is scarce, and while there is just enough.
    for spare in (0.0, 1.01, 0.9 + BACK_SPARE):
        machine.room_for(max(between(family), need(family, "f16") * spare))
        for _ in range(BACK_AFTER):
            assert used(pool, machine).tier is first.tier
    machine.room_for(need(family, "f16") * (1 + BACK_SPARE) + 1)
    back = used(pool, machine)
    assert back.cold and back.tier.kv_type == "f16"
    assert back.events[0].endswith("to keep keys and values as f16")
    assert not pool.fit("only", LONG, machine()).note


def test_it_does_not_go_to_and_fro_from_call_to_call(
    open_pool: Open, family: Family, machine: Machine
) -> None:
    pool = open_pool()
    kinds = []
    for number in range(4 * BACK_AFTER):  # memory comes and goes with every call
        machine.room_for(4 * 2**30 if number % 2 else between(family))
        kinds.append(used(pool, machine).tier.kv_type)
    changes = sum(a != b for a, b in pairwise(kinds))
    assert kinds[0] == "q8_0" and kinds[-1] == "f16"
    assert changes == 1, "once it has its own type, it keeps that: the memory is its own"


def test_a_longer_context_may_need_narrower_keys(
    open_pool: Open, family: Family, machine: Machine
) -> None:
    pool = open_pool()
    machine.room_for(between(family))
    assert used(pool, machine, 2048).tier.kv_type == "f16"
    longer = used(pool, machine)
    assert longer.cold and longer.tier.kv_type == "q8_0" and longer.tier.n_ctx == LONG


def test_a_tier_in_use_is_left_as_it_is(open_pool: Open, family: Family, machine: Machine) -> None:
    pool = open_pool()
    machine.room_for(between(family))
    with pool.acquire("only", context_tokens=2048) as held:
        found = pool.fit("only", LONG, machine())
        assert not found.ok and "but only" in found.why
        with pytest.raises(OutOfMemoryError):
            pool.acquire("only", context_tokens=LONG, kv_type="q8_0")
        with pool.acquire("only", context_tokens=2048, kv_type="q8_0") as other:
            assert other.tier is held.tier and other.tier.kv_type == "f16"
        assert held.tier.reply(CALL).usage.completion_tokens > 0
    assert pool.fit("only", LONG, machine()).ok


def test_a_tier_that_is_taken_while_room_is_made(
    open_pool: Open, family: Family, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool()
    used(pool, machine)
    make, others = pool._room.make, []

    def make_and_lease(*asked: Any) -> list[str]:
        events = make(*asked)
        others.append(pool.acquire("only", context_tokens=10))
        return events

    monkeypatch.setattr(pool._room, "make", make_and_lease)
    with pool.acquire("only", context_tokens=LONG, kv_type="q8_0") as lease:
        assert lease.tier is others[0].tier and lease.tier.kv_type == "f16"
        assert not lease.cold and pool.resident()["only"].leases == 2
    others[0].release()


def test_a_cap_of_one_call_may_narrow_what_is_loaded(
    open_pool: Open, family: Family, machine: Machine
) -> None:
    pool = open_pool()
    used(pool, machine)
    cap = int(between(family))
    found = pool.fit("only", LONG, machine(), cap)
    assert found.ok and found.cold and found.kv_type == "q8_0"
    pool.acquire("only", context_tokens=LONG, memory_bytes=cap, kv_type=found.kv_type).release()
    assert sum(one.bytes for one in pool.resident().values()) <= cap


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_what_the_user_says_is_never_changed(
    kv_type: KVType, open_pool: Open, family: Family, machine: Machine
) -> None:
    pool = open_pool(kv_type)
    machine.room_for(between(family))
    found = pool.fit("only", LONG, machine())
    assert (found.ok, found.kv_type, found.note) == (kv_type == "q8_0", kv_type, "")


def test_a_tier_that_must_be_as_it_was_measured(
    open_pool: Open, family: Family, machine: Machine
) -> None:
    pool = open_pool()
    machine.room_for(between(family))
    assert not pool.fit("only", LONG, machine(), narrow=False).ok
    used(pool, machine)
    assert not pool.fit("only", LONG, machine(), narrow=False).ok
    with pool.acquire("only", context_tokens=LONG):
        found = pool.fit("only", LONG, machine(), narrow=False)
        assert found == replace(found, ok=False, why="only is in use with keys and values as q8_0")
    machine.room_for(2 * need(family, "f16"))
    found = pool.fit("only", LONG, machine(), narrow=False)
    assert found.ok and found.cold and found.kv_type == "f16"


def test_heads_that_q8_0_cannot_hold(open_pool: Open, family: Family, machine: Machine) -> None:
    pool = open_pool()
    machine.room_for(need(family, "f16", name="rigid") - 1000)
    for _ in range(2):
        found = pool.fit("rigid", LONG, machine())
        assert not found.ok and found.kv_type == "f16" and "but only" in found.why
    assert pool._room.narrower(family.tier("rigid")) is None
