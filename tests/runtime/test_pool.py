"""The pool on a family of three real, tiny tiers."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_calls import wait_until
from family_factory import TierSpec, make_family
from tiny_models import CHATML, write_tiny_gguf

from tierwise.runtime import loaded_tier, memory
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.context import Context
from tierwise.runtime.errors import (
    CallTimeoutError,
    ConfigError,
    ContextOverflowError,
    DamagedModelError,
    EngineClosedError,
    EngineError,
    FamilyIncompleteError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from tierwise.runtime.family import Base, Family, Tier
from tierwise.runtime.files import sha256_of
from tierwise.runtime.fit import rounded_context
from tierwise.runtime.lease import megabytes
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.pool import Pool
from tierwise.runtime.prefix_cache import HostCache, Ids, shared
from tierwise.runtime.resources import Resources
from tierwise.runtime.room import MARGIN_SHARE

GIB = 2**30
CALL = Call((Message("user", "hello Paris"),), max_tokens=4)
LONG_CALL = Call((Message("user", "the weather is a thing " * 40),), max_tokens=4)


def tier_of(path: Path, layers: int, context: int = 8192) -> Tier:
    return Tier(
        name=path.stem,
        file=path.name,
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        parameters=1,
        layers=layers,
        context_tokens=context,
        kv_bytes_per_token=128 * layers,
        lineage=Lineage(origin="built", quantization="F16"),
    )


def save_family(folder: Path, tiers: list[Tier]) -> Family:
    base = Base(
        name="tiny",
        source="tests",
        sha256="0" * 64,
        architecture="llama",
        parameters=1,
        layers=6,
        context_tokens=8192,
        vocab_size=291,
        tokenizer_sha256="0" * 64,
    )
    Family(created="2025-01-01T00:00:00Z", tierwise="0", base=base, tiers=tuple(tiers)).save(folder)
    return Family.load(folder)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """Tiers small, middle, large of 1, 3, 6 layers: some 5 to 8 MB with 2,048 tokens."""
    folder = tmp_path / "family"
    sizes = {"small": 1, "middle": 3, "large": 6}
    return save_family(
        folder,
        [
            tier_of(write_tiny_gguf(folder / f"{name}.gguf", layers=n, context=8192), n)
            for name, n in sizes.items()
        ],
    )


def plenty() -> Resources:
    return Resources(available_bytes=4 * GIB, total_bytes=8 * GIB, threads=1)


MakePool = Callable[..., Pool]


def fits(pool: Pool, *asked: Any, **options: Any) -> tuple[bool, str]:
    found = pool.fit(*asked, **options)
    return found.ok, found.why


@pytest.fixture
def make_pool(family: Family) -> Iterator[MakePool]:
    pools: list[Pool] = []

    def make(**options: object) -> Pool:
        pools.append(Pool(family, **{"probe": plenty, "threads": 1, **options}))  # type: ignore[arg-type]
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def needs(family: Family, context: int = 2048) -> dict[str, int]:
    return {t.name: predict_memory(family.path(t), context).total_bytes for t in family.tiers}


def test_a_lease_answers_and_the_tier_stays(make_pool: MakePool, family: Family) -> None:
    pool = make_pool()
    with pool.acquire("small", context_tokens=300) as lease:
        assert lease.cold and lease.load_s > 0
        assert lease.events == (
            f"loaded small in {lease.load_s:.1f} s ({megabytes(needs(family)['small'])})",
        )
        assert lease.tier.reply(CALL).usage.completion_tokens > 0
        assert pool.resident()["small"].leases == 1
    resident = pool.resident()["small"]
    assert (resident.context_tokens, resident.leases) == (2048, 0)
    assert resident.bytes == needs(family)["small"] == pool.need_bytes("small", 300)
    with pool.acquire(family.tier("small"), context_tokens=300) as again:
        assert not again.cold and again.load_s == 0 and again.events == ()


def test_it_says_what_it_does(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tierwise.pool")
    with make_pool().acquire("small", context_tokens=10) as lease:
        assert [record.getMessage() for record in caplog.records] == list(lease.events)


def test_release_is_idempotent_and_a_dropped_lease_is_released(make_pool: MakePool) -> None:
    pool = make_pool()
    first, second = (pool.acquire("small", context_tokens=10) for _ in range(2))
    first.release()
    first.release()
    assert pool.resident()["small"].leases == 1
    del second
    gc.collect()
    assert pool.resident()["small"].leases == 0


def test_the_least_recently_used_goes_first(make_pool: MakePool, family: Family) -> None:
    need = needs(family)
    pool = make_pool(memory_bytes=need["middle"] + need["large"])
    for name in ("small", "middle", "small"):
        pool.acquire(name, context_tokens=10).release()
    assert set(pool.resident()) == {"small", "middle"}
    with pool.acquire("large", context_tokens=10) as lease:
        assert lease.events[0] == f"unloaded middle ({megabytes(need['middle'])}) to make room"
        assert lease.events[1].startswith("loaded large in ")
    assert set(pool.resident()) == {"small", "large"}


def test_no_more_is_unloaded_than_needed(make_pool: MakePool, family: Family) -> None:
    pool = make_pool(memory_bytes=sum(needs(family).values()))
    for name in ("small", "middle", "large"):
        pool.acquire(name, context_tokens=10).release()
    assert set(pool.resident()) == {"small", "middle", "large"}


def test_available_memory_limits_too(make_pool: MakePool, family: Family) -> None:
    """A probe that sees the pool's own tiers in a machine with room for two of them."""
    need = needs(family)
    pool: Pool | None = None
    room = int((need["small"] + need["large"]) / (1 - MARGIN_SHARE)) + 1

    def tight() -> Resources:
        taken = sum(tier.bytes for tier in pool.resident().values()) if pool else 0
        return Resources(available_bytes=room - taken, total_bytes=room, threads=1)

    pool = make_pool(probe=tight)
    pool.acquire("small", context_tokens=10).release()
    with pool.acquire("middle", context_tokens=10) as lease:
        assert [event.split()[0] for event in lease.events] == ["loaded"]
    with pool.acquire("large", context_tokens=10) as lease:
        assert [event.split()[:2] for event in lease.events] == [
            ["unloaded", "small"],
            ["unloaded", "middle"],
            ["loaded", "large"],
        ]


