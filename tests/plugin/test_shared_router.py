"""Models that share a router: copies, clones of one call, and models over the same family."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from family_factory import TierSpec, make_family
from langchain_core.runnables import ConfigurableField
from scripted_model import write_scripted_gguf

from tierwise import Budget, ChatTierwise, TierwiseLLM
from tierwise.plugin import shared_router
from tierwise.runtime.errors import ConfigError, FamilyNotFoundError

HELLO = "Hello there, friend."


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted_gguf(tmp_path_factory.mktemp("models") / "made.gguf", HELLO)


@pytest.fixture
def folder(tmp_path: Path, gguf: Path) -> Path:
    return make_family(tmp_path / "family", [TierSpec("only", gguf)]).folder


@pytest.fixture
def model(folder: Path) -> Iterator[ChatTierwise]:
    with ChatTierwise(family=folder, threads=1) as model:
        yield model


def copies(model: ChatTierwise) -> dict[str, ChatTierwise]:
    return {
        "copy": copy.copy(model),
        "deepcopy": copy.deepcopy(model),
        "model_copy": model.model_copy(),
        "deep": model.model_copy(deep=True),
    }


def test_copies_share_what_is_loaded(model: ChatTierwise) -> None:
    assert model.invoke("hi").content == HELLO
    for name, other in copies(model).items():
        reply = other.invoke("hi")
        assert reply.content == HELLO, name
        assert other.router is model.router
        assert reply.response_metadata["attempts"][0]["events"] == [], "nothing was loaded"


def test_a_copy_works_on_after_the_first_is_closed(model: ChatTierwise) -> None:
    model.invoke("hi")
    others = copies(model)
    pool = model.router.pool
    for other in others.values():
        other.invoke("hi")
    model.close()
    assert list(pool.resident()) == ["only"], "the others use it"
    for other in others.values():
        assert other.invoke("hi").content == HELLO
        other.close()
    assert pool.resident() == {}
    assert model.invoke("hi").content == HELLO
    assert model.router.pool is not pool


def test_a_copy_of_a_model_that_is_closed(model: ChatTierwise) -> None:
    model.invoke("hi")
    model.close()
    for name, other in copies(model).items():
        with other:
            assert other.invoke("hi").content == HELLO, name


def test_a_copy_with_other_settings_has_its_own_router(model: ChatTierwise) -> None:
    model.invoke("hi")
    for change in ({"tiers": ("only",)}, {"threads": 2}, {"budget": Budget(memory=10**9)}):
        with model.model_copy(update=change) as other:
            assert other.router is not model.router
            assert model.router is model.router
    with model.model_copy(update={"temperature": 1.0, "budget": Budget(quality=0)}) as other:
        assert other.router is model.router


def test_settings_that_are_changed_take_effect(model: ChatTierwise) -> None:
    before = model.router
    model.tiers = ("only",)
    assert model.router is not before
    assert before.pool._closed, "nobody uses it any more"
    assert model.invoke("hi").content == HELLO


def test_a_clone_for_one_call_finds_the_tier_loaded(model: ChatTierwise) -> None:
    configurable = model.configurable_fields(
        max_tokens=ConfigurableField(id="length"), temperature=ConfigurableField(id="heat")
    )
    assert configurable.invoke("hi").content == HELLO
    short = configurable.with_config(configurable={"length": 5, "heat": 0.0}).invoke("hi")
    assert short.content == "Hello"
    assert short.response_metadata["attempts"][0]["events"] == []
    gc.collect()  # the clone's end is not the router's
    assert list(model.router.pool.resident()) == ["only"]
    assert model.bind(max_tokens=5).invoke("hi").content == "Hello"


def test_clones_alone_keep_a_tier_loaded(folder: Path) -> None:
    """The model itself is never asked: each call goes to a clone that nobody keeps."""
    model = ChatTierwise(family=folder, threads=1)
    configurable = model.configurable_fields(max_tokens=ConfigurableField(id="length"))
    for length in (5, 6, 7):
        reply = configurable.with_config(configurable={"length": length}).invoke("hi")
        loaded = bool(reply.response_metadata["attempts"][0]["events"])
        assert loaded is (length == 5)
        gc.collect()
    pool = shared_router._shared[-1].router.pool  # type: ignore[union-attr]
    assert list(pool.resident()) == ["only"]
    model.close()  # it has never opened anything itself
    assert pool.resident() == {}


def test_a_model_that_is_not_asked_keeps_no_router_of_others_open(folder: Path) -> None:
    with ChatTierwise(family=folder, threads=1) as asked:
        idle = ChatTierwise(family=folder, threads=1)
        asked.invoke("hi")
        pool = asked.router.pool
    assert pool.resident() == {}
    assert idle.invoke("hi").content == HELLO
    idle.close()


def test_the_alternatives_of_a_model(model: ChatTierwise, folder: Path) -> None:
    with ChatTierwise(family=folder, threads=1, max_tokens=5) as terse:
        either = model.configurable_alternatives(ConfigurableField(id="who"), terse=terse)
        assert either.invoke("hi").content == HELLO
        assert either.with_config(configurable={"who": "terse"}).invoke("hi").content == "Hello"


def test_chats_and_completions_share_their_tiers(model: ChatTierwise, folder: Path) -> None:
    with TierwiseLLM(family=folder, threads=1) as llm:
        assert llm.invoke("hi") == model.invoke("hi").content == HELLO
        assert llm.router is model.router


def test_a_family_built_anew_is_another_one(
    model: ChatTierwise, folder: Path, gguf: Path, tmp_path: Path
) -> None:
    model.invoke("hi")
    other = write_scripted_gguf(tmp_path / "other.gguf", "Good day.")
    make_family(folder, [TierSpec("better", other)])
    with ChatTierwise(family=folder, threads=1) as fresh:
        assert fresh.invoke("hi").content == "Good day."
        assert fresh.router is not model.router


def test_what_is_let_go_is_forgotten(folder: Path) -> None:
    gc.collect()  # what earlier tests have let go
    before = len(shared_router._shared)
    model = ChatTierwise(family=folder, threads=1)
    model.invoke("hi")
    assert len(shared_router._shared) == before + 1
    del model
    gc.collect()
    assert len(shared_router._shared) == before


def test_many_threads_of_one_model_open_one_router(folder: Path) -> None:
    with ChatTierwise(family=folder, threads=1) as model:
        with ThreadPoolExecutor(8) as threads:
            routers = [*threads.map(lambda _: model.router, range(8))]
        assert {id(router) for router in routers} == {id(model.router)}
    assert routers[0].pool._closed


def test_a_router_is_kept_though_another_thread_could_not_open_one(folder: Path) -> None:
    """That thread was first, and the next one waited for it."""
    with ChatTierwise(family=folder, threads=1) as model:
        shared_router.enrol(model)
        shared, _ = shared_router._join(model)
        with ThreadPoolExecutor(1) as threads:
            with shared.opening:
                waits = threads.submit(lambda: model.router)
                time.sleep(0.1)  # it works without, but then nobody waited
                shared_router._leave(id(model))
            router = waits.result()
        assert shared_router.opened_router(model) is router
    assert router.pool._closed


def test_many_threads_open_one_router(folder: Path) -> None:
    models = [ChatTierwise(family=folder, threads=1) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        routers = [*threads.map(lambda model: model.router, models)]
    assert len({id(router) for router in routers}) == 1
    for model in models:
        model.close()
    assert routers[0].pool._closed


def test_settings_that_cannot_be(folder: Path) -> None:
    gc.collect()  # what earlier tests have let go
    before = len(shared_router._shared)
    with pytest.raises(ConfigError, match="'huge'"):
        ChatTierwise(family=folder, tiers=["huge"]).invoke("hi")
    with pytest.raises(FamilyNotFoundError):
        ChatTierwise(family=folder / "nowhere").invoke("hi")
    assert len(shared_router._shared) == before
