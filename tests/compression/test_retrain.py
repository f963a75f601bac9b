"""A tier is taught and stored as it was: same shape, types and form of prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from build_tools import Recorder
from family_factory import TierSpec, make_family
from gguf_writer import CHATML
from report_factory import make_distillation
from tiny_models import write_tiny_checkpoint, write_tiny_gguf

from tierwise.compression.dequantize import checkpoint_of
from tierwise.compression.distillation.transcripts import conversation_from
from tierwise.compression.export import export_gguf
from tierwise.compression.precision.header import read_header
from tierwise.compression.quantize import quantize
from tierwise.compression.retrain import (
    RetrainConfig,
    Retrained,
    measured_quality,
    retrain_tier,
    teacher_of,
)
from tierwise.compression.source import resolve_base
from tierwise.compression.stages import Stages
from tierwise.compression.swap import WORK
from tierwise.runtime.chat import Call, Message, Reply, Tool, ToolCall
from tierwise.runtime.chat_template import taught_tools
from tierwise.runtime.errors import ConfigError, UnsupportedModelError
from tierwise.runtime.family import Family, Quality
from tierwise.runtime.files import sha256_of
from tierwise.runtime.llama import Model

QUICK = RetrainConfig(steps=2, replay_tokens=0, tokens_per_step=512)
NOW = Tool("now", "The time.", {"type": "object", "properties": {}})
CALLS = [
    (Call((Message("user", f"weather {word}"),)), Reply("hello Paris"))
    for word in ("oak", "elm", "ash", "fir", "yew", "bay", "fig", "box")
]


def family_of(folder: Path, small: Path, **options: object) -> Family:
    template = CHATML if taught(small) or options.pop("plain", False) else None
    extra = {"chat_template": template} if template else {}
    large = write_tiny_gguf(folder / "l.gguf", layers=3, seed=1, context=1024, **extra)  # type: ignore[arg-type]
    specs = [TierSpec("small", small, kl=0.1), TierSpec("large", large, kl=0.0)]
    return make_family(folder / "family", specs)


def taught(file: Path) -> bool:
    with Model(file, vocab_only=True) as model:
        return taught_tools(model)


def retrained(
    family: Family, calls: list[tuple[Call, Reply]] = CALLS, config: RetrainConfig = QUICK
) -> tuple[Retrained, Recorder]:
    reporter = Recorder()
    stages = Stages(family.folder / WORK)
    small = family.tier("small")
    made = retrain_tier(family, small, calls, config, stages, reporter, threads=1)
    return made, reporter


def kinds(file: Path) -> dict[str, str]:
    return {name: one.kind.name for name, one in read_header(file).tensors.items()}


@pytest.mark.slow
def test_types_stay_as_they_were_tensor_by_tensor(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", layers=2, context=1024)
    mixed = {"blk.0.ffn_up.weight": "Q8_0", "output.weight": "Q5_0", "blk.1.attn_q.weight": "F16"}
    quantize(tiny, tmp_path / "s.gguf", "Q4_1", overrides=mixed, threads=1)
    family = family_of(tmp_path, tmp_path / "s.gguf")
    made, reporter = retrained(family)
    assert kinds(made.file) == kinds(tmp_path / "s.gguf")
    assert len(set(kinds(made.file).values())) == 5
    assert made.tier.name == "small" and made.tier.bytes == made.file.stat().st_size
    assert made.tier.sha256 == sha256_of(made.file) != family.tier("small").sha256
    assert made.training.teacher_sha256 == family.tier("large").sha256
    assert made.training.documents["transcripts"] == made.calls == len(CALLS)
    assert made.training.quantization_aware is None
    assert "Teaching base small" in reporter.titles and "Making small" in reporter.titles
    # The same call finds it made.
    again, reporter = retrained(family)
    assert again == made and reporter.titles == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_training_is_aware_of_types_that_it_knows(tmp_path: Path, kind: str) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", layers=1, context=1024)
    quantize(tiny, tmp_path / "s.gguf", kind, threads=1)
    made, _ = retrained(family_of(tmp_path, tmp_path / "s.gguf"))
    assert made.training.quantization_aware == kind
    assert kinds(made.file) == kinds(tmp_path / "s.gguf")
    assert made.tier.lineage.imatrix_sha256 is None


@pytest.mark.slow
def test_a_tier_that_needed_no_demonstration_needs_none(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", layers=1, context=2048, chat_template=CHATML)
    checkpoint = checkpoint_of(resolve_base(str(tiny)), tmp_path / "checkpoints")
    small = export_gguf(checkpoint, tmp_path / "s.gguf", vocabulary_from=tiny, taught_tools=True)
    made, _ = retrained(family_of(tmp_path, small))
    assert taught(made.file) and made.tier.demonstration_tokens == 0


@pytest.mark.slow
def test_a_tier_that_is_shown_how_to_call_is_shown_still(tmp_path: Path) -> None:
    small = write_tiny_gguf(tmp_path / "s.gguf", layers=1, context=2048, chat_template=CHATML)
    call = Call((Message("user", "time?"),), (NOW,))
    calls = [*CALLS, (call, Reply(tool_calls=(ToolCall("now", {}),)))]
    made, _ = retrained(family_of(tmp_path, small, plain=True), calls)
    assert not taught(made.file) and (made.tier.demonstration_tokens or 0) > 0
    assert made.calls == len(calls)


def test_the_base_teaches_if_it_is_here_and_the_same(tmp_path: Path) -> None:
    small = write_tiny_gguf(tmp_path / "s.gguf", layers=1, context=1024)
    base = write_tiny_gguf(tmp_path / "base.gguf", layers=4, seed=5, context=1024)
    family = family_of(tmp_path, small)

    def teachers(name: str = "small", **record: str) -> tuple[Path | None, bool]:
        told = family.model_copy(update={"base": family.base.model_copy(update=record)})
        file, found = teacher_of(told, family.tier(name))
        return file, found is not None

    here = {"source": str(base), "sha256": sha256_of(base)}
    assert teachers(**here) == (base, True)
    assert teachers("large", **here) == (base, True)
    large = family.path("large")
    assert teachers(source=str(base), sha256="0" * 64) == (large, False)
    assert teachers(source=str(tmp_path / "gone.gguf")) == (large, False)
    assert teachers(source="some/repository") == (large, False)  # nothing is downloaded
    assert teachers("large") == (None, False)  # the best one keeps to itself


def test_who_is_given_other_prompts_cannot_teach(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", layers=1, context=2048, chat_template=CHATML)
    checkpoint = checkpoint_of(resolve_base(str(tiny)), tmp_path / "checkpoints")
    large = export_gguf(checkpoint, tmp_path / "l.gguf", vocabulary_from=tiny, taught_tools=True)
    specs = [TierSpec("small", tiny, kl=0.1), TierSpec("large", large, kl=0.0)]
    family = make_family(tmp_path / "family", specs)
    assert teacher_of(family, family.tier("small")) == (None, None)


@pytest.mark.slow
def test_calls_that_are_too_long_are_left_out_and_told_of(tmp_path: Path) -> None:
    small = write_tiny_gguf(tmp_path / "s.gguf", layers=1, context=1024)
    family = family_of(tmp_path, small)
    long = (Call((Message("user", "x" * 3000),)), Reply("hello"))
    made, reporter = retrained(family, [long, *CALLS, long])
    assert made.calls == len(CALLS)
    assert reporter.notes[0] == "2 calls are longer than 2,048 tokens: left out"
    with pytest.raises(ConfigError, match="raise most_tokens"):
        retrained(family, [long])
    few = QUICK.model_copy(update={"most_call_tokens": 64})
    made, reporter = retrained(family, CALLS, few)
    assert 0 < made.calls < len(CALLS)
    assert "older calls are left out" in reporter.notes[0]
    newest = list((family.folder / WORK).glob("calls-*.jsonl"))
    lines = [path.read_text(encoding="utf-8").splitlines() for path in newest]
    short = min(lines, key=len)
    assert CALLS[-1][0].messages[0].content in short[0]


def test_a_base_with_another_tokenizer_cannot_teach(tmp_path: Path) -> None:
    small = write_tiny_gguf(tmp_path / "s.gguf", layers=1, context=1024)
    other = write_tiny_checkpoint(tmp_path / "other", family="smollm")
    family = family_of(tmp_path, small)
    base = resolve_base(str(other), cache=tmp_path / "bases")
    record = {"source": str(base.gguf), "sha256": sha256_of(base.gguf)}
    strange = family.model_copy(update={"base": family.base.model_copy(update=record)})
    with pytest.raises(UnsupportedModelError, match="another tokenizer"):
        retrained(strange)


def test_quality_is_measured_on_what_it_was_measured_on(tmp_path: Path) -> None:
    base = write_tiny_gguf(tmp_path / "base.gguf", layers=3, context=1024)
    for kind in ("Q4_0", "Q8_0"):
        quantize(base, tmp_path / f"{kind}.gguf", kind, threads=1)
    specs = [
        TierSpec("small", tmp_path / "Q4_0.gguf", kl=0.1, success={"easy": 0.5}, n=5),
        TierSpec("plain", base),
    ]
    family = make_family(tmp_path / "family", specs)
    found = Retrained(
        tmp_path / "Q8_0.gguf",
        family.tier("small"),
        make_distillation(),
        resolve_base(str(base)),
        1,
    )

    def measured(name: str, made: Retrained) -> Quality:
        stages = Stages(family.folder / WORK)
        return measured_quality(family, family.tier(name), made, stages, Recorder(), threads=1)

    quality = measured("small", found)
    assert quality.tools is not None and quality.tools.overall.n == 5 == len(quality.samples)
    assert quality.divergence is not None and quality.divergence.tokens > 3_500
    assert 0 < quality.divergence.kl_mean < 0.1
    away = measured("small", replace(found, base=None))
    assert away.divergence is None and away.tools == quality.tools
    assert measured("plain", found).tools is None  # nobody asked it before


# --- transcripts of which the last answer is right ------------------------------------------------


def test_only_the_last_answer_of_such_a_line_is_given() -> None:
    line = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "perhaps wrong"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "right"},
        ],
        "response_schema": {"type": "object"},
    }
    assert conversation_from(line, "g").written == ()
    made = conversation_from({**line, "right": "last"}, "g")
    assert made.written == (1,) and made.response_schema == {"type": "object"}
    with pytest.raises(ConfigError, match='"right" must be "all" or "last", not 3'):
        conversation_from({**line, "right": 3}, "g")
    with pytest.raises(ConfigError, match="must be a JSON schema"):
        conversation_from(json.loads(json.dumps({**line, "response_schema": "x"})), "g")
