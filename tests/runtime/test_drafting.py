"""Drafts change how fast a reply comes, and never what it says."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from tiny_mamba import write_tiny_mamba
from tiny_models import write_scripted_gguf, write_tiny_gguf

from tierwise.runtime.chat import Sampling, Usage
from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.draft_engine import DraftEngine
from tierwise.runtime.drafting import (
    LONGEST,
    LONGEST_MATCH,
    PROMPT_LOOKUP,
    Chances,
    Drafter,
    PromptLookup,
    StepCosts,
    best_length,
)
from tierwise.runtime.engine import Engine
from tierwise.runtime.family import Family
from tierwise.runtime.generation import Generated, Generation, GenerationRequest
from tierwise.runtime.grammar import Constraint, GrammarCompiler
from tierwise.runtime.hints import Hint
from tierwise.runtime.llama import Model
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import load_profile, save_profile
from tierwise.runtime.resources import Resources

FREE = {1: 1.0, 16: 1.0}
"""Steps that cost the same whatever they hold: every guess is worth reading."""

CPU = {1: 8.8, 2: 18.3, 4: 27.5, 8: 36.5, 16: 54.2}
"""Milliseconds, measured: SmolLM2-135M (Q8_0) on two cores."""

GPU = {1: 10.0, 2: 10.1, 4: 10.3, 8: 10.7, 16: 11.5}

LOOKUP = {PROMPT_LOOKUP: 2.0}

ITEM = '{"name": "the weather", "city": "Paris", "days": [1, 2, 3]}'
TEXT = f"hello {ITEM} is a {ITEM} hello"
PERSON = Constraint(
    r'''start: "{\"name\": \"" /[a-z ]{3,9}/ "\", \"kind\": \"" ("ab" | "cd") "\", \"again\": \""'''
    r''' /[a-z ]{3,9}/ "\", \"days\": [" /[0-9]{1,3}/ (", " /[0-9]{1,3}/){4,12} "]}"'''
)
"""Alternating text that is forced and text that is chosen."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same architecture with other weights each; F32, so that batch sizes hardly matter."""
    folder = tmp_path_factory.mktemp("models")
    return [
        write_tiny_gguf(folder / f"{seed}.gguf", seed=seed, context=2048, file_type="F32")
        for seed in range(4)
    ]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that copies, word for word."""
    return write_scripted_gguf(
        tmp_path_factory.mktemp("models") / "scripted.gguf",
        {"": "Yes: Grüße aus Köln: 🎉 and good-bye!", "KEYS": "Short."},
        file_type="F32",
    )


def request_of(model: Model, text: str = TEXT, **fields: Any) -> GenerationRequest:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return GenerationRequest(tuple(model.tokenize(prompt)), **fields)


def said(done: Generated) -> tuple[Any, ...]:
    """All of a reply that does not depend on speed."""
    usage = (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.forced_tokens)
    return done.text, done.finish_reason, done.tokens, usage


def assert_same(
    model: Model, request: GenerationRequest, drafted: Generated, plain: Generated
) -> None:
    """The same reply, or the same up to where two tokens were as good as equal.

    Keys and values are kept as F16, so a logit of these models (10 and more) differs by up to
    0.01 between steps of one token and of many; the two likeliest are nearer than that at one
    token in some hundreds.
    """
    if drafted.tokens != plain.tokens or drafted.finish_reason != plain.finish_reason:
        ours, theirs = ([*done.tokens, model.eos] for done in (drafted, plain))
        at = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        with Context(model, 2048, threads=1) as context:
            context.decode([*request.prompt, *theirs[:at]], 0)
            logits = context.logits()
            assert abs(logits[ours[at]] - logits[theirs[at]]) < 0.03
        return
    assert said(drafted) == said(plain)
    assert drafted.confidence == pytest.approx(plain.confidence, abs=0.01)
    assert len(drafted.logprobs) == len(plain.logprobs)
    for one, other in zip(drafted.logprobs, plain.logprobs, strict=True):
        assert one.piece == other.piece
        assert one.logprob == pytest.approx(other.logprob, abs=0.03)
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=0.03)


# --- What a draft is worth ----------------------------------------------------------------------


def test_costs_between_and_beyond_the_measured_ones() -> None:
    costs = StepCosts(CPU)
    assert [costs[n] for n in (1, 2, 3, 8, 16)] == pytest.approx([8.8, 18.3, 22.9, 36.5, 54.2])
    assert costs[24] == pytest.approx(54.2 + 8 * (54.2 - 36.5) / 8)
    assert costs[1000] == pytest.approx(54.2 + 984 * (54.2 - 36.5) / 8)
    assert costs and not StepCosts({}) and not StepCosts({1: 8.8})
    assert StepCosts({1: 2.0, 2: 1.0})[9] == 1.0  # noise never makes long steps cheap


@pytest.mark.parametrize(
    ("costs", "unread", "chance", "length"),
    [
        (CPU, 1, 0.5, 0),
        (CPU, 1, 0.7, 0),
        (CPU, 1, 0.95, 15),
        (CPU, 1, 1.0, 15),
        (CPU, 8, 0.5, 1),  # beside a forced run, further tokens are cheaper
        (CPU, 8, 0.7, 3),
        (GPU, 1, 0.5, 6),
        (GPU, 1, 0.9, 15),
        (GPU, 1, 0.005, 0),
    ],
)
def test_the_best_length(costs: dict[int, float], unread: int, chance: float, length: int) -> None:
    best, saved = best_length(StepCosts(costs), unread, costs[1], [chance] * LONGEST)
    assert best == length
    assert (saved > 0) == (length > 0)


def test_the_best_length_saves_what_it_says() -> None:
    costs = StepCosts({1: 10.0, 2: 12.0, 3: 14.0, 4: 16.0})
    # One token: .9 * 10 - 2. Two: (.9 + .45) * 10 - 4. Three: (.9 + .45 + .045) * 10 - 6.
    assert best_length(costs, 1, 10.0, [0.9, 0.5, 0.1]) == (2, pytest.approx(9.5))
    # Guesses that cost as much as is saved are not worth making.
    assert best_length(costs, 1, 10.0, [0.9, 0.5, 0.1], guess_s=3.5) == (1, pytest.approx(3.5))
    assert best_length(costs, 1, 10.0, [0.9, 0.5, 0.1], guess_s=7.0) == (0, 0.0)
    assert best_length(costs, 1, 10.0, []) == (0, 0.0)


def test_chances_are_learned_and_forgotten() -> None:
    chances = Chances([0.5, 0.9])
    assert (chances[0], chances[1], chances[7]) == (0.5, 0.9, 0.9)
    for _ in range(300):
        chances.note(5, False)
    assert chances[1] < 0.05 and chances[0] == 0.5
    for _ in range(300):
        chances.note(1, True)
    assert chances[1] > 0.9
    before = chances[1]
    chances.note(1, False)
    assert before - 0.02 < chances[1] < before


# --- Looking up in the prompt -------------------------------------------------------------------


def test_what_followed_before_is_guessed() -> None:
    text = [9, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    assert PromptLookup(text).guess(text) == (3, [4, 5, 6, 7, 8, 1, 2, 3])
    assert PromptLookup(text).guess(text[:-1]) == (0, [])  # two tokens are not enough
    assert PromptLookup([]).guess([]) == (0, [])
    assert PromptLookup([1, 1, 1]).guess([1, 1, 1]) == (0, [])
    assert PromptLookup([1] * 4).guess([1] * 4) == (3, [1])


def test_the_longest_match_counts_and_then_the_latest() -> None:
    lookup = [5, 1, 2, 3, 70, 6, 1, 2, 3, 80, 7, 1, 2, 3, 90, 6, 1, 2, 3]
    assert PromptLookup(lookup).guess(lookup)[1][0] == 80
    lookup[-4] = 4
    assert PromptLookup(lookup).guess(lookup)[1][0] == 90


@pytest.mark.parametrize("seed", range(20))
def test_guesses_are_those_of_a_plain_search(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(3) for _ in range(rng.randrange(4, 30))]
    lookup = PromptLookup(tokens)
    for _ in range(20):
        tokens += [rng.randrange(3) for _ in range(rng.randrange(1, 60))]
        match, guess = lookup.guess(tokens)
        ends = [end for end in range(3, len(tokens)) if tokens[end - 3 : end] == tokens[-3:]]
        lengths = [_match(tokens, end) for end in ends[-8:]]
        assert match == max(lengths, default=0)
        if ends:
            end = ends[-8:][len(lengths) - 1 - lengths[::-1].index(match)]
            assert guess == tokens[end : end + LONGEST]
        else:
            assert guess == []


def _match(tokens: Sequence[int], end: int) -> int:
    most = min(end, LONGEST_MATCH)
    return max(n for n in range(1, most + 1) if tokens[end - n : end] == tokens[-n:])


# --- One reply, drafts of every kind ------------------------------------------------------------


def generate(
    model: Model,
    request: GenerationRequest,
    drafts: Callable[[Generation], Sequence[int]],
    *,
    raw: bool = False,
) -> tuple[Generated, int, list[int]]:
    """A reply step by step, as the scheduler does it; with the steps, and the tokens read."""
    pieces: list[str] = []
    with Context(model, 512, threads=1, outputs=32) as context:
        generation = Generation(
            request,
            model,
            GrammarCompiler(model),
            n_ctx=512,
            emit=lambda delta: pieces.append(delta.text),
        )
        steps = 0
        while generation.finish_reason is None:
            guess = list(drafts(generation))
            generation.draft = guess if raw else generation.check_draft(guess)
            unread = generation.unread
            outputs = 1 + len(generation.draft)
            (row,) = context.run([Chunk(0, generation.read, unread, outputs)])
            generation.read = len(generation.tokens)
            generation.advance(context, row)
            context.truncate(generation.read)
            steps += 1
        count, forced = generation.counts
        done = generation.result(Usage(len(request.prompt), 0, count, forced, 0.0, 0.0, 0.0))
        assert "".join(pieces) == done.text
        return done, steps, generation.tokens[: generation.read]


REQUESTS: list[dict[str, Any]] = [
    {"max_tokens": 60},
    {"max_tokens": 60, "sampling": Sampling(logprobs=3)},
    {"max_tokens": 80, "constraint": PERSON},
    {"max_tokens": 80, "constraint": PERSON, "sampling": Sampling(logprobs=2)},
    {"max_tokens": 17, "constraint": PERSON},
]


@pytest.mark.parametrize("fields", REQUESTS)
@pytest.mark.parametrize("seed", range(4))
def test_any_draft_leaves_the_reply_as_it_is(
    models: list[Path], seed: int, fields: dict[str, Any]
) -> None:
    """Drafts that are right up to a random place, and then anything."""
    with Model(models[seed]) as model:
        request = request_of(model, **fields)
        plain, plain_steps, _ = generate(model, request, lambda _: [])
        known = [*request.prompt, *plain.tokens]
        rng = random.Random(seed)

        def draft(generation: Generation) -> list[int]:
            at = len(generation.tokens)
            right = known[at : at + rng.randrange(LONGEST)]
            return right + [rng.randrange(model.vocab_size) for _ in range(rng.randrange(3))]

        for raw in (False, True):
            if raw and fields["max_tokens"] == 17:
                continue  # the caller's part is to keep to the limit
            drafted, steps, read = generate(model, request, draft, raw=raw)
            assert_same(model, request, drafted, plain)
            assert steps < plain_steps * 0.7
            # What the sequence is said to hold, it holds: the reply goes on from there.
            assert read == [*request.prompt, *drafted.tokens][: len(read)]


def test_a_right_draft_is_taken_whole(models: list[Path]) -> None:
    with Model(models[0]) as model:
        request = request_of(model, max_tokens=33)
        plain, _, _ = generate(model, request, lambda _: [])
        known = [*request.prompt, *plain.tokens]
        at_once, steps, read = generate(
            model, request, lambda g: known[len(g.tokens) : len(g.tokens) + LONGEST]
        )
        assert_same(model, request, at_once, plain)
        assert steps == 3  # the first, with 15 more; again 16; and the last
        assert len(read) == len(known) - 1


@pytest.mark.parametrize("stop", ["Köln", "aus", "Grüße a", "🎉", "!"])
def test_a_stop_text_within_a_draft(scripted: Path, stop: str) -> None:
    with Model(scripted) as model:
        request = request_of(model, "hi", stop=(stop,))
        reply = model.tokenize("Yes: Grüße aus Köln: 🎉 and good-bye!")
        plain, _, _ = generate(model, request, lambda _: [])
        drafted, steps, _ = generate(model, request, _from_script(request, reply))
        assert plain.finish_reason == "stop" and stop not in plain.text
        assert_same(model, request, drafted, plain)
        assert steps <= 4


@pytest.mark.parametrize("limit", [1, 2, 7, 16, 17, 18, 30])
def test_a_limit_within_a_draft(scripted: Path, limit: int) -> None:
    with Model(scripted) as model:
        request = request_of(model, "hi", max_tokens=limit)
        reply = model.tokenize("Yes: Grüße aus Köln: 🎉 and good-bye!")
        plain, _, _ = generate(model, request, lambda _: [])
        drafted, _, read = generate(model, request, _from_script(request, reply))
        assert plain.usage.completion_tokens == limit
        assert_same(model, request, drafted, plain)
        assert len(read) <= len(request.prompt) + limit


def test_an_end_within_a_draft(scripted: Path) -> None:
    with Model(scripted) as model:
        request = request_of(model, "KEYS")
        reply = [*model.tokenize("Short.<|im_end|>\n<|im_start|>user\nShort.")]
        for raw in (False, True):
            done, steps, read = generate(model, request, _from_script(request, reply), raw=raw)
            assert (done.text, done.finish_reason, steps) == ("Short.", "stop", 1)
            assert read == [*request.prompt, *model.tokenize("Short.")]


def _from_script(
    request: GenerationRequest, reply: Sequence[int]
) -> Callable[[Generation], Sequence[int]]:
    def draft(generation: Generation) -> Sequence[int]:
        at = len(generation.tokens) - len(request.prompt)
        return reply[at : at + LONGEST]

    return draft


def test_a_draft_is_cut_where_it_cannot_be_right(models: list[Path]) -> None:
    with Model(models[0]) as model:
        fields: dict[str, Any] = {"n_ctx": 512, "emit": lambda _: None}
        grammars = GrammarCompiler(model)
        constraint = Constraint('start: /[a-z]+/ "!"')
        request = request_of(model, constraint=constraint)
        constrained = Generation(request, model, grammars, **fields)
        letters = model.tokenize("b!c", special=False)
        assert constrained.check_draft(letters) == letters[:2]
        free = Generation(request_of(model, max_tokens=3), model, grammars, **fields)
        assert free.check_draft([5, 6, 7, 8]) == [5, 6]  # the third token needs no reading
        assert free.check_draft([5, model.eos, 7]) == [5]
        none = Generation(request_of(model, max_tokens=0), model, grammars, **fields)
        assert none.check_draft([5, 6]) == []


def generation_of(model: Model, text: str) -> Generation:
    """A reply of which nothing is read, to a prompt of these very tokens."""
    request = GenerationRequest(tuple(model.tokenize(text)))
    return Generation(request, model, GrammarCompiler(model), n_ctx=512, emit=lambda _: None)


# --- In the engine ------------------------------------------------------------------------------


def drafting_engine(path: Path, gains: dict[str, float] = LOOKUP, **options: Any) -> Engine:
    return Engine(
        Model(path), n_ctx=2048, threads=1, drafter=Drafter(options.pop("costs", FREE), gains)
    )


@pytest.fixture
def copier(models: list[Path]) -> Iterator[Engine]:
    with drafting_engine(models[1]) as engine:
        yield engine


@pytest.mark.parametrize("seed", range(4))
def test_the_engine_says_the_same_with_drafts(models: list[Path], seed: int) -> None:
    """Random models soon repeat themselves, which is when drafts are right."""
    with (
        drafting_engine(models[seed]) as drafting,
        Engine(Model(models[seed]), n_ctx=2048, threads=1) as plain,
    ):
        for text in (TEXT, "abc", "abcabcabc"):
            for fields in [*REQUESTS, {"max_tokens": 300}, {"max_tokens": 90, "stop": ("aa",)}]:
                request = request_of(plain.model, text, **fields)
                ours, theirs = (e.submit(request).result() for e in (drafting, plain))
                assert_same(plain.model, request, ours, theirs)
        assert drafting.metrics().steps < plain.metrics().steps * 0.8
        # A cached reply is right as well.
        said_before = request_of(plain.model, TEXT, max_tokens=60)
        turn = (*said_before.prompt, *plain.submit(said_before).result().tokens, 5, 6, 7)
        request = GenerationRequest(turn, max_tokens=20)
        ours, theirs = (e.submit(request).result() for e in (drafting, plain))
        assert_same(plain.model, request, ours, theirs)


def test_a_copied_text_takes_few_steps(scripted: Path) -> None:
    text = "Yes: Grüße aus Köln: 🎉 and good-bye!"
    with drafting_engine(scripted) as engine:
        request = request_of(engine.model, f"Say: {text} Do.")
        done = engine.submit(request).result()
        assert done.text == text
        tokens = done.usage.completion_tokens
        # "Yes" is drawn token by token, the rest found in the prompt.
        assert engine.metrics().steps < 3 + 3 + tokens / LONGEST
        assert engine.metrics().tokens < len(request.prompt) + 3 * tokens


@pytest.mark.parametrize(
    "drafter",
    [
        Drafter(),
        Drafter(FREE, {}),
        Drafter(FREE, {PROMPT_LOOKUP: 1.04}),
        Drafter({}, LOOKUP),
        Drafter({1: 1.0, 16: 16.0}, LOOKUP),
    ],
)
def test_nothing_is_drafted_where_nothing_is_gained(scripted: Path, drafter: Drafter) -> None:
    text = "Yes: Grüße aus Köln: 🎉 and good-bye!"
    with Engine(Model(scripted), n_ctx=1024, threads=1, drafter=drafter) as engine:
        done = engine.submit(request_of(engine.model, text)).result()
        assert done.text == text
        assert engine.metrics().steps >= done.usage.completion_tokens


def test_sampled_replies_are_not_drafted(copier: Engine) -> None:
    sampling = Sampling(temperature=0.01, seed=3)
    request = request_of(copier.model, sampling=sampling, max_tokens=50)
    count = copier.submit(request).result().usage.completion_tokens
    assert copier.metrics().steps >= count


def test_only_a_reply_that_has_the_model_to_itself_is_drafted(copier: Engine) -> None:
    one, other = (generation_of(copier.model, text) for text in ("abcd abcd abc", "abcdabc"))
    drafter = Drafter(FREE, LOOKUP)
    drafter.prepare([one], 512)
    assert one.draft
    drafter.prepare([one, other], 512)
    assert one.draft == other.draft == []
    drafter.prepare([other], 512)
    assert other.draft
    drafter.prepare([other], LONGEST + 3)  # a step that has no room beside the prompt
    assert other.draft == []


def test_others_may_join_and_leave_while_one_drafts(models: list[Path], copier: Engine) -> None:
    rng = random.Random(5)
    requests = [
        request_of(copier.model, f"{n % 3} {TEXT}", max_tokens=rng.randrange(1, 120))
        for n in range(12)
    ]
    streams = []
    for request in requests:
        streams.append(copier.submit(request))
        time.sleep(rng.random() * 0.01)
    replies = [stream.result() for stream in streams]
    with Engine(Model(models[1]), n_ctx=2048, threads=1) as plain:
        for request, reply in zip(requests, replies, strict=True):
            assert_same(plain.model, request, reply, plain.submit(request).result())


def test_cancelling_while_drafting(models: list[Path], copier: Engine) -> None:
    kept = request_of(copier.model, max_tokens=40)
    for _ in range(5):
        stream = copier.submit(request_of(copier.model))
        for _, _ in zip(range(8), stream, strict=False):
            pass
        stream.close()
    while copier.busy:
        time.sleep(0.001)
    assert copier.metrics().requests == 0
    with Engine(Model(models[1]), n_ctx=2048, threads=1) as plain:
        ours, theirs = (engine.submit(kept).result() for engine in (copier, plain))
        assert_same(plain.model, kept, ours, theirs)


@pytest.mark.usefixtures("may_loop")
@pytest.mark.parametrize("short", range(3))
def test_a_full_context_ends_the_reply_and_not_the_draft(models: list[Path], short: int) -> None:
    """The model repeats itself here, so that drafts reach to the very end."""
    with (
        Engine(Model(models[0]), n_ctx=256, threads=1, drafter=Drafter(FREE, LOOKUP)) as drafting,
        Engine(Model(models[0]), n_ctx=256, threads=1) as plain,
    ):
        constraint = Constraint("start: /(ab){200,400}/")
        request = request_of(plain.model, "ab" * short, constraint=constraint)
        ours, theirs = (e.submit(request).result() for e in (drafting, plain))
        assert ours.finish_reason == "length"
        assert ours.usage.completion_tokens == drafting.n_ctx - len(request.prompt)
        assert_same(plain.model, request, ours, theirs)


def test_a_model_that_cannot_go_back_is_not_drafted_for(tmp_path: Path) -> None:
    path = write_tiny_mamba(tmp_path / "mamba.gguf", context=2048)
    with drafting_engine(path) as engine:
        constraint = Constraint("start: /[ab]{60}/")  # it soon repeats itself
        usage = engine.submit(request_of(engine.model, constraint=constraint)).result().usage
        read = usage.prompt_tokens + usage.completion_tokens
        assert read - 1 <= engine.metrics().tokens <= read


def test_wrong_guesses_end_drafting(scripted: Path) -> None:
    """The prompt has the reply's words, with others after them."""
    trap = "Yes: Grxyz, Grüße aus Bonn, Köln: 12345 and good day, and good-bye?"
    with drafting_engine(scripted, costs=CPU) as engine:
        wasted = []
        for _ in range(5):
            before = engine.metrics().tokens
            usage = engine.submit(request_of(engine.model, trap)).result().usage
            read = usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens - 1
            wasted.append(engine.metrics().tokens - before - read)
        assert wasted[0] > 2 * wasted[-1] > 0


