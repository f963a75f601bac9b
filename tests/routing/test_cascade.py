"""Whole calls on families of scripted tiers: real files, pool, engine, template and grammar."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from family_factory import TierSpec, make_family
from gguf_writer import CHATML_THINKING
from scripted_model import write_scripted_gguf

from tierwise.routing.answer import Answer
from tierwise.routing.budget import Budget
from tierwise.routing.cascade import (
    _Cascade,
    aanswer,
    answer,
    astream_answer,
    stream_answer,
)
from tierwise.routing.decision import Forecast
from tierwise.routing.policy import feasible_first
from tierwise.routing.router import Router
from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.errors import (
    CallTimeoutError,
    ContextOverflowError,
    FamilyIncompleteError,
    NoFeasibleTierError,
    ToolSchemaError,
)
from tierwise.runtime.pool import Pool
from tierwise.runtime.reply_parser import Piece
from tierwise.runtime.resources import Resources

WEATHER = Tool(
    "get_weather",
    "Gives forecasts.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
# Keywords of the scripts: what stands last in the prompt decides. "forecasts" stands in the
# tool's description, so it counts only while tools are offered; "degrees" in the tool's result.
TOOLS, RESULT, NONE = "forecasts", "degrees", ""

QUESTION = Message("user", "Weather in Paris?")
TALK = Call((Message("user", "Hi!"),))
ASK = Call((QUESTION,), tools=(WEATHER,))
ASKED = ASK.with_messages(
    Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Paris"}),)),
    Message("tool", "18 degrees", tool_name="get_weather"),
)
PROMISED = "get_weather was called with the same arguments already"


def calls(city: str) -> str:
    """What a model with Hermes tags writes."""
    return (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "' + city + '"}}\n</tool_call>'
    )


def script(
    talk: str = "Hello!", tools: str = calls("Paris"), result: str = "Mild, 18 of them."
) -> dict[str, str]:
    """All tiers know the same keywords, as tiers of one family share their vocabulary."""
    return {NONE: talk, TOOLS: tools, RESULT: result}


def plenty() -> Resources:
    return Resources(available_bytes=4 * 2**30, total_bytes=8 * 2**30, threads=1)


MakeRouter = Callable[..., Router]
Policy = Callable[[Sequence[Forecast], Budget, str | None], tuple[str, str, tuple[Forecast, ...]]]


@pytest.fixture
def make_router(tmp_path: Path) -> Iterator[MakeRouter]:
    """Routers over tiers of rising quality and cost; a script or a GGUF file is one tier."""
    pools: list[Pool] = []

    def make(*tiers: Mapping[str, str] | Path, **options: Any) -> Router:
        specs = []
        names = ("small", "middle", "large") if len(tiers) > 2 else ("small", "large")
        for rank, tier in enumerate(tiers):
            name = names[rank]
            path = tier if isinstance(tier, Path) else tmp_path / "made" / f"{name}.gguf"
            if not isinstance(tier, Path):
                write_scripted_gguf(path, tier)
            slower = 10**rank
            specs.append(
                TierSpec(
                    name,
                    path,
                    kl=0.1 * (len(tiers) - 1 - rank),
                    prefill=1000 / slower,
                    decode=100 / slower,
                )
            )
        family = make_family(tmp_path / "family", specs)
        pools.append(Pool(family, probe=plenty, threads=1))
        options = {"budget": Budget(quality=0.0), "probe": plenty, **options}
        return Router(family, pools[-1], **options)

    yield make
    for pool in pools:
        pool.close()


def tried(result: Answer) -> list[tuple[str, str]]:
    return [(attempt.decision.tier, attempt.problem) for attempt in result.attempts]


def collect(router: Router, call: Call, **options: Any) -> tuple[list[str], Answer]:
    """The pieces of a stream, and its answer."""
    return parted(stream_answer(router, call, **options))


def collect_async(router: Router, call: Call, **options: Any) -> tuple[list[str], Answer]:
    async def events() -> list[Piece | Answer]:
        return [event async for event in astream_answer(router, call, **options)]

    return parted(asyncio.run(events()))


def parted(events: Iterable[Piece | Answer]) -> tuple[list[str], Answer]:
    *pieces, result = events
    assert isinstance(result, Answer)
    return [piece.text for piece in pieces if isinstance(piece, Piece)], result


@pytest.fixture(params=["threads", "coroutines"], autouse=True)
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both drivers pass every test."""
    if request.param == "coroutines":
        monkeypatch.setitem(globals(), "collect", collect_async)
        monkeypatch.setitem(globals(), "answer", lambda *a, **k: asyncio.run(aanswer(*a, **k)))


