"""What a routing decision costs inside `ChatTierwise`, over four calibrated tiers.

    python benchmarks/routing.py [--runs N] [--turns N] [--json FILE]

An agent with 20 tools and a conversation of some 4,000 tokens that goes on turn by turn. Every turn
is a call of `ChatTierwise`, which decides, reads and writes as in use, with all tiers loaded. What
is clocked is `Router.decide`, in milliseconds of wall-clock time; each run is another conversation.

``overhead_ms_p50``, ``overhead_ms_p99``: of the decisions on all turns but the first.
``overhead_ms_first``: of those on first turns, where most of the conversation is new to the
    tokenizer, as after a restart.
``plain_ms``: what llama-cpp-python takes to get to the tokens of the same conversations, without
    any decision: its own chat formatter (the model's template leaves tools out), and the tokenizer
    over the whole text, as in ChatLlamaCpp. On every fourth turn in place of a decision, so that
    both meet the caches as a reply left them.

The tiers are copies of SmolLM2-135M (`bundled:smollm2`) with made-up speeds, calibrated on made-up
outcomes on which routing pays: what counts is tokens, tools and tiers. Nothing is built, and what
is yours is neither read nor changed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, report, say, spread
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    HumanMessage,
    SystemMessage,
    convert_to_openai_messages,
)
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from tierwise import Budget, ChatTierwise, Family
from tierwise.compression.source import resolve_base
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tool_catalog import CATALOGS
from tierwise.routing.calibration import Calibration
from tierwise.routing.calibration_fit import fit_calibration
from tierwise.routing.calibration_store import save_calibration
from tierwise.routing.features import call_features
from tierwise.routing.labelled import Labelled
from tierwise.routing.router import Router
from tierwise.runtime.family import Base, Tier
from tierwise.runtime.files import sha256_of
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.llama import Model
from tierwise.runtime.profile import Profile, machine_fingerprint, save_profile

TIERS, TOOLS, LABELS = 4, 20, 640
TURN = "Tell me more about the hills, the rain and the road that leads there. " * 4
EARLIER = 26
"""Messages before the first turn: some 4,000 tokens, tools included."""

MADE_AT = "2025-01-01T00:00:00+00:00"


class Clocked:
    """Milliseconds of every decision of a router from now on."""

    def __init__(self, router: Router) -> None:
        self.milliseconds: list[float] = []
        self.prompt_tokens: list[int] = []
        self._decide = router.decide
        router.decide = self  # type: ignore[method-assign, assignment]

    def __call__(self, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        decision = self._decide(*args, **options)
        self.milliseconds.append((time.perf_counter() - began) * 1e3)
        self.prompt_tokens.append(decision.prompt_tokens)
        return decision


class Plain:
    """Milliseconds that llama-cpp-python takes from messages and tools to a prompt's tokens."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._formatter = Jinja2ChatFormatter(
            template=model.chat_template or "",
            eos_token=model.token_text(model.eos),
            bos_token=model.token_text(model.bos),
        )

    def __call__(self, messages: list[AnyMessage], offered: list[Any]) -> float:
        said: Any = convert_to_openai_messages(messages)
        began = time.perf_counter()
        prompt = self._formatter(messages=said, tools=offered).prompt
        self._model.tokenize(prompt)
        return (time.perf_counter() - began) * 1e3


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(runs=20)
    parser.add_argument("--turns", type=int, default=26, help="of each conversation")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TIERWISE_HOME"] = str(Path(folder) / "home")
        family = four_tiers(Path(folder) / "family")
        calibration = calibrated(family)
        save_calibration(family.folder, calibration)
        figures = measure(family, options.runs, options.turns)
    report(
        {"tiers": TIERS, "tools": TOOLS, "estimator": calibration.estimator, **figures},
        options.json,
    )