# --- A smaller tier drafts ----------------------------------------------------------------------


def test_equal_models_agree(models: list[Path]) -> None:
    """Every draft of a model with the same weights is right."""
    with (
        Engine(Model(models[0]), n_ctx=2048, threads=1, drafter=Drafter(FREE)) as smaller,
        drafting_engine(models[0], {"smaller": 2.0}, costs={1: 10.0, 16: 11.0}) as larger,
        Engine(Model(models[0]), n_ctx=2048, threads=1) as plain,
    ):
        assert larger.draft_with(smaller)
        request = request_of(plain.model, max_tokens=97)
        smaller.submit(replace(request, max_tokens=1)).result()  # as in a cascade
        before = larger.metrics()
        done = larger.submit(request).result()
        assert_same(plain.model, request, done, plain.submit(request).result())
        steps = larger.metrics().steps - before.steps
        assert steps <= 2 + 97 / 8  # a near-tie may cost the rest of a draft
        assert smaller.metrics().cached_tokens > len(request.prompt)


@pytest.mark.parametrize("fields", REQUESTS)
@pytest.mark.parametrize("lookup", [{}, LOOKUP])
def test_another_model_changes_no_reply(
    models: list[Path], fields: dict[str, Any], lookup: dict[str, float]
) -> None:
    gains = {"smaller": 2.0, **lookup}
    with (
        Engine(Model(models[2]), n_ctx=2048, threads=1, drafter=Drafter(FREE)) as smaller,
        drafting_engine(models[3], gains, costs={1: 1000.0, 16: 1001.0}) as larger,
        Engine(Model(models[3]), n_ctx=2048, threads=1) as plain,
    ):
        assert larger.draft_with(smaller)
        for text in (TEXT, "abc", "abcabcabc"):
            request = request_of(plain.model, text, **fields)
            ours, theirs = (engine.submit(request).result() for engine in (larger, plain))
            assert_same(plain.model, request, ours, theirs)
        assert smaller.metrics().requests > 3  # it was asked indeed


