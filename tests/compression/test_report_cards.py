"""Model cards: front matter that sites can read, and every step from the base to the tier."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from family_factory import TierSpec, make_family
from report_factory import rich_family, write_files

from tierwise.compression.report.cards import card_of, plain, write_cards
from tierwise.runtime.family import Family
from tierwise.runtime.profile import KVSpeed, family_profiles

EVIL = "x|\n---\n# Free *beer* <script>alert(1)</script> [click](http://evil) `id` _now_: {a: 1}"


@pytest.fixture(scope="module")
def files(wide_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(wide_gguf, tmp_path_factory.mktemp("tiers"))


@pytest.fixture
def family(files: dict[str, Path], tmp_path: Path) -> Family:
    return rich_family(tmp_path / "family", files)


def parts(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    empty, front, body = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    assert empty == ""
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found, body


def cards(family: Family) -> dict[str, tuple[dict[str, Any], str]]:
    profiles = family_profiles(family)
    return {t.name: parts(card_of(family, t, profiles[t.name])) for t in family.tiers}


def test_every_tier_has_a_card_beside_its_file(family: Family) -> None:
    profiles = family_profiles(family)
    paths = write_cards(family, profiles)
    assert paths == tuple(family.folder / f"{tier.name}.md" for tier in family.tiers)
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_cards(family, profiles)] == first
    assert Family.load(family.folder) == family


def test_front_matter_says_where_a_tier_comes_from(family: Family) -> None:
    found = cards(family)
    for front, _ in found.values():
        assert front["license"] == "apache-2.0"
        assert front["base_model"] == "org/SmolLM2-135M-Instruct"  # without the revision
        assert front["pipeline_tag"] == "text-generation"
    fast, _ = found["fast"]
    assert fast["base_model_relation"] == "finetune"
    assert {"pruned", "distilled", "gguf"} <= set(fast["tags"])
    best, _ = found["best"]
    assert best["base_model_relation"] == "quantized"
    assert "pruned" not in best["tags"]
    record = fast["tierwise"]
    tier = family.tier("fast")
    assert record["sha256"] == tier.sha256 and record["bytes"] == tier.bytes
    assert record["pruned_layers"] == [2, 3]
    assert record["base_dequantized_from"] == "Q4_1"
    assert record["distillation"]["documents"] == {"agent tasks": 1200, "transcripts": 80}
    assert "curve" not in record["distillation"]


def test_measured_quality_has_its_n_and_intervals(family: Family) -> None:
    front, body = cards(family)["fast"]
    tools = family.tier("fast").quality.tools
    assert tools is not None
    overall = tools.overall
    shown = f"{overall.value:.0%} ({overall.low:.0%}–{overall.high:.0%}) | {overall.n} |"
    assert f"| Tasks solved, all ({tools.suite}; 95 % interval) | {shown}" in body
    assert "| KL(base ‖ tier), mean | 0.3204 nats | 3,072 tokens |" in body
    assert "64 tasks are few" in body
    suites = front["model-index"][0]["results"]
    assert suites[0]["metrics"][0]["value"] == pytest.approx(overall.value)
    assert f"n {overall.n}" in suites[0]["metrics"][0]["name"]
    assert suites[1]["metrics"][0]["value"] == pytest.approx(0.3204)


def test_lineage_names_every_step(family: Family) -> None:
    body = cards(family)["fast"][1]
    assert "pruned, distilled and quantized to Q4_0" in body
    for said in (
        "| Layers | 4 of 6; went: 2–3 |",
        "| Distillation: Steps | 400 (2 skipped: not finite) |",
        "| Distillation: Documents | 1,200 agent tasks, 80 transcripts |",
        "| Distillation: KL from teacher | 1.9000 → 0.2100 |",
        "| KV cache | q8_0 (part of the tier) |",
        "given as a Q4_1 file",
    ):
        assert said in body
    mixed = cards(family)["mixed"][1]
    assert "| Importance matrix | sha256 cdcdcdcdcdcd… |" in mixed
    assert "the types of 2 tensors" in mixed
    assert "Distillation" not in mixed


def test_a_base_in_full_precision_is_not_called_dequantized(family: Family) -> None:
    base = family.base.model_copy(update={"dequantized_from": None})
    changed = family.model_copy(update={"base": base})
    assert "equantized" not in card_of(changed, family.tiers[0], None)


def test_speed_is_of_this_machine_and_says_so(family: Family) -> None:
    profile = family_profiles(family)["fast"].model_copy(
        update={"kv_q8_0": KVSpeed(prefill=0.97, decode=1.04)}
    )
    body = card_of(family, family.tier("fast"), profile)
    assert "| Prefill | 1,450 tokens/s |" in body
    assert "| Call of 300 + 40 tokens | 0.43 s |" in body
    assert "| With a q8_0 KV cache | prefill × 0.97, decode × 1.04 |" in body
    assert profile.machine in body and "It holds there only" in body
    assert "## Speed\n\nNot measured." in card_of(family, family.tier("fast"), None)
    guess = profile.model_copy(update={"estimated": True})
    assert "Speed was not measured" in card_of(family, family.tier("fast"), guess)


def test_it_says_how_to_run_it_with_and_without_tierwise(family: Family) -> None:
    body = cards(family)["fast"][1]
    assert "tierwise run . --tier fast" in body
    assert 'ChatTierwise(family=".", model="fast")' in body
    assert "llama-cli -m fast.gguf --jinja -fa on -ctk q8_0 -ctv q8_0" in body
    assert "llama-server -m best.gguf --jinja -c " in cards(family)["best"][1]


def test_limits_and_biases_of_the_base_apply(family: Family) -> None:
    body = cards(family)["best"][1]
    assert "of its limits and of its biases, applies here too" in body
    lineage = family.tiers[0].lineage.model_copy(update={"distillation": None})
    raw = family.tiers[0].model_copy(update={"lineage": lineage})
    assert "pruned and not trained afterwards" in card_of(family, raw, None)


def test_an_adopted_tier_claims_neither_licence_nor_base(tiny_gguf: Path, tmp_path: Path) -> None:
    family = make_family(tmp_path / "family", [TierSpec("only", tiny_gguf, kl=None)])
    base = family.base.model_copy(update={"licence": "mit", "dequantized_from": "Q4_1"})
    front, body = parts(card_of(family.model_copy(update={"base": base}), family.tiers[0], None))
    assert front["license"] == "unknown"
    assert "base_model" not in front and "model-index" not in front
    assert "base_sha256" not in front["tierwise"]
    assert "Made elsewhere and adopted" in body
    assert "## Quality\n\nNot measured." in body
    assert "Q4_1" not in body


@pytest.mark.parametrize(
    ("source", "base_model"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("org/name@v1.0:model-Q8_0.gguf", "org/name"),
        ("org/name:model.gguf", "org/name"),
        ("bundled:smollm2", "SmolLM2-135M-Instruct"),
        ("/home/someone/secret/model.gguf", "SmolLM2-135M-Instruct"),
        ("./models/model.gguf", "SmolLM2-135M-Instruct"),
        ("models/model.gguf", "SmolLM2-135M-Instruct"),
        ("C:\\Users\\someone\\model", "SmolLM2-135M-Instruct"),
    ],
)
def test_paths_of_a_machine_are_not_published(family: Family, source: str, base_model: str) -> None:
    base = family.base.model_copy(update={"source": source})
    card = card_of(family.model_copy(update={"base": base}), family.tiers[0], None)
    assert parts(card)[0]["base_model"] == base_model
    assert "someone" not in card


def test_texts_of_others_stay_text(family: Family) -> None:
    base = family.base.model_copy(
        update={"name": EVIL, "licence": EVIL, "architecture": EVIL, "dequantized_from": EVIL}
    )
    lineage = family.tiers[0].lineage.model_copy(update={"quantization": EVIL})
    tier = family.tiers[0].model_copy(update={"lineage": lineage, "file": "a b;`rm`.gguf"})
    front, body = parts(card_of(family.model_copy(update={"base": base}), tier, None))
    in_line = " ".join(EVIL.split())
    assert front["license"] == in_line and front["tierwise"]["quantization"] == in_line
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[click|(?<!\\)\*beer", body)
    assert [line for line in body.splitlines() if line.startswith("# ")] == [
        next(line for line in body.splitlines() if line.strip())
    ]
    assert "\n---\n" not in body
    for line in body.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4)
    assert "llama-cli -m 'a b;rm.gguf'" in body


def test_plain_keeps_what_means_nothing() -> None:
    assert plain("Q4_K_M (27 of 30) + 3") == "Q4_K_M (27 of 30) + 3"
    assert plain("_a_ *b*\n|") == r"\_a\_ \*b\* \|"


def test_what_is_no_number_stays_out_of_the_front_matter(family: Family) -> None:
    first = family.tiers[0]
    assert first.quality.divergence is not None
    broken = first.quality.divergence.model_copy(
        update={"perplexity": math.inf, "kl_mean": math.nan}
    )
    quality = first.quality.model_copy(update={"divergence": broken})
    front, body = parts(card_of(family, first.model_copy(update={"quality": quality}), None))
    metrics = front["model-index"][0]["results"][1]["metrics"]
    assert [metric["name"] for metric in metrics] == ["top-1 agreement with the base"]
    assert "| Perplexity | ∞ (base 9.1) |" in body
