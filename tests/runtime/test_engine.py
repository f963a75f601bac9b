"""The engine: right replies, whatever other callers do, and nothing left running."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_calls import answer, ask
from tiny_mamba import write_tiny_mamba
from tiny_models import write_scripted_gguf, write_tiny_gguf

from tierwise.runtime.chat import Sampling
from tierwise.runtime.engine import Engine
from tierwise.runtime.errors import (
    CallTimeoutError,
    ContextOverflowError,
    EngineClosedError,
    ToolSchemaError,
)
from tierwise.runtime.generation import GenerationRequest
from tierwise.runtime.grammar import Constraint
from tierwise.runtime.llama import Model
from tierwise.runtime.loops import LOOP_TOKENS

REPLY = "Grüße aus Köln: 🎉 and good-bye."
SCRIPT = {"": REPLY, "KEYA": "Alpha is first.", "KEYB": '{"b": 2} and more', "KEYC": "Third, C."}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted_gguf(tmp_path_factory.mktemp("models") / "scripted.gguf", SCRIPT)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that ramble to the end of a long context."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "chatty.gguf", context=2048)


@pytest.fixture
def engine(scripted: Path) -> Iterator[Engine]:
    with Engine(Model(scripted), n_ctx=1024, threads=1) as opened:
        yield opened


@pytest.fixture
def rambler(chatty: Path) -> Iterator[Engine]:
    with Engine(Model(chatty), n_ctx=2048, threads=1) as opened:
        yield opened


def json_schema(schema: Any) -> Constraint:
    style = {"whitespace_flexible": False}  # else a greedy model may like spaces for ever
    return Constraint(f"start: %json {json.dumps({**schema, 'x-guidance': style})}")


# --- Replies ------------------------------------------------------------------------------------


def test_the_reply_is_what_the_model_says(engine: Engine) -> None:
    done = engine.submit(ask(engine)).result()
    assert done.text == REPLY
    assert done.finish_reason == "stop"
    assert done.confidence > 0.99
    assert done.usage.prompt_tokens == len(ask(engine).prompt)
    assert done.usage.completion_tokens == len(REPLY.encode())  # one token a byte
    assert done.usage.forced_tokens == done.usage.cached_tokens == 0
    assert done.usage.prefill_s > 0 and done.usage.decode_s > 0 and done.usage.queue_s >= 0


def test_the_pieces_of_a_stream_make_the_reply(engine: Engine) -> None:
    stream = engine.submit(ask(engine))
    pieces = [delta.text for delta in stream]
    assert "".join(pieces) == REPLY == stream.result().text
    assert "🎉" in pieces and all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) == len(REPLY)  # each as soon as it is known


def test_a_result_may_be_asked_for_twice(engine: Engine) -> None:
    stream = engine.submit(ask(engine))
    assert stream.result() is stream.result()
    assert list(stream) == []


def test_a_stop_text_ends_the_reply(engine: Engine) -> None:
    stream = engine.submit(ask(engine, stop=("Köln", "nowhere")))
    assert "".join(delta.text for delta in stream) == "Grüße aus "
    done = stream.result()
    assert (done.text, done.finish_reason) == ("Grüße aus ", "stop")
    assert answer(engine, stop=("no such text",)) == REPLY


@pytest.mark.parametrize("limit", [0, 1, 5, 10])
def test_max_tokens_ends_the_reply(engine: Engine, limit: int) -> None:
    done = engine.submit(ask(engine, max_tokens=limit)).result()
    assert done.finish_reason == "length"
    assert done.usage.completion_tokens == limit
    assert done.text == REPLY.encode()[:limit].decode(errors="replace")


def test_the_context_is_the_last_limit(scripted: Path) -> None:
    with Engine(Model(scripted), n_ctx=256, threads=1) as engine:
        room = 256 - len(ask(engine, "").prompt)
        filled = "x" * (room - 5)
        done = engine.submit(ask(engine, filled)).result()
        assert (done.finish_reason, done.usage.completion_tokens) == ("length", 5)
        assert answer(engine, max_tokens=10_000) == REPLY
        with pytest.raises(ContextOverflowError, match=r"256 tokens and the context 256.*Shorten"):
            answer(engine, "x" * room)
        assert answer(engine) == REPLY


# --- The prefix cache ---------------------------------------------------------------------------


def test_a_repeated_prompt_is_all_but_read_again(engine: Engine) -> None:
    first, second = (engine.submit(ask(engine)).result() for _ in range(2))
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == second.usage.prompt_tokens - 1
    assert second.text == first.text == REPLY


def test_a_conversation_goes_on_where_it_ended(rambler: Engine) -> None:
    first = rambler.submit(ask(rambler, max_tokens=30)).result()
    said = (*ask(rambler).prompt, *rambler.model.tokenize("and then?"))
    assert rambler.cached_prefix(said) == len(ask(rambler).prompt)
    second = rambler.submit(GenerationRequest(said, max_tokens=5)).result()
    assert second.usage.cached_tokens == len(ask(rambler).prompt)
    assert first.usage.cached_tokens == 0


def test_what_was_generated_is_cached_too(engine: Engine) -> None:
    answer(engine)
    prompt = ask(engine).prompt
    turn = (*prompt, *engine.model.tokenize(REPLY))
    assert engine.cached_prefix((*turn, 1, 2, 3)) == len(turn)


@pytest.mark.parametrize("seed", range(3))
def test_a_used_engine_answers_as_a_fresh_one(chatty: Path, seed: int) -> None:
    """Prompts that share beginnings, in random order, some cut short."""
    rng = random.Random(seed)
    texts = ["abc", "abcd", "abcdabcd", "abx", "b", "abc" * 40]
    requests: list[dict[str, Any]] = [
        {"text": rng.choice(texts), "max_tokens": rng.choice((1, 9, 20))} for _ in range(12)
    ]
    with Engine(Model(chatty), n_ctx=2048, threads=1) as used:
        for fields in requests:
            reply = used.submit(ask(used, **fields)).result()
            with Engine(Model(chatty), n_ctx=2048, threads=1) as fresh:
                assert fresh.submit(ask(fresh, **fields)).result().text == reply.text


def test_a_model_that_cannot_go_back_reads_all_again(tmp_path: Path) -> None:
    """Recurrent models have one state, not one per token."""
    path = write_tiny_mamba(tmp_path / "mamba.gguf")
    with Engine(Model(path), n_ctx=512, threads=1) as engine:
        expected = [answer(engine, text, max_tokens=12) for text in ("abc", "abd")]
    with Engine(Model(path), n_ctx=512, threads=1) as engine:
        for text, reply in zip(
            ("abc", "abc", "abd", "abc"), expected[:1] * 2 + expected[1:], strict=False
        ):
            done = engine.submit(ask(engine, text, max_tokens=12)).result()
            assert done.text == reply
            assert done.usage.cached_tokens == 0
        # A prompt that goes on after all that was read needs no going back.
        done = engine.submit(ask(engine, "abc", max_tokens=12)).result()
        read = (*ask(engine, "abc").prompt, *engine.model.tokenize(done.text))[:-1]
        said = (*read, *engine.model.tokenize("more"))
        if engine.cached_prefix(said) == len(read):  # the text gives back the very tokens
            done = engine.submit(GenerationRequest(said, max_tokens=1)).result()
            assert done.usage.cached_tokens == len(read)


# --- Grammars -----------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "ü"]}, "maxItems": 3},
        "boss": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "boss"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
def test_constrained_replies_always_fit_the_schema(rambler: Engine, temperature: float) -> None:
    replies = set()
    for seed in range(8):
        sampling = Sampling(temperature, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        request = ask(rambler, str(seed), constraint=json_schema(PERSON), sampling=sampling)
        done = rambler.submit(request).result()
        assert done.finish_reason == "stop"
        value = json.loads(done.text)
        assert set(value) == {"name", "age", "tags", "boss"}
        assert len(value["name"]) <= 12 and 0 <= value["age"] <= 150
        assert len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b", "ü"}
        assert value["boss"] in (None, True, False)
        replies.add(done.text)
    assert len(replies) > 2


def test_forced_tokens_are_counted_and_not_drawn(engine: Engine) -> None:
    text = '{"answer": "yes", "more": "🎉"}'
    done = engine.submit(ask(engine, constraint=Constraint(f"start: {json.dumps(text)}"))).result()
    assert done.text == text and done.finish_reason == "stop"
    assert done.usage.forced_tokens == done.usage.completion_tokens == len(text.encode())
    assert done.confidence == 1.0  # the model chose nothing

    either = Constraint('start: "Gr" ("ap" | "üß") "e aus Köln"')
    done = engine.submit(ask(engine, constraint=either)).result()
    assert done.text == "Grüße aus Köln"
    assert 0 < done.usage.forced_tokens < done.usage.completion_tokens


def test_forced_text_is_streamed(engine: Engine) -> None:
    stream = engine.submit(ask(engine, constraint=Constraint('start: "forced 🎉 text"')))
    deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == "forced 🎉 text"


def test_a_constrained_reply_that_goes_round_in_circles_ends(tmp_path: Path) -> None:
    path = write_scripted_gguf(tmp_path / "loop.gguf", "round we go, ", endless=[""])
    with Engine(Model(path), n_ctx=512, threads=1) as engine:
        free = engine.submit(ask(engine, max_tokens=200)).result()
        assert (free.finish_reason, free.usage.completion_tokens) == ("length", 200)
        held = engine.submit(ask(engine, constraint=Constraint("start: /[a-z, ]*/"))).result()
        assert held.finish_reason == "loop"
        assert held.usage.completion_tokens == len("round we go, ") + LOOP_TOKENS
        assert free.text.startswith(held.text)


def test_a_complete_reply_is_complete_at_its_last_token(engine: Engine) -> None:
    constraint = Constraint('start: "abcd"')
    for limit, text, finish in ((3, "abc", "length"), (4, "abcd", "stop"), (5, "abcd", "stop")):
        done = engine.submit(ask(engine, constraint=constraint, max_tokens=limit)).result()
        assert (done.text, done.finish_reason) == (text, finish)
        assert done.usage.completion_tokens == len(text)


def test_a_stop_text_ends_forced_text_too(engine: Engine) -> None:
    constraint = Constraint('start: "one two three" /[a-z]+/')
    stream = engine.submit(ask(engine, constraint=constraint, stop=(" tw",)))
    assert "".join(delta.text for delta in stream) == "one" == stream.result().text
    assert stream.result().finish_reason == "stop"
    assert stream.result().usage.completion_tokens == len("one two three")  # and nothing drawn


def test_a_grammar_may_leave_the_end_open(engine: Engine) -> None:
    """The model may go on or end: here it ends where its script does."""
    done = engine.submit(
        ask(engine, "KEYA", constraint=Constraint("start: /[A-Za-z. ]*/"))
    ).result()
    assert (done.text, done.finish_reason) == (SCRIPT["KEYA"], "stop")


def test_a_grammar_that_does_not_compile_is_told_at_once(engine: Engine) -> None:
    with pytest.raises(ToolSchemaError, match="cannot be compiled"):
        engine.submit(ask(engine, constraint=Constraint("start: nowhere")))
    assert answer(engine) == REPLY


# --- Callers ------------------------------------------------------------------------------------


def test_a_seed_makes_a_reply_repeatable(rambler: Engine) -> None:
    def reply(seed: int | None) -> str:
        sampling = Sampling(temperature=1.5, seed=seed)
        return answer(rambler, sampling=sampling, max_tokens=40)

    assert reply(3) == reply(3)
    assert len({reply(seed) for seed in (3, 4, None, None)}) == 4


def test_many_threads_get_their_own_answers(engine: Engine) -> None:
    wrong: list[str] = []

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(6):
            key = rng.choice(list(SCRIPT))
            stream = engine.submit(ask(engine, f"{seed} {key}"))
            text = "".join(d.text for d in stream) if rng.random() < 0.5 else stream.result().text
            if text != SCRIPT[key]:
                wrong.append(text)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not engine.busy


def test_requests_join_in_order(engine: Engine) -> None:
    streams = [engine.submit(ask(engine, key)) for key in [*SCRIPT] * 4]
    assert engine.busy
    assert [stream.result().text for stream in streams] == [*SCRIPT.values()] * 4
    joined = [stream.submitted + stream.result().usage.queue_s for stream in streams]
    assert joined == sorted(joined)


def test_a_bad_request_harms_no_other(engine: Engine) -> None:
    bad = engine.submit(replace(ask(engine), prompt=(5,) * 5000))
    late = engine.submit(ask(engine, deadline=time.monotonic() - 1))
    good = engine.submit(ask(engine))
    assert good.result().text == REPLY
    with pytest.raises(ContextOverflowError):
        bad.result()
    with pytest.raises(CallTimeoutError):
        late.result()
    with pytest.raises(ContextOverflowError):  # as often as one asks
        bad.result()


def test_a_deadline_ends_a_generation(rambler: Engine) -> None:
    stream = rambler.submit(ask(rambler, deadline=time.monotonic() + 0.05))
    with pytest.raises(CallTimeoutError, match="Allow more time"):
        stream.result()
    assert rambler.submit(ask(rambler, max_tokens=3)).result().usage.completion_tokens == 3


def test_a_deadline_holds_while_a_request_waits(rambler: Engine) -> None:
    first = rambler.submit(ask(rambler))  # to the end of the context
    second = rambler.submit(ask(rambler, deadline=time.monotonic()))
    with pytest.raises(CallTimeoutError):
        second.result()
    assert rambler.busy  # the first still runs: nobody waited for it
    assert first.result().finish_reason == "length"


def test_a_deadline_that_is_kept_changes_nothing(engine: Engine) -> None:
    assert answer(engine, deadline=time.monotonic() + 600) == REPLY


def test_a_reply_ends_when_its_time_is_over(rambler: Engine) -> None:
    done = rambler.submit(ask(rambler, until=time.monotonic() + 0.05)).result()
    assert done.finish_reason == "length" and 1 <= done.usage.completion_tokens < 1500
    at_once = rambler.submit(ask(rambler, until=time.monotonic() - 1)).result()
    assert (at_once.finish_reason, at_once.usage.completion_tokens) == ("length", 1)
    whole = rambler.submit(ask(rambler, max_tokens=9, until=time.monotonic() + 60)).result()
    assert whole.usage.completion_tokens == 9


def test_time_that_suffices_changes_nothing(engine: Engine) -> None:
    assert answer(engine, until=time.monotonic() + 600) == REPLY


@pytest.mark.parametrize("how", ["close", "with", "break", "drop iterator", "drop"])
def test_leaving_a_stream_frees_the_engine(rambler: Engine, how: str) -> None:
    kept = [rambler.submit(ask(rambler))]
    if how == "close":
        next(iter(kept[0]))
        kept[0].close()
    elif how == "with":
        with kept[0]:
            next(iter(kept[0]))
    elif how == "break":
        for _ in kept[0]:
            break
    elif how == "drop iterator":
        iterator = iter(kept[0])
        next(iterator)
        del iterator
    else:
        kept.clear()
    gc.collect()
    while rambler.busy:
        time.sleep(0.001)
    # It would have filled the context, had it run to its end.
    assert rambler.metrics().tokens < rambler.n_ctx // 2
    assert rambler.metrics().requests == 0


def test_a_cancelled_stream_says_so(rambler: Engine) -> None:
    stream = rambler.submit(ask(rambler))
    next(iter(stream))
    stream.close()
    with pytest.raises(EngineClosedError, match="cancelled"):
        stream.result()


def test_a_request_cancelled_while_it_waits_never_runs(rambler: Engine) -> None:
    first = rambler.submit(ask(rambler, max_tokens=300))
    second = rambler.submit(ask(rambler, "other"))
    second.close()
    assert first.result().usage.completion_tokens == 300
    with pytest.raises(EngineClosedError):
        second.result()


# --- The end ------------------------------------------------------------------------------------


def test_closing_ends_what_runs_and_what_waits(rambler: Engine) -> None:
    streams = [rambler.submit(ask(rambler, str(index))) for index in range(4)]
    next(iter(streams[0]))
    rambler.close()
    for stream in streams[1:]:
        with pytest.raises(EngineClosedError):
            stream.result()
    rambler.close()
    assert not rambler._thread.is_alive()
    constraint = Constraint('start: "never compiled before"')
    for request in ({}, {"constraint": constraint}):
        with pytest.raises(EngineClosedError, match="unloaded"):
            rambler.submit(GenerationRequest((5,), **request))  # type: ignore[arg-type]


def test_closing_while_others_compile_is_safe(scripted: Path) -> None:
    """A grammar that is compiled reads the vocabulary, which `close` frees."""
    for _ in range(5):
        engine = Engine(Model(scripted), n_ctx=256, threads=1)
        request = ask(engine)

        def compile_some(engine: Engine = engine, request: GenerationRequest = request) -> None:
            for index in range(10_000):
                constraint = Constraint(f'start: "text {index}"')
                try:
                    engine.submit(replace(request, constraint=constraint))
                except EngineClosedError:
                    return

        threads = [threading.Thread(target=compile_some) for _ in range(3)]
        for thread in threads:
            thread.start()
        engine.submit(request).result()
        engine.close()
        for thread in threads:
            thread.join()


def test_a_dropped_engine_ends_its_thread(scripted: Path) -> None:
    engine = Engine(Model(scripted), n_ctx=256, threads=1)
    assert answer(engine) == REPLY
    thread = engine._thread
    del engine
    gc.collect()
    thread.join(timeout=120)
    assert not thread.is_alive()


def test_an_engine_dropped_while_it_works_finishes_its_requests(scripted: Path) -> None:
    engine = Engine(Model(scripted), n_ctx=256, threads=1)
    streams = [engine.submit(ask(engine)) for _ in range(12)]
    thread = engine._thread
    del engine
    assert [stream.result().text for stream in streams] == [REPLY] * 12
    streams.clear()
    gc.collect()
    thread.join(timeout=120)
    assert not thread.is_alive()


EXIT = """
import atexit, sys, threading
from pathlib import Path
atexit.register(lambda: print("running" if worker.is_alive() else "ended"))  # called last
from tierwise.runtime.engine import Engine
from tierwise.runtime.generation import GenerationRequest
from tierwise.runtime.llama import Model

engine = Engine(Model(Path(sys.argv[1])), n_ctx=2048, threads=1)
worker = engine._thread
streams = [engine.submit(GenerationRequest((5, 6, 7))) for _ in range(3)]
next(iter_0 := iter(streams[0]))
if sys.argv[2] == "waiter":
    threading.Thread(target=lambda: streams[1].result(), daemon=True).start()
if sys.argv[2] == "raise":
    raise SystemExit(3)
if sys.argv[2] == "iterate":
    del engine
print("bye")
"""


@pytest.mark.parametrize("how", ["plain", "waiter", "raise", "iterate"])
def test_the_interpreter_exits_during_a_generation(chatty: Path, how: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", EXIT, str(chatty), how],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    expected = (3, "ended\n") if how == "raise" else (0, "bye\nended\n")
    assert (run.returncode, run.stdout) == expected, run.stderr
    if how != "waiter":  # there, the other thread may have time to report its error
        assert run.stderr == ""
