"""What features and a prediction cost, per call.

    python benchmarks/routing_features.py [--runs N] [--json FILE]

An agent's call with 20 tools and some 4,000 tokens. ``first`` is a request that was never seen,
with known tools (a new turn); ``again`` is the same request once more (a step of the same turn);
``new_tools`` has tools that were never seen either. Then a prediction for one row, of three tiers
and 500 labels. Microseconds of wall-clock time; no model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from common import arguments, report, spread

from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tool_catalog import CATALOGS
from tierwise.routing.estimators import Estimator
from tierwise.routing.estimators_linear import Logistic, RidgeGain
from tierwise.routing.estimators_neighbours import GuardedKNN
from tierwise.routing.features import PLAIN_SPEC, Features
from tierwise.runtime.chat import Call, Message

TURN = "Tell me more about the hills, the rain and the road that leads there. " * 4
TURNS, TOOLS, TOKENS, LABELS = 35, 20, 4_000, 500

ESTIMATORS: dict[str, Estimator] = {
    "ridge_gain": RidgeGain(PLAIN_SPEC.hashed),
    "logistic": Logistic(PLAIN_SPEC.hashed),
    "guarded_knn": GuardedKNN(PLAIN_SPEC.hashed),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(runs=300)
    options = parser.parse_args()
    features = Features()
    patterns = (p for domain in CATALOGS["test"].domains for p in domain.tools)
    tools = tuple(pattern.tool for pattern in patterns)[:TOOLS]
    prompt = tuple(range(TOKENS))
    times: dict[str, list[float]] = {"new_tools": [], "first": [], "again": []}
    for run in range(options.runs):
        call = conversation(run)
        others = tuple(replace(tool, description=f"{tool.description} {run}") for tool in tools)
        tried = {
            "new_tools": replace(call, tools=others),
            "first": replace(conversation(-run), tools=tools),
            "again": replace(conversation(-run), tools=tools),
        }
        for name, asked in tried.items():
            times[name].append(microseconds(lambda asked=asked: features(asked, prompt)))
    figures: dict[str, Any] = {f"features_{name}": spread(t) for name, t in times.items()}
    x = features.rows([task.call for task in generate_tasks(LABELS, seed=1)])
    y = (np.random.default_rng(0).random((LABELS, 3)) < (0.4, 0.6, 0.8)).astype(float)
    for name, estimator in ESTIMATORS.items():
        predictor, row = estimator.fit(x, y), x[:1]
        predict = partial(predictor.predict, row)
        figures[f"predict_{name}"] = spread([microseconds(predict) for _ in range(options.runs)])
    report({"tools": TOOLS, "prompt_tokens": TOKENS, "us": figures}, options.json)


def conversation(number: int) -> Call:
    """With a last request that no other has."""
    texts = [f"{number}, turn {turn}. {TURN}" for turn in range(TURNS)]
    messages = [Message("user" if i % 2 == 0 else "assistant", t) for i, t in enumerate(texts)]
    return Call((Message("system", "Help the user."), *messages))


def microseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e6


if __name__ == "__main__":
    main()