def test_freed_memory_counts_before_the_kernel_says_so(make_pool: MakePool, family: Family) -> None:
    need = needs(family)
    left = Resources(int(need["large"] / (1 - MARGIN_SHARE)) + 1, GIB, 1)
    later = Resources(left.available_bytes - need["large"], GIB, 1)
    answers = iter([left, later])
    pool = make_pool(probe=lambda: next(answers))
    pool.acquire("large", context_tokens=10).release()
    with pool.acquire("middle", context_tokens=10) as lease:
        assert lease.events[0] == f"unloaded large ({megabytes(need['large'])}) to make room"


def test_out_of_memory_names_everything_and_unloads_nothing(
    make_pool: MakePool, family: Family
) -> None:
    need = needs(family)
    pool = make_pool(memory_bytes=need["small"] + need["middle"])
    pool.acquire("middle", context_tokens=10).release()
    with (
        pool.acquire("small", context_tokens=10),
        pytest.raises(OutOfMemoryError) as caught,
    ):
        pool.acquire("large", context_tokens=10)
    text = str(caught.value)
    size = {name: megabytes(count) for name, count in need.items()}
    cap = megabytes(need["small"] + need["middle"])
    assert f"tier 'large' needs {size['large']} with 2,048 tokens of context" in text
    assert f"4,295 MB of memory available now, a cap of {cap} for" in text
    assert f"in use: small ({size['small']}); resident and idle: middle ({size['middle']})" in text
    assert set(pool.resident()) == {"small", "middle"}


