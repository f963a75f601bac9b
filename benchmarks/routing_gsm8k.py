"""Which calls gain by the larger model? Learned from a few hundred labels, against simple rules.

    python benchmarks/routing_gsm8k.py --data FILE [--labels N] [--folds N] [--runs N] [--json FILE]

The data are one JSON object a line, gzipped or not: ``prompt``, and whether the ``weak`` and the
``strong`` model were right (1 or 0). RouteLLM's repository holds those of Mixtral-8x7B and GPT-4 on
GSM8K. Nothing else is read, and no network is used.

``apgr`` is the average performance gap recovered (arXiv 2406.18665): 0.5 for calls drawn at random,
and the more the earlier the calls come that gain. In every run the prompts are split anew into
folds; each fold is scored by what was fitted on ``--labels`` rows drawn from the others. Scores are
compared within a fold only. Given are median, smallest and largest over runs, and the mean with
its 95 % interval over the calls, also of the lead over prompt length.

``chosen`` is the estimator that a cross-validation within the labels of each fold takes. The
others are as they come, with the settings that calibration uses too. Peers that are not installed
are left out: LiteLLM's complexity router, and cascadeflow's detector and estimator of difficulty.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, report, say, spread

from tierwise.routing.bootstrap import Interval, resamples
from tierwise.routing.estimators import Estimator
from tierwise.routing.estimators_linear import Logistic, RidgeGain
from tierwise.routing.estimators_neighbours import GuardedKNN
from tierwise.routing.features import COUNTS, PLAIN_SPEC, text_features
from tierwise.routing.metrics import apgr, two_tiers
from tierwise.routing.splits import folds, prompt_group

ESTIMATORS: dict[str, Estimator] = {
    "ridge_gain": RidgeGain(PLAIN_SPEC.hashed),
    "ridge_gain_counts": RidgeGain(PLAIN_SPEC.hashed, dimensions=0),
    "logistic": Logistic(PLAIN_SPEC.hashed),
    "guarded_knn": GuardedKNN(PLAIN_SPEC.hashed),
}
"""``ridge_gain_counts`` has no n-grams."""

INNER_FOLDS = 4

Score = Callable[[str], float]


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(runs=10)
    parser.add_argument("--data", type=Path, required=True, help="prompts with both outcomes")
    parser.add_argument("--labels", type=int, default=500, help="rows to learn from in each fold")
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    prompts, y = read(options.data)
    say(f"{len(prompts)} prompts, right {y[:, 0].mean():.3f} and {y[:, 1].mean():.3f}")
    x = np.array([text_features(prompt) for prompt in prompts])
    learned: dict[str, list[Any]] = {name: [] for name in (*ESTIMATORS, "chosen")}
    chosen: list[str] = []
    for run in range(options.runs):
        scores = {name: np.zeros(len(y)) for name in learned}
        for test, labels in parts(prompts, y, options.folds, options.labels, run):
            gains = {name: gain(e, x, y, labels, test) for name, e in ESTIMATORS.items()}
            best = choose(x, y, prompts, labels, run)
            chosen.append(best)
            for name, values in {**gains, "chosen": gains[best]}.items():
                scores[name][test] = within_fold(values)
        for name, values in scores.items():
            learned[name].append(values)
        say(f"run {run + 1}: " + ", ".join(f"{n} {apgr(s, *y.T):.3f}" for n, s in scores.items()))
    length = np.array([len(prompt) for prompt in prompts], float)
    counts = resamples(len(y))
    figures = {name: summary(scores, y, length, counts) for name, scores in learned.items()}
    fixed = {"length": length, "structural_difficulty": x[:, COUNTS.index("difficulty")]}
    for name, score in peers():
        fixed[name] = np.array([score(prompt) for prompt in prompts])
    for name, values in {**fixed, "oracle": y[:, 1] - y[:, 0]}.items():
        figures[name] = summary([values], y, length, counts)
    setting = {"labels": options.labels, "folds": options.folds, "runs": options.runs}
    often = {name: chosen.count(name) for name in ESTIMATORS}
    report({"prompts": len(y), **setting, "chosen": often, "apgr": figures}, options.json)


def read(path: Path) -> tuple[list[str], Any]:
    """Prompts, and outcomes of shape (n, 2)."""
    data = path.read_bytes()
    text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [row["prompt"] for row in rows], np.array(
        [[r["weak"], r["strong"]] for r in rows], float
    )


def parts(
    prompts: Sequence[str], y: Any, count: int, labels: int, seed: int
) -> Iterator[tuple[Any, Any]]:
    """For every fold its rows, and the rows to learn from."""
    strata = [tuple(row) for row in y.tolist()]
    rng = np.random.default_rng(seed)
    for test in folds([prompt_group(prompt) for prompt in prompts], count, strata, seed=seed):
        rest = np.setdiff1d(np.arange(len(y)), test)
        yield test, rng.permutation(rest)[:labels]


def gain(estimator: Estimator, x: Any, y: Any, labels: Any, test: Any) -> Any:
    """By how much the larger model is predicted to be better."""
    predicted = estimator.fit(x[labels], y[labels]).predict(x[test])
    return predicted[:, 1] - predicted[:, 0]


def choose(x: Any, y: Any, prompts: Sequence[str], labels: Any, seed: int) -> str:
    """The estimator of the best APGR within the labels."""
    groups = [prompt_group(prompts[row]) for row in labels]
    inner = folds(groups, INNER_FOLDS, [tuple(row) for row in y[labels].tolist()], seed=seed)
    areas = {}
    for name, estimator in ESTIMATORS.items():
        scores = np.zeros(len(labels))
        for test in inner:
            rest = labels[np.setdiff1d(np.arange(len(labels)), test)]
            scores[test] = within_fold(gain(estimator, x, y, rest, labels[test]))
        areas[name] = apgr(scores, *y[labels].T)
    return max(areas, key=areas.__getitem__)


def within_fold(scores: Any) -> Any:
    """The share of the fold's scores that are lower, so that folds can be put together; equal
    scores stay equal."""
    order = np.sort(scores)
    return (np.searchsorted(order, scores) + np.searchsorted(order, scores, "right")) / len(order)


def summary(runs: Sequence[Any], y: Any, length: Any, counts: Any) -> dict[str, Any]:
    """APGR over runs, and over calls."""
    sweeps = [two_tiers(scores, *y.T) for scores in runs]
    values = [sweep.curve().area() for sweep in sweeps]
    drawn = np.mean([sweep.areas(counts) for sweep in sweeps], axis=0)
    by_length = two_tiers(length, *y.T)
    mean = float(np.mean(values))
    return {
        **spread(values),
        "mean": shown(Interval.of(mean, drawn)),
        "lead_over_length": shown(
            Interval.of(mean - by_length.curve().area(), drawn - by_length.areas(counts))
        ),
    }


def shown(interval: Interval) -> list[float]:
    return [round(x, 4) for x in (interval.value, interval.low, interval.high)]


def peers() -> Iterator[tuple[str, Score]]:
    """Scores of other routers, higher for prompts that they would send to a larger model."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network on import
    for name, make in (("litellm", litellm_scores), ("cascadeflow", cascadeflow_scores)):
        try:
            yield from make()
        except ImportError as error:
            say(f"{name} is left out: {error}")


def litellm_scores() -> Iterator[tuple[str, Score]]:
    """Its complexity router by rules, and by what it learned from UltraFeedback."""
    from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter

    rules = ComplexityRouter("rules", None)
    yield "litellm_rules", lambda prompt: rules.classify(prompt)[1]
    learned = ComplexityRouter("learned", None, {"classifier_type": "heuristic_v2"})

    def failure(prompt: str) -> float:
        outcome = learned._classify_locally(prompt, None)  # no public name gives its chances
        return 1 - outcome.heuristic_v2_forecast["probabilities"]["SIMPLE"]

    yield "litellm_learned", failure


def cascadeflow_scores() -> Iterator[tuple[str, Score]]:
    """Its complexity detector (five levels), and its estimate of difficulty."""
    from cascadeflow.quality.complexity import ComplexityDetector, QueryComplexity
    from cascadeflow.quality.query_difficulty import QueryDifficultyEstimator

    detector, levels = ComplexityDetector(), list(QueryComplexity)
    yield "cascadeflow_level", lambda prompt: levels.index(detector.detect(prompt)[0])
    yield "cascadeflow_difficulty", QueryDifficultyEstimator().estimate


if __name__ == "__main__":
    main()
