"""A tier of a family is taught calls that it could not do: dequantize → train → quantize again.

It goes through the same stages as a student that is not pruned: right replies are learned by heart,
between made conversations that keep what it could do before (rehearsal against forgetting,
Robins, Connection Science 7, 1995), and towards the end with weights as they will be stored. The
new file has the types of the old one, tensor by tensor, and is given prompts of the same form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tierwise.compression.base_record import file_type_of
from tierwise.compression.distillation.config import DistillConfig, StudentRecipe
from tierwise.compression.distillation.conversations import Conversation, Renderer
from tierwise.compression.distillation.documents import SHARES
from tierwise.compression.distillation.transcripts import (
    conversation_from,
    read_transcripts,
)
from tierwise.compression.make import Maker, exact_copy
from tierwise.compression.measure import Measurements
from tierwise.compression.plan import Candidate
from tierwise.compression.precision.header import read_header
from tierwise.compression.precision.types import FILE_TYPES
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.reporting import Reporter
from tierwise.compression.source import BaseSource, is_here, resolve_base
from tierwise.compression.stages import Stages, content_key
from tierwise.compression.tier_source import FULL_PRECISION, base_source, student_source
from tierwise.evaluation.tasks import menu_of
from tierwise.evaluation.texts import demonstration_tokens
from tierwise.runtime.chat import Call, Message, Reply
from tierwise.runtime.chat_template import taught_tools
from tierwise.runtime.errors import ConfigError, TierwiseError, UnsupportedModelError
from tierwise.runtime.family import Family, Quality, Tier, nearest_first
from tierwise.runtime.files import FileHashes, write_atomically
from tierwise.runtime.lineage import Distillation
from tierwise.runtime.llama import Model
from tierwise.runtime.message_json import call_to_json, message_to_json

AWARE: tuple[Literal["Q4_0", "Q8_0"], ...] = ("Q4_0", "Q8_0")
"""Types that training can be aware of."""

_REPLAYED = ("agent", "python", "made", "packages")
"""Sources of documents that ask the teacher for nothing."""

_USUAL_TOKENS = 768
"""Of the longest made conversation, where no call is longer."""

_ROUND = 64
"""Tokens that the length of the longest document is rounded up to."""


class RetrainConfig(BaseModel):
    """How a tier is taught. The defaults suit a laptop.

    Args:
        minutes: Training time; reading weights and listening to the teacher come on top.
        steps: Optimizer steps instead of minutes.
        learning_rate: Peak.
        most_tokens: Of a call with its reply; longer ones are left out.
        most_call_tokens: Of all calls together; the newest are taken. Twenty minutes of two
            cores teach 135 M parameters some 280,000 tokens, of which a third are calls.
        replay_tokens: Of made conversations, at least; they have about twice as many tokens as
            the calls, if that is more.
        tokens_per_step: Of a batch.
        train_embeddings: Teach embeddings and head too.
        launch: As of `DistillConfig`.
        seed: Of data order and made conversations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float = Field(default=20.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    most_tokens: int = Field(default=2048, ge=64)
    most_call_tokens: int = Field(default=100_000, ge=64)
    replay_tokens: int = Field(default=24_000, ge=0)
    tokens_per_step: int = Field(default=2048, ge=16)
    train_embeddings: bool = False
    launch: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Retrained:
    """What came of it.

    Args:
        file: The GGUF file, quantized as the old one was.
        tier: Its record, under the old name; quality is not measured, and its lineage tells
            nothing yet of the teaching.
        training: How that went.
        base: Who taught, if it was the family's base.
        calls: How many were learned; those that are too long are left out.
    """

    file: Path
    tier: Tier
    training: Distillation
    base: BaseSource | None
    calls: int


def retrain_tier(
    family: Family,
    tier: Tier,
    calls: Sequence[tuple[Call, Reply]],
    config: RetrainConfig,
    stages: Stages,
    reporter: Reporter,
    *,
    threads: int,
) -> Retrained:
    """Teaches a copy of a tier; the family itself is not touched.

    Args:
        family: The teacher is its base, if that is here, or its best tier.
        tier: One with a file.
        calls: To learn, each with the right reply, oldest first.
        config: See there.
        stages: Where everything is kept; the same arguments go on where they were killed.
        reporter: Told of the stages.
        threads: For torch and llama.cpp.

    Raises:
        MissingExtraError: A package for training is missing.
        UnsupportedModelError: The tier is of a shape that cannot be trained or exported.
        ConfigError: Every call is longer than ``config.most_tokens``, or ``config`` makes no
            sense.
        BuildError: Training failed; the message says why.
        DiskFullError: There is no room; the same call goes on.
    """
    # torch is needed from here on, and nowhere else.
    from tierwise.compression.distillation.students import make_students

    file = family.path(tier)
    with Model(file, vocab_only=True) as model:
        taught, file_type = taught_tools(model), file_type_of(model)
    teacher, base = teacher_of(family, tier)
    lessons, longest, tokens = _write_lessons(calls, teacher or file, config, stages, reporter)
    # Sources share a budget by their weights: large enough that every call is among the documents.
    shares = [SHARES[name] for name in (*_REPLAYED, "transcripts")]
    enough = round(tokens * sum(shares) / SHARES["transcripts"]) + 4 * longest
    aware = _aware(file)
    distill = DistillConfig(
        minutes=config.minutes,
        steps=config.steps,
        students=(StudentRecipe(quantization_aware=aware),),
        tokens=max(1_000, enough, tokens + config.replay_tokens),
        transcripts=(lessons,),
        document_tokens=longest,
        answers="gold",
        shown=0.0 if taught else 1.0,
        on_policy=0.0,  # where the right reply is given, the teacher need not be asked
        teacher_model=None if teacher is None else str(teacher.resolve()),
        learning_rate=config.learning_rate,
        tokens_per_step=config.tokens_per_step,
        micro_tokens=max(longest, config.tokens_per_step),
        train_embeddings=config.train_embeddings,
        launch=config.launch,
        seed=config.seed,
    )
    source = BaseSource(str(file), file, None, None, f"{family.base.name} {tier.name}")
    (student,) = make_students(source, distill, stages, reporter, threads=threads)
    build = BuildConfig(
        imatrix=tier.lineage.imatrix_sha256 is not None and aware is None,
        seed=config.seed,
        threads=threads,
    )
    with Measurements(
        student.gguf, family.base, build, stages, reporter, threads=threads
    ) as measure:
        made = Maker(
            student_source(student),
            student.gguf,
            stages.folder,
            build,
            stages,
            reporter,
            measure,
            threads=threads,
        ).make(_as_before(tier, file, file_type))
    lineage = tier.lineage.model_copy(
        update={
            "tensor_types": made.record.tensor_types,
            "imatrix_sha256": made.record.imatrix_sha256,
        }
    )
    with Model(made.file, no_alloc=True) as model:
        record = tier.model_copy(
            update={
                "sha256": made.record.sha256,
                "bytes": made.record.bytes,
                "parameters": model.parameters,
                "demonstration_tokens": demonstration_tokens(model),
                "lineage": lineage,
            }
        )
    count = sum(1 for _ in read_transcripts(lessons))
    return Retrained(made.file, record, student.distillation, base, count)


def measured_quality(
    family: Family,
    tier: Tier,
    found: Retrained,
    stages: Stages,
    reporter: Reporter,
    *,
    threads: int,
) -> Quality:
    """What was measured of the tier, measured of its new file: success on the same tasks, and
    divergence if the base is here.

    Raises:
        ModelError: The file cannot be loaded.
        DiskFullError: There is no room.
    """
    tools, divergence = tier.quality.tools, tier.quality.divergence
    known: dict[str, int] = {}
    if tools is not None:
        known |= {"suite_tasks": max(4, tools.overall.n), "suite_menu": menu_of(tools.suite)}
        known["seed"] = tools.seed
    if divergence is not None:
        known["held_out_tokens"] = max(64, divergence.tokens)
    readable, told = found.file, found.base
    if told is not None and divergence is not None:
        base = base_source(told.gguf, family.base.sha256, family.base.layers)
        quantized = family.base.dequantized_from is not None
        readable = exact_copy(base, quantized, stages, reporter, threads=threads)
    config = BuildConfig.make(threads=threads, **known)
    with Measurements(readable, family.base, config, stages, reporter, threads=threads) as measure:
        name = tier.name
        success = None if tools is None else measure.success(name, found.file)
        return Quality(
            divergence=None if readable is found.file else measure.divergence(name, found.file),
            tools=None if success is None else success.result,
            samples=() if success is None else success.samples,
        )


# --- who teaches ----------------------------------------------------------------------------


def teacher_of(family: Family, tier: Tier) -> tuple[Path | None, BaseSource | None]:
    """Who teaches a tier: the base if it is here, else the best tier.

    Returns:
        The file, and the base if it is that. No file where the tier itself teaches, which then
        keeps to what it said before (learning without forgetting, Li and Hoiem,
        arXiv 1606.09282): if it is the best one, and where the best one is given prompts of a
        form that could not be written for both.
    """
    own, base = family.path(tier), _base(family)
    file = family.path(nearest_first(family.tiers)[0]) if base is None else base.gguf
    if file.samefile(own):
        return None, base
    with Model(file, vocab_only=True) as theirs, Model(own, vocab_only=True) as ours:
        if taught_tools(theirs) and not taught_tools(ours):
            return None, None
    return file, base


def _base(family: Family) -> BaseSource | None:
    """The family's base, where it can be had without a download and is the same still."""
    if not is_here(family.base.source):
        return None
    try:
        found = resolve_base(family.base.source)
        same = FileHashes.shared().sha256(found.gguf) == family.base.sha256
    except (TierwiseError, OSError):
        return None
    return found if same else None


# --- what is learned ------------------------------------------------------------------------


def _write_lessons(
    calls: Sequence[tuple[Call, Reply]],
    template_of: Path,
    config: RetrainConfig,
    stages: Stages,
    reporter: Reporter,
) -> tuple[Path, int, int]:
    """The calls as transcripts: their file, the tokens of the longest, and of all together."""
    lines: list[str] = []
    sizes: list[int] = []
    too_long = 0
    with Model(template_of, vocab_only=True) as model:
        renderer = Renderer(model, max_tokens=config.most_tokens)
        for call, reply in reversed(calls):
            if sum(sizes) >= config.most_call_tokens:
                break
            line = _transcript(call, reply)
            size = _tokens(conversation_from(line, ""), renderer)
            if size:
                lines.append(json.dumps(line, ensure_ascii=False))
                sizes.append(size)
            else:
                too_long += 1
    if too_long:
        reporter.note(f"{too_long} calls are longer than {config.most_tokens:,} tokens: left out")
    if older := len(calls) - len(lines) - too_long:
        reporter.note(f"{older} older calls are left out: the others have {sum(sizes):,} tokens")
    if not lines:
        raise ConfigError(
            f"all {len(calls)} calls to learn are longer than most_tokens={config.most_tokens:,} "
            "tokens or refused by the model's chat template; raise most_tokens"
        )
    file = stages.folder.resolve() / f"calls-{content_key(lines=lines)}.jsonl"
    write_atomically(file, "\n".join(lines) + "\n")
    longest = min(config.most_tokens, -(-max(sizes) // _ROUND) * _ROUND)
    return file, max(longest, min(config.most_tokens, _USUAL_TOKENS)), sum(sizes)


def _transcript(call: Call, reply: Reply) -> dict[str, object]:
    """A line of `read_transcripts` of which the reply is to be learned, and nothing before it."""
    answer = Message("assistant", reply.text, tool_calls=reply.tool_calls)
    line = call_to_json(call)
    line["messages"] = [*line["messages"], message_to_json(answer)]
    line["right"] = "last"
    if not call.shown_tools:
        line.pop("tools", None)
    if call.must_call:
        line.pop("response_schema", None)  # then it is not in the prompt either
    return line


def _tokens(conversation: Conversation, renderer: Renderer) -> int:
    """Of the document whose answer is to be learned; 0 if it has no room for that."""
    try:
        documents = list(renderer.documents(conversation))
    except UnsupportedModelError:  # the template refuses such conversations
        return 0
    return next((len(one) for one in documents if one.given.any()), 0)


# --- how it is stored -----------------------------------------------------------------------


def _aware(file: Path) -> Literal["Q4_0", "Q8_0"] | None:
    """The type that training can be aware of: that of all matrices of the layers, if it is one."""
    kinds = {
        one.kind.name
        for name, one in read_header(file).tensors.items()
        if name.startswith("blk.") and one.rows > 1
    }
    return next((kind for kind in AWARE if kinds == {kind}), None)


def _as_before(tier: Tier, file: Path, file_type: str) -> Candidate:
    """A file with the types of this one."""
    if file_type not in FILE_TYPES:
        file_type = "Q8_0"  # each tensor's own type follows
    overrides = {}
    if file_type not in FULL_PRECISION:
        tensors = read_header(file).tensors
        overrides = {name: one.kind.name for name, one in tensors.items() if one.rows > 1}
    return Candidate(tier.name, file_type, 0, (), 0, overrides=overrides)
