"""Layers of a GGUF file go by what llama.cpp measures; nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from build_tools import FileLimit
from tiny_models import write_tiny_gguf

from tierwise.compression.pruning import gguf_depth
from tierwise.compression.pruning.gguf_depth import gguf_removal_order
from tierwise.compression.pruning.order import Removal
from tierwise.compression.quantize import quantize
from tierwise.evaluation.divergence import BaseDistribution
from tierwise.runtime.errors import ConfigError, DiskFullError
from tierwise.runtime.llama import Model

DOCUMENTS = ("The weather in Paris is mild, says get_weather. " * 3, "hello", "", "a is the")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "base.gguf", layers=6)


def search(base: Path, folder: Path, count: int, **options: object) -> tuple[Removal, ...]:
    return gguf_removal_order(
        base,
        DOCUMENTS,
        count,
        folder=folder,
        threads=1,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "mixture"])
def test_each_removal_costs_what_it_says(tmp_path: Path, experts: int) -> None:
    base = write_tiny_gguf(tmp_path / "own" / "base.gguf", layers=6, experts=experts)
    tmp_path = tmp_path / "work"
    tmp_path.mkdir()
    order = search(base, tmp_path, 3, file_type="F16")
    assert list(tmp_path.iterdir()) == []
    with Model(base, vocab_only=True) as model:
        ids = [model.tokenize(text) for text in DOCUMENTS]
    ids = [document for document in ids if len(document) > 1]
    measure = BaseDistribution(base, ids, tmp_path / "base.f16", threads=1)
    for count in (1, 2, 3):
        gone = [removal.layer for removal in order[:count]]
        assert not {0, 5} & set(gone)
        quantize(base, tmp_path / "less.gguf", "F16", pruned_layers=gone, threads=1)
        found = measure.compare(tmp_path / "less.gguf", threads=1).kl_mean
        assert order[count - 1].kl == pytest.approx(found, rel=1e-4)
        assert 0 < order[count - 1].influence < 2
    measure.close()


def test_every_choice_is_the_best_of_all_that_are_left(base: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    order = search(base, tmp_path, 2, shortlist=9, progress=lambda text, _share: seen.append(text))
    costs = [float(text.split("KL ")[1]) for text in seen]
    assert len(costs) == 4 + 3
    assert order[0].kl == pytest.approx(min(costs[:4]), abs=1e-4)
    assert order[1].kl == pytest.approx(min(costs[4:]), abs=1e-4)


def test_a_search_that_was_cut_short_goes_on(base: Path, tmp_path: Path) -> None:
    whole = search(base, tmp_path, 3, shortlist=2)
    assert search(base, tmp_path, 2, shortlist=2) == whole[:2]
    noted: list[Removal] = []

    def cut(_text: str, share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(base, tmp_path, 3, shortlist=2, found=noted.append, progress=cut)
    assert list(tmp_path.iterdir()) == []
    assert tuple(noted) == whole[:1]
    assert search(base, tmp_path, 3, shortlist=2, known=noted) == whole


def test_what_a_killed_search_left_is_removed(base: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from tierwise.compression.pruning.gguf_depth import gguf_removal_order
gguf_removal_order(
    Path({str(base)!r}), {DOCUMENTS!r}, 3, folder=Path({str(tmp_path)!r}), threads=1,
    progress=lambda text, share: os.kill(os.getpid(), signal.SIGKILL),
)
"""
    run = subprocess.run([sys.executable, "-c", code], check=False, timeout=300)
    assert run.returncode == -9
    assert list(tmp_path.iterdir()) != []
    assert len(search(base, tmp_path, 1)) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_nothing_stays(
    base: Path, tmp_path: Path, file_limit: FileLimit
) -> None:
    with file_limit(100_000), pytest.raises(DiskFullError):
        search(base, tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("documents", "count", "options", "message"),
    [
        (("",), 1, {}, "no text"),
        (DOCUMENTS, 5, {}, "5 layers shall go"),
        (DOCUMENTS, 1, {"protected": 0}, "protected is 0"),
    ],
)
def test_senseless_requests_are_refused(
    base: Path,
    tmp_path: Path,
    documents: tuple[str, ...],
    count: int,
    options: dict[str, int],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        gguf_removal_order(base, documents, count, folder=tmp_path, threads=1, **options)
    assert list(tmp_path.iterdir()) == []


def test_torch_is_not_needed() -> None:
    code = f"import sys, {gguf_depth.__name__}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
