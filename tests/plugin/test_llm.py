"""``TierwiseLLM``: what LangChain lets any completion model do, on scripted tiers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField
from scripted_model import write_scripted_gguf

from tierwise import Budget, ChatTierwise, TierwiseLLM
from tierwise.runtime.errors import ConfigError, NoFeasibleTierError

HELLO = "Hello there, friend."
FRUIT = {"apple": "Red and crisp.", "banana": "Long, bent, sweet.", "cherry": "Has a stone."}
UMLAUTS = "Grüße aus Ålesund; 東京 🎉!"
SCRIPT = {
    "": HELLO,
    "umlauts": UMLAUTS,
    "weather": '{"city": "Oslo"}',
    **FRUIT,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a family whose smaller tier has nothing to say."""
    work = tmp_path_factory.mktemp("families")
    mute = {**dict.fromkeys(SCRIPT, ""), "apple": "A fruit."}
    small = write_scripted_gguf(work / "small.gguf", mute)
    large = write_scripted_gguf(work / "large.gguf", SCRIPT)
    tiers = [TierSpec("small", small, kl=0.1), TierSpec("large", large)]
    return make_family(work / "family", tiers).folder


Make = Callable[..., TierwiseLLM]


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    models: list[TierwiseLLM] = []

    def one(**options: Any) -> TierwiseLLM:
        models.append(TierwiseLLM(**{"family": folder, "threads": 1, "model": "large", **options}))
        return models[-1]

    yield one
    for model in models:
        model.close()


@pytest.fixture
def llm(make: Make) -> TierwiseLLM:
    return make()


QUESTIONS = [f"The {name}?" for name in FRUIT]


def test_a_prompt_is_what_a_user_says(llm: TierwiseLLM, folder: Path) -> None:
    assert llm.invoke("hi") == llm.invoke([HumanMessage("The apple?")]).replace(
        FRUIT["apple"], HELLO
    )
    with ChatTierwise(family=folder, threads=1, model="large") as chat:
        question = [HumanMessage("The banana?")]
        reply = chat.invoke(question)
        (generation,) = llm.generate(["The banana?"]).generations[0]
        assert generation.text == reply.content
        info = generation.generation_info or {}
        assert reply.usage_metadata is not None
        told = info["usage_metadata"]["input_tokens"]
        assert told == reply.usage_metadata["input_tokens"]


def test_invoke_and_batch(llm: TierwiseLLM) -> None:
    assert llm.invoke("umlauts") == UMLAUTS
    assert asyncio.run(llm.ainvoke("hi")) == HELLO
    assert llm.batch(QUESTIONS) == [*FRUIT.values()]
    assert asyncio.run(llm.abatch(QUESTIONS)) == [*FRUIT.values()]
    assert llm.batch(QUESTIONS, config={"max_concurrency": 2}) == [*FRUIT.values()]
    limited = asyncio.run(llm.abatch(QUESTIONS, config={"max_concurrency": 2}))
    assert limited == [*FRUIT.values()]
    assert llm.batch([]) == []


def test_a_batch_with_an_error_in_it(llm: TierwiseLLM) -> None:
    found = llm.batch(["x" * 5000], return_exceptions=True)
    assert "Shorten the conversation" in str(found[0])


def test_stream(llm: TierwiseLLM) -> None:
    async def pieces() -> list[str]:
        return [piece async for piece in llm.astream("umlauts")]

    for streamed in (list(llm.stream("umlauts")), asyncio.run(pieces())):
        assert "".join(streamed) == UMLAUTS
        assert len(streamed) > 10