def test_fits_explains_itself(make_pool: MakePool, family: Family) -> None:
    need = needs(family)
    pool = make_pool(memory_bytes=need["small"] + need["large"])
    size = {name: megabytes(count) for name, count in need.items()}
    both = megabytes(need["small"] + need["large"])
    little = Resources(available_bytes=1_000_000, total_bytes=GIB, threads=1)
    none = (False, f"small needs {size['small']}, but only 0.9 MB can be had")
    assert fits(pool, "small", 10, little) == none
    assert fits(pool, "small", 10, plenty()) == (
        True,
        f"small needs {size['small']} of {both} free",
    )
    pool.acquire("middle", context_tokens=10).release()
    loaded = (True, "middle is loaded with 2,048 tokens of context")
    assert fits(pool, "middle", 10, little) == loaded
    told = (True, f"large needs {size['large']}, free once middle is unloaded")
    assert fits(pool, "large", 10, plenty()) == told
    with pool.acquire("middle", context_tokens=10):
        assert not pool.fit("large", 10, plenty()).ok
        more = needs(family, 4096)["middle"]
        ok, why = fits(pool, "middle", 3000, plenty())
        assert ok and why.startswith(f"middle needs {megabytes(more)}")
    ok, why = fits(pool, "large", 9000, plenty())
    assert not ok and "9,000 tokens of context" in why
    family.path("large").unlink()
    ok, why = fits(pool, "large", 10, plenty())
    assert not ok and "is missing" in why


def test_contexts_are_rounded_up(family: Family) -> None:
    tier = family.tier("small")
    asked = (1, 2048, 2049, 4096, 4097, 8192)
    assert [rounded_context(tier, n) for n in asked] == [2048, 2048, 4096, 4096, 8192, 8192]
    odd = tier.model_copy(update={"context_tokens": 3000})
    assert rounded_context(odd, 2500) == 3000
    with pytest.raises(
        ContextOverflowError, match=r"3,001 tokens .* 'small' was trained for 3,000"
    ):
        rounded_context(odd, 3001)


def test_an_idle_tier_gets_a_larger_context(make_pool: MakePool, family: Family) -> None:
    pool = make_pool()
    pool.acquire("small", context_tokens=10).release()
    with pool.acquire("small", context_tokens=5000) as lease:
        assert not lease.cold and lease.load_s == 0 and lease.tier.n_ctx == 8192
        assert lease.events == ("enlarged the context of small to 8,192 tokens",)
        assert pool.resident()["small"].bytes == needs(family, 8192)["small"]
        with pool.acquire("small", context_tokens=10) as smaller:
            assert smaller.tier is lease.tier


def test_growing_keeps_leases_replies_and_prefixes(make_pool: MakePool) -> None:
    pool = make_pool()
    prompt = pool.prompt(LONG_CALL)
    with pool.acquire("small", context_tokens=10) as small:
        small.tier.reply(LONG_CALL)
        running = small.tier.stream(replace(CALL, max_tokens=300))
        next(pieces := iter(running))
        with pool.acquire("small", context_tokens=5000) as large:
            assert large.tier is small.tier and small.tier.n_ctx == 8192
            assert pool.cached_prefix("small", prompt) == len(prompt) - 1
            done = large.tier.reply(LONG_CALL)
            assert done.usage.cached_tokens == len(prompt) - 1
            list(pieces)
            assert running.reply().usage.completion_tokens > 0
        assert pool.resident()["small"].leases == 1


def test_growth_without_memory_is_refused_and_harms_nobody(
    make_pool: MakePool, family: Family
) -> None:
    pool = make_pool(memory_bytes=needs(family, 4096)["small"])
    with pool.acquire("small", context_tokens=10) as lease:
        with pytest.raises(OutOfMemoryError, match=r"8,192 tokens of context"):
            pool.acquire("small", context_tokens=5000)
        assert lease.tier.n_ctx == 2048 and pool.resident()["small"].leases == 1
        assert lease.tier.reply(CALL).usage.completion_tokens > 0
        pool.acquire("small", context_tokens=4000).release()
        assert lease.tier.n_ctx == 4096


# --- What leases expect ---------------------------------------------------------------------------


def widened(pool: Pool, name: str = "small") -> tuple[int, int]:
    """Tokens and slots of a resident tier, once it does not grow any more."""
    wait_until(lambda: not pool._room.entries[name].widening)
    engine = pool._room.entries[name].tier.engine
    assert pool.resident()[name].context_tokens == engine.n_ctx
    return engine.n_ctx, engine.slots


