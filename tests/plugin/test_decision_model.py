"""`TierwiseDecisionModel` behind LangChain's own model router, in real agents over real tiers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

if tuple(map(int, version("langchain-core").split(".")[:2])) < (1, 8):
    pytest.skip("decision models came with langchain-core 1.8", allow_module_level=True)

from calibration_factory import (
    Right,
    by_chance,
    by_kind,
    calibrated,
    request,
    scripted_pair,
)
from langchain.agents import create_agent
from langchain.agents.middleware import ModelChoice, ModelRouterMiddleware
from langchain_core.decisions import Choice, ChoiceAnswer, Noul
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool

from tierwise import Budget, ChatTierwise, Family, OtherModel, TierwiseDecisionModel
from tierwise.plugin.messages import to_messages
from tierwise.routing.calibration_store import save_calibration
from tierwise.runtime.chat import Call
from tierwise.runtime.errors import ConfigError, NoFeasibleTierError

pytestmark = pytest.mark.filterwarnings("ignore:.*is in beta")

EASY, HARD = request(702, False), request(702, True)
INSTRUCTIONS = "Choose the quickest model that will do."


@tool
def count_words(text: str) -> str:
    """Count the words of a text."""
    return str(len(text.split()))


def made(folder: Path, right: Right) -> Family:
    """A calibrated family of a small and a large tier, which both say hello."""
    family = scripted_pair(folder, {"": "Hello there, friend."}, context=4096)
    save_calibration(family.folder, calibrated(family, right))
    return family


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, str]:
    """A family whose small tier can do what is easy, and the home with its profiles."""
    return made(tmp_path_factory.mktemp("families"), by_kind), os.environ["TIERWISE_HOME"]


@pytest.fixture
def family(made_once: tuple[Family, str], monkeypatch: pytest.MonkeyPatch) -> Family:
    monkeypatch.setenv("TIERWISE_HOME", made_once[1])
    return made_once[0]


@pytest.fixture
def pinned(family: Family) -> Iterator[dict[str, ChatTierwise]]:
    chats = {
        name: ChatTierwise(family=family, model=name, threads=1, max_tokens=40)
        for name in ("small", "large")
    }
    yield chats
    for chat in chats.values():
        chat.close()


def routed(models: dict[str, Any], classifier: TierwiseDecisionModel, *tools: Any) -> Any:
    """An agent whose model LangChain's middleware chooses."""
    choices = {name: ModelChoice(model, f"What {name} is for.") for name, model in models.items()}
    router = ModelRouterMiddleware(
        choices=choices, instructions=INSTRUCTIONS, classifier=classifier
    )
    return create_agent(next(iter(models.values())), tools, middleware=[router])


def asked(agent: Any, text: str) -> dict[str, Any]:
    state: dict[str, Any] = agent.invoke({"messages": [("user", text)]})
    return state


def answer(classifier: TierwiseDecisionModel, state: Any, *labels: str) -> ChoiceAnswer:
    question = Choice(instructions=INSTRUCTIONS, criteria=dict.fromkeys(labels))
    response = classifier.invoke({"state": state, "questions": {"which": question}})
    assert response.model == classifier.model == "pair"
    return response.choices["which"]


# --- in agents --------------------------------------------------------------------------


def test_langchains_router_sends_each_run_where_it_belongs(
    pinned: dict[str, ChatTierwise], socket_disabled: None
) -> None:
    del socket_disabled  # no network is there
    classifier = TierwiseDecisionModel(choices=dict(pinned), tools=[count_words])
    agent = routed(pinned, classifier, count_words)
    for text, name in ((EASY, "small"), (HARD, "large"), (EASY, "small")):
        state = asked(agent, text)
        assert state["messages"][-1].text == "Hello there, friend."
        assert state["messages"][-1].response_metadata["tier"] == name
        assert state["model_route"].choice == name
        assert sum(state["model_route"].probabilities.values()) == pytest.approx(1)
        assert state["model_route"].confidence > 0.7


def test_the_same_asynchronously(pinned: dict[str, ChatTierwise]) -> None:
    agent = routed(pinned, TierwiseDecisionModel(choices=dict(pinned)))

    async def both() -> list[dict[str, Any]]:
        calls = (agent.ainvoke({"messages": [("user", text)]}) for text in (EASY, HARD))
        return list(await asyncio.gather(*calls))

    tiers = [state["messages"][-1].response_metadata["tier"] for state in asyncio.run(both())]
    assert tiers == ["small", "large"]


