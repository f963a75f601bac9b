"""``tierwise show --plot``, with a browser that only notes what it is asked to open."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from family_factory import TierSpec, make_family
from report_factory import make_distillation

from tierwise.compression.report.write import REPORT, open_report
from tierwise.plugin.lineage_rows import lineage_json, lineage_rows
from tierwise.plugin.rendering import family_json
from tierwise.runtime.family import Family
from tierwise.runtime.lineage import Lineage

needs_sh = pytest.mark.skipif(sys.platform == "win32", reason="the browser is a shell script")


@pytest.fixture
def family(tiny_gguf: Path, tmp_path: Path) -> Family:
    return make_family(
        tmp_path / "family", [TierSpec("small", tiny_gguf, kl=0.2, success={"easy": 0.5})]
    )


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A script that appends its argument to ``opened`` beside it."""
    script = tmp_path / "browser.sh"
    script.write_text('#!/bin/sh\necho "$1" >> "$(dirname "$0")/opened"\n')
    script.chmod(0o755)
    return script


def show(*args: object, browser: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tierwise.plugin.cli", "show", *map(str, args)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "BROWSER": browser},
    )


@needs_sh
def test_plot_opens_the_report_and_prints_where_it_is(family: Family, browser: Path) -> None:
    done = show(family.folder, "--plot", browser=str(browser))
    report = family.folder / REPORT
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{report}\n", "")
    assert report.is_file()
    assert (browser.parent / "opened").read_text() == f"{report.resolve().as_uri()}\n"


@needs_sh
def test_json_gives_the_path(family: Family, browser: Path) -> None:
    done = show(family.folder, "--plot", "--json", browser=str(browser))
    assert json.loads(done.stdout) == {"report": str(family.folder / REPORT), "opened": True}


@needs_sh
def test_without_a_browser_it_says_so(family: Family) -> None:
    done = show(family.folder, "--plot", browser="false")
    assert done.returncode == 0
    assert done.stdout == f"{family.folder / REPORT}\n"
    assert "no browser could be started" in done.stderr


def test_a_report_of_this_family_is_kept_and_another_replaced(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda _uri: True)
    report, _ = open_report(family.folder)
    marked = report.read_text(encoding="utf-8") + "<!-- kept -->"
    report.write_text(marked, encoding="utf-8")
    open_report(family.folder)
    assert report.read_text(encoding="utf-8") == marked
    changed = family.model_copy(update={"dropped": {"q2_k": "too far"}})
    changed.save(family.folder)
    open_report(family.folder)
    assert "too far" in report.read_text(encoding="utf-8")


def test_a_missing_family_is_an_error_and_opens_nothing(tmp_path: Path, browser: Path) -> None:
    done = show(tmp_path, "--plot", browser=str(browser))
    assert done.returncode == 2
    assert "no family in" in done.stderr
    assert not (browser.parent / "opened").exists()


def test_the_table_has_rows_for_what_tiers_have(family: Family) -> None:
    assert lineage_rows(family) == []
    first = family.tiers[0]
    lineage = Lineage(
        origin="built",
        quantization="Q4_0",
        pruned_layers=(1,),
        ffn_channels=1024,
        kv_heads=2,
        tensor_overrides={"blk.0.attn_v.weight": "Q8_0"},
        distillation=make_distillation(),
    )
    taught = first.model_copy(update={"name": "taught", "lineage": lineage, "kv_type": "q8_0"})
    both = family.model_copy(update={"tiers": (taught, first)})
    cells = {label: (cell(taught), cell(first)) for label, cell in lineage_rows(both)}
    assert cells == {
        "MLP channels": ("1,024", "all"),
        "KV heads": ("2", "all"),
        "searched types": ("1 tensors", "–"),
        "KV cache": ("q8_0", "f16"),
        "distillation, tokens": ("819,200", "–"),
        "held-out KL by it, nats": ("1.900 → 0.210", "–"),
    }


def test_json_tells_how_a_tier_was_made(family: Family) -> None:
    run = make_distillation().model_copy(update={"kl_before": float("inf")})
    lineage = family.tiers[0].lineage.model_copy(update={"distillation": run})
    taught = family.tiers[0].model_copy(update={"lineage": lineage})
    found = lineage_json(taught)
    assert found["distillation"]["steps"] == 400
    assert found["distillation"]["kl_before"] is None
    assert "curve" not in found["distillation"]
    json.dumps(found, allow_nan=False)
    (tier,) = family_json(family, {})["tiers"]
    assert tier["kv_type"] == "f16" and tier["distillation"] is None
    assert tier["origin"] == "built"


def test_a_family_that_moved_is_opened_where_it_is(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(family.folder, moved)
    monkeypatch.setattr("webbrowser.open", lambda _uri: True)
    assert open_report(moved) == (moved / REPORT, True)
