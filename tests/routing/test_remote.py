"""Tiers on other machines: real servers on loopback, and servers that fail in every way."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from calibration_factory import PLENTY
from family_factory import TierSpec, make_family
from openai_server import OpenAIServer, openai_server
from scripted_model import FRUIT, write_scripted_gguf

from tierwise.routing.budget import Budget
from tierwise.routing.cascade import aanswer, answer, stream_answer
from tierwise.routing.router import Router
from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.consent import allow
from tierwise.runtime.errors import CallTimeoutError, NoFeasibleTierError, RemoteError
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool
from tierwise.runtime.remote_model import model_of
from tierwise.runtime.remote_tier import RemoteTier

CALL = Call((Message("user", "Tell me of the banana"),), max_tokens=20)
WEATHER = Tool(
    "get_weather",
    "The weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server() as running:
        yield running


@pytest.fixture
def local(tmp_path: Path) -> Family:
    file = write_scripted_gguf(tmp_path / "local.gguf", FRUIT, context=2048)
    return make_family(tmp_path / "family", [TierSpec("local", file)])


def with_remote(family: Family, url: str, **options: Any) -> Family:
    remote = RemoteTier(name="far", url=url, model="great-model", **options)
    changed = family.model_copy(update={"remotes": (remote,)})
    changed.save(family.folder)
    return Family.load(family.folder)


@pytest.fixture
def routers(local: Family) -> Iterator[Any]:
    pools: list[Pool] = []

    def make(url: str, budget: Budget | None = None, **options: Any) -> Router:
        tiers = options.pop("tiers", None)
        family = with_remote(local, url, **options)
        pools.append(Pool(family, probe=lambda: PLENTY, threads=1))
        return Router(family, pools[-1], budget, probe=lambda: PLENTY, tiers=tiers)

    yield make
    for pool in pools:
        pool.close()


def test_a_family_keeps_its_remote_tiers(local: Family, server: OpenAIServer) -> None:
    family = with_remote(local, server.url, success=0.95)
    assert family.remotes[0].url == server.url and family.member("far").name == "far"
    assert b"key" not in (family.folder / "family.json").read_bytes().replace(b"api_key_env", b"")


def test_text_comes_as_it_is_written(routers: Any, server: OpenAIServer) -> None:
    router = routers(server.url)
    *pieces, result = stream_answer(router, CALL, pin="far")
    assert [piece.text for piece in pieces] == ["From", " far", " away."]
    assert result.reply.text == "From far away." and result.reply.finish_reason == "stop"
    usage = result.reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (11, 3)
    assert usage.prefill_s > 0 and usage.decode_s > 0
    asked = server.asked[0]
    assert asked["model"] == "great-model" and asked["max_tokens"] == 20
    assert "max_completion_tokens" not in asked  # which many servers do not read
    assert "reasoning_effort" not in asked
    for reasoning, told in (("low", "low"), ("off", None), ("on", None)):
        answer(router, replace(CALL, reasoning=reasoning), pin="far")  # type: ignore[arg-type]
        assert server.asked[-1].get("reasoning_effort") == told
    assert asked["messages"] == [{"role": "user", "content": "Tell me of the banana"}]


def test_the_same_for_coroutines(routers: Any, server: OpenAIServer) -> None:
    router = routers(server.url)

    async def two() -> list[str]:
        found = await asyncio.gather(*(aanswer(router, CALL, pin="far") for _ in range(2)))
        return [one.reply.text for one in found]

    assert asyncio.run(two()) == ["From far away."] * 2


@pytest.mark.parametrize("wait", [answer, lambda *a, **o: asyncio.run(aanswer(*a, **o))])
def test_what_is_not_over_in_time_is_cut(routers: Any, server: OpenAIServer, wait: Any) -> None:
    router = routers(server.url)
    assert wait(router, CALL, pin="far").reply.text == "From far away."  # all is imported
    server.knows = {"banana": "word " * 2000}
    found = wait(router, CALL, budget=Budget(seconds_per_call=1.0), pin="far")
    assert found.reply.finish_reason == "length"
    assert 5 < len(found.reply.text.split()) < 1000
    assert found.seconds < 9  # all of it takes more than ten
    server.knows = {}
    assert wait(router, CALL, pin="far").reply.text == "From far away."


def test_tool_calls_go_there_and_come_back(routers: Any, server: OpenAIServer) -> None:
    server.call = ("get_weather", '{"city": "Oslo"}')
    router = routers(server.url)
    earlier = Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Rome"}, id="a1"),))
    result = Message("tool", "mild", tool_call_id="a1", tool_name="get_weather")
    messages = (Message("user", "Rome?"), earlier, result, Message("user", "And Oslo?"))
    call = Call(messages, (WEATHER,), tool_choice="any")
    reply = answer(router, call, pin="far").reply
    assert [(c.name, dict(c.arguments)) for c in reply.tool_calls] == [
        ("get_weather", {"city": "Oslo"})
    ]
    assert reply.finish_reason == "tool_calls"
    asked = server.asked[0]
    assert asked["tool_choice"] == "required" and len(asked["tools"]) == 1
    function = asked["messages"][1]["tool_calls"][0]["function"]
    assert json.loads(function["arguments"]) == {"city": "Rome"}
    assert asked["messages"][2]["tool_call_id"] == "a1"


def test_a_schema_is_asked_for(routers: Any, server: OpenAIServer) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    call = Call(CALL.messages, response_schema=schema, max_tokens=20)
    answer(routers(server.url), call, pin="far")
    asked = server.asked[0]["response_format"]
    assert asked["type"] == "json_schema" and asked["json_schema"]["schema"] == schema


def test_it_is_asked_last_and_what_it_takes_is_learned(routers: Any, server: OpenAIServer) -> None:
    router = routers(server.url)
    decision = router.decide(CALL)
    assert [f.tier for f in decision.forecasts] == ["local", "far"]
    assert decision.tier == "local"  # no better as far as anybody knows, and slower
    far = decision.forecasts[1]
    assert far.memory_bytes == 0 and far.joules == 0 and far.feasible
    server.pause_s = 0.1
    for _ in range(5):
        answer(router, CALL, pin="far")
    assert router.decide(CALL).forecasts[1].seconds > 1.5 * far.seconds
    better = routers(server.url, Budget(quality=1.0), success=0.99)
    assert better.decide(CALL).tier == "far"
    assert [one.name for one in better.better_than("local")] == ["far"]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("hang", "imed out"),
        ("drop", ""),
        ("throttle", "too many requests"),
        ("broken", "500"),
        ("liar", "answers as 'something-else', and 'great-model' was asked for"),
        ("nonsense", ""),
    ],
)
def test_a_server_that_fails_is_routed_around(
    routers: Any, server: OpenAIServer, mode: str, said: str
) -> None:
    server.mode = mode
    server.retry_after = "1000"
    limit = {"timeout_s": 0.5} if mode == "hang" else {}
    router = routers(server.url, Budget(quality=1.0), success=0.99, **limit)
    if mode != "throttle":
        router.remote("far").tier._failures = 6  # after so many it is left alone for a minute
    result = answer(router, CALL)
    assert result.final.decision.tier == "local" and result.reply.text == FRUIT["banana"]
    after = router.decide(CALL)
    verdict = after.forecasts[1].verdict
    assert after.tier == "local" and said in verdict
    left = re.search(r"asked again in (\d+) s", verdict)
    assert left is not None
    if mode == "throttle":  # as long as the server asked for
        assert 60 < int(left[1]) <= 1000
    count = len(server.asked)
    answer(router, CALL)
    assert len(server.asked) == count  # and is left alone meanwhile


@pytest.mark.parametrize("mode", ["refuse", "bad call"])
def test_a_call_that_came_to_nothing_does_not_stop_others(
    routers: Any, server: OpenAIServer, mode: str
) -> None:
    server.mode = mode
    if mode == "bad call":
        server.call = ("get_weather", '{"city": "Oslo"}')
    router = routers(server.url, Budget(quality=1.0), success=0.99)
    assert answer(router, CALL).final.decision.tier == "local"
    server.mode, server.call = "ok", None
    assert answer(router, CALL).final.decision.tier == "far"


def test_the_caller_s_own_limit_is_no_fault_of_the_server(
    routers: Any, server: OpenAIServer
) -> None:
    server.pause_s = 1.0  # between pieces
    router = routers(server.url, Budget(quality=1.0), success=0.99)
    with pytest.raises(CallTimeoutError, match="'far' gave no whole reply"):
        answer(router, replace(CALL, timeout_s=2.5))
    assert router.decide(CALL).tier == "far"


def test_what_a_family_brings_along_is_not_believed(
    routers: Any, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record names a server and a variable: neither is asked before the user has said so."""
    monkeypatch.setenv("CLOUD_SECRET", "sesame")
    for url, key in (("http://203.0.113.9/v1", ""), (server.url, "CLOUD_SECRET")):
        router = routers(url, Budget(quality=1.0), success=1.0, api_key_env=key)
        verdict = router.decide(CALL).forecasts[1].verdict
        assert "was not connected on this machine" in verdict and "tierwise connect" in verdict
        with pytest.raises(NoFeasibleTierError, match="was not connected"):
            answer(router, CALL, pin="far")
        with pytest.raises(RemoteError, match="was not connected"):
            router.remote("far").tier.stream(CALL)
    assert not server.asked
    allow(router.family.remotes[0])
    again = routers(server.url, Budget(quality=1.0), success=1.0, api_key_env="CLOUD_SECRET")
    assert answer(again, CALL).final.decision.tier == "far"
    assert server.keys == ["Bearer sesame"]


