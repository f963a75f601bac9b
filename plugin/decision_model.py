"""``TierwiseDecisionModel``: LangChain's own model router, decided on this machine.

``ModelRouterMiddleware`` (langchain 1.5, beta) asks a decision model once for each run of an agent
which of several models is to answer. The decision models that come with it are services; this one
asks the family's router, which generates nothing and needs no network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, cast

from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    SystemMessage,
    convert_to_messages,
)
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from tierwise.plugin.chat import ChatTierwise
from tierwise.routing.budget import Budget
from tierwise.routing.candidates import AmongCandidates, OtherModel, shares
from tierwise.routing.decision import Decision
from tierwise.routing.router import Router
from tierwise.runtime.errors import ConfigError, MissingExtraError
from tierwise.runtime.family import Family

try:
    from langchain_core.decisions import (
        Answer,
        BaseDecisionModel,
        Choice,
        ChoiceAnswer,
        ClassifierResponse,
        Question,
        State,
    )
except ModuleNotFoundError as missing:
    raise MissingExtraError(
        "TierwiseDecisionModel needs langchain-core 1.8 or newer, and langchain 1.5 for "
        f"ModelRouterMiddleware; installed is langchain-core {version('langchain-core')}. Upgrade: "
        "pip install -U 'langchain>=1.5' 'langchain-core>=1.8'"
    ) from missing

Candidate = str | OtherModel | ChatTierwise


class TierwiseDecisionModel(BaseDecisionModel):
    """Answers which model is to be asked, by each one's forecast chance of success and seconds.

    Of the models that reach the budget's quality, as a share of the best one's chance, the quickest
    is chosen: as `ChatTierwise` chooses, by the same calibration, with what is loaded and cached
    now. In an answer, ``confidence`` is the chosen model's chance of being right, and
    ``probabilities`` say how likely each model is the quickest that is right. The choice need not
    be the likeliest of them: with a high quality it is careful.

    Descriptions in the question (``criteria``, ``instructions``) are not read, and questions other
    than ``Choice`` are refused: this is a router and no reader. ``ModelRouterMiddleware`` shows a
    decision model the latest user's message alone, so tell it of the agent's tools and system
    prompt, which decide most of what a call takes.

    Args:
        family: As of `ChatTierwise`. May be left out where ``choices`` holds a `ChatTierwise`,
            whose settings and loaded tiers are then shared.
        choices: What each label of a question stands for: a tier's name, a `ChatTierwise` that is
            pinned to one, or an `OtherModel` (also as a dictionary with ``success`` and
            ``seconds``) for any other LangChain model. A label that is not among them must be the
            name of a tier.
        budget: What a call may take, and the quality that is wanted.
        tools: Of the agent; anything that LangChain takes for a tool.
        system_prompt: Of the agent.
        threads: For llama.cpp; None for all the cores that this process may use.
        model: Name in traces and responses; the family's folder by default.

    Raises:
        MissingExtraError: At import: langchain-core is older than 1.8.
        ConfigError: A label that stands for nothing, or a question that is no ``Choice``.
        FamilyError, NoFeasibleTierError: No model can be chosen; the middleware lets these end
            the run.

    Example:
        >>> from langchain.agents.middleware import ModelChoice, ModelRouterMiddleware
        >>> small = ChatTierwise(family="./my-family", model="q4_0")
        >>> large = ChatTierwise(family="./my-family", model="q8_0")
        >>> ModelRouterMiddleware(
        ...     choices={"small": ModelChoice(small, "easy"), "large": ModelChoice(large, "hard")},
        ...     instructions="Choose the quickest model that will do.",
        ...     classifier=TierwiseDecisionModel(choices={"small": small, "large": large}),
        ... )
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str = ""
    family: str = ""
    choices: dict[str, Candidate] = Field(default_factory=dict)
    budget: Budget = Field(default_factory=Budget)
    tools: list[Any] = Field(default_factory=list)
    system_prompt: str = ""
    threads: int | None = Field(default=None, ge=1)

    _chat: ChatTierwise = PrivateAttr()

    @field_validator("family", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        if isinstance(value, Family):
            return str(value.folder)
        return str(value) if isinstance(value, Path) else value

    def model_post_init(self, context: Any, /) -> None:
        """Makes the chat model whose router decides; it loads nothing yet."""
        pinned = [one for one in self.choices.values() if isinstance(one, ChatTierwise)]
        if pinned and self.family in ("", pinned[0].family):
            self._chat = pinned[0].model_copy(update={"tier_name": None})
        else:
            family = self.family or os.environ.get("TIERWISE_FAMILY", "")
            self._chat = ChatTierwise(family=family, budget=self.budget, threads=self.threads)
        self.family = self._chat.family
        self.model = self.model or Path(self.family).name

    @property
    def _provider(self) -> str:
        return "tierwise"

    def explain(self, state: State, labels: Iterable[str] | None = None) -> Decision:
        """Prints every candidate's forecast and verdict, and returns the decision.

        Args:
            state: As in a request: text, a message, messages, or a mapping with "messages".
            labels: The candidates; by default those of ``choices``, or all tiers where there are
                none.
        """
        router = self._chat.router
        names = labels or self.choices or [one.name for one in router.members]
        decision = self._decide(router, state, list(names))
        print(decision.table())
        return decision

    def close(self) -> None:
        """Unloads all tiers, once no other model uses them."""
        self._chat.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        return self._answered(self._chat.router, state, questions)

    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        return self._answered(await self._chat._router_ready(), state, questions)

    def _answered(
        self, router: Router, state: State, questions: Mapping[str, Question]
    ) -> ClassifierResponse:
        answers: dict[str, Answer] = {
            name: self._answer(router, state, name, question)
            for name, question in questions.items()
        }
        return ClassifierResponse(model=self.model, answers=answers)

    def _answer(self, router: Router, state: State, name: str, question: Question) -> ChoiceAnswer:
        if not isinstance(question, Choice):
            raise ConfigError(
                f"the question {name!r} is a {type(question).__name__}; TierwiseDecisionModel "
                "only answers a Choice among models. Give other questions to another decision model"
            )
        decision = self._decide(router, state, list(question.criteria))
        return ChoiceAnswer(
            type="choice",
            choice=decision.tier,
            probabilities=shares(decision.forecasts, decision.tier),
            confidence=decision.forecast.success,
        )

    def _decide(self, router: Router, state: State, labels: Sequence[str]) -> Decision:
        """Which of the labels; forecasts go by labels."""
        candidates = {label: self._candidate(router, label) for label in labels}
        messages = _messages(state)
        if self.system_prompt and not isinstance(messages[0], SystemMessage):
            messages.insert(0, SystemMessage(self.system_prompt))
        call, _, _ = self._chat._chat_call(messages, None, {"tools": self.tools})
        tiers = {one for one in candidates.values() if isinstance(one, str)}
        without = [one.name for one in router.members if one.name not in tiers]
        return router.decide(
            call, budget=self.budget, without=without, policy=AmongCandidates(candidates)
        )

    def _candidate(self, router: Router, label: str) -> str | OtherModel:
        """The tier's name or the other model that a label stands for."""
        one = self.choices.get(label, label)
        if isinstance(one, OtherModel):
            return one
        if isinstance(one, ChatTierwise):
            if one.tier_name is None or Path(one.family) != Path(self.family):
                raise ConfigError(
                    f"choices[{label!r}] must be pinned to a tier of {self.family!r}, as in "
                    f"ChatTierwise(family={self.family!r}, model=NAME); it has model="
                    f"{one.tier_name!r} and family={one.family!r}"
                )
            one = one.tier_name
        known = [member.name for member in router.members]
        if one not in known:
            raise ConfigError(
                f"the label {label!r} stands for {one!r}, which is no tier of {self.family!r}; "
                f"there are {', '.join(known)}. Say in choices= what it stands for: a tier, or "
                "OtherModel(success=…, seconds=…) for a model outside the family."
            )
        return one


def _messages(state: State) -> list[BaseMessage]:
    """A decision model's state as a conversation; what is none is a request in JSON."""
    if isinstance(state, Mapping) and "messages" in state:
        state = cast(State, state["messages"])
    if isinstance(state, BaseMessage):
        return [state]
    if isinstance(state, str):
        return [HumanMessage(state)]
    if isinstance(state, Sequence) and state and all(map(_is_message, state)):
        return convert_to_messages(cast(list[Any], state))
    return [HumanMessage(json.dumps(state, ensure_ascii=False, default=_text))]


def _is_message(value: object) -> bool:
    return isinstance(value, BaseMessage) or (
        isinstance(value, Mapping) and {"role", "content"} <= value.keys()
    )


def _text(value: object) -> str:
    """Of a message deep in a state."""
    return value.text if isinstance(value, BaseMessage) else str(value)