# --- one tier will do -------------------------------------------------------------------


def test_a_good_reply_stands(make_router: MakeRouter) -> None:
    router = make_router(script(), script("Good day to you."))
    result = answer(router, TALK)
    assert result.reply.text == "Hello!"
    assert tried(result) == [("small", "")] and not result.escalated
    assert result.final.events[0].startswith("loaded small in ")
    assert answer(router, TALK).final.events == ()
    assert list(router.pool.resident()) == ["small"]
    assert router.pool.resident()["small"].leases == 0


def test_a_good_tool_call_stands(make_router: MakeRouter) -> None:
    result = answer(make_router(script(), script()), ASK)
    assert result.reply.tool_calls == (ToolCall("get_weather", {"city": "Paris"}),)
    assert tried(result) == [("small", "")]


def test_the_budget_limits_the_reply(make_router: MakeRouter) -> None:
    router = make_router(script("A rather long reply."))
    assert answer(router, TALK, budget=Budget(reply_tokens=8)).reply.text == "A rather"
    assert answer(router, replace(TALK, max_tokens=3)).reply.text == "A r"
    shorter = answer(router, replace(TALK, max_tokens=3), budget=Budget(reply_tokens=8))
    assert shorter.reply.text == "A r"


def test_an_answer_as_plain_data(make_router: MakeRouter) -> None:
    router = make_router(script(""), script())
    result = answer(router, TALK)
    told = json.loads(json.dumps(result.to_json()))
    assert told["tier"] == "large" and told["escalated"] is True and told["problem"] == ""
    assert told["reason"] == "escalated from small: the reply is empty"
    assert [a["tier"] for a in told["attempts"]] == ["small", "large"]
    assert [a["problem"] for a in told["attempts"]] == ["the reply is empty", ""]
    assert told["attempts"][0]["events"][0].startswith("loaded small in ")
    assert [f["tier"] for f in told["decision"]["forecasts"]] == ["small", "large"]
    first, second = result.attempts
    assert result.seconds == first.seconds + second.seconds > second.seconds > 0
    assert told["total_s"] >= told["actual_s"] and told["predicted_s"] > 0


def test_the_memory_budget_of_a_call_holds_for_all_that_is_loaded(make_router: MakeRouter) -> None:
    router = make_router(script(), script())
    answer(router, TALK)
    room = router.decide(TALK).forecasts[1].memory_bytes
    result = answer(router, TALK, pin="large", budget=Budget(memory=room))
    assert list(router.pool.resident()) == ["large"]
    assert result.final.events[0].startswith("unloaded small ")


# --- escalation -------------------------------------------------------------------------