def test_wrong_guesses_take_no_cached_prompts(models: list[Path]) -> None:
    """The smaller model reads on where it was, and leaves others' sequences alone."""
    with (
        Engine(Model(models[2]), n_ctx=2048, threads=1, drafter=Drafter(FREE)) as smaller,
        drafting_engine(models[3], {"smaller": 2.0}, costs={1: 1000.0, 16: 1001.0}) as larger,
    ):
        assert larger.draft_with(smaller)
        kept = request_of(smaller.model, "Paris is the weather " * 5, max_tokens=5)
        smaller.submit(kept).result()
        larger.submit(request_of(larger.model, max_tokens=200)).result()
        assert smaller.metrics().requests > 30
        assert smaller.metrics().evictions == 0
        assert smaller.cached_prefix(kept.prompt) == len(kept.prompt) - 1


def test_a_smaller_tier_that_costs_too_much_is_not_asked(models: list[Path]) -> None:
    with (
        Engine(Model(models[0]), n_ctx=2048, threads=1, drafter=Drafter(CPU)) as smaller,
        drafting_engine(models[0], {"smaller": 2.0}, costs=CPU) as larger,
    ):
        assert larger.draft_with(smaller)
        larger.submit(request_of(larger.model, max_tokens=40)).result()
        assert smaller.metrics().requests == 0