def test_calls_stay_here_as_long_as_a_tier_here_will_do(routers: Any, server: OpenAIServer) -> None:
    """However much quicker the server may be."""
    router = routers(server.url, Budget(quality=0.5), success=0.9)
    far = router.cost.profiles["far"]
    quick = far.model_copy(update={"prefill_tokens_per_s": 1e6, "decode_tokens_per_s": 1e5})
    router.cost.profiles = {**router.cost.profiles, "far": quick}
    found = router.decide(CALL)
    assert found.tier == "local" and found.forecasts[1].seconds < found.forecasts[0].seconds
    assert found.forecasts[1].verdict == "on another machine, and local will do"
    assert router.decide(CALL, budget=Budget(quality=0.99)).tier == "far"


def test_what_a_server_does_not_count_is_counted_here(routers: Any, server: OpenAIServer) -> None:
    server.counts = False
    result = answer(routers(server.url), CALL, pin="far")
    usage = result.reply.usage
    assert (
        usage.completion_tokens == 3 and usage.prompt_tokens == result.final.decision.prompt_tokens
    )


def test_the_word_for_the_longest_reply_is_the_server_s() -> None:
    words = {
        "https://api.openai.com/v1": {"max_completion_tokens": 20},
        "https://me.openai.azure.com/v1": {"max_completion_tokens": 20},
        "http://10.0.0.7:8080/v1": {"max_tokens": 20},
        "https://openai.com.example/v1": {"max_tokens": 20},
    }
    for url, word in words.items():
        tier = RemoteTier(name="far", url=url, model="m")
        allow(tier)
        payload = model_of(tier, CALL, None, None)._get_request_payload([("user", "hi")])
        sent = {**payload, **payload.pop("extra_body", {})}
        assert {key: sent[key] for key in sent if key.startswith("max")} == word