def test_an_empty_reply_escalates(make_router: MakeRouter) -> None:
    result = answer(make_router(script(""), script()), TALK)
    assert tried(result) == [("small", "the reply is empty"), ("large", "")]
    assert result.reply.text == "Hello!" and result.escalated


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Goes round in circles."""
    path = tmp_path_factory.mktemp("babbler") / "babbler.gguf"
    return write_scripted_gguf(path, script("Round and round we go, "), endless=[NONE])


def test_a_reply_in_circles_escalates(make_router: MakeRouter, babbler: Path) -> None:
    result = answer(make_router(babbler, script()), replace(TALK, max_tokens=400))
    assert tried(result) == [("small", "the reply repeats itself"), ("large", "")]
    assert result.reply.text == "Hello!"


def test_an_argument_from_nowhere_escalates(make_router: MakeRouter) -> None:
    router = make_router(script(tools=calls("Oslo")), script())
    result = answer(router, ASK)
    problem = "the city for get_weather is nowhere in the conversation"
    assert tried(result) == [("small", problem), ("large", "")]
    assert result.reply.tool_calls[0].arguments == {"city": "Paris"}
    assert result.final.decision.reason == f"escalated from small: {problem}"


def test_the_same_call_again_escalates(make_router: MakeRouter) -> None:
    result = answer(make_router(script(result=calls("Paris")), script()), ASKED)
    assert tried(result) == [("small", PROMISED), ("large", "")]
    assert result.reply.text == "Mild, 18 of them." and not result.reply.tool_calls


def test_it_climbs_one_tier_at_a_time(make_router: MakeRouter) -> None:
    router = make_router(script(""), script(" "), script())
    result = answer(router, TALK)
    assert [attempt.decision.tier for attempt in result.attempts] == ["small", "middle", "large"]
    assert result.reply.text == "Hello!"


def test_where_all_fail_the_best_tier_s_reply_stands(make_router: MakeRouter) -> None:
    router = make_router(script(tools=calls("Oslo")), script(tools=calls("Rome")))
    result = answer(router, ASK)
    assert [bool(problem) for _, problem in tried(result)] == [True, True]
    assert result.reply.tool_calls[0].arguments == {"city": "Rome"}
    assert result.final.problem.startswith("the city for get_weather")


def test_where_no_better_tier_can_run_the_reply_stands(make_router: MakeRouter) -> None:
    router = make_router(script(tools=calls("Oslo")), script())
    router.family.path("large").unlink()
    result = answer(router, ASK)
    assert [name for name, _ in tried(result)] == ["small"]
    assert result.final.problem and not result.escalated
    assert result.reply.tool_calls[0].arguments == {"city": "Oslo"}


def test_the_time_of_the_first_try_counts(make_router: MakeRouter) -> None:
    router = make_router(script(tools=calls("Oslo")), script())
    large = router.decide(ASK).forecasts[1].seconds
    spent = answer(router, ASK, budget=Budget(quality=0, seconds_per_call=large + 1e-4))
    assert not spent.escalated and spent.final.problem
    assert answer(router, ASK, budget=Budget(quality=0, seconds_per_call=large + 100)).escalated


def test_a_reply_is_cut_where_its_seconds_end(make_router: MakeRouter, babbler: Path) -> None:
    def first(
        forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        return forecasts[0].tier, "it is the first", tuple(forecasts)

    call = replace(TALK, max_tokens=1500)
    router = make_router(babbler, policy=first)
    whole = answer(router, call, budget=Budget(expected_seconds=1e-6)).reply
    assert whole.usage.completion_tokens == 1500
    cut = answer(router, call, budget=Budget(seconds_per_call=0.05)).reply
    assert cut.finish_reason == "length" and 1 <= cut.usage.completion_tokens < 1500
    assert whole.text.startswith(cut.text)
    with pytest.raises(NoFeasibleTierError, match="is over the"):
        make_router(script()).decide(call, budget=Budget(expected_seconds=1e-6))


def test_half_a_call_is_of_no_use_and_gets_more_time(make_router: MakeRouter) -> None:
    router = make_router(script())
    budget = Budget(seconds_per_call=2.0)
    for call, allowed in ((TALK, 2.0), (ASK, 3.0)):
        before = time.monotonic()
        until = _Cascade(router, call, budget, None, False).until
        assert until is not None and before + allowed <= until <= time.monotonic() + allowed
    assert _Cascade(router, ASK, Budget(), None, False).until is None


def test_who_helped_keeps_the_conversation_while_it_costs_little(make_router: MakeRouter) -> None:
    """`learn` is told of the tier whose reply stands."""
    seen: list[str | None] = []

    def watch(
        forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        seen.append(current)
        return feasible_first(forecasts, budget, current)

    router = make_router(script(""), script(), policy=watch)
    answer(router, TALK)
    answer(router, TALK.with_messages(Message("assistant", "Hello!"), Message("user", "Bye!")))
    assert seen == [None, None, "large", "large"]


# --- what the better tier reuses --------------------------------------------------------

NOTE = Tool(
    "save_note",
    "Gives forecasts.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "text": {"type": "string"}},
        "required": ["city", "text"],
    },
)


def note(city: str) -> str:
    arguments = {"city": city, "text": "Paris, the mild one: send me all there is"}
    text = json.dumps({"name": "save_note", "arguments": arguments})
    return f"<tool_call>\n{text}\n</tool_call>"


def test_the_better_tier_reads_what_it_agrees_with(make_router: MakeRouter) -> None:
    """Both write the same call, but for the city."""
    router = make_router(script(tools=note("Oslo")), script(tools=note("Paris")))
    asked = Message("user", "Save: Paris, the mild one: send me all there is")
    call = Call((asked,), tools=(NOTE,))
    with router.pool.acquire("large", context_tokens=2048) as lease:
        alone = answer(router, call, pin="large")
        engine = lease.tier.engine
        before = engine.metrics().steps
        again = answer(router, call, pin="large")
        plain = engine.metrics().steps - before
        before = engine.metrics().steps
        result = answer(router, call)
        taken = engine.metrics().steps - before
    assert [name for name, _ in tried(result)] == ["small", "large"]
    assert result.reply == replace(alone.reply, usage=result.reply.usage, margins=ANY)
    assert result.reply.tokens == alone.reply.tokens == again.reply.tokens
    assert result.reply.margins == pytest.approx(alone.reply.margins, abs=0.01)
    usage = result.reply.usage
    assert usage.forced_tokens == alone.reply.usage.forced_tokens
    # The text is 41 tokens, and chosen by both.
    assert 30 < usage.reused_tokens < usage.completion_tokens - usage.forced_tokens
    assert taken <= plain - 30
    told = result.to_json()["attempts"]
    assert [one["reused_tokens"] for one in told] == [0, usage.reused_tokens]


def test_words_after_a_repeated_call_reuse_nothing(make_router: MakeRouter) -> None:
    stubborn = {NONE: "It is 18 there.", TOOLS: calls("Paris"), "unused": "x"}
    result = answer(make_router(stubborn, stubborn), ASKED)
    reused = [attempt.reply.usage.reused_tokens for attempt in result.attempts]
    assert reused[0] == reused[2] == 0 < reused[1]


# --- the same call by all ---------------------------------------------------------------


def test_the_same_call_by_all_ends_in_words(make_router: MakeRouter) -> None:
    """Without tools the scripts do not see "forecasts", and talk."""
    stubborn = {NONE: "It is 18 there.", TOOLS: calls("Paris"), "unused": "x"}
    result = answer(make_router(stubborn, stubborn), ASKED)
    assert tried(result) == [("small", PROMISED), ("large", PROMISED), ("large", "")]
    assert result.reply.text == "It is 18 there." and not result.reply.tool_calls
    assert result.final.decision.reason == PROMISED
    json.dumps(result.to_json())


def test_the_words_are_streamed(make_router: MakeRouter) -> None:
    stubborn = {NONE: "It is 18 there.", TOOLS: calls("Paris")}
    pieces, result = collect(make_router(stubborn, stubborn), ASKED)
    assert "".join(pieces) == result.reply.text == "It is 18 there."


def test_a_call_that_is_demanded_is_not_turned_into_words(make_router: MakeRouter) -> None:
    stubborn = {NONE: "It is 18 there.", TOOLS: calls("Paris")}
    result = answer(make_router(stubborn), replace(ASKED, tool_choice="any"))
    assert tried(result) == [("small", PROMISED)]
    assert result.reply.tool_calls


def test_a_pinned_tier_tells_it_itself(make_router: MakeRouter) -> None:
    stubborn = {NONE: "It is 18 there.", TOOLS: calls("Paris")}
    result = answer(make_router(stubborn, stubborn), ASKED, pin="small")
    assert tried(result) == [("small", PROMISED), ("small", "")]
    assert result.reply.text == "It is 18 there." and not result.escalated


# --- pinning ----------------------------------------------------------------------------


def test_a_pinned_tier_never_escalates(make_router: MakeRouter) -> None:
    router = make_router(script(""), script())
    result = answer(router, TALK, pin="small")
    assert tried(result) == [("small", "the reply is empty")] and result.reply.text == ""
    assert answer(router, TALK, pin="large").reply.text == "Hello!"


# --- tiers out of reach -----------------------------------------------------------------


def sabotage(names: Sequence[str], harm: Callable[[Path], object], folder: Path) -> Policy:
    """Decides as ever, and harms the chosen tier's file before it is acquired."""

    def decide(
        forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        decision = feasible_first(forecasts, budget, current)
        if decision[0] in names:
            harm(folder / f"{decision[0]}.gguf")
        return decision

    return decide


def corrupt(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("harm", [Path.unlink, corrupt], ids=["vanished", "corrupted"])
def test_a_tier_lost_between_decision_and_loading(
    make_router: MakeRouter,
    tmp_path: Path,
    harm: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = sabotage(["small"], harm, tmp_path / "family")
    router = make_router(script("from small"), script("from large"), policy=policy)
    pieces, result = collect(router, TALK)
    assert "".join(pieces) == result.reply.text == "from large"
    assert tried(result) == [("large", "")]
    assert result.final.decision.forecasts[0].verdict == "out of reach"
    assert "tier small is out of reach: " in caplog.text
    assert answer(router, TALK).reply.text == "from large"  # now known before it is tried


@pytest.mark.parametrize("harm", [Path.unlink, corrupt], ids=["vanished", "corrupted"])
def test_all_tiers_lost(
    make_router: MakeRouter, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    policy = sabotage(["small", "large"], harm, tmp_path / "family")
    router = make_router(script(), script(), policy=policy)
    with pytest.raises(NoFeasibleTierError) as caught:
        answer(router, TALK)
    text = str(caught.value)
    for name in ("small", "large"):
        assert f"{name}: " in text.partition("Out of reach: ")[2] and f"{name}.gguf" in text


def test_a_better_tier_lost_during_escalation(make_router: MakeRouter, tmp_path: Path) -> None:
    policy = sabotage(["middle"], Path.unlink, tmp_path / "family")
    router = make_router(script(""), script("from middle"), script("from large"), policy=policy)
    assert tried(answer(router, TALK)) == [("small", "the reply is empty"), ("large", "")]
    (tmp_path / "family" / "large.gguf").unlink()
    assert tried(answer(router, TALK)) == [("small", "the reply is empty")]


def test_a_pinned_tier_lost_is_told_as_it_is(make_router: MakeRouter, tmp_path: Path) -> None:
    family = make_router(script(), script()).family

    def thief() -> Resources:  # the pool asks it when it loads, after the decision
        (tmp_path / "family" / "small.gguf").unlink(missing_ok=True)
        return plenty()

    with Pool(family, probe=thief, threads=1) as pool:
        router = Router(family, pool, Budget(quality=0.0), probe=plenty)
        with pytest.raises(FamilyIncompleteError, match="is missing"):
            answer(router, TALK, pin="small")
        with pytest.raises(NoFeasibleTierError, match="the pinned tier 'small'"):
            answer(router, TALK, pin="small")


def test_an_engine_that_was_closed_is_loaded_again(make_router: MakeRouter) -> None:
    router = make_router(script("from small"), script("from large"))
    with router.pool.acquire("small", context_tokens=2048) as lease:
        lease.tier.close()
        assert answer(router, TALK).reply.text == "from small"


def test_an_engine_that_fails_at_work_is_passed_over(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    router = make_router(script("from small"), script("from large"))
    with router.pool.acquire("small", context_tokens=2048) as lease:

        def fail() -> None:
            raise ZeroDivisionError("an error that nobody thought of")

        lease.tier.engine._scheduler._admit = fail
        assert answer(router, TALK).reply.text == "from large"


# --- streaming --------------------------------------------------------------------------


@pytest.mark.parametrize("call", [TALK, ASKED, replace(ASK, tool_choice="none")])
def test_pieces_join_to_the_text(make_router: MakeRouter, call: Call) -> None:
    pieces, result = collect(make_router(script(), script()), call)
    assert len(pieces) > 1
    assert "".join(pieces) == result.reply.text != ""


def test_a_call_is_held_and_only_the_last_reply_is_shown(make_router: MakeRouter) -> None:
    router = make_router(script(tools=calls("Oslo")), script(tools="Mild, I guess."))
    pieces, result = collect(router, ASK)
    assert result.escalated
    assert "".join(pieces) == result.reply.text == "Mild, I guess."


def test_calls_are_never_shown(make_router: MakeRouter) -> None:
    router = make_router(script(tools=calls("Oslo")), script())
    pieces, result = collect(router, ASK)
    assert pieces == [] and result.escalated and result.reply.tool_calls


def test_blanks_are_held_until_there_is_something_to_show(make_router: MakeRouter) -> None:
    router = make_router(script(" \n \t"), script("\n Hello!"))
    pieces, result = collect(router, TALK)
    assert result.escalated
    assert "".join(pieces) == result.reply.text == "\n Hello!"


def test_text_that_was_shown_stands(make_router: MakeRouter, babbler: Path) -> None:
    router = make_router(babbler, script())
    pieces, result = collect(router, replace(TALK, max_tokens=400))
    assert tried(result) == [("small", "the reply repeats itself")]
    assert "".join(pieces) == result.reply.text
    # Held until it is verified, the same reply is given up.
    pieces, result = collect(router, replace(TALK, max_tokens=400), hold=True)
    assert pieces == ["Hello!"] and result.reply.text == "Hello!"


def test_structured_output_that_was_cut_off_after_showing_stands(make_router: MakeRouter) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    tier = script(talk='{"city": "Paris"}')
    call = replace(TALK, response_schema=schema)
    pieces, result = collect(make_router(tier, tier), call)
    assert json.loads("".join(pieces)) == {"city": "Paris"} and not result.final.problem
    pieces, result = collect(make_router(tier, tier), replace(call, max_tokens=13))
    assert "".join(pieces) == result.reply.text == '{"city": "Par'
    assert tried(result) == [("small", "the reply was cut off by its limit of tokens or seconds")]


def wait_until_idle(router: Router) -> None:
    assert router.pool.resident()["small"].leases == 0
    with router.pool.acquire("small", context_tokens=100) as lease:
        deadline = time.monotonic() + 300
        while lease.tier.engine.busy and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not lease.tier.engine.busy


def test_closing_the_stream_frees_the_engine(make_router: MakeRouter, babbler: Path) -> None:
    router = make_router(babbler)
    call = replace(TALK, max_tokens=1800)
    with closing(stream_answer(router, call)) as stream:
        assert next(stream)
        assert router.pool.resident()["small"].leases == 1
    wait_until_idle(router)
    assert len(answer(router, replace(TALK, max_tokens=5)).reply.text) > 0


def test_closing_the_async_stream_frees_the_engine(make_router: MakeRouter, babbler: Path) -> None:
    router = make_router(babbler)

    async def first() -> None:
        async with aclosing(astream_answer(router, replace(TALK, max_tokens=1800))) as stream:
            assert await anext(stream)
            assert router.pool.resident()["small"].leases == 1
        assert router.pool.resident()["small"].leases == 0

    asyncio.run(first())
    wait_until_idle(router)


# --- reasoning --------------------------------------------------------------------------

THOUGHT = "They greet me."


def thinking(folder: Path, name: str, after: str) -> Path:
    """A tier that thinks before it says this; all keywords lead to the same."""
    text = f"<think>\n{THOUGHT}\n</think>\n\n{after}"
    replies = script(talk=text, tools=text, result=text)
    return write_scripted_gguf(folder / f"{name}.gguf", replies, chat_template=CHATML_THINKING)


def kinds(events: Iterable[Piece | Answer]) -> tuple[str, str, list[bool], Answer]:
    """What was thought, what was said, and which came when."""
    *pieces, result = events
    assert isinstance(result, Answer)
    shown = [piece for piece in pieces if isinstance(piece, Piece)]
    thought = "".join(piece.text for piece in shown if piece.reasoning)
    said = "".join(piece.text for piece in shown if not piece.reasoning)
    return thought, said, [piece.reasoning for piece in shown], result


def test_reasoning_that_stands_is_shown_first(make_router: MakeRouter, tmp_path: Path) -> None:
    router = make_router(thinking(tmp_path, "one", "Hello!"))
    thought, said, order, result = kinds(stream_answer(router, TALK))
    assert (thought, said) == (result.reply.reasoning, result.reply.text) == (THOUGHT, "Hello!")
    assert order == sorted(order, reverse=True) and order.count(True) > 5


def test_reasoning_is_given_up_with_its_reply(make_router: MakeRouter, tmp_path: Path) -> None:
    """Here the smaller tier only thinks, and there is a better one."""
    mute, good = thinking(tmp_path, "mute", ""), thinking(tmp_path, "good", "Hello!")
    router = make_router(mute, good)
    thought, said, _, result = kinds(stream_answer(router, TALK))
    assert tried(result) == [("small", "the reply is empty"), ("large", "")]
    assert (thought, said) == (THOUGHT, "Hello!")
    # The best tier's thoughts bind as soon as they are shown, however little follows.
    thought, said, _, result = kinds(stream_answer(router, TALK, pin="small"))
    assert (thought, said) == (THOUGHT, "") and result.final.problem == "the reply is empty"


def test_reasoning_before_a_call_waits_for_it(make_router: MakeRouter, tmp_path: Path) -> None:
    wrong = thinking(tmp_path, "wrong", calls("Oslo"))
    right = thinking(tmp_path, "right", calls("Paris"))
    thought, said, order, result = kinds(stream_answer(make_router(wrong, right), ASK))
    assert result.escalated and result.reply.tool_calls[0].arguments == {"city": "Paris"}
    assert (thought, said, order) == (THOUGHT, "", [True])


# --- errors of the call -----------------------------------------------------------------


def test_a_call_whose_time_is_up(make_router: MakeRouter) -> None:
    router = make_router(script(), script())
    with pytest.raises(CallTimeoutError):
        answer(router, replace(TALK, timeout_s=1e-6))
    with pytest.raises(CallTimeoutError):
        collect(router, replace(TALK, timeout_s=0.0))
    assert answer(router, replace(TALK, timeout_s=60)).reply.text == "Hello!"


def test_time_also_runs_while_waiting_for_a_tier(make_router: MakeRouter) -> None:
    family = make_router(script(), script()).family
    loading, go_on = threading.Event(), threading.Event()

    def slow() -> Resources:  # the pool asks it when it loads
        loading.set()
        assert go_on.wait(timeout=300)
        return plenty()

    with Pool(family, probe=slow, threads=1) as pool, ThreadPoolExecutor(1) as other:
        router = Router(family, pool, Budget(quality=0.0), probe=plenty)
        first = other.submit(answer, router, TALK, pin="large")
        assert loading.wait(timeout=300)
        with pytest.raises(CallTimeoutError, match=r"could not be had .* in [01]"):
            answer(router, replace(TALK, timeout_s=1.5), pin="small")
        go_on.set()
        assert first.result().reply.text == "Hello!"


def test_all_tries_share_one_deadline(make_router: MakeRouter) -> None:
    def slow_to_escalate(
        forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        if not forecasts[0].feasible:
            time.sleep(1.1)
        return feasible_first(forecasts, budget, current)

    router = make_router(script(""), script(), policy=slow_to_escalate)
    with pytest.raises(CallTimeoutError):
        answer(router, replace(TALK, timeout_s=1.0))


def test_a_schema_that_cannot_be_compiled_is_the_caller_s(make_router: MakeRouter) -> None:
    router = make_router(script(), script())
    broken = Tool("get_weather", "Gives forecasts.", {"type": "array"})
    with pytest.raises(ToolSchemaError, match="get_weather"):
        answer(router, Call((QUESTION,), tools=(broken,)))
    odd = {"type": "object", "properties": {"city": {"type": "strnig"}}}
    with pytest.raises(ToolSchemaError, match="city"):
        answer(router, Call((QUESTION,), tools=(replace(WEATHER, parameters=odd),)))
    assert set(router.pool.resident()) <= {"small"}  # no other tier was tried
    assert all(tier.leases == 0 for tier in router.pool.resident().values())


def test_a_conversation_that_is_too_long(make_router: MakeRouter) -> None:
    router = make_router(script(), script())
    with pytest.raises(ContextOverflowError, match="Shorten the conversation"):
        answer(router, Call((Message("user", "x" * 3000),)))


def test_nothing_fits_from_the_start(make_router: MakeRouter) -> None:
    router = make_router(script(), script())
    with pytest.raises(NoFeasibleTierError, match="no tier fits") as caught:
        answer(router, TALK, budget=Budget(memory=1000))
    assert "Out of reach" not in str(caught.value)


# --- many at once -----------------------------------------------------------------------


def test_two_threads_at_once(make_router: MakeRouter) -> None:
    fruit = {NONE: "None.", "apples": "Red fruit, sweet.", "pears": "Green ones, soft."}
    mute = {NONE: "None.", "apples": "", "pears": "Green ones, soft."}
    router = make_router(mute, fruit)
    start = threading.Barrier(2)

    def ask(what: str) -> list[Answer]:
        start.wait(timeout=300)
        call = Call((Message("user", f"Tell me of {what}"),), max_tokens=40)
        return [answer(router, call) for _ in range(8)]

    with ThreadPoolExecutor(2) as threads:
        apples, pears = threads.map(ask, ("apples", "pears"))
    assert {a.reply.text for a in apples} == {"Red fruit, sweet."}
    assert {a.reply.text for a in pears} == {"Green ones, soft."}
    assert all(a.escalated for a in apples[:1])
    assert not any(a.escalated for a in pears)
    assert all(tier.leases == 0 for tier in router.pool.resident().values())
