"""Searched mixes: within their budget to the byte, and nearer to the base than fixed types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny_gguf

from tierwise.compression.precision.costs import CostTable, RowCost
from tierwise.compression.precision.ggml import read_weights, rounded
from tierwise.compression.precision.probe import Probe
from tierwise.compression.precision.search import (
    CallSize,
    Precision,
    fit_bytes,
    fit_seconds,
    search_precision,
    weights_s,
)
from tierwise.compression.precision.sensitivity import Sensitivities, measure_sensitivities
from tierwise.compression.precision.types import TENSOR_TYPES
from tierwise.compression.quantize import plan_quantization, quantize
from tierwise.compression.stages import Stages
from tierwise.evaluation.divergence import BaseDistribution
from tierwise.runtime.errors import ConfigError

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K", "Q2_K")
CALIBRATION = [[(7 * i + n) % 250 for i in range(60)] for n in range(5)]
HELD_OUT = [[(11 * i + 3 * n) % 250 for i in range(60)] for n in range(5)]


@pytest.fixture(scope="module")
def uneven_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers matter unevenly: some matrices hardly count for the answer."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "base.gguf", layers=4, width=256, ffn=512)
    content = np.memmap(path, dtype=np.uint8, mode="r+")
    for name, weight in read_weights(path).items():
        if name.startswith(("blk.1.", "blk.2.")):
            start = weight.data.ctypes.data - _address(weight.data)
            values = content[start : start + weight.data.size].view(np.float16)
            values[:] = values * np.float16(0.1)
    content.flush()
    return path


def _address(data: np.ndarray) -> int:
    """Of the start of the file that an array is a view of."""
    while isinstance(data.base, np.ndarray):
        data = data.base
    return int(data.ctypes.data)


@pytest.fixture(scope="module")
def found(uneven_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Sensitivities:
    return measure_sensitivities(
        uneven_gguf,
        CALIBRATION,
        imatrix={},
        stages=Stages(tmp_path_factory.mktemp("stages")),
        threads=1,
        types=TYPES,
        probes=29,
    )


def made(source: Path, mix: Precision, target: Path) -> Path:
    quantize(source, target, mix.file_type, overrides=mix.overrides, threads=1)
    return target


@pytest.mark.parametrize("stock", ["Q6_K", "Q4_K_S", "Q3_K_S"])
def test_a_mix_beats_a_file_type_of_the_same_size(
    uneven_gguf: Path, found: Sensitivities, tmp_path: Path, stock: str
) -> None:
    budget = plan_quantization(uneven_gguf, stock).bytes
    mix = fit_bytes(uneven_gguf, found, budget)
    file = made(uneven_gguf, mix, tmp_path / "mix.gguf")
    assert file.stat().st_size == mix.bytes <= budget
    assert mix.bytes > 0.98 * budget
    quantize(uneven_gguf, tmp_path / "stock.gguf", stock, threads=1)
    base = BaseDistribution(uneven_gguf, HELD_OUT, tmp_path / "base.f16", threads=1)
    ours, theirs = (base.compare(f, threads=1) for f in (file, tmp_path / "stock.gguf"))
    base.close()
    assert ours.kl_mean < 0.85 * theirs.kl_mean


def test_larger_budgets_lose_less(uneven_gguf: Path, found: Sensitivities) -> None:
    sizes = [plan_quantization(uneven_gguf, name).bytes for name in ("Q3_K_S", "Q5_0", "Q8_0")]
    mixes = [fit_bytes(uneven_gguf, found, size) for size in sizes]
    losses = [mix.predicted_kl for mix in mixes]
    assert losses == sorted(losses, reverse=True)
    assert set(mixes[0].overrides) == set(read_weights(uneven_gguf))
    assert mixes[0].overrides["blk.1.ffn_up.weight"] != mixes[0].overrides["output.weight"]


def test_a_budget_for_everything_loses_nothing(uneven_gguf: Path, found: Sensitivities) -> None:
    mix = fit_bytes(uneven_gguf, found, 10 * uneven_gguf.stat().st_size)
    assert set(mix.overrides.values()) == {"F16"} and mix.predicted_kl == 0.0


def test_a_budget_below_the_smallest_mix_says_what_that_takes(
    uneven_gguf: Path, found: Sensitivities
) -> None:
    with pytest.raises(ConfigError, match=r"no mix of types fits 100,000 bytes.*takes (\d|,)+"):
        fit_bytes(uneven_gguf, found, 100_000)


def cost_table(source: Path, *, slow: str) -> CostTable:
    """Seconds as bytes have it, but for one type that takes ten times as long."""
    rows = {}
    for weight in read_weights(source).values():
        for name in ("F16", *TYPES):
            second = TENSOR_TYPES[name].bytes(weight.width) * 1e-9 * (10 if name == slow else 1)
            rows[f"{name} {weight.width}"] = RowCost(prefill_s=second / 10, decode_s=second)
    return CostTable(threads=1, rows=rows)


@pytest.mark.parametrize("slow", ["Q4_K", "Q5_K"])
def test_a_speed_budget_avoids_types_that_are_slow_here(
    uneven_gguf: Path, found: Sensitivities, slow: str
) -> None:
    table = cost_table(uneven_gguf, slow=slow)
    everything = dict.fromkeys(read_weights(uneven_gguf), "Q4_0")
    budget = weights_s(uneven_gguf, everything, table)
    mix = fit_seconds(uneven_gguf, found, budget, table)
    assert mix.predicted_s is not None and 0.95 * budget < mix.predicted_s <= budget
    assert slow not in mix.overrides.values()
    assert mix.predicted_s == pytest.approx(weights_s(uneven_gguf, mix.overrides, table))
    assert mix.bytes == plan_quantization(uneven_gguf, mix.file_type, overrides=mix.overrides).bytes


def test_longer_calls_take_longer(uneven_gguf: Path) -> None:
    table = cost_table(uneven_gguf, slow="Q4_K")
    types = dict.fromkeys(read_weights(uneven_gguf), "Q8_0")
    short, long = (
        weights_s(uneven_gguf, types, table, CallSize(prompt_tokens=n, reply_tokens=10))
        for n in (100, 1000)
    )
    assert long > 2 * short
    # Embeddings that are not the output's too are looked up, never multiplied.
    other = types | {"token_embd.weight": "Q2_K"}
    assert weights_s(uneven_gguf, other, table) == weights_s(uneven_gguf, types, table)


def test_a_quantized_tensor_that_keeps_its_type_loses_nothing(
    uneven_gguf: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.gguf"
    quantize(uneven_gguf, base, "Q4_1", threads=1)
    mix = search_precision(
        base,
        budget_bytes=base.stat().st_size,
        imatrix={},
        documents=CALIBRATION,
        stages=Stages(tmp_path / "stages"),
        threads=1,
        types=("Q8_0", "Q4_0"),
        probes=1,
    )
    weights = read_weights(base)
    assert mix.overrides == {name: weight.kind.name for name, weight in weights.items()}
    assert mix.predicted_kl == 0.0
    copy = read_weights(made(base, mix, tmp_path / "copy.gguf"))
    for name, weight in weights.items():
        np.testing.assert_array_equal(copy[name].data, weight.data)


def test_a_search_repeats_itself(uneven_gguf: Path, tmp_path: Path) -> None:
    def search(folder: str, **budget: float) -> Precision:
        return search_precision(
            uneven_gguf,
            imatrix={},
            documents=CALIBRATION,
            stages=Stages(tmp_path / folder),
            threads=1,
            types=("Q8_0", "Q4_0"),
            probes=1,
            **budget,  # type: ignore[arg-type]
        )

    budget = plan_quantization(uneven_gguf, "Q5_0").bytes
    assert search("one", budget_bytes=budget) == search("two", budget_bytes=budget)
    seconds = search("one", budget_seconds=1e3)
    assert seconds.predicted_kl == 0.0 and seconds.predicted_s is not None


@pytest.mark.parametrize("budget", [{}, {"budget_bytes": 10**6, "budget_seconds": 1.0}])
def test_one_budget_is_needed(uneven_gguf: Path, tmp_path: Path, budget: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="either budget_bytes or budget_seconds"):
        search_precision(
            uneven_gguf,
            imatrix={},
            documents=CALIBRATION,
            stages=Stages(tmp_path),
            threads=1,
            **budget,  # type: ignore[arg-type]
        )


def test_what_a_mix_loses_is_what_its_tensors_lose(uneven_gguf: Path, found: Sensitivities) -> None:
    """Losses that were measured one by one add up: the search rests on it."""
    weights = read_weights(uneven_gguf)
    with Probe(uneven_gguf, CALIBRATION, threads=1) as probe:
        for stock in ("Q6_K", "Q4_K_S"):
            mix = fit_bytes(uneven_gguf, found, plan_quantization(uneven_gguf, stock).bytes)
            values = {
                name: rounded(TENSOR_TYPES[kind], weights[name].floats())
                for name, kind in mix.overrides.items()
            }
            assert probe.loss(values) == pytest.approx(mix.predicted_kl, rel=0.5)