def test_a_smaller_tier_of_unknown_cost_is_not_asked(models: list[Path]) -> None:
    """Its profile was made with other threads, say, or is gone."""
    with (
        Engine(Model(models[0]), n_ctx=2048, threads=1) as smaller,
        drafting_engine(models[0], {"smaller": 2.0}, costs=CPU) as larger,
    ):
        assert larger.draft_with(smaller)
        assert larger.submit(request_of(larger.model, max_tokens=40)).result().tokens
        assert smaller.metrics().requests == 0


def test_a_prompt_is_read_twice_only_where_the_reply_is_long(models: list[Path]) -> None:
    """The smaller model begins when its reading costs no more than the reply has so far."""
    slow = {1: 1.0, 2: 2.0}  # a token of the prompt costs a tenth of one of the reply
    with (
        Engine(Model(models[0]), n_ctx=2048, threads=1, drafter=Drafter(slow)) as smaller,
        drafting_engine(models[0], {"smaller": 2.0}, costs={1: 10.0, 16: 10.0}) as larger,
    ):
        larger.draft_with(smaller)
        request = request_of(larger.model, "abc" * 100)
        wait = len(request.prompt) // 10
        larger.submit(replace(request, max_tokens=wait - 5)).result()
        assert smaller.metrics().requests == 0
        larger.submit(replace(request, max_tokens=wait + 40)).result()
        assert smaller.metrics().requests > 0