def test_errors_of_servers_name_a_cure(routers: Any, server: OpenAIServer) -> None:
    for url, cure in (
        (server.url.removesuffix("/v1") + "/v2", r"check the URL \(it often ends in /v1\)"),
        ("http://127.0.0.1:9/v1", "Does the server run"),
    ):
        with pytest.raises(RemoteError, match=cure):
            answer(routers(url), CALL, pin="far")


def test_after_its_break_it_is_asked_again(routers: Any, server: OpenAIServer) -> None:
    server.mode = "broken"
    router = routers(server.url, Budget(quality=1.0), success=0.99)
    answer(router, CALL)
    server.mode = "ok"
    deadline = time.monotonic() + 300
    while answer(router, CALL).final.decision.tier != "far":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_pinned_server_that_fails_says_so(routers: Any, server: OpenAIServer) -> None:
    server.mode = "broken"
    router = routers(server.url)
    router.remote("far").tier._failures = 6  # after so many it is left alone for a minute
    with pytest.raises(RemoteError, match=r"remote tier 'far' at http://127\.0\.0\.1.*500"):
        answer(router, CALL, pin="far")
    with pytest.raises(NoFeasibleTierError, match="asked again in"):
        answer(router, CALL, pin="far")
    nobody = routers("http://127.0.0.1:9/v1")
    with pytest.raises(RemoteError, match="remote tier 'far'"):
        answer(nobody, CALL, pin="far")


