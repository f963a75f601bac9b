"""The next token: greedy, drawn, and drawn under a grammar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tierwise.runtime.chat import Sampling
from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.grammar import GrammarCompiler
from tierwise.runtime.llama import Model
from tierwise.runtime.sampling import Sampler, allowed, logprob, margin

Logits = NDArray[np.float32]
EVERYTHING = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0)


class Scene:
    """A context that has read some text, whose logits can be put back after each draw."""

    def __init__(self, path: Path) -> None:
        self.model = Model(path)
        self.grammars = GrammarCompiler(self.model)
        self.context = Context(self.model, 256, threads=1)
        self.context.decode(self.model.tokenize("hello"), 0)
        self.logits: Logits = self.context.logits().copy()

    def draws(self, sampling: Sampling, grammar: str | None, count: int) -> list[int]:
        sampler, tokens = Sampler(sampling), []
        for _ in range(count):
            self.context.logits()[:] = self.logits
            matcher = self.grammars.matcher(grammar) if grammar else None
            tokens.append(sampler.draw(self.context, -1, self.context.logits(), matcher))
        sampler.close()
        return tokens

    def chances(self, temperature: float, tokens: list[int] | None = None) -> Logits:
        """Softmax over the vocabulary, or over some tokens of it."""
        kept = np.full_like(self.logits, -np.inf)
        index = slice(None) if tokens is None else tokens
        kept[index] = self.logits[index] / temperature
        weights = np.exp(kept - kept.max())
        return np.asarray(weights / weights.sum())


@pytest.fixture(scope="module")
def scene(tiny_gguf: Path) -> Iterator[Scene]:
    made = Scene(tiny_gguf)
    yield made
    made.context.close()
    made.model.close()


def distance(tokens: list[int], chances: Logits) -> float:
    """Total variation between what was drawn and what was to be expected."""
    share = np.zeros_like(chances)
    for token, count in Counter(tokens).items():
        share[token] = count / len(tokens)
    return float(np.abs(share - chances).sum() / 2)


def test_greedy_takes_the_likeliest(scene: Scene) -> None:
    best = int(scene.logits.argmax())
    assert set(scene.draws(Sampling(temperature=0), None, 3)) == {best}


def test_greedy_under_a_grammar_takes_the_likeliest_allowed(scene: Scene) -> None:
    letters = scene.model.tokenize("q") + scene.model.tokenize("z")
    best = max(letters, key=lambda token: scene.logits[token])
    assert int(scene.logits.argmax()) not in letters
    assert set(scene.draws(Sampling(temperature=0), "start: /[qz]/", 3)) == {best}


def test_without_limits_every_token_has_its_chance(scene: Scene) -> None:
    tokens = scene.draws(EVERYTHING, None, 4000)
    assert distance(tokens, scene.chances(2.0)) < 0.1
    assert distance(tokens, scene.chances(1.0)) > 0.2


def test_a_grammar_leaves_the_chances_of_what_it_allows(scene: Scene) -> None:
    """Asking about the drawn token first must not favour the likely ones."""
    letters = [token for letter in "abcdefgh" for token in scene.model.tokenize(letter)]
    wanted = scene.chances(2.0, letters)
    before = float(scene.chances(2.0)[letters].sum())
    assert 0.001 < before < 0.9  # so that both ways, with and without the mask, are taken
    tokens = scene.draws(EVERYTHING, "start: /[a-h]/", 4000)
    assert set(tokens) <= set(letters) and len(set(tokens)) > 2
    assert distance(tokens, wanted) < 0.03


@pytest.mark.parametrize(
    ("sampling", "most"),
    [
        (Sampling(temperature=5.0, top_k=3, top_p=1.0, min_p=0.0), 3),
        (Sampling(temperature=5.0, top_k=0, top_p=0.0001, min_p=0.0), 1),
        (Sampling(temperature=5.0, top_k=0, top_p=1.0, min_p=1.0), 1),
        (Sampling(temperature=1e-4, top_k=0, top_p=1.0, min_p=0.0), 1),
    ],
    ids=["top_k", "top_p", "min_p", "temperature"],
)
def test_each_limit_limits(scene: Scene, sampling: Sampling, most: int) -> None:
    likeliest = np.argsort(scene.logits)[::-1][:most]
    assert set(scene.draws(sampling, None, 300)) == set(likeliest.tolist())


def test_a_seed_makes_draws_repeatable(scene: Scene) -> None:
    def draws(seed: int | None) -> list[int]:
        return scene.draws(Sampling(temperature=2.0, seed=seed), None, 40)

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)
    for odd in (-1, 2**32 - 1, 2**64 + 5):  # llama.cpp's own 2**32 - 1 stands for none
        assert draws(odd) == draws(odd)


def test_a_closed_sampler_may_be_closed_again() -> None:
    sampler = Sampler(EVERYTHING)
    sampler.close()
    sampler.close()


def test_allowed_is_what_the_grammar_takes(scene: Scene) -> None:
    matcher = scene.grammars.matcher("start: /(he|x)[0-9]/")
    mask = allowed(matcher, scene.model.vocab_size)
    assert mask.shape == (scene.model.vocab_size,)
    taken = {token for token in range(scene.model.vocab_size) if matcher.validate_tokens([token])}
    assert set(np.flatnonzero(mask).tolist()) == taken
    assert taken == {token for text in ("h", "he", "x") for token in scene.model.tokenize(text)[:1]}


def test_tokens_that_the_grammar_does_not_know_are_not_allowed(scene: Scene) -> None:
    """A model may have more logits than its vocabulary has tokens."""
    matcher = scene.grammars.matcher("start: /(?s:.)*/")
    mask = allowed(matcher, scene.model.vocab_size + 1000)
    assert mask.shape == (scene.model.vocab_size + 1000,)
    assert mask.sum() > 200 and not mask[-900:].any()


def test_margin_is_the_gap_between_the_best_two(scene: Scene) -> None:
    first, second = np.sort(scene.chances(1.0))[::-1][:2]
    logits = scene.logits.copy()
    assert margin(logits) == pytest.approx(first - second, rel=1e-4)
    np.testing.assert_array_equal(logits, scene.logits)


def test_margin_at_the_extremes() -> None:
    def of(*logits: float) -> float:
        return margin(np.array(logits, np.float32))

    assert of(3, 3, -9) == pytest.approx(0, abs=1e-6)
    assert of(-np.inf, 2, -np.inf) == 1.0
    assert of(900, -900) == 1.0
    assert of(np.log(3), np.log(1)) == pytest.approx(0.5)


def test_a_log_probability_comes_with_its_alternatives(scene: Scene) -> None:
    chances = scene.chances(1.0)
    order = np.argsort(chances)[::-1]
    told = logprob(scene.logits, int(order[4]), 3, scene.model.piece)
    assert told.logprob == pytest.approx(float(np.log(chances[order[4]])), rel=1e-3)
    assert told.piece == scene.model.piece(int(order[4]))
    assert [piece for piece, _ in told.top] == [scene.model.piece(int(one)) for one in order[:3]]
    assert [value for _, value in told.top] == pytest.approx(
        np.log(chances[order[:3]]).tolist(), rel=1e-3
    )
    assert logprob(scene.logits, 5, 0, scene.model.piece).top == ()
    everything = logprob(scene.logits, 5, 10**6, scene.model.piece).top
    assert sum(np.exp(value) for _, value in everything) == pytest.approx(1.0, rel=1e-3)


def test_the_row_decides_whose_token_is_drawn(tiny_gguf: Path) -> None:
    with Model(tiny_gguf) as model, Context(model, 256, threads=1, sequences=2) as context:
        first, second = model.tokenize("hello"), model.tokenize("weather in")
        rows = context.run([Chunk(0, 0, first, 1), Chunk(1, 0, second, 1)])
        best = [int(context.logits(row).argmax()) for row in rows]
        sampler = Sampler(Sampling(temperature=1e-4, top_k=0, top_p=1.0, min_p=0.0))
        assert best[0] != best[1]
        assert [sampler.draw(context, row, context.logits(row), None) for row in rows] == best
        sampler.close()