def test_a_smaller_tier_may_be_busy_or_go(models: list[Path]) -> None:
    with (
        drafting_engine(models[0], {"smaller": 2.0}, costs={1: 1000.0, 16: 1001.0}) as larger,
        Engine(Model(models[0]), n_ctx=2048, threads=1) as plain,
    ):
        smaller = Engine(Model(models[1]), n_ctx=2048, threads=1, drafter=Drafter(FREE))
        larger.draft_with(smaller)
        requests = [request_of(plain.model, f"{n} {TEXT}", max_tokens=200) for n in range(4)]
        own = smaller.submit(requests[0])  # its own callers come first
        replies = [larger.submit(requests[0]).result()]
        assert own.result().usage.completion_tokens > 0
        stream = larger.submit(requests[1])
        pieces = iter(stream)
        next(pieces)
        smaller.close()
        replies += [stream.result(), larger.submit(requests[2]).result()]
        del smaller
        replies.append(larger.submit(requests[3]).result())
        for request, reply in zip(requests, replies, strict=True):
            assert_same(plain.model, request, reply, plain.submit(request).result())


def test_a_busy_engine_guesses_nothing(models: list[Path]) -> None:
    with Engine(Model(models[0]), n_ctx=2048, threads=1, drafter=Drafter(FREE)) as engine:
        guesser = DraftEngine(engine)
        prompt = request_of(engine.model).prompt
        assert len(guesser.guess(prompt, 3)) == 3
        endless = Constraint("start: /[a-z]{1500}/")
        stream = engine.submit(request_of(engine.model, constraint=endless))
        assert guesser.guess(prompt, 3) == []
        assert engine.busy
        stream.close()
        while engine.busy:
            time.sleep(0.001)
        assert len(guesser.guess(prompt, 3)) == 3
        assert guesser.lag(prompt) == 1
    assert guesser.guess(prompt, 3) == []


