"""Costs of types on this machine: measured by ggml, kept, and added up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierwise.compression.precision import costs
from tierwise.compression.precision.costs import CostTable, RowCost, measure, measured_costs
from tierwise.compression.precision.ggml import read_weights
from tierwise.compression.precision.types import TENSOR_TYPES
from tierwise.runtime.files import home

Q8_0, Q4_0, Q4_K = (TENSOR_TYPES[name] for name in ("Q8_0", "Q4_0", "Q4_K"))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices that are too small to say much, but quick."""
    for name, value in {
        "ROWS": 64,
        "DECODE_BYTES": 1 << 16,
        "RUNS": 1,
        "PREFILL_TOKENS": 16,
    }.items():
        monkeypatch.setattr(costs, name, value)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q5_1", "Q4_1", "Q4_0", "IQ4_NL", "Q6_K", "Q3_K"])
def test_every_type_can_be_measured(name: str) -> None:
    cost = measure(TENSOR_TYPES[name], 256, threads=1)
    assert 0 < cost.prefill_s < 1 and 0 < cost.decode_s < 1


def test_costs_are_kept_for_this_machine(wide_gguf: Path) -> None:
    wanted = [(Q8_0, 256), (Q4_0, 512)]
    told: list[str] = []
    table = measured_costs(wanted, threads=1, progress=lambda text, _: told.append(text))
    assert told == ["Q4_0 512", "Q8_0 256"] and set(table.rows) == set(told)
    assert measured_costs(wanted, threads=1, progress=lambda text, _: told.append(text)) == table
    more = measured_costs(
        [*wanted, (Q4_K, 256)], threads=1, progress=lambda text, _: told.append(text)
    )
    assert told[2:] == ["Q4_K 256"] and table.rows.items() <= more.rows.items()
    assert measured_costs(wanted, threads=2).threads == 2


def test_damaged_costs_are_measured_again() -> None:
    measured_costs([(Q8_0, 256)], threads=1)
    (path,) = (home() / "costs").iterdir()
    path.write_text(path.read_text()[:30])
    assert set(measured_costs([(Q8_0, 256)], threads=1).rows) == {"Q8_0 256"}


def test_what_a_tensor_adds_to_a_call(wide_gguf: Path) -> None:
    weights = read_weights(wide_gguf)
    rows = {"Q8_0 256": RowCost(prefill_s=1e-6, decode_s=1e-5)}
    table = CostTable(threads=1, rows=rows)

    def seconds(name: str, *, tied: bool) -> float:
        return table.seconds(weights[name], Q8_0, prompt=100, reply=10, tied=tied)

    assert seconds("blk.0.attn_q.weight", tied=False) == pytest.approx(256 * (1e-4 + 1e-4))
    embeddings = weights["token_embd.weight"].rows
    assert seconds("token_embd.weight", tied=False) == 0
    # The output's matrix meets a prompt's last token alone.
    assert seconds("token_embd.weight", tied=True) == pytest.approx(embeddings * 1e-4)
    assert seconds("output.weight", tied=False) == pytest.approx(embeddings * 1e-4)