class Watch(BaseCallbackHandler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.results: list[LLMResult] = []
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.results.append(response)

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.errors.append(error)


class AsyncWatch(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    async def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens.append(token)


def test_callbacks(make: Make) -> None:
    llm, streaming = make(), make(streaming=True)
    quiet, streamed, invoked = Watch(), Watch(), Watch()
    llm.invoke("hi", config={"callbacks": [quiet]})
    assert quiet.tokens == [] and quiet.results[0].generations[0][0].text == HELLO
    list(llm.stream("hi", config={"callbacks": [streamed]}))
    assert streaming.invoke("hi", config={"callbacks": [invoked]}) == HELLO
    for watch in (streamed, invoked):
        assert "".join(watch.tokens) == HELLO and len(watch.tokens) > 2
        info = watch.results[0].generations[0][0].generation_info or {}
        assert info["finish_reason"] == "stop"
    with pytest.raises(ConfigError):
        llm.invoke("hi", config={"callbacks": [quiet]}, temprature=1)
    assert isinstance(quiet.errors[0], ConfigError)


def test_async_callbacks(make: Make) -> None:
    async def watched() -> None:
        streamed, invoked = AsyncWatch(), AsyncWatch()
        async for _ in make().astream("hi", config={"callbacks": [streamed]}):
            pass
        reply = await make(streaming=True).ainvoke("hi", config={"callbacks": [invoked]})
        assert "".join(streamed.tokens) == "".join(invoked.tokens) == reply == HELLO

    asyncio.run(watched())


def test_events(llm: TierwiseLLM) -> None:
    async def events() -> list[Any]:
        return [event async for event in llm.astream_events("hi", version="v2")]

    found = asyncio.run(events())
    kinds = [event["event"] for event in found]
    assert kinds[0] == "on_llm_start" and kinds[-1] == "on_llm_end"
    chunks = [e["data"]["chunk"] for e in found if e["event"] == "on_llm_stream"]
    assert "".join(chunks) == HELLO


def test_in_a_chain(llm: TierwiseLLM) -> None:
    chain = PromptTemplate.from_template("The {what}?") | llm | StrOutputParser()
    assert chain.invoke({"what": "cherry"}) == FRUIT["cherry"]
    assert "".join(chain.stream({"what": "apple"})) == FRUIT["apple"]
    assert chain.batch([{"what": name} for name in FRUIT]) == [*FRUIT.values()]
    tagged = chain.with_config(tags=["fruit"], run_name="fruit")
    assert asyncio.run(tagged.ainvoke({"what": "banana"})) == FRUIT["banana"]


def test_stop_and_options(make: Make) -> None:
    llm = make(stop=["there"])
    assert llm.invoke("hi") == "Hello "
    assert llm.invoke("hi", stop=["friend"]) == "Hello there, "
    assert llm.bind(stop=["llo"]).invoke("hi") == "He"
    assert make(max_tokens=5).invoke("hi") == "Hello"
    assert make().invoke("hi", max_tokens=7) == "Hello t"
    assert make(budget=Budget(reply_tokens=5)).invoke("hi") == "Hello"
    with pytest.raises(ConfigError, match=r"'temprature'.*Known per call"):
        make().invoke("hi", temprature=1)
    with pytest.raises(ConfigError, match="'tools'"):
        make().invoke("hi", tools=[])
    with pytest.raises(NoFeasibleTierError):
        make().invoke("hi", budget={"memory": "1KB"})


def test_a_form_for_the_text(llm: TierwiseLLM) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    assert json.loads(llm.invoke("weather", response_format=schema)) == {"city": "Oslo"}


def test_routing(make: Make) -> None:
    llm = make(model=None, budget=Budget(quality=0))
    assert llm.invoke("The apple?") == "A fruit."
    result = llm.generate(["The banana?"])
    assert result.generations[0][0].text == FRUIT["banana"]
    info = result.generations[0][0].generation_info or {}
    assert info["escalated"] is True and info["tier"] == "large"
    assert llm.invoke("The apple?", model="large") == FRUIT["apple"]


def test_usage(llm: TierwiseLLM) -> None:
    one, two = llm.generate(["hi"]), llm.generate(["hi", "The apple?"])
    info = one.generations[0][0].generation_info or {}
    assert info["usage_metadata"]["output_tokens"] == len(HELLO)  # a byte a token
    for result in (one, two, asyncio.run(llm.agenerate(["hi", "The apple?"]))):
        assert result.llm_output is not None
        spent = [(g[0].generation_info or {})["usage_metadata"] for g in result.generations]
        usage = result.llm_output["token_usage"]
        assert usage["completion_tokens"] == sum(one["output_tokens"] for one in spent)
        assert usage["prompt_tokens"] == sum(one["input_tokens"] for one in spent)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert result.llm_output["model_name"] == "large"


def test_tokens(llm: TierwiseLLM) -> None:
    assert llm.get_num_tokens("hi there") == len(llm.get_token_ids("hi there")) == 8
    assert llm.get_num_tokens_from_messages([HumanMessage("hi")]) > 2


def test_what_it_says_of_itself(llm: TierwiseLLM) -> None:
    assert llm._llm_type == "tierwise"
    told = llm.asdict()
    assert told["_type"] == "tierwise" and told["model"] == "large" and told["max_tokens"] == 1024
    params = llm._get_ls_params()
    assert params["ls_provider"] == "tierwise" and params["ls_model_type"] == "llm"
    assert params["ls_model_name"] == "large"
    assert params["ls_temperature"] == 0.0 and params["ls_max_tokens"] == 1024
    assert llm._get_ls_params(model="small")["ls_model_name"] == "small"
    assert "secret" not in repr(TierwiseLLM(family="x", api_key="secret"))


def test_a_cache(make: Make) -> None:
    llm, other = make(), make(max_tokens=5)
    set_llm_cache(InMemoryCache())
    try:
        replies = [llm.generate(["hi"]) for _ in range(2)]
        assert [r.generations[0][0].text for r in replies] == [HELLO, HELLO]
        assert replies[0].llm_output and not replies[1].llm_output  # nothing was spent
        assert asyncio.run(llm.ainvoke("hi")) == HELLO
        assert other.invoke("hi") == "Hello"
    finally:
        set_llm_cache(None)


def test_configurable_fields(llm: TierwiseLLM) -> None:
    cut = llm.configurable_fields(max_tokens=ConfigurableField(id="length"))
    assert cut.invoke("hi") == HELLO
    assert cut.with_config(configurable={"length": 5}).invoke("hi") == "Hello"


async def test_langchain_knows_that_a_prompt_is_too_long(llm: TierwiseLLM) -> None:
    long = "x" * 5000
    with pytest.raises(ContextOverflowError):
        llm.invoke(long)
    with pytest.raises(ContextOverflowError):
        await llm.ainvoke(long)
    with pytest.raises(ContextOverflowError):
        list(llm.stream(long))
    with pytest.raises(ContextOverflowError):
        [chunk async for chunk in llm.astream(long)]