@pytest.mark.parametrize(("lookup", "asked"), [(LOOKUP, 0), ({}, 1)])
def test_what_should_save_more_drafts(
    models: list[Path], lookup: dict[str, float], asked: int
) -> None:
    with Engine(Model(models[0]), n_ctx=512, threads=1, drafter=Drafter({1: 1.0, 16: 2.0})) as one:
        drafter = Drafter({1: 10.0, 64: 10.0}, {"smaller": 2.0, **lookup})
        drafter.smaller = DraftEngine(one)
        reply = generation_of(one.model, "xabcdefghijklm xyz abcdefghijklm")
        drafter.prepare([reply], 512)
        assert reply.draft
        assert one.metrics().requests == asked


def test_a_smaller_context_is_no_error(models: list[Path]) -> None:
    with (
        Engine(Model(models[0]), n_ctx=256, threads=1, drafter=Drafter(FREE)) as smaller,
        drafting_engine(models[0], {"smaller": 2.0}, costs={1: 1000.0, 16: 1001.0}) as larger,
    ):
        larger.draft_with(smaller)
        request = request_of(larger.model, max_tokens=400)
        assert larger.submit(request).result().usage.completion_tokens > 0


def test_another_vocabulary_cannot_draft(models: list[Path], scripted: Path) -> None:
    with (
        Engine(Model(scripted), n_ctx=512, threads=1, drafter=Drafter(FREE)) as stranger,
        drafting_engine(models[0], {"smaller": 2.0}) as larger,
    ):
        assert not larger.draft_with(stranger)
        assert larger.drafter.smaller is None