def measure(family: Family, runs: int, turns: int) -> dict[str, Any]:
    """The figures, and how long the prompts were."""
    budget = Budget(quality=1.0)  # as long as the best tier answers, nobody else is asked
    first: list[float] = []
    later: list[float] = []
    plain: list[float] = []
    named = family.tiers[0]
    offered = [tool.to_openai() for tool in tools()]
    with (
        Model(family.path(named), vocab_only=True) as model,
        ChatTierwise(family=family, budget=budget, max_tokens=8) as chat,
    ):
        for tier in family.tiers:
            chat.invoke("Hello!", model=tier.name)
        clocked = Clocked(chat.router)
        agent = chat.bind_tools(offered)
        plainly = Plain(model)
        for run in range(runs):
            messages = conversation(run)
            for turn in range(turns):
                messages.append(HumanMessage(f"And what of place {turn} of {run}? {TURN[:70]}"))
                if turn % 4 == 3:
                    plain.append(plainly(messages, offered))
                clocked.milliseconds.clear()
                reply = agent.invoke(messages)
                if turn % 4 != 3:
                    (later if turn else first).extend(clocked.milliseconds)
                messages.append(AIMessage(reply.text or "There is nothing to say of it."))
            say(f"conversation {run + 1} of {runs}")
    return {
        "prompt_tokens": spread(clocked.prompt_tokens),
        "decisions": len(later),
        "overhead_ms_p50": round(float(np.percentile(later, 50)), 4),
        "overhead_ms_p99": round(float(np.percentile(later, 99)), 4),
        "overhead_ms_first": spread(first),
        "plain_ms": spread(plain),
    }


def conversation(number: int) -> list[AnyMessage]:
    """What was said so far; no turn of it is in a conversation of another number."""
    texts = [f"{number}, turn {turn}. {TURN}" for turn in range(EARLIER)]
    kinds = (HumanMessage, AIMessage)
    said = [kinds[turn % 2](text) for turn, text in enumerate(texts)]
    return [SystemMessage("You help with everything."), *said]


def tools() -> list[Any]:
    """Of our own suite."""
    patterns = (pattern for domain in CATALOGS["test"].domains for pattern in domain.tools)
    return [pattern.tool for pattern in patterns][:TOOLS]


# --- the family -------------------------------------------------------------------------


def four_tiers(folder: Path) -> Family:
    """Copies of one file that differ in their last bytes, each dearer than the one before."""
    folder.mkdir(parents=True)
    source = resolve_base("bundled:smollm2")
    with Model(source.gguf, no_alloc=True) as model:
        shape = {
            "parameters": model.parameters,
            "layers": model.layers,
            "context_tokens": model.context_tokens,
        }
        kv, vocabulary = model.kv_bytes_per_token, model.vocab_size
    tiers = []
    for number in range(TIERS):
        path = folder / f"t{number}.gguf"
        shutil.copyfile(source.gguf, path)
        with path.open("ab") as file:
            file.write(bytes(number))
        tiers.append(
            Tier(
                name=path.stem,
                file=path.name,
                sha256=sha256_of(path),
                bytes=path.stat().st_size,
                kv_bytes_per_token=kv,
                lineage=Lineage(origin="built", quantization="Q4_1"),
                **shape,
            )
        )
        save_profile(profile(tiers[-1], slower=1.5**number))
    base = Base(
        name=source.name,
        source=source.spec,
        sha256=tiers[-1].sha256,
        architecture="llama",
        vocab_size=vocabulary,
        tokenizer_sha256="0" * 64,
        **shape,
    )
    Family(created=MADE_AT, tierwise="0", base=base, tiers=tuple(tiers)).save(folder)
    return Family.load(folder)


def profile(tier: Tier, slower: float) -> Profile:
    return Profile(
        tier_sha256=tier.sha256,
        machine=machine_fingerprint(),
        threads=2,
        prefill_tokens_per_s=600 / slower,
        decode_tokens_per_s=100 / slower,
        load_s=0.2,
        resident_bytes=tier.bytes,
        context_tokens=2048,
        measured_at=MADE_AT,
        runs=1,
    )


def calibrated(family: Family) -> Calibration:
    """On outcomes where each tier can do a little more than the one before it."""
    rng = np.random.default_rng(0)
    tasks = generate_tasks(LABELS, seed=1)
    calls = tuple(task.call for task in tasks)
    x = np.array([call_features(call) for call in calls], np.float32)
    hard = np.array([("easy", "medium", "hard").index(task.grade) for task in tasks])
    able = np.arange(len(family.tiers))[None] >= hard[:, None]
    y = (able ^ (rng.random(able.shape) < 0.05)).astype(float)
    data = Labelled(
        calls=calls,
        suites=("made",) * LABELS,
        groups=tuple(map(str, range(LABELS))),
        x=x,
        y=y,
        problems=np.zeros(y.shape, bool),
        sure=np.full((*y.shape, 2), 0.9),
        spent=np.tile(1.5 ** np.arange(len(family.tiers)), (LABELS, 1)),
        lengths=np.array([len(call.messages[-1].content) for call in calls], float),
    )
    found = fit_calibration(data, family, family.tiers)
    if not found.verdict.route:  # else chances would be the same for every call, and cost nothing
        raise SystemExit(f"these outcomes are to be worth routing on, but {found.verdict.reason}")
    return found


if __name__ == "__main__":
    main()
