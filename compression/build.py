"""``build_family``: one base model in, a measured family of tiers out.

[prune → distil students] → plan → observe → quantize → compare → keep or drop with the reason →
measure what is kept → publish. Every stage is kept by the hash of its inputs: killed at any
point, the same call goes on where it was, and ``family.json`` comes last.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from tierwise.compression.base_record import describe_base
from tierwise.compression.choose import Choice, choose
from tierwise.compression.found_recipe import found_recipe
from tierwise.compression.make import Artifact, Maker, exact_copy
from tierwise.compression.measure import (
    SUITE_CONTEXT,
    Measurements,
    call_seconds,
    measure_drafts,
    profile_of,
)
from tierwise.compression.mixes import find_mixes
from tierwise.compression.plan import Plan, plan_tiers
from tierwise.compression.precision.kv import advise_kv
from tierwise.compression.publish import check_names, describe_tier, known_family, publish
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.report.tried import Tried
from tierwise.compression.reporting import Reporter, Silent
from tierwise.compression.source import BaseSource, resolve_base
from tierwise.compression.stages import Stages, content_key
from tierwise.compression.tier_source import TierSource, base_source, student_source
from tierwise.runtime.errors import FamilyError
from tierwise.runtime.family import MANIFEST, Family, Quality, Tier
from tierwise.runtime.record import Record
from tierwise.runtime.resources import probe

WORK = ".build"


class _Done(Record):
    """The last finished build of this folder."""

    key: str


def build_family(
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    reporter: Reporter | None = None,
) -> Family:
    """Makes a family of tiers from one base model, or finishes one that was begun.

    Args:
        base: A GGUF file, a transformers folder, a Hugging Face id, or ``bundled:smollm2``.
        out: The family's folder. A family that is there already is replaced at the very end.
        config: Defaults keep three tiers, quantized only; `BuildConfig.distill` adds students.
        reporter: Hears about stages and dropped tiers.

    Raises:
        ModelError: The base is missing, damaged or of an unsupported shape.
        ConfigError: The config cannot be met.
        MissingExtraError: Distillation is asked for, and its packages are not installed.
        DiskFullError: There is no room. What is finished is kept; the same call goes on.
    """
    config = config or BuildConfig()
    source = resolve_base(os.fspath(base))
    return _Build(source, Path(out), config, reporter or Silent()).run()


class _Build:
    """One run over the stages."""

    def __init__(
        self, source: BaseSource, out: Path, config: BuildConfig, reporter: Reporter
    ) -> None:
        self.given = source
        self.out = out
        self.config = config
        self.reporter = reporter
        self.stages = Stages(out / WORK)
        self.threads = config.threads or probe().threads
        with reporter.stage("Reading the base model"):
            self.base, self.file_type = describe_base(source)

    def run(self) -> Family:
        if (family := self._finished()) is not None:
            return family
        sources = self._sources()
        plan = plan_tiers(sources, file_type=self.file_type, config=self.config)
        self._look_at_what_is_there(plan)
        for name, reason in plan.skipped.items():
            self.reporter.note(f"not made: {name} ({reason})")
        readable = exact_copy(
            sources[0],
            self.base.dequantized_from is not None,
            self.stages,
            self.reporter,
            threads=self.threads,
        )
        with Measurements(
            readable, self.base, self.config, self.stages, self.reporter, threads=self.threads
        ) as measure:
            made = self._make(sources, readable, plan, measure)
            choice = choose(made, sources, measure, self.config)
            for name, reason in choice.dropped.items():
                self.reporter.note(f"dropped: {name} ({reason})")
            tiers = [
                (self._measured(artifact, sources, measure), artifact.file)
                for artifact in choice.kept
            ]
        tiers.sort(key=lambda item: call_seconds(item[0]) or math.inf)
        measure_drafts({tier.name: file for tier, file in tiers}, reporter=self.reporter)
        family = publish(
            self.out,
            self.base,
            tiers,
            _tried(plan, choice, {source.name: source for source in sources}),
            found_recipe(
                self.config,
                [artifact.candidate for artifact in choice.kept],
                sources[1:],
                threads=self.threads,
            ),
            self.stages,
        )
        self.stages.save("done", "last", _Done(key=self._key()))
        return family

    def _look_at_what_is_there(self, plan: Plan) -> None:
        names = {candidate.name for candidate in plan.candidates}
        before = known_family(self.out)
        check_names(before, names)
        if before is None and (self.out / MANIFEST).exists():
            self.reporter.note(
                f"{str(self.out / MANIFEST)!r} cannot be read and will be replaced; tiers that "
                "were adopted or connected are lost with it"
            )
        for tier in () if before is None else before.tiers:
            if tier.lineage.origin == "adopted" and tier.name in names:
                self.reporter.note(f"the adopted tier {tier.name!r} gives way if one is built")

    def _key(self) -> str:
        """Of everything that the family hangs on; the user's texts by size and time."""
        distill = self.config.distill
        texts = () if distill is None else (*distill.transcripts, *distill.corpus)
        files = [
            (str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for path in texts
            for file in sorted(path.rglob("*") if path.is_dir() else [path])
            if file.is_file()
        ]
        config = self.config.model_dump(mode="json")
        return content_key(base=self.base.sha256, config=config, texts=files)

    def _finished(self) -> Family | None:
        """The family, if this very build made it already."""
        done = self.stages.load("done", "last", _Done)
        if done is None or done.key != self._key():
            return None
        try:
            family = Family.load(self.out)
        except FamilyError:
            return None
        self.reporter.note("This family was built already from the same base and options.")
        files = {tier.name: family.path(tier) for tier in family.tiers}
        runs = self.config.speed_runs
        for name, file in files.items():  # the machine may be another one
            profile_of(name, file, threads=self.threads, reporter=self.reporter, runs=runs)
        measure_drafts(files, reporter=self.reporter)
        return family

    def _sources(self) -> tuple[TierSource, ...]:
        """The base, then its students from the largest to the smallest."""
        base = base_source(self.given.gguf, self.base.sha256, self.base.layers)
        if self.config.distill is None:
            return (base,)
        # torch is needed from here on, and nowhere else.
        from tierwise.compression.distillation.students import make_students

        students = make_students(
            self.given, self.config.distill, self.stages, self.reporter, threads=self.threads
        )
        return (base, *map(student_source, students))

    def _make(
        self,
        sources: Sequence[TierSource],
        readable: Path,
        plan: Plan,
        measure: Measurements,
    ) -> list[Artifact]:
        made = []
        for source in sources:
            maker = Maker(
                source,
                source.gguf if source.name else readable,
                self.out,
                self.config,
                self.stages,
                self.reporter,
                measure,
                threads=self.threads,
            )
            own = [one for one in plan.candidates if one.source == source.name]
            made += [maker.make(candidate) for candidate in own]
            if self.config.mixed and not self.config.candidates:
                mixes, skipped = find_mixes(
                    source,
                    maker,
                    own,
                    measure,
                    self.config,
                    self.stages,
                    self.reporter,
                    threads=self.threads,
                )
                plan.skipped.update(skipped)
                made += [maker.make(candidate) for candidate in mixes]
        return made

    def _measured(
        self, artifact: Artifact, sources: Sequence[TierSource], measure: Measurements
    ) -> Tier:
        """The tier with all that is measured of kept ones."""
        name, file = artifact.candidate.name, artifact.file
        profile = measure.profile(name, file)
        success = measure.success(name, file)
        quality = Quality(
            divergence=measure.divergence(name, file),
            tools=success.result,
            kv_q8_0=measure.kv_divergence(name, file),
            samples=success.samples,
        )
        source = next(one for one in sources if one.name == artifact.candidate.source)
        tier = describe_tier(artifact, source, self.base, self.file_type, quality)
        advice = advise_kv(tier, profile, context_tokens=min(SUITE_CONTEXT, tier.context_tokens))
        if advice.kv_type != tier.kv_type:
            self.reporter.note(
                f"{name}: a KV cache of {advice.kv_type} is worth it ({advice.reason})"
            )
        return tier


def _tried(plan: Plan, choice: Choice, sources: dict[str, TierSource]) -> list[Tried]:
    """Every candidate with what is known of it, for the report."""
    found = [Tried(name=name, kept=False, reason=why) for name, why in plan.skipped.items()]
    for artifact in choice.made:
        candidate = artifact.candidate
        one = Tried(
            name=candidate.name,
            bytes=artifact.record.bytes,
            layers=sources[candidate.source].layers - candidate.prune_count,
            quantization="mixed" if candidate.overrides else candidate.quantization,
            kept=candidate.name not in choice.dropped,
            reason=choice.dropped.get(candidate.name, ""),
        )
        if (screened := choice.screened.get(candidate.name)) is not None:
            one = one.model_copy(
                update={
                    "prefill_s": screened.prefill_s,
                    "decode_s": screened.decode_s,
                    "seconds": screened.prefill_s + screened.decode_s,
                    "kl_mean": screened.divergence.kl_mean,
                    "top1": screened.divergence.top1_agreement.value,
                }
            )
        found.append(one)
    return found