# --- Hints --------------------------------------------------------------------------------------


def test_a_hint_is_followed_as_long_as_the_reply_agrees() -> None:
    prompt = [7, 8, 9]
    hint = Hint([1, 2, 3, 4, 5, 6], len(prompt))
    assert hint.guess(prompt, 4) == (0, [1, 2, 3, 4])
    assert hint.guess([*prompt, 1, 2], 2) == (2, [3, 4])
    assert hint.guess([*prompt, 1, 2, 3, 4, 5, 6], 4) == (6, [])
    assert hint.guess([*prompt, 1, 2, 3, 4, 5, 6, 7], 4) == (0, [])
    assert Hint([], 3).guess(prompt, 4) == (0, [])


def test_after_a_disagreement_it_is_taken_up_again() -> None:
    tokens = [*range(10, 20), 50, 51, *range(20, 30)]
    hint = Hint(tokens, 0)
    reply = [*range(10, 20), 60]
    assert hint.guess(reply, 3) == (0, [])
    assert hint.guess([*reply, 20, 21], 3) == (0, [])  # two tokens are not enough
    assert hint.guess([*reply, 20, 21, 22], 3) == (3, [23, 24, 25])
    assert hint.guess([*reply, *range(20, 25)], 3) == (5, [25, 26, 27])
    assert hint.guess([*reply, *range(20, 25), 61], 3) == (0, [])
    # The prompt is no part of the reply, whatever it says.
    assert Hint([4, 1, 2, 3, 9], 3).guess([1, 2, 3], 2) == (0, [4, 1])
    assert Hint([4, 1, 2, 3, 9], 3).guess([1, 2, 3, 5], 2) == (0, [])


def test_of_places_that_fit_alike_it_goes_on_behind_what_is_done() -> None:
    passage = [1, 2, 3]
    tokens = [*passage, 70, *passage, 80, *passage, 90]
    hint = Hint(tokens, 0)
    assert hint.guess([*passage, 70, 5], 1) == (0, [])
    assert hint.guess([*passage, 70, 5, *passage], 1) == (3, [80])
    longer = Hint([*passage, 70, 6, *passage, 80], 0)
    assert longer.guess([5, 6, *passage], 1) == (4, [80])
    assert Hint(tokens, 0).guess([5, *passage], 1) == (3, [70])


def hinted(engine: Engine, request: GenerationRequest, hint: Sequence[int]) -> Generated:
    return engine.submit(replace(request, hint=tuple(hint))).result()


def steps_of(engine: Engine, request: GenerationRequest, hint: Sequence[int] = ()) -> int:
    before = engine.metrics().steps
    hinted(engine, request, hint)
    return engine.metrics().steps - before


@pytest.mark.parametrize("drafter", [None, (FREE, {}), (CPU, LOOKUP)])
@pytest.mark.parametrize("fields", REQUESTS)
def test_hints_leave_the_reply_as_it_is(
    models: list[Path], fields: dict[str, Any], drafter: tuple[Any, Any] | None
) -> None:
    """Hints that are right, wrong somewhere, another model's, and nonsense."""
    rng = random.Random(1)
    with (
        Engine(Model(models[0]), n_ctx=2048, threads=1) as plain,
        Engine(Model(models[1]), n_ctx=2048, threads=1) as other,
        Engine(
            Model(models[0]), n_ctx=2048, threads=1, drafter=Drafter(*drafter) if drafter else None
        ) as engine,
    ):
        size = plain.model.vocab_size
        for text in (TEXT, "abc"):
            request = request_of(plain.model, text, **fields)
            right = plain.submit(request).result()
            mended = list(right.tokens)
            for _ in range(3):
                mended[rng.randrange(len(mended))] = rng.randrange(size)
            strange = other.submit(request).result().tokens
            nonsense = [rng.randrange(size) for _ in range(40)]
            beyond = [*right.tokens[:5], size, -1, *right.tokens[5:]]
            for hint in (right.tokens, mended, strange, nonsense, right.tokens * 2, beyond):
                for whole in (True, False):
                    stream = engine.submit(replace(request, hint=tuple(hint)))
                    stream.mailbox.whole = whole
                    if not whole:
                        list(stream)
                    assert_same(plain.model, request, stream.result(), right)


@pytest.mark.parametrize("drafter", [Drafter(), Drafter(CPU), Drafter(CPU, LOOKUP)])
def test_a_hint_saves_steps(models: list[Path], drafter: Drafter) -> None:
    with Engine(Model(models[0]), n_ctx=2048, threads=1, drafter=drafter) as engine:
        request = request_of(engine.model, max_tokens=60)
        tokens = engine.submit(request).result().tokens
        assert steps_of(engine, request) >= (60 if drafter.gains == {} else 10)
        right = hinted(engine, request, tokens)
        assert right.tokens == tokens
        assert steps_of(engine, request, tokens) <= 6
        assert right.usage.reused_tokens >= 54
        # It is read with the prompt, where nobody waits for a first token.
        assert steps_of(engine, replace(request, max_tokens=10), tokens) == 1
        # One wrong token costs little: the rest is taken up again.
        mended = [*tokens[:20], (tokens[20] + 1) % 250, *tokens[21:]]
        assert steps_of(engine, request, mended) < 20
        assert hinted(engine, request, mended).usage.reused_tokens > 30
        assert engine.submit(request).result().usage.reused_tokens == 0