def bytes_of(family: Family, context: int = 2048, slots: int = 1) -> int:
    return predict_memory(family.path(family.tier("small")), context, slots=slots).total_bytes


@pytest.fixture
def shared_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a model, or on a machine, whose calls are not kept apart."""
    for module in (memory, loaded_tier):
        monkeypatch.setattr(module, "keeps_apart", lambda _: False)
    monkeypatch.setattr(memory, "_known", {})


def test_a_tier_has_a_slot_for_each_of_its_leases(make_pool: MakePool, family: Family) -> None:
    pool = make_pool()
    with ExitStack() as held:
        sizes = []
        for _ in range(5):
            held.enter_context(pool.acquire("small", context_tokens=1500))
            sizes.append(widened(pool))
        assert sizes == [(2048, slots) for slots in (1, 2, 4, 4, 8)]
        assert pool.resident()["small"].bytes == bytes_of(family, slots=8)
    with pool.acquire("small", context_tokens=3000) as lease:  # they do not go
        assert widened(pool) == (4096, 8) and lease.tier.reply(CALL).usage.completion_tokens > 0
        assert pool.resident()["small"].bytes == bytes_of(family, 4096, 8)


def test_no_more_slots_than_can_be_answered_at_once(make_pool: MakePool) -> None:
    pool = make_pool()
    with ExitStack() as held:
        for _ in range(40):
            held.enter_context(pool.acquire("small", context_tokens=900))
        wait_until(lambda: widened(pool) == (2048, 8))  # also for those that came while it grew
        assert pool.resident()["small"].leases == 40


def test_slots_come_as_far_as_memory_goes(make_pool: MakePool, family: Family) -> None:
    pool = make_pool(memory_bytes=bytes_of(family, slots=2) + 1)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(pool.acquire("small", context_tokens=2000))
        assert widened(pool) == (2048, 2)  # four were wanted
        assert pool.resident()["small"].bytes == bytes_of(family, slots=2)
    with pytest.raises(OutOfMemoryError):
        pool.acquire("small", context_tokens=8000)
    longer = make_pool(memory_bytes=bytes_of(family, 4096) + 1)
    longer.acquire("small", context_tokens=10).release()
    with longer.acquire("small", context_tokens=4000):
        assert widened(longer) == (4096, 1)


def test_slots_give_way_to_another_tier(make_pool: MakePool, family: Family) -> None:
    """Idle or at work, a tier with slots to spare is no reason to unload one or to refuse one."""
    need = needs(family)
    pool = make_pool(memory_bytes=need["small"] + need["large"] + 1)
    with ExitStack() as held:
        leases = [held.enter_context(pool.acquire("small", context_tokens=9)) for _ in range(8)]
        assert widened(pool)[1] > 1
        calls = [lease.tier.stream(replace(CALL, max_tokens=200)) for lease in leases]
        ok, _ = fits(pool, "large", 10, plenty())
        assert ok
        with pool.acquire("large", context_tokens=10) as large:
            assert not any("unloaded" in event for event in large.events)
            assert widened(pool) == (2048, 1)
            assert {name: tier.bytes for name, tier in pool.resident().items()} == {
                name: need[name] for name in ("small", "large")
            }
            assert {call.reply().usage.completion_tokens > 0 for call in calls} == {True}
    pool.acquire("small", context_tokens=9, memory_bytes=need["small"]).release()
    assert set(pool.resident()) == {"small"}


def test_conversations_that_take_turns_get_a_slot_each(make_pool: MakePool, family: Family) -> None:
    pool = make_pool()
    texts = ["a thing ", "the weather ", "hello Paris "]
    for _ in range(6):
        for text in texts:
            call = Call((Message("user", text * 40),), max_tokens=4)
            with pool.acquire("small", context_tokens=600) as lease:
                lease.tier.reply(call)
        widened(pool)
    assert widened(pool) == (2048, 4)
    tight = make_pool(prefix_bytes=bytes_of(family, slots=2) - bytes_of(family))
    for index in range(12):
        call = Call((Message("user", texts[index % 3] * 40),), max_tokens=4)
        with tight.acquire("small", context_tokens=600) as short_of_slots:
            short_of_slots.tier.reply(call)
        widened(tight)
    assert widened(tight) == (2048, 2)
    restores = lease.tier.engine.metrics().restores
    for text in texts:
        with pool.acquire("small", context_tokens=600) as lease:
            lease.tier.reply(Call((Message("user", text * 40),), max_tokens=4))
    assert lease.tier.engine.metrics().restores == restores


@pytest.mark.usefixtures("shared_cells")
def test_a_context_widens_to_what_its_leases_expect(make_pool: MakePool, family: Family) -> None:
    pool = make_pool()
    with ExitStack() as held:
        sizes = []
        for _ in range(4):
            held.enter_context(pool.acquire("small", context_tokens=1500, expected_tokens=1400))
            sizes.append(widened(pool)[0])
        assert sizes == [2048, 4096, 8192, 8192]
        assert pool.resident()["small"].bytes == needs(family, 8192)["small"]
    with pool.acquire("small", context_tokens=10) as lease:
        assert lease.tier.n_ctx == 8192  # it does not shrink


@pytest.mark.usefixtures("shared_cells")
def test_no_more_is_expected_than_can_be_answered_at_once(make_pool: MakePool) -> None:
    pool = make_pool()
    with ExitStack() as held:
        for _ in range(40):
            held.enter_context(pool.acquire("small", context_tokens=900))
        wait_until(lambda: widened(pool)[0] == 8192)  # also for those that came while it grew
        assert pool.resident()["small"].leases == 40  # eight replies of 900 count, not forty


@pytest.mark.usefixtures("shared_cells")
def test_a_context_widens_as_far_as_memory_goes(make_pool: MakePool, family: Family) -> None:
    pool = make_pool(memory_bytes=needs(family, 4096)["small"] + 1)
    with (
        pool.acquire("small", context_tokens=2000),
        pool.acquire("small", context_tokens=2000, expected_tokens=5000),
    ):
        assert widened(pool)[0] == 4096  # 8,192 were expected
        assert pool.resident()["small"].bytes == needs(family, 4096)["small"]


@pytest.mark.usefixtures("shared_cells")
def test_a_wide_context_has_nothing_to_give(make_pool: MakePool, family: Family) -> None:
    """It does not shrink, so that what it holds is freed by unloading it, and by nothing else."""
    pool = make_pool(memory_bytes=needs(family, 8192)["small"] + needs(family)["large"] - 1)
    with (
        pool.acquire("small", context_tokens=2000),
        pool.acquire("small", context_tokens=2000, expected_tokens=5000),
    ):
        assert widened(pool)[0] == 8192
    with pool.acquire("large", context_tokens=2000):
        assert set(pool.resident()) == {"large"}


def test_widening_that_fails_is_told_and_taken_back(
    make_pool: MakePool, family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    with pool.acquire("small", context_tokens=2000) as lease:
        scheduler = lease.tier.engine._scheduler
        real = scheduler._open_context

        def open_context(n_ctx: int, sequences: int) -> Context:
            if sequences > 1:
                raise OutOfMemoryError("the machine is full")
            return real(n_ctx, sequences)

        scheduler._open_context = open_context
        with pool.acquire("small", context_tokens=2000):
            assert widened(pool) == (2048, 1)
            assert pool.resident()["small"].bytes == needs(family)["small"]
            assert "small keeps its context: the machine is full" in caplog.text
            assert lease.tier.reply(CALL).usage.completion_tokens > 0


def test_a_resident_tier_needs_its_file_no_more(make_pool: MakePool, family: Family) -> None:
    pool = make_pool()
    with pool.acquire("small", context_tokens=2000):
        family.path("small").unlink()
        with pool.acquire("small", context_tokens=2000) as lease:
            assert lease.tier.reply(CALL).usage.completion_tokens > 0
        assert widened(pool) == (2048, 1)


def test_a_tier_whose_engine_failed_is_loaded_again(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    pool = make_pool()
    with pool.acquire("small", context_tokens=10) as lease:

        def fail() -> bool:
            raise ZeroDivisionError("an error that nobody thought of")

        lease.tier.engine._scheduler._drop_dead = fail
        with pytest.raises(EngineClosedError):
            lease.tier.reply(CALL)
        assert not lease.tier.engine.alive
        with pool.acquire("small", context_tokens=10) as another:
            assert another.cold and another.tier.reply(CALL).usage.completion_tokens > 0
    assert pool.resident()["small"].leases == 0
    assert "small has failed and is loaded again" in caplog.text


def test_a_lease_can_be_had_without_waiting_or_not_at_all(make_pool: MakePool) -> None:
    pool = make_pool()
    assert pool.try_acquire("small", context_tokens=10) is None
    pool.acquire("small", context_tokens=10).release()
    assert pool.try_acquire("small", context_tokens=5000) is None
    with pytest.raises(ContextOverflowError):
        pool.try_acquire("small", context_tokens=9000)
    first = pool.try_acquire("small", context_tokens=2000)
    second = pool.try_acquire("small", context_tokens=10, expected_tokens=2000)
    assert first is not None and second is not None
    assert not first.cold and pool.resident()["small"].leases == 2
    assert widened(pool) == (2048, 2)
    first.release()
    second.release()
    pool.close()
    with pytest.raises(EngineClosedError, match="was closed"):
        pool.try_acquire("small", context_tokens=10)


def test_waiting_for_a_load_ends_in_time(make_pool: MakePool) -> None:
    pool = make_pool()
    pool._loading = True  # as while another thread loads
    with pytest.raises(CallTimeoutError, match=r"2,048 tokens of context in 0\.05 s"):
        pool.acquire("small", context_tokens=10, timeout_s=0.05)
    pool._loading = False
    pool.acquire("small", context_tokens=10, timeout_s=0.05).release()


# --- Prefixes in host memory ----------------------------------------------------------------------


def test_tiers_and_kept_prefixes_share_the_cap(make_pool: MakePool, family: Family) -> None:
    need = needs(family)
    pool = make_pool(memory_bytes=need["small"] + need["middle"] + 10**6)
    host = pool._room.host
    with pool.acquire("small", context_tokens=10) as lease:
        assert host.limit_bytes == need["middle"] + 10**6
        prompt = fill_host(lease.tier, host)
        assert pool.cached_prefix("small", prompt) == len(prompt) - 1
        before = host.bytes
        assert 10**5 < before <= host.limit_bytes
        with pool.acquire("middle", context_tokens=10):
            assert host.limit_bytes == 10**6
            assert host.bytes <= 10**6 < before
    assert make_pool(prefix_bytes=1234)._room.host.limit_bytes == 1234


def test_kept_prefixes_give_way_to_a_tier_that_needs_the_memory(
    make_pool: MakePool, family: Family
) -> None:
    need = needs(family)
    left = [4 * GIB]
    pool = make_pool(probe=lambda: Resources(left[0], 8 * GIB, 1))
    with pool.acquire("small", context_tokens=10) as lease:
        fill_host(lease.tier, pool._room.host)
        kept = pool._room.host.bytes
        left[0] = int((need["large"] - kept // 2) / (1 - MARGIN_SHARE)) + 1
        with pool.acquire("large", context_tokens=10):
            assert pool._room.host.bytes == 0


def test_prefixes_that_go_with_a_tier_are_memory_too(make_pool: MakePool, family: Family) -> None:
    need = needs(family)
    left = [4 * GIB]
    pool = make_pool(probe=lambda: Resources(left[0], 8 * GIB, 1))
    with pool.acquire("small", context_tokens=10) as lease:
        fill_host(lease.tier, pool._room.host)
    # Only all that the small tier holds, prefixes and itself, makes room enough.
    short = need["small"] + pool._room.host.bytes // 2
    left[0] = int((need["large"] - short) / (1 - MARGIN_SHARE)) + 1
    with pool.acquire("large", context_tokens=10):
        assert set(pool.resident()) == {"large"}


def test_an_unloaded_tier_leaves_no_prefixes_behind(make_pool: MakePool, family: Family) -> None:
    pool = make_pool()
    with pool.acquire("small", context_tokens=10) as lease:
        fill_host(lease.tier, pool._room.host)
    pool.acquire("middle", context_tokens=10, memory_bytes=needs(family)["middle"]).release()
    assert set(pool.resident()) == {"middle"} and pool._room.host.bytes == 0


def fill_host(tier: LoadedTier, host: HostCache) -> tuple[int, ...]:
    """Asks until prefixes had to leave the context; returns a prompt that is in host memory."""
    prompts = []
    while host.bytes < 1_500_000:
        call = replace(LONG_CALL, messages=(Message("user", f"{len(prompts)} " * 300),))
        prompts.append(tier.prompt(call))
        tier.reply(call)
        assert len(prompts) < 40
    return max(prompts, key=lambda one: host.longest(tier.engine._scheduler.cache, _common(one)))


def _common(prompt: tuple[int, ...]) -> Callable[[Ids], int]:
    return lambda held: shared(held, np.array(prompt, np.int32))


def test_eight_threads_load_a_tier_once(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tierwise.pool")
    pool = make_pool()
    gate = threading.Barrier(8)

    def work(_: int) -> bool:
        gate.wait()
        with pool.acquire("middle", context_tokens=100) as lease:
            assert lease.tier.reply(CALL).usage.completion_tokens > 0
            return lease.cold

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) == 1
    assert [record.getMessage().split()[0] for record in caplog.records] == ["loaded"]
    assert pool.resident()["middle"].leases == 0


def test_many_threads_under_a_tight_cap(make_pool: MakePool, family: Family) -> None:
    """Leases of all tiers and sizes, in a cap that holds the largest: all end, none leaks."""
    cap = sum(needs(family, 4096).values())
    pool = make_pool(memory_bytes=cap)

    def work(seed: int) -> int:
        done = 0
        for step in range(6):
            name = ("small", "middle", "large")[(seed + step) % 3]
            with pool.acquire(name, context_tokens=(100, 3000)[(seed * step) % 2]) as lease:
                lease.tier.reply(CALL)
                assert sum(tier.bytes for tier in pool.resident().values()) <= cap
                done += 1
        return done

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) == 48
    assert not any(tier.leases for tier in pool.resident().values())


def test_prompts_need_no_weights_and_prefixes_are_known(make_pool: MakePool) -> None:
    pool = make_pool()
    prompt = pool.prompt(CALL)
    words = pool.tokenize("hello Paris")
    assert words and any(list(prompt[at : at + len(words)]) == words for at in range(len(prompt)))
    assert pool.resident() == {}
    assert pool.cached_prefix("small", prompt) == 0
    with pool.acquire("small", context_tokens=10) as lease:
        assert lease.tier.prompt(CALL) == prompt
        lease.tier.reply(CALL)
    assert pool.cached_prefix("small", prompt) == len(prompt) - 1


def test_the_vocabulary_is_read_from_the_first_usable_file(
    make_pool: MakePool, family: Family
) -> None:
    family.path("small").unlink()
    assert make_pool().prompt(CALL)
    family.path("middle").unlink()
    family.path("large").unlink()
    with pytest.raises(FamilyIncompleteError, match="small"):
        make_pool().prompt(CALL)


def test_a_family_without_chat_template_has_no_prompts(family: Family) -> None:
    path = family.folder / "mute.gguf"
    mute = save_family(
        family.folder, [tier_of(write_tiny_gguf(path, layers=1, chat_template=None), 1, 512)]
    )
    with Pool(mute, probe=plenty, threads=1) as pool:
        with pytest.raises(UnsupportedModelError, match="no chat template"):
            pool.prompt(CALL)
        assert pool.tokenize("hello")
        with pytest.raises(UnsupportedModelError, match="no chat template"):
            pool.acquire("mute", context_tokens=10)
        assert pool.resident() == {}


def test_files_are_checked_right_before_the_load(make_pool: MakePool, family: Family) -> None:
    pool = make_pool()
    small, middle = family.path("small"), family.path("middle")
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(FamilyIncompleteError, match=r"'small': .* has 155,999 bytes, not 156,000"):
        pool.acquire("small", context_tokens=10)
    middle.unlink()
    with pytest.raises(FamilyIncompleteError, match=r"'middle': .* is missing"):
        pool.acquire("middle", context_tokens=10)
    large = family.path("large")
    large.write_bytes(b"?" * large.stat().st_size)
    with pytest.raises(DamagedModelError, match=r"large\.gguf"):
        pool.acquire("large", context_tokens=10)
    # The router can go on with another tier.
    write_tiny_gguf(middle, layers=3, context=8192)
    pool.acquire("middle", context_tokens=10).release()


def test_a_closed_pool_is_closed(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.prompt(CALL)
    with pool.acquire("middle", context_tokens=10) as idle:
        pass
    pool.close()
    pool.close()
    assert pool.resident() == {}
    for action in (
        lambda: pool.acquire("small", context_tokens=10),
        lambda: pool.prompt(CALL),
        lambda: pool.tokenize("hello"),
    ):
        with pytest.raises(EngineClosedError, match="was closed"):
            action()
    with pytest.raises(EngineError, match="was closed"):
        _ = idle.tier.model.handle


def test_closing_lets_running_calls_end(make_pool: MakePool) -> None:
    pool = make_pool()
    first, second = (pool.acquire("small", context_tokens=10) for _ in range(2))
    pool.close()
    first.release()
    assert second.tier.reply(CALL).usage.completion_tokens > 0
    second.release()
    with pytest.raises(EngineError, match="was closed"):
        _ = second.tier.model.handle


def test_closing_wakes_those_that_wait(make_pool: MakePool) -> None:
    pool = make_pool()
    pool._loading = True  # as while another thread loads
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(pool.acquire, "small", context_tokens=10)
        time.sleep(0.05)
        closing = threads.submit(pool.close)
        with pytest.raises(EngineClosedError):
            waiting.result(60)
        assert not closing.done()  # a tier that is being loaded must not be left behind
        with pool._changed:
            pool._loading = False
            pool._changed.notify_all()
        closing.result(60)


@pytest.mark.parametrize("options", [{"memory_bytes": 0}, {"threads": -1}])
def test_senseless_options_are_refused(family: Family, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Pool(family, probe=plenty, **options)


def test_this_machines_probe_will_do(family: Family) -> None:
    with Pool(family) as pool, pool.acquire("large", context_tokens=10) as lease:
        assert lease.tier.reply(CALL).usage.completion_tokens > 0


def test_a_plain_template_is_used_as_well(family: Family) -> None:
    path = write_tiny_gguf(family.folder / "plain.gguf", layers=1, chat_template=CHATML)
    plain = save_family(family.folder, [tier_of(path, 1, 512)])
    with (
        Pool(plain, probe=plenty, threads=1) as pool,
        pool.acquire("plain", context_tokens=9) as lease,
    ):
        assert lease.tier.n_ctx == 512
        assert pool.prompt(CALL) == lease.tier.prompt(CALL)


def test_a_call_may_bring_a_lower_cap_of_its_own(make_pool: MakePool, family: Family) -> None:
    need = needs(family)
    pool = make_pool()
    for name in ("small", "middle"):
        pool.acquire(name, context_tokens=100).release()
    ok, why = fits(pool, "large", 100, plenty(), memory_bytes=need["large"] - 1)
    assert not ok
    assert "large" in why
    pool.acquire("middle", context_tokens=100, memory_bytes=need["middle"]).release()
    assert set(pool.resident()) == {"middle"}
    with pytest.raises(OutOfMemoryError, match="a cap of"):
        pool.acquire("large", context_tokens=100, memory_bytes=need["large"] - 1)


def test_keys_and_values_are_stored_as_the_tier_s_record_says(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "wide.gguf", width=128, heads=4, kv_heads=2)
    made = make_family(tmp_path / "family", [TierSpec("only", path)])
    small = made.tiers[0].model_copy(update={"kv_type": "q8_0"})
    made.model_copy(update={"tiers": (small,)}).save(tmp_path / "family")
    family = Family.load(tmp_path / "family")
    with Pool(family, threads=1) as own, Pool(family, threads=1, kv_type="f16") as forced:
        assert own.need_bytes(small, 512) < forced.need_bytes(small, 512)
        with own.acquire("only", context_tokens=64) as lease:
            reply = lease.tier.reply(Call(messages=(Message("user", "Hi"),), max_tokens=4))
            assert reply.finish_reason in ("stop", "length")
