"""What benchmarks make of their measurements."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tierwise.evaluation.task_generator import generate_tasks

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def test_the_error_of_splits_of_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is how far the mean over splits really is from the truth, however many splits."""
    of = benchmark("routing_own", monkeypatch).standard_error
    rng = np.random.default_rng(0)
    for splits in (10, 40):
        means, said = [], []
        for _ in range(300):
            calls = rng.normal(size=200)
            values = [calls[rng.permutation(200)[:50]].mean() for _ in range(splits)]
            means.append(np.mean(values))
            said.append(of(values, 0.25))
        assert np.mean(said) == pytest.approx(np.std(means), rel=0.15)
    assert np.isnan(of([0.1], 0.25))


def test_seconds_are_kept_by_what_was_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    retained = benchmark("compression_retained", monkeypatch)
    tasks = generate_tasks(14)
    blocks = retained.blocks_of("own", tasks)
    assert [len(part) for _, part in blocks] == [12, 2]
    assert [*retained.blocks_of("own", tasks[:13])[:1]] == blocks[:1]
    others = [*retained.blocks_of("own", tasks[:13])[1:], *retained.blocks_of("bfcl", tasks)]
    assert not {name for name, _ in others} & {name for name, _ in blocks}
    base, tier = (retained.Candidate(n, tmp_path / n, n * 64) for n in "ab")
    options = argparse.Namespace(threads=2, at_once=1)
    kept = retained.Kept(tmp_path / "kept.jsonl")
    for block in blocks:
        prompts = len(block[1])
        kept.put([3.0 * prompts, prompts], *retained.timing(base, tier, block, options))
    found = retained.speedup(base, tier, blocks, kept, options)
    assert found["seconds_per_prompt"] == {"base": 3.0, "tier": 1.0}
    assert found["speedup"]["value"] == 3.0
    assert retained.time_in_turn(base, [tier], blocks, kept, options, ends=0.0) == 0
    assert retained.time_in_turn(base, [tier], [others[0]], kept, options, ends=0.0) == 1