def test_what_a_grammar_forces_is_not_counted_as_reused(models: list[Path]) -> None:
    with Engine(Model(models[0]), n_ctx=2048, threads=1) as engine:
        request = request_of(engine.model, constraint=PERSON)
        plain = engine.submit(request).result()
        done = hinted(engine, request, plain.tokens)
        assert done.tokens == plain.tokens and done.usage.forced_tokens == plain.usage.forced_tokens
        chosen = done.usage.completion_tokens - done.usage.forced_tokens
        assert chosen / 2 < done.usage.reused_tokens <= chosen
        assert steps_of(engine, request, plain.tokens) < steps_of(engine, request) / 2


def test_hints_that_are_always_wrong_are_left_alone(models: list[Path]) -> None:
    with Engine(Model(models[0]), n_ctx=2048, threads=1, drafter=Drafter(CPU)) as engine:
        request = request_of(engine.model, max_tokens=30)
        tokens = engine.submit(request).result().tokens
        wrong = [(token + 1) % 250 for token in tokens]
        wasted = []
        for _ in range(30):
            before = engine.metrics().tokens
            hinted(engine, request, wrong)
            wasted.append(engine.metrics().tokens - before)
        assert wasted[0] > wasted[-1] == min(wasted)


def test_sampled_replies_take_no_hint(models: list[Path]) -> None:
    with Engine(Model(models[0]), n_ctx=2048, threads=1) as engine:
        request = request_of(engine.model, sampling=Sampling(temperature=0.01, seed=3))
        request = replace(request, max_tokens=40)
        tokens = engine.submit(request).result().tokens
        done = hinted(engine, request, tokens)
        assert done.tokens == tokens and done.usage.reused_tokens == 0
        assert steps_of(engine, request, tokens) >= 40


def test_a_model_that_cannot_go_back_takes_no_hint(tmp_path: Path) -> None:
    path = write_tiny_mamba(tmp_path / "mamba.gguf", context=2048)
    with Engine(Model(path), n_ctx=2048, threads=1) as engine:
        request = request_of(engine.model, max_tokens=20, constraint=Constraint("start: /[ab]{9}/"))
        tokens = engine.submit(request).result().tokens
        done = hinted(engine, request, [*tokens[:4], 5, 6, 7])
        assert done.tokens == tokens and done.usage.reused_tokens == 0


# --- In the pool --------------------------------------------------------------------------------


@pytest.fixture
def family(models: list[Path], tmp_path: Path) -> Family:
    names = {"small": models[0], "large": models[1]}
    return make_family(tmp_path, [TierSpec(name, file) for name, file in names.items()])


def save_gains(family: Family, gains: dict[str, float], *, threads: int = 1) -> None:
    for tier in family.tiers:
        profile = load_profile(tier.sha256)
        assert profile is not None
        update = {"threads": threads, "step_s": {1: 1000.0, 16: 1001.0}}
        if tier.name == "large":
            update["drafting"] = gains
        else:
            update["step_s"] = {1: 1.0, 16: 2.0}
        save_profile(profile.model_copy(update=update))


def pool_of(family: Family) -> Pool:
    plenty = Resources(available_bytes=4 * 2**30, total_bytes=8 * 2**30, threads=1)
    return Pool(family, probe=lambda: plenty, threads=1)


@pytest.mark.parametrize("order", [("small", "large"), ("large", "small")])
def test_resident_tiers_draft_for_larger_ones(family: Family, order: tuple[str, str]) -> None:
    save_gains(family, {family.tier("small").sha256: 1.3})
    with pool_of(family) as pool:
        for name in order:
            pool.acquire(name, context_tokens=1000).release()
        with pool.acquire("large", context_tokens=1000) as large:
            request = request_of(large.tier.model, max_tokens=60)
            large.tier.engine.submit(request).result()
            with pool.acquire("small", context_tokens=1000) as small:
                assert small.tier.engine.metrics().requests > 0
                assert small.tier.engine.drafter.smaller is None


@pytest.mark.parametrize("gain", [1.3, 1.0])
def test_a_tier_is_drafted_for_where_its_profile_measured_a_gain(
    family: Family, gain: float
) -> None:
    save_gains(family, {PROMPT_LOOKUP: gain})
    with pool_of(family) as pool, pool.acquire("large", context_tokens=1000) as lease:
        request = request_of(lease.tier.model, max_tokens=200)
        count = lease.tier.engine.submit(request).result().usage.completion_tokens
        assert (lease.tier.engine.metrics().steps < count) == (gain > 1.05)


def test_a_profile_with_other_threads_tells_nothing(family: Family) -> None:
    save_gains(family, {PROMPT_LOOKUP: 2.0}, threads=7)
    with pool_of(family) as pool, pool.acquire("large", context_tokens=1000) as lease:
        assert not lease.tier.engine.drafter.gains
