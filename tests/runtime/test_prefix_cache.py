"""The prefix cache on a real context: what is shared, what goes first, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_mamba import write_tiny_mamba

from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.llama import Model
from tierwise.runtime.prefix_cache import HostCache, Ids, PrefixCache, Sequence, shared

A_LOT = 10**9


def ids(*parts: int | tuple[int, int]) -> Ids:
    """Token ids; ``(5, 100)`` stands for a hundred fives."""
    flat: list[int] = []
    for part in parts:
        flat += [part] if isinstance(part, int) else [part[0]] * part[1]
    return np.array(flat, np.int32)


class Scene:
    """Four sequences over 1,024 cells, or with 512 each, and another context to compare with."""

    def __init__(self, path: Path, host: HostCache, *, apart: bool) -> None:
        self.model = Model(path)
        self.apart = apart
        self.context = self.open(512 if apart else 1024)
        self.judge = Context(self.model, 1024, threads=1)
        self.host = host
        self.cache = PrefixCache(self.context, host)

    def open(self, n_ctx: int, sequences: int = 4) -> Context:
        return Context(self.model, n_ctx, threads=1, sequences=sequences, apart=self.apart)

    def read(self, prompt: Ids) -> tuple[Sequence, int]:
        """Opens a sequence, reads the rest of the prompt, and checks what the model makes of it."""
        opened = self.cache.open(prompt)
        assert opened is not None
        sequence, held = opened
        rest = prompt[held:].tolist()
        for start in range(0, len(rest), 512):
            part = rest[start : start + 512]
            (row,) = self.context.run([Chunk(sequence.number, held + start, part, 1)])
        self.judge.truncate(0)
        self.judge.decode(prompt.tolist(), 0)
        np.testing.assert_allclose(self.context.logits(row), self.judge.logits(), atol=0.2)
        return sequence, held

    def use(self, prompt: Ids) -> int:
        """A whole request; returns what it needed no prefill for."""
        sequence, held = self.read(prompt)
        self.cache.release(sequence, prompt.tolist())
        return held

    def held(self) -> list[list[int]]:
        return [one.tokens.tolist() for one in self.cache.sequences if one.tokens.size]

    def close(self) -> None:
        self.context.close()
        self.judge.close()
        self.model.close()


@pytest.fixture
def make_scene(tiny_gguf: Path) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def make(path: Path = tiny_gguf, host_bytes: int = 0, apart: bool = False) -> Scene:
        scenes.append(Scene(path, HostCache(host_bytes), apart=apart))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()


@pytest.fixture(params=[False, True], ids=["shared cells", "apart"])
def apart(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def scene(make_scene: Callable[..., Scene], apart: bool) -> Scene:
    return make_scene(apart=apart)


Make = Callable[..., Scene]


def test_shared_counts_from_the_start() -> None:
    pairs = [((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 3), 2), ((2,), (1,), 0), ((), (1,), 0)]
    for held, wanted, common in pairs:
        assert shared(ids(*held), ids(*wanted)) == common == shared(ids(*wanted), ids(*held))


def test_the_same_again_is_held_but_for_its_last_token(scene: Scene) -> None:
    prompt = ids((5, 20), 6)
    assert scene.cache.longest(prompt) == 0
    assert [scene.use(prompt) for _ in range(2)] == [0, 20]
    assert scene.cache.longest(prompt) == 20


def test_a_conversation_goes_on_in_its_own_sequence(scene: Scene) -> None:
    prompt = ids((5, 20))
    for turn in range(6):
        assert scene.use(prompt) == (0 if turn == 0 else prompt.size - 10)
        prompt = np.concatenate([prompt, ids((6 + turn, 10))])
    assert len(scene.held()) == 1


def test_texts_that_part_share_what_they_have_in_common_and_both_stay(scene: Scene) -> None:
    first, second = ids((5, 50), (6, 20)), ids((5, 50), (7, 20))
    assert scene.use(first) == 0
    assert scene.use(second) == 50
    assert scene.held() == [first.tolist(), second.tolist()]
    assert scene.use(ids((5, 50), (6, 20), 8)) == 70
    assert scene.use(ids((5, 50), (7, 20), 8)) == 70


@pytest.mark.parametrize(("end", "sequences"), [(1, 1), (16, 1), (17, 2)])
def test_a_short_end_is_not_worth_a_sequence(scene: Scene, end: int, sequences: int) -> None:
    scene.use(ids((5, 50), (6, end)))
    assert scene.use(ids((5, 50), (7, 20))) == 50
    assert len(scene.held()) == sequences


def test_a_sequence_that_is_being_read_can_be_shared_from(scene: Scene) -> None:
    first, _ = scene.read(ids((5, 50), (6, 10)))
    scene.cache.filled(first, ids((5, 50), (6, 10)))
    second, held = scene.read(ids((5, 50), 7))
    assert held == 50 and second is not first


def test_when_all_are_busy_one_waits(scene: Scene) -> None:
    busy = [scene.read(ids((token, 10)))[0] for token in (5, 6, 7, 8)]
    assert len({one.number for one in busy}) == 4
    assert scene.cache.open(ids((9, 10))) is None
    scene.cache.release(busy[2], ids((7, 10)).tolist())
    assert scene.read(ids((9, 10)))[0] is busy[2]


def test_the_last_idle_sequence_is_used_even_if_it_holds_the_prefix(scene: Scene) -> None:
    scene.use(ids((5, 50), (6, 10)))
    for token in (7, 8, 9):
        scene.read(ids((token, 10)))
    assert scene.use(ids((5, 50), (4, 10))) == 50


def order_of_eviction(scene: Scene) -> list[int]:
    """First tokens of the sequences, as they go."""
    order = []
    while True:
        held = [one for one in scene.cache.sequences if one.tokens.size]
        before = {one.number: int(one.tokens[0]) for one in held}
        if not scene.cache.evict():
            return order
        after = {one.number for one in scene.cache.sequences if one.tokens.size}
        order += [first for number, first in before.items() if number not in after]


def test_old_and_little_used_prefixes_go_first(scene: Scene) -> None:
    for token in (5, 6, 7, 8):
        scene.use(ids((token, 100)))
    ages, uses = (50, 20, 50, 0), (1, 1, 9, 1)
    for one, age, count in zip(scene.cache.sequences, ages, uses, strict=True):
        one.last_used -= age
        one.uses = count
    assert order_of_eviction(scene) == [5, 6, 7, 8]


def test_of_equal_age_the_costlier_to_recompute_stays(scene: Scene) -> None:
    for token, size in ((5, 400), (6, 50), (7, 200)):
        scene.use(ids((token, size)))
    for one in scene.cache.sequences:
        one.last_used = scene.cache.sequences[0].last_used
    assert order_of_eviction(scene) == [6, 7, 5]


def test_what_others_hold_as_well_is_no_loss(scene: Scene) -> None:
    scene.use(ids((5, 300), (6, 30)))
    scene.use(ids((5, 300)))
    scene.use(ids((7, 20)))
    scene.cache.sequences[1].uses = 1000
    assert scene.cache.evict()
    assert scene.held() == [ids((5, 300), (6, 30)).tolist(), ids((7, 20)).tolist()]


def test_a_busy_sequence_never_goes(scene: Scene) -> None:
    scene.read(ids((5, 100)))
    assert not scene.cache.evict()
    scene.use(ids((6, 100)))
    assert scene.cache.evict() and not scene.cache.evict()


def test_a_forgotten_sequence_is_empty(scene: Scene) -> None:
    sequence, _ = scene.read(ids((5, 30)))
    scene.cache.forget(sequence)
    assert scene.held() == [] and not sequence.busy
    assert scene.use(ids((5, 30))) == 0


# --- Host memory ----------------------------------------------------------------------------------


def test_a_cold_prefix_comes_back_from_host_memory(make_scene: Make, apart: bool) -> None:
    scene = make_scene(host_bytes=A_LOT, apart=apart)
    prompt = ids((5, 300), (6, 100))
    scene.use(prompt)
    assert scene.host.bytes == 0
    assert scene.cache.evict()
    assert scene.held() == [] and scene.host.bytes > 400 * scene.model.kv_bytes_per_token
    longer = np.concatenate([prompt, ids((7, 10))])
    assert scene.cache.longest(longer) == 400
    assert scene.use(longer) == 400  # and `use` has compared the logits
    assert scene.host.bytes == 0 and scene.cache.counters.restores == 1


def test_a_part_of_a_cold_prefix_serves_too(make_scene: Make, apart: bool) -> None:
    scene = make_scene(host_bytes=A_LOT, apart=apart)
    scene.use(ids((5, 300), (6, 100)))
    scene.cache.evict()
    assert scene.use(ids((5, 300), (9, 50))) == 300
    assert ids((5, 300), (6, 100)).tolist() in scene.held()


def test_short_prefixes_are_not_worth_host_memory(make_scene: Make) -> None:
    scene = make_scene(host_bytes=A_LOT)
    scene.use(ids((5, 40)))
    scene.cache.evict()
    assert scene.host.bytes == 0
    for token in (6, 7):
        scene.use(ids((5, 300), (token, 40)))  # little of its own
    scene.cache.evict()
    assert scene.host.bytes == 0


def test_host_memory_is_kept_within_its_limit(make_scene: Make) -> None:
    one = make_scene(host_bytes=A_LOT)
    one.use(ids((5, 200)))
    one.cache.evict()
    limit = int(one.host.bytes * 2.5)
    scene = make_scene(host_bytes=limit)
    for token in range(5, 15):
        scene.use(ids((token, 200)))
        assert scene.host.bytes <= limit
    while scene.cache.evict():
        assert scene.host.bytes <= limit
    assert scene.host.bytes > limit / 2
    scene.host.limit_bytes = 1
    scene.host.shrink()
    assert scene.host.bytes == 0


def test_in_host_memory_too_the_least_loved_go_first(make_scene: Make) -> None:
    scene = make_scene(host_bytes=A_LOT)
    for token, uses in ((5, 1), (6, 50), (7, 1)):
        scene.use(ids((token, 200)))
        next(one for one in scene.cache.sequences if one.tokens.size).uses = uses
        scene.cache.evict()
    scene.host.limit_bytes = scene.host.bytes // 3 + 1
    scene.host.shrink()
    assert [scene.cache.longest(ids((token, 200))) for token in (5, 6, 7)] == [0, 199, 0]


def test_a_state_that_begins_another_is_kept_once(make_scene: Make) -> None:
    scene = make_scene(host_bytes=A_LOT)
    for size in (100, 200, 300):
        scene.use(ids((5, size)))
        sequence = next(one for one in scene.cache.sequences if one.tokens.size)
        state = scene.context.save(sequence.number)
        scene.host.add(scene.cache, sequence.tokens, state, 1)
    assert len(scene.host._kept) == 1 and scene.host.bytes == state.nbytes


def test_states_of_one_context_are_nothing_to_another(make_scene: Make) -> None:
    scene, other = make_scene(host_bytes=A_LOT), make_scene()
    other.cache.host = other.host = scene.host
    scene.use(ids((5, 200)))
    scene.cache.evict()
    assert other.cache.longest(ids((5, 200))) == 0
    assert other.use(ids((5, 200))) == 0
    other.cache.evict()
    scene.host.clear(scene.cache)
    assert scene.cache.longest(ids((5, 200))) == 0 and other.cache.longest(ids((5, 200))) == 199
    scene.host.clear()
    assert scene.host.bytes == 0


def test_a_state_that_finds_no_room_harms_nobody(make_scene: Make) -> None:
    """The idle sequences that had to go for it must not be taken for what they were."""
    scene = make_scene(host_bytes=A_LOT)
    cold, begun = ids((5, 50), (5, 450)), ids((5, 50), (6, 10))
    scene.use(cold)
    scene.cache.evict()
    scene.use(begun)
    scene.read(ids((7, 510)))
    scene.read(ids((8, 200)))
    before = scene.host.bytes
    assert scene.use(ids((5, 500), 9)[:200]) == 0
    assert scene.host.bytes == before and scene.cache.counters.restores == 0


def test_what_the_only_idle_sequence_held_waits_in_host_memory(make_scene: Make) -> None:
    scene = make_scene(host_bytes=A_LOT, apart=True)
    scene.use(ids((5, 50), (6, 100)))
    for token in (7, 8, 9):
        scene.read(ids((token, 10)))
    assert scene.use(ids((5, 50), (4, 100))) == 50
    assert scene.use(ids((5, 50), (6, 100), 7)) == 150
    assert scene.cache.swaps == 1


# --- Another context ------------------------------------------------------------------------------


def test_work_goes_on_in_a_larger_context(make_scene: Make) -> None:
    scene = make_scene()
    scene.use(ids((5, 200)))
    sequence, _ = scene.read(ids((6, 300)))
    scene.cache.filled(sequence, ids((6, 300)))
    states = scene.cache.pack()
    scene.context.close()
    scene.context = scene.open(2048)
    assert scene.cache.unpack(scene.context, states) == []
    assert sequence.busy
    scene.cache.release(sequence, ids((6, 300)).tolist())
    assert scene.use(ids((6, 300), 7)) == 300
    assert scene.use(ids((5, 200), 7)) == 200


@pytest.mark.parametrize("sequences", [2, 7])
def test_work_goes_on_in_a_context_with_other_sequences(make_scene: Make, sequences: int) -> None:
    scene = make_scene(host_bytes=A_LOT, apart=True)
    for token in (5, 6, 7):
        scene.use(ids((token, 200)))
    last, _ = scene.read(ids((8, 300)))
    scene.cache.filled(last, ids((8, 300)))
    states = scene.cache.pack()
    scene.context.close()
    scene.context = scene.open(1024, sequences)
    assert scene.cache.unpack(scene.context, states) == ([] if sequences == 7 else [last])
    assert len(scene.cache.sequences) == sequences
    if sequences == 7:
        scene.cache.release(last, ids((8, 300)).tolist())
        assert scene.use(ids((8, 300), 4)) == 300
    for token in (5, 6, 7):  # the idle ones that were left over wait in host memory
        assert scene.use(ids((token, 200), 4)) == 200
    assert scene.cache.counters.restores == (0 if sequences == 7 else 1)


def test_what_finds_no_room_in_another_context_is_named(make_scene: Make) -> None:
    scene = make_scene()
    busy = [scene.read(ids((token, 400)))[0] for token in (5, 6)]
    states = scene.cache.pack()
    scene.context.close()
    scene.context = scene.open(512)
    assert scene.cache.unpack(scene.context, states) == [busy[1]]
    assert busy[0].busy and not busy[1].busy and not busy[1].tokens.size


# --- A recurrent model ----------------------------------------------------------------------------


def test_a_recurrent_model_goes_on_and_never_shares(make_scene: Make, tmp_path: Path) -> None:
    scene = make_scene(write_tiny_mamba(tmp_path / "mamba.gguf", context=1024), A_LOT)
    first = ids((5, 100), (6, 10))
    assert scene.use(first) == 0
    for wanted in (first, ids((5, 100), (7, 10)), ids((5, 110))):
        assert scene.cache.longest(wanted) == 0  # it cannot go back
        assert scene.use(wanted) == 0
    longer = np.concatenate([first, ids((7, 5))])
    assert scene.cache.longest(longer) == first.size
    assert scene.use(longer) == first.size
    sequence, _ = scene.read(np.concatenate([longer, ids(8)]))
    scene.cache.filled(sequence, np.concatenate([longer, ids(8)]))
    # Somebody else is on it: only the other sequence, which ends before, can be had.
    assert scene.cache.longest(np.concatenate([longer, ids(8, 9)])) == first.size


def test_states_of_a_recurrent_model_come_back_for_what_goes_on(
    make_scene: Make, tmp_path: Path
) -> None:
    scene = make_scene(write_tiny_mamba(tmp_path / "mamba.gguf", context=1024), A_LOT)
    scene.use(ids((5, 100)))
    scene.cache.evict()
    assert scene.host.bytes > 0
    assert scene.use(ids((5, 90), (6, 20))) == 0
    assert scene.host.bytes > 0 and scene.cache.counters.restores == 0
    assert scene.use(ids((5, 100), (6, 20))) == 100
    assert scene.cache.counters.restores == 1