def test_labels_may_be_the_tiers_own_names(pinned: dict[str, ChatTierwise], family: Family) -> None:
    with TierwiseDecisionModel(family=family, threads=1) as classifier:
        agent = routed(pinned, classifier)
        assert asked(agent, HARD)["model_route"].choice == "large"
        assert asked(agent, EASY)["model_route"].choice == "small"


def test_a_model_that_is_no_tier_takes_what_the_tiers_cannot(
    pinned: dict[str, ChatTierwise],
) -> None:
    cloud = FakeListChatModel(responses=["From far away."])
    here = {"here": pinned["small"]}
    classifier = TierwiseDecisionModel(
        choices={**here, "cloud": OtherModel(success=0.97, seconds=30.0)}
    )
    agent = routed({**here, "cloud": cloud}, classifier)
    assert asked(agent, EASY)["messages"][-1].text == "Hello there, friend."
    far = asked(agent, HARD)
    assert far["messages"][-1].text == "From far away."
    assert far["model_route"].choice == "cloud" and far["model_route"].confidence == 0.97


def test_where_no_model_can_answer_the_run_ends(pinned: dict[str, ChatTierwise]) -> None:
    classifier = TierwiseDecisionModel(choices=dict(pinned), budget=Budget(memory=1))
    with pytest.raises(NoFeasibleTierError, match=r"small: .* needs"):
        asked(routed(pinned, classifier), EASY)


# --- answers ----------------------------------------------------------------------------


def test_shares_of_models_and_the_chance_of_the_chosen_one(family: Family) -> None:
    choices = {"a": {"success": 0.6, "seconds": 1.0}, "b": {"success": 0.9, "seconds": 2.0}}
    choices |= {"c": {"success": 0.8, "seconds": 3.0}, "d": {"success": 0.99, "seconds": 90.0}}
    budget = Budget(quality=0.8, seconds_per_call=60.0)
    with TierwiseDecisionModel(family=family, choices=choices, budget=budget) as classifier:
        found = answer(classifier, EASY, "a", "b", "c", "d")
    assert found.choice == "b" and found.confidence == 0.9
    shares = {name: round(share, 3) for name, share in found.probabilities.items()}
    assert shares == {"a": 0.667, "b": 0.333, "c": 0.0, "d": 0.0}  # d is too late to take part
    everyone_fails = {name: {"success": 0.0, "seconds": 1.0} for name in "ab"}
    with TierwiseDecisionModel(family=family, choices=everyone_fails) as classifier:
        assert answer(classifier, EASY, "a", "b").probabilities == {"a": 1.0, "b": 0.0}


def test_only_the_labels_of_the_question_are_weighed(family: Family) -> None:
    choices = {"cheap": "small", "good": "large", "cloud": OtherModel(success=0.99, seconds=0.01)}
    with TierwiseDecisionModel(family=family, choices=choices, threads=1) as classifier:
        assert answer(classifier, HARD, "cheap", "good", "cloud").choice == "cloud"
        assert answer(classifier, HARD, "cheap", "good").choice == "good"
        assert set(answer(classifier, HARD, "cheap").probabilities) == {"cheap"}
        questions = {
            name: Choice(instructions=INSTRUCTIONS, criteria=dict.fromkeys(labels))
            for name, labels in (("one", ["cheap", "good"]), ("two", ["good"]))
        }
        request = {"state": EASY, "questions": questions}
        found = [one.choices for one in classifier.batch([request, request])]
    assert [[a["one"].choice, a["two"].choice] for a in found] == [["cheap", "good"]] * 2


@pytest.mark.parametrize(
    "state",
    [
        HARD,
        HumanMessage(HARD),
        [HumanMessage(EASY), AIMessage("Yes."), HumanMessage(HARD)],
        [{"role": "user", "content": EASY}, {"role": "user", "content": HARD}],
        {"messages": [HumanMessage(HARD)], "tool_call": {"name": "x"}},
        {"request": HARD, "history": [AIMessage("Yes.")]},
    ],
    ids=["text", "message", "messages", "dictionaries", "state", "json"],
)
def test_what_a_state_may_be(family: Family, state: Any) -> None:
    with TierwiseDecisionModel(family=family, threads=1) as classifier:
        assert answer(classifier, state, "small", "large").choice == "large"


