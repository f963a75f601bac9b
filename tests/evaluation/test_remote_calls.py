"""Many calls to one server on loopback: as many at once as it likes, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from engine_calls import wait_until
from openai_server import OpenAIServer, openai_server

from tierwise.evaluation.remote_calls import (
    AT_ONCE,
    LONGEST_BREAK_S,
    THROTTLED_BREAKS,
    RemoteAnswer,
    RemoteAsker,
    timed_profile,
)
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.errors import RemoteError, RemoteReplyError, ThrottledError
from tierwise.runtime.remote_tier import RemoteTier


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server() as running:
        yield running


def asker_of(
    server: OpenAIServer, *, break_s: float = 0.01, timeout_s: float = 60.0, **options: Any
) -> RemoteAsker:
    tier = RemoteTier(name="far", url=server.url, model="great-model", timeout_s=timeout_s)
    return RemoteAsker(tier, break_s=break_s, **options)


def calls(count: int) -> list[Call]:
    return [Call((Message("user", f"question {n}?"),), max_tokens=8) for n in range(count)]


def test_all_are_answered_several_at_once(server: OpenAIServer) -> None:
    server.knows = {f"question {n}?": f"answer {n}" for n in range(12)}
    server.pause_s = 0.05  # so that one is still at it when the next begins
    found = dict(asker_of(server).ask(calls(12)))
    assert {n: one.reply.text for n, one in found.items()} == {n: f"answer {n}" for n in range(12)}
    assert all(one.seconds > 0 and one.fault is None for one in found.values())
    assert len(server.asked) == 12 and 1 < server.most_at_once <= AT_ONCE
    assert list(asker_of(server).ask([])) == []


def test_a_server_that_throttles_is_asked_again_later(server: OpenAIServer) -> None:
    server.throttled, server.retry_after = 3, "0.05"
    found = dict(asker_of(server).ask(calls(12)))
    assert sorted(found) == list(range(12))
    assert len(server.asked) == 15  # nothing was asked twice but what was refused


def test_it_is_not_waited_for_too_long(server: OpenAIServer) -> None:
    server.mode, server.retry_after = "throttle", str(LONGEST_BREAK_S + 1)
    with pytest.raises(ThrottledError, match="too many requests"):
        list(asker_of(server).ask(calls(2)))
    assert len(server.asked) <= 2
    server.asked.clear()
    server.retry_after = "0"
    with pytest.raises(ThrottledError):
        list(asker_of(server, break_s=0.001).ask(calls(1)))
    assert len(server.asked) == 1 + THROTTLED_BREAKS


@pytest.mark.parametrize("mode", ["broken", "hang", "liar", "drop"])
def test_a_server_out_of_reach_is_given_up(server: OpenAIServer, mode: str) -> None:
    server.mode = mode
    with pytest.raises(RemoteError, match="remote tier 'far'"):
        list(asker_of(server, timeout_s=1.0 if mode == "hang" else 60.0).ask(calls(1)))
    wait_until(lambda: len(server.asked) == 3)


def test_what_came_before_is_not_lost(server: OpenAIServer) -> None:
    found: list[tuple[int, RemoteAnswer]] = []
    with pytest.raises(RemoteError):
        for one in asker_of(server).ask(calls(40)):
            found.append(one)
            if len(found) == 5:
                server.mode = "broken"
    assert 5 <= len(found) < 40
    server.mode = "ok"
    asker = asker_of(server)
    with pytest.raises(ZeroDivisionError):
        for _ in asker.ask(calls(40)):
            raise ZeroDivisionError
    assert len(server.asked) < 80  # and whoever leaves early leaves the rest unasked


def test_time_that_is_up_allows_no_break(server: OpenAIServer) -> None:
    server.mode = "broken"
    with pytest.raises(RemoteError):
        list(asker_of(server, break_s=1000, ends=time.monotonic() + 500).ask(calls(1)))
    assert len(server.asked) == 1


def test_a_reply_that_cannot_be_read_is_a_wrong_one(server: OpenAIServer) -> None:
    server.knows = {"question 3?": None}
    found = dict(asker_of(server).ask(calls(6)))
    faults = {n: one.fault for n, one in found.items() if one.fault is not None}
    assert set(faults) == {3} and "cannot be read" in str(faults[3])
    assert found[3].reply.text == "" and len(server.asked) == 6


def test_a_server_that_refuses_every_call_says_nothing_of_its_model(server: OpenAIServer) -> None:
    server.mode = "refuse"
    with pytest.raises(RemoteReplyError, match="400"):
        list(asker_of(server).ask(calls(3)))
    found = dict(asker_of(server, works=True).ask(calls(3)))
    assert [isinstance(found[n].fault, RemoteReplyError) for n in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("calls", "first_s", "step_s"),
    [
        ([(100, 10, 0.4), (100, 30, 0.8), (100, 20, 0.6)], 0.2, 0.02),
        ([(100, 9, 1.0)] * 3, 0.1, 0.1),  # all of one length: ten tokens in a second
        ([(100, 10, 0.5), (100, 30, 0.3)], 0.4 * 0.9, 0.4 / 21 / 10),  # the longer came sooner
        ([(100, 10, 0.02), (100, 30, 3.98)], 0.2, 4.0 / 21),  # more than all of it would be each
    ],
)
def test_speed_by_what_calls_took(
    calls: list[tuple[int, int, float]], first_s: float, step_s: float
) -> None:
    tier = RemoteTier(name="far", url="http://127.0.0.1:9/v1", model="timed")
    found = timed_profile(tier, calls)
    assert 100 / found.prefill_tokens_per_s == pytest.approx(first_s, rel=0.1)
    assert 1 / found.decode_tokens_per_s == pytest.approx(step_s)
    assert found.tier_sha256 == tier.sha256 and found.runs == len(calls) and not found.estimated
