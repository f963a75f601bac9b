"""Families of more than stock types: searched mixes, students, and recipes that repeat them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from build_tools import Recorder
from tiny_models import write_tiny_checkpoint, write_tiny_gguf

from tierwise.compression.build import WORK, build_family
from tierwise.compression.found_recipe import RECIPE
from tierwise.compression.quantize import quantize
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.report.tried import load_tried
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family

SMALL: dict[str, Any] = {
    "effort": "quick",
    "calibration_tokens": 256,
    "held_out_tokens": 128,
    "screen_tokens": 64,
    "suite_tasks": 4,
    "min_top1": 0.0,
    "threads": 1,
}
TAUGHT: dict[str, Any] = {
    **SMALL,
    "keep_all": True,
    "min_tools": 0.0,
    "distill": {
        "steps": 3,
        "students": [{"layers": 5, "prune": [2], "quantization_aware": "Q4_0"}],
        "tokens": 3_000,
        "document_tokens": 420,
        "micro_tokens": 1024,
        "answers": "gold",
        "on_policy": 0.0,
    },
}


def files_of(family: Family) -> dict[str, str]:
    return {tier.name: tier.sha256 for tier in family.tiers}


def test_the_recipe_that_was_found_repeats_the_build_bit_for_bit(tmp_path: Path) -> None:
    base = write_tiny_gguf(tmp_path / "base.gguf", layers=10, context=512)
    # The effort that plans a pruned tier too; a mix, as it plans one, is tested below.
    options = {**SMALL, "effort": "thorough", "mixed": False, "kv_tokens": 64, "speed_runs": 1}
    config = BuildConfig.make(**options, tiers=6, seed=5)
    first = build_family(base, tmp_path / "first", config)
    recipe = BuildConfig.load(tmp_path / "first" / RECIPE)
    assert recipe.keep_all and {one.name for one in recipe.candidates} == set(files_of(first))
    pruned = {t.name: t.lineage.pruned_layers for t in first.tiers}
    assert {one.name: one.prune for one in recipe.candidates} == pruned
    reporter = Recorder()
    second = build_family(base, tmp_path / "second", recipe, reporter=reporter)
    assert files_of(second) == files_of(first)
    assert not any(title.startswith("Comparing") for title in reporter.titles)
    # And the recipe of the repetition is the recipe.
    assert BuildConfig.load(tmp_path / "second" / RECIPE) == recipe


def test_a_quantized_base_is_read_in_an_exact_copy(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf", layers=4, context=512)
    base = tmp_path / "base.gguf"
    quantize(whole, base, "Q4_1", threads=1)
    reporter = Recorder()
    candidates = [{"quantization": "copy"}, {"quantization": "Q8_0"}]
    config = BuildConfig.make(**SMALL, keep_all=True, candidates=candidates)
    family = build_family(base, tmp_path / "family", config, reporter=reporter)
    assert "Unpacking the base model" in reporter.titles
    assert family.base.dequantized_from == "Q4_1"
    assert {tier.lineage.quantization for tier in family.tiers} == {"Q4_1", "Q8_0"}
    for tier in family.tiers:
        assert tier.quality.divergence is not None and tier.quality.divergence.kl_mean < 0.1
    assert not list((tmp_path / "family" / WORK).glob("*.gguf"))


@pytest.mark.slow
def test_mixes_are_searched_beside_the_stock_types(tmp_path: Path) -> None:
    base = write_tiny_gguf(tmp_path / "base.gguf", layers=3, width=256, ffn=256, context=512)
    config = BuildConfig.make(**SMALL, tiers=12, mixed=True)
    reporter = Recorder()
    family = build_family(base, tmp_path / "family", config, reporter=reporter)
    assert "Searching types of the base" in reporter.titles
    tried = load_tried(tmp_path / "family")
    mixes = {one.name for one in tried if one.quantization == "mixed"}
    assert mixes and all("mix-" in name for name in mixes)
    for tier in family.tiers:
        if tier.name in mixes:
            assert tier.lineage.quantization == "mixed" and tier.lineage.tensor_overrides
    recipe = BuildConfig.load(tmp_path / "family" / RECIPE)
    again = build_family(base, tmp_path / "again", recipe)
    assert files_of(again) == files_of(family)


def test_tiers_of_students_that_are_not_there_are_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    config = BuildConfig.make(**SMALL, candidates=[{"quantization": "Q8_0", "source": "d3"}])
    with pytest.raises(ConfigError, match=r"student 'd3'; students are: none"):
        build_family(tiny_gguf, tmp_path / "family", config)


# --- Students -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    return write_tiny_checkpoint(folder, family="smollm", layers=6, context=1024)


@pytest.mark.slow
def test_students_are_taught_and_quantized_after_that(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "family"
    reporter = Recorder()
    config = BuildConfig.make(**TAUGHT, mixed=False)
    family = build_family(checkpoint, out, config, reporter=reporter)
    tiers = {tier.name: tier for tier in family.tiers}
    assert {"q8_0", "d5-q8_0", "d5-q4_0"} <= tiers.keys()
    for name in ("d5-q8_0", "d5-q4_0"):
        lineage = tiers[name].lineage
        assert (tiers[name].layers, lineage.pruned_layers) == (5, (2,))
        assert lineage.distillation is not None and lineage.distillation.steps == 3
        assert lineage.distillation.quantization_aware == "Q4_0"
        assert tiers[name].quality.tools is not None
    # Observed on the student itself, and not for the type that its weights lie on already.
    assert "Observing activations of d5" in reporter.titles
    own = tiers["q8_0"].lineage.imatrix_sha256
    assert tiers["d5-q8_0"].lineage.imatrix_sha256 not in (None, own)
    assert tiers["d5-q4_0"].lineage.imatrix_sha256 is None
    assert len({tier.quality.tools.overall.n for tier in family.tiers if tier.quality.tools}) == 1

    recipe = BuildConfig.load(out / RECIPE)
    assert recipe.distill is not None
    assert (recipe.distill.steps, recipe.distill.students[0].prune) == (3, (2,))
    again = build_family(checkpoint, tmp_path / "again", recipe)
    assert files_of(again) == files_of(family)


SCRIPT = """
import contextlib, json, os, signal, sys
from tierwise.compression.build import build_family
from tierwise.compression.recipe import BuildConfig
base, out, config, victim = sys.argv[1:]

class Reporter:
    @contextlib.contextmanager
    def stage(self, title):
        print(title, flush=True)
        if title == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        yield lambda text, share: None
    def note(self, text):
        pass

build_family(base, out, BuildConfig.make(**json.loads(config)), reporter=Reporter())
"""


@pytest.mark.slow
def test_killed_at_every_stage_of_a_student_it_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    candidates = [{"source": "d5", "quantization": "Q4_0"}]
    config = {**TAUGHT, "candidates": candidates}
    reporter = Recorder()
    whole = build_family(
        checkpoint, tmp_path / "whole", BuildConfig.make(**config), reporter=reporter
    )
    out = tmp_path / "family"
    stages = [title for title in reporter.titles if not title.startswith("Speed of")]
    assert any(title.startswith("Teaching") for title in stages)
    for stage in stages:
        command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(out), json.dumps(config)]
        dead = subprocess.run([*command, stage], capture_output=True, text=True, check=False)
        assert dead.returncode == -signal.SIGKILL, (stage, dead.stderr)
    family = build_family(checkpoint, out, BuildConfig.make(**config))
    assert files_of(family) == files_of(whole)