def test_what_has_left_stands_when_the_stream_drops(routers: Any, server: OpenAIServer) -> None:
    server.mode = "drop"
    router = routers(server.url, Budget(quality=1.0), success=0.99)
    events = stream_answer(router, CALL)
    assert next(events).text == "From"  # type: ignore[union-attr]
    with pytest.raises(RemoteError):
        next(events)


def test_keys_come_from_the_environment(
    routers: Any, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = routers(server.url)
    allow(router.family.remotes[0].model_copy(update={"api_key_env": "FAR_KEY"}))
    router = routers(server.url, api_key_env="FAR_KEY")
    monkeypatch.delenv("FAR_KEY", raising=False)
    with pytest.raises(RemoteError, match="environment variable FAR_KEY, which is not set"):
        answer(router, CALL, pin="far")
    monkeypatch.setenv("FAR_KEY", "sesame")
    answer(router, CALL, pin="far")
    assert server.keys == ["Bearer sesame"]


def test_what_a_server_cannot_promise_stays_here(routers: Any, server: OpenAIServer) -> None:
    router = routers(server.url, Budget(quality=1.0), success=0.99, context_tokens=64)
    choices = Call(CALL.messages, choices=("Yes", "No"), max_tokens=4)
    assert "regex or to choices" in router.decide(choices).forecasts[1].verdict
    long = Call((Message("user", "word " * 80),), max_tokens=10)
    assert "more than its context of 64" in router.decide(long).forecasts[1].verdict
    assert not server.asked


def test_only_remote_tiers_may_be_enabled(routers: Any, server: OpenAIServer) -> None:
    router = routers(server.url, tiers=["far"])
    assert router.tiers == () and router.decide(CALL).tier == "far"
    assert answer(router, CALL).reply.text == "From far away."


# --- llama.cpp's own server -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = write_scripted_gguf(
        tmp_path_factory.mktemp("served") / "served.gguf", {**FRUIT, "extra": "Yes."}, context=2048
    )
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(file), "--n_ctx", "1024"]
    command += ["--n_threads", "1", "--model_alias", "great-model"]
    # A port that is free now may be another's by the time the server is up: it takes one itself.
    environment = {**os.environ, "HOST": "127.0.0.1", "PORT": "0"}
    said = file.with_suffix(".log")
    with (
        said.open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as running,
    ):
        try:
            deadline = time.monotonic() + 300
            pattern = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
            while (found := pattern.search(said.read_text(errors="replace"))) is None:
                assert running.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            yield f"{found[1]}/v1"
        finally:
            running.terminate()


@pytest.mark.slow
def test_a_real_llama_server(routers: Any, llama_server: str) -> None:
    router = routers(llama_server, Budget(quality=1.0), success=0.99)
    result = answer(router, CALL)
    assert result.final.decision.tier == "far"
    assert result.reply.text.strip() == FRUIT["banana"]
    *pieces, streamed = stream_answer(router, CALL)
    assert len(pieces) > 2 and streamed.reply.text.strip() == FRUIT["banana"]
