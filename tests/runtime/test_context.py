"""A context: batches of several sequences, what they share, and what is saved of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_mamba import write_tiny_mamba
from tiny_models import write_tiny_gguf

from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.errors import CacheFullError, EngineError, UnsupportedModelError
from tierwise.runtime.llama import Model


def logits_of(context: Context, tokens: list[int], *splits: int) -> np.ndarray:
    """The last token's logits, the tokens decoded in parts that end at ``splits``."""
    context.truncate(0)
    ends = [*splits, len(tokens)]
    for start, end in zip([0, *splits], ends, strict=True):
        context.decode(tokens[start:end], start)
    return context.logits().copy()


def test_parts_give_what_the_whole_gives(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model, Context(model, 512, threads=1) as context:
        tokens = model.tokenize("the weather is a thing " * 8)
        whole = logits_of(context, tokens)
        assert whole.shape == (model.vocab_size,)
        np.testing.assert_allclose(logits_of(context, tokens, 3, 20), whole, atol=2e-2)
        assert not np.allclose(logits_of(context, tokens[:-1]), whole, atol=2e-2)


def test_a_truncated_context_forgets(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model, Context(model, 512, threads=1) as context:
        kept, first, second = (model.tokenize(text) for text in ("hello ", "one", "two"))
        expected = logits_of(context, kept + second)
        logits_of(context, kept + first)
        assert context.truncate(len(kept))
        context.decode(second, len(kept))
        np.testing.assert_allclose(context.logits(), expected, atol=2e-2)


def test_long_prompts_are_decoded_in_batches(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context=2048)
    with Model(path) as model, Context(model, 2048, threads=1) as context:
        calls: list[None] = []
        context.decode([5] * 1200, 0, between=lambda: calls.append(None))
        assert len(calls) == 3

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            context.decode([5], 1200, between=stop)


def test_all_logits_are_those_of_each_prefix(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model, Context(model, 512, threads=1, all_logits=True) as context:
        tokens = model.tokenize("hello weather")
        each = [logits_of(context, tokens[: end + 1]) for end in range(len(tokens))]
        context.truncate(0)
        context.decode(tokens, 0)
        np.testing.assert_allclose(context.batch_logits(len(tokens)), each, atol=2e-2)


def test_more_tokens_than_fit_are_an_error(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model, Context(model, 256, threads=1) as context:
        context.decode([5] * 256, 0)
        with pytest.raises(CacheFullError, match="context of 256 tokens has no room for 1 more"):
            context.decode([5], 256)


# --- Many sequences -------------------------------------------------------------------------------


@pytest.fixture
def many(tiny_gguf: Path) -> Iterator[Context]:
    """512 cells for four sequences."""
    with (
        Model(tiny_gguf) as model,
        Context(model, 512, threads=1, sequences=4, outputs=8) as context,
    ):
        yield context


def alone(context: Context, tokens: list[int]) -> np.ndarray:
    """The last token's logits, read by a sequence that nobody else uses."""
    context.truncate(0, 3)
    (row,) = context.run([Chunk(3, 0, tokens, 1)])
    logits = context.logits(row).copy()
    context.truncate(0, 3)
    return logits


def close_to(actual: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(actual, expected, atol=5e-2)


def test_sequences_of_one_batch_know_nothing_of_each_other(many: Context) -> None:
    first, second = (many.model.tokenize(text) for text in ("hello weather", "a thing in Paris"))
    expected = alone(many, first), alone(many, second), alone(many, second[:-1])
    rows = many.run([Chunk(0, 0, first, 1), Chunk(1, 0, second, 2)])
    logits = [many.logits(row).copy() for row in (rows[0], rows[1] + 1, rows[1])]
    assert all(map(close_to, logits, expected))
    assert not close_to(expected[0], expected[1])


def test_a_chunk_may_want_no_logits(many: Context) -> None:
    text = many.model.tokenize("hello weather in Paris")
    expected = alone(many, text)
    many.run([Chunk(0, 0, text[:3], 0), Chunk(1, 0, [7, 8], 1)])
    (row,) = many.run([Chunk(0, 3, text[3:], 1)])
    assert close_to(many.logits(row), expected)


def test_a_shared_prefix_takes_no_cells_and_parts_go_their_ways(many: Context) -> None:
    prefix = (many.model.tokenize("the weather ") * 100)[:300]
    ends = many.model.tokenize("hello"), many.model.tokenize("Paris")
    expected = [alone(many, prefix + end) for end in ends]
    many.run([Chunk(0, 0, prefix, 0)])
    for target in (1, 2):
        many.share(0, target, 300)  # 3 x 300 tokens in 512 cells
    many.truncate(0, 0)  # the others keep what they share
    rows = many.run([Chunk(1, 300, ends[0], 1), Chunk(2, 300, ends[1], 1)])
    assert all(map(close_to, [many.logits(row).copy() for row in rows], expected))


def test_a_part_of_a_sequence_can_be_shared(many: Context) -> None:
    text = many.model.tokenize("hello weather in Paris")
    expected = alone(many, [*text[:3], 7])
    many.run([Chunk(0, 0, text, 0)])
    many.share(0, 1, 3)
    (row,) = many.run([Chunk(1, 3, [7], 1)])
    assert close_to(many.logits(row), expected)


def test_a_full_cache_says_so_and_changes_nothing(many: Context) -> None:
    text = many.model.tokenize("hello weather")
    expected = alone(many, [*text, 7])
    many.run([Chunk(0, 0, text, 0)])
    many.run([Chunk(1, 0, [5] * 400, 0)])
    for _ in range(2):
        with pytest.raises(CacheFullError, match="512 tokens has no room for 300 more"):
            many.run([Chunk(2, 0, [6] * 300, 1)])
    (row,) = many.run([Chunk(0, len(text), [7], 1)])
    assert close_to(many.logits(row), expected)
    many.truncate(0, 1)
    many.run([Chunk(2, 0, [6] * 300, 1)])


def test_a_failed_batch_is_told_with_its_places(many: Context) -> None:
    with pytest.raises(EngineError, match=r"1 tokens at position 9 of sequence 2.*code -1"):
        many.run([Chunk(2, 9, [many.model.vocab_size], 1)])


def test_a_saved_sequence_comes_back_anywhere(many: Context) -> None:
    text = many.model.tokenize("hello weather in Paris")
    expected = alone(many, [*text, 7])
    many.run([Chunk(0, 0, text, 0)])
    state = many.save(0)
    many.truncate(0, 0)
    assert many.restore(2, state)
    with Context(many.model, 256, threads=1, sequences=2) as other:
        assert other.restore(1, state)
        for context, sequence in ((many, 2), (other, 1)):
            (row,) = context.run([Chunk(sequence, len(text), [7], 1)])
            assert close_to(context.logits(row), expected)


def test_a_state_that_does_not_fit_leaves_an_empty_sequence(many: Context) -> None:
    many.run([Chunk(0, 0, [5] * 300, 0)])
    state = many.save(0)
    many.run([Chunk(1, 0, [6] * 100, 0)])
    expected = alone(many, [7, 8])
    assert not many.restore(2, state)
    (row,) = many.run([Chunk(2, 0, [7, 8], 1)])
    assert close_to(many.logits(row), expected)
    many.truncate(0, 0)
    many.truncate(0, 2)
    assert many.restore(2, state)


def test_a_recurrent_model_can_be_cut_nowhere_but_be_saved(tmp_path: Path) -> None:
    path = write_tiny_mamba(tmp_path / "mamba.gguf")
    with Model(path) as model, Context(model, 256, threads=1, sequences=3) as context:
        assert not context.divisible
        context.run([Chunk(0, 0, [5, 6, 7], 0)])
        state = context.save(0)
        (row,) = context.run([Chunk(0, 3, [8], 1)])
        expected = context.logits(row).copy()
        assert not context.truncate(2, 0)
        assert context.restore(1, state)
        (row,) = context.run([Chunk(1, 3, [8], 1)])
        assert close_to(context.logits(row), expected)


def test_heads_that_q8_0_cannot_hold_are_told(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", width=64, heads=4)  # 16 values a head
    with Model(path) as model, pytest.raises(UnsupportedModelError, match=r'16 values.*"f16"'):
        Context(model, 256, threads=1, kv_type="q8_0")