def test_states_with_messages_are_read_as_conversations(family: Family) -> None:
    said = [HumanMessage(EASY), AIMessage("Yes."), HumanMessage(HARD)]
    plain = [{"role": one.type, "content": one.text} for one in said]
    states: list[Any] = [said, plain, {"messages": said, "tool_call": {"name": "x"}}]
    with TierwiseDecisionModel(family=family, threads=1) as classifier:
        found = {classifier.explain(state).prompt_tokens for state in states}
        assert found == {len(classifier._chat.router.pool.prompt(Call(to_messages(said))))}
        assert classifier.explain(said[2]).prompt_tokens < found.pop()


def test_calls_too_long_for_every_tier_go_elsewhere(family: Family) -> None:
    cloud = OtherModel(success=0.9, seconds=5.0)
    with TierwiseDecisionModel(family=family, choices={"cloud": cloud}) as classifier:
        assert answer(classifier, "a" * 5000, "small", "cloud").choice == "cloud"
        with pytest.raises(NoFeasibleTierError, match="was trained for 4,096"):
            answer(classifier, "a" * 5000, "small", "large")


def test_the_agents_tools_and_system_prompt_count(family: Family) -> None:
    options = ({}, {"tools": [count_words]}, {"system_prompt": "You are careful. " * 10})
    found = []
    for told in options:
        with TierwiseDecisionModel(family=family, threads=1, **told) as classifier:
            found.append(classifier.explain(EASY))
            again = classifier.explain(EASY, ["small"])
    bare, *others = found
    for one in others:
        assert one.prompt_tokens > bare.prompt_tokens + 100
        assert one.forecast.first_token_s > bare.forecast.first_token_s
    assert [one.tier for one in again.forecasts] == ["small"]


def test_where_routing_does_not_pay_one_model_answers_all(tmp_path: Path) -> None:
    family = made(tmp_path, by_chance)
    with TierwiseDecisionModel(family=family, threads=1) as classifier:
        found = [answer(classifier, text, "small", "large") for text in (EASY, HARD)]
    assert [one.choice for one in found] == ["large", "large"]
    assert found[0].confidence == found[1].confidence


def test_what_is_loaded_for_the_chosen_model_is_known(pinned: dict[str, ChatTierwise]) -> None:
    """Classifier and models share tiers, so that a tier that is loaded is forecast as such."""
    classifier = TierwiseDecisionModel(choices=dict(pinned))
    assert classifier.explain(HARD).forecast.cold
    asked(routed(pinned, classifier), HARD)
    assert not classifier.explain(HARD).forecast.cold
    assert set(pinned["small"].router.pool.resident()) == {"large"}


def test_questions_are_not_calls(family: Family) -> None:
    """What is asked of the router only is no sign that calls have become others."""
    with TierwiseDecisionModel(family=family, threads=1) as classifier:
        for number in range(450):
            answer(classifier, f"{HARD} {number}", "small", "large")
        adaptation = classifier._chat.router.adaptation
        assert adaptation.drift is None
        for number in range(450):
            classifier._chat.explain([HumanMessage(f"{HARD} {number}")])
        assert adaptation.drift is not None and adaptation.drift.drifted


# --- what it refuses --------------------------------------------------------------------


def test_a_label_that_stands_for_nothing(family: Family) -> None:
    with (
        TierwiseDecisionModel(family=family) as classifier,
        pytest.raises(ConfigError, match=r"label 'huge' stands for 'huge'.*there are small, large"),
    ):
        answer(classifier, EASY, "small", "huge")


def test_a_chat_model_that_is_not_pinned(family: Family, tmp_path: Path) -> None:
    elsewhere = ChatTierwise(family=str(tmp_path / "elsewhere"), model="small")
    for chat in (ChatTierwise(family=family), elsewhere):
        with (
            TierwiseDecisionModel(family=family, choices={"small": chat}) as classifier,
            pytest.raises(ConfigError, match=r"choices\['small'\] must be pinned to a tier of"),
        ):
            answer(classifier, EASY, "small")


def test_questions_of_other_kinds_are_refused(pinned: dict[str, ChatTierwise]) -> None:
    """To judge a tool call it would have to read."""
    classifier = TierwiseDecisionModel(choices=dict(pinned))
    question = Noul(instructions="Is it risky?")
    with pytest.raises(ConfigError, match="question 'is_risky' is a Noul"):
        classifier.invoke({"state": EASY, "questions": {"is_risky": question}})
