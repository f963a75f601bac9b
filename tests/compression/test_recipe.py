"""What may be asked of a build, in YAML or in Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tierwise.compression.quantize import FILE_TYPES
from tierwise.compression.recipe import EFFORTS, BuildConfig
from tierwise.runtime.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_a_whole_recipe(recipe: Path) -> None:
    recipe.write_text(
        "tiers: 4\n"
        "max_bytes: 1.5 GB\n"
        "keep_all: true\n"
        "imatrix: no\n"
        "min_top1: 0.5\n"
        "seed: 7\n"
        "threads: 2\n"
        "candidates:\n"
        "  - quantization: q4_k_m\n"
        "  - {quantization: Q8_0, prune: 0.1, name: thin}\n"
        "  - {quantization: Q8_0, prune: [3, 5]}\n"
        "  - quantization: copy\n"
    )
    config = BuildConfig.load(recipe)
    assert (config.tiers, config.max_bytes, config.keep_all) == (4, 1_500_000_000, True)
    assert (config.imatrix, config.min_top1, config.seed, config.threads) == (False, 0.5, 7, 2)
    assert [(c.quantization, c.name, c.prune) for c in config.candidates] == [
        ("Q4_K_M", "", 0.0),
        ("Q8_0", "thin", 0.1),
        ("Q8_0", "", (3, 5)),
        ("copy", "", 0.0),
    ]


def test_efforts_set_figures_that_can_be_given_by_themselves(recipe: Path) -> None:
    for effort, figures in EFFORTS.items():
        config = BuildConfig.make(effort=effort)
        assert {name: getattr(config, name) for name in figures} == figures
        assert config.mixed == (effort == "thorough")
    assert BuildConfig() == BuildConfig.make(effort="normal")
    config = BuildConfig.make(effort="quick", suite_tasks=40, mixed=True)
    assert (config.suite_tasks, config.mixed) == (40, True)
    assert config.calibration_tokens == EFFORTS["quick"]["calibration_tokens"]
    # What was resolved stays so, however often it is written and read.
    recipe.write_text(json.dumps(config.model_dump(mode="json")))
    assert BuildConfig.load(recipe) == config


def test_distillation_is_thorough_and_keeps_more() -> None:
    config = BuildConfig.make(distill={"minutes": 5})
    assert config.distill is not None and config.distill.minutes == 5
    assert (config.effort, config.tiers, config.mixed) == ("thorough", 5, True)
    config = BuildConfig.make(distill={}, effort="quick", tiers=2)
    assert (config.effort, config.tiers, config.mixed) == ("quick", 2, False)


def test_a_part_of_a_mapping_leaves_the_rest_of_it(recipe: Path) -> None:
    recipe.write_text("distill: {minutes: 5, seed: 3}\n")
    config = BuildConfig.load(recipe, distill={"minutes": 7})
    assert config.distill is not None
    assert (config.distill.minutes, config.distill.seed) == (7, 3)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}"])
def test_an_empty_recipe_is_the_defaults(recipe: Path, text: str) -> None:
    recipe.write_text(text)
    assert BuildConfig.load(recipe) == BuildConfig()


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("500MB", 500_000_000), ("0.5 KiB", 512), ("100", 100), ("3 m", 3 * 2**20)],
)
def test_sizes(text: str, size: int) -> None:
    assert BuildConfig.make(max_bytes=text).max_bytes == size
    assert BuildConfig.make(max_bytes=size).max_bytes == size


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tiers": 0}, r"'tiers' cannot be 0"),
        ({"tiers": "many"}, r"'tiers' cannot be 'many'"),
        ({"tires": 3}, r"'tires' cannot be 3"),
        ({"max_bytes": "2 parsecs"}, r"'max_bytes' cannot be '2 parsecs'.*write for example 2GiB"),
        ({"max_bytes": "1.2.3 GB"}, r"'max_bytes' cannot be '1\.2\.3 GB'"),
        ({"max_bytes": 0}, r"'max_bytes' cannot be 0"),
        ({"min_top1": 1.5}, r"'min_top1' cannot be 1\.5"),
        ({"threads": 0}, r"'threads' cannot be 0"),
        ({"calibration_tokens": 10}, r"'calibration_tokens' cannot be 10"),
        ({"candidates": [{"quantization": "Q9"}]}, r"candidates\.0\.quantization' cannot be 'Q9'"),
        ({"candidates": [{"prune": 0.1}]}, r"candidates\.0\.quantization"),
        ({"candidates": [{"quantization": "Q8_0", "prune": 0.9}]}, r"cannot be 0\.9"),
        ({"candidates": [{"quantization": "Q8_0", "name": "../x"}]}, r"cannot be '\.\./x'"),
        ({"candidates": [{"quantization": "Q8_0", "name": "a b"}]}, r"cannot be 'a b'"),
        ({"candidates": [{"quantization": "Q8_0", "bits": 4}]}, r"candidates\.0\.bits"),
        ({"candidates": "Q8_0"}, r"'candidates' cannot be 'Q8_0'"),
        ({"effort": "much"}, r"'effort' cannot be 'much'"),
        ({"distill": {"minutes": 0}}, r"'distill\.minutes' cannot be 0"),
        ({"candidates": [{"quantization": "copy", "source": "d5"}]}, "'copy' is the base as it is"),
        (
            {"candidates": [{"quantization": "Q8_0", "source": "d5", "prune": [1]}]},
            "pin that under 'distill'",
        ),
    ],
)
def test_senseless_values_are_named(recipe: Path, values: dict[str, object], told: str) -> None:
    import yaml

    with pytest.raises(ConfigError, match=told):
        BuildConfig.make(**values)
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=told):
        BuildConfig.load(recipe)


def test_unknown_types_are_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(FILE_TYPES)):
        BuildConfig.make(candidates=[{"quantization": "Q4"}])


def test_overrides_win_unless_they_are_none(recipe: Path) -> None:
    recipe.write_text("tiers: 4\nseed: 7\n")
    config = BuildConfig.load(recipe, tiers=2, seed=None, threads=None, imatrix=False)
    assert (config.tiers, config.seed, config.threads, config.imatrix) == (2, 7, None, False)
    with pytest.raises(ConfigError, match="'tiers' cannot be 99"):
        BuildConfig.load(recipe, tiers=99)


@pytest.mark.parametrize(
    "content",
    [
        b"tiers: [",
        b"tiers: 3\n\tseed: 1",
        b"\xff\xfe\x00",
        b"a: b: c",
        b"tiers: \x07",
        b"!!python/x",
    ],
)
def test_what_is_no_yaml_is_named(recipe: Path, content: bytes) -> None:
    recipe.write_bytes(content)
    with pytest.raises(ConfigError, match=r"recipe\.yaml' is not valid YAML"):
        BuildConfig.load(recipe)


@pytest.mark.parametrize("text", ["- tiers: 3", "3", "tiers", "[]", "0", "false", "1: 2"])
def test_what_is_no_mapping_is_named(recipe: Path, text: str) -> None:
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml' must be a mapping"):
        BuildConfig.load(recipe)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe file '.*missing\.yaml'"):
        BuildConfig.load(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        BuildConfig.load(tmp_path)
