"""``learn_tier``: logged calls become lessons for a cheaper tier, which is swapped if it is better.

read the log → set some calls aside → teach a copy of the tier → have both answer what neither was
taught → swap, or leave the family as it is. What is under way lies in ``.learn`` beside the
family: killed at any point, the same call goes on, with the calls that it began with. When the
verdict is there, the logged text is removed again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tierwise.compression.reporting import Reporter, Silent
from tierwise.compression.retrain import (
    RetrainConfig,
    Retrained,
    measured_quality,
    retrain_tier,
)
from tierwise.compression.stages import Stages, content_key
from tierwise.compression.swap import WORK, after_swap, before_swap, swap_tier
from tierwise.evaluation.collect import collect_outcomes
from tierwise.evaluation.outcomes import OUTCOMES, OutcomeStore
from tierwise.evaluation.own_prompts import OwnTask
from tierwise.evaluation.suites import Suite, load_suite
from tierwise.routing.calibration_store import FOUND
from tierwise.routing.comparison import (
    TOLERANCE,
    Comparison,
    compare,
    comparison_from,
    pairs_of,
)
from tierwise.routing.decision_log import read_log
from tierwise.routing.logged_calls import (
    RightCall,
    RightCalls,
    choose_tier,
    make_syllabus,
    right_calls,
)
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.lineage import Learning
from tierwise.runtime.message_json import (
    call_from_json,
    call_to_json,
    reply_from_json,
    reply_to_json,
)
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import utc_now
from tierwise.runtime.record import Record
from tierwise.runtime.resources import probe


class LearnConfig(RetrainConfig):
    """How a tier is taught, and when it is better.

    Args:
        suites: General tasks that it must not become worse at, as `load_suite` takes them.
        tolerance: Share of those that may be lost; to rule out more than 5 % takes 72 tasks.
    """

    suites: tuple[str, ...] = ("tools",)
    tolerance: float = Field(default=TOLERANCE, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of it.

    Args:
        family: As it is now.
        tier: Name of the one that was taught.
        swapped: Whether its new file took the place of the old one.
        comparison: Old and new on calls that were never learned.
        learned: Calls that it was taught.
        before: That same call was made before, and this is its result.
        calibrated: Whether the family has a calibration, which is then of the old file.
    """

    family: Family
    tier: str
    swapped: bool
    comparison: Comparison
    learned: int
    before: bool
    calibrated: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        tier = self.family.tier(self.tier)
        return {
            "tier": self.tier,
            "swapped": self.swapped,
            "learned": self.learned,
            **self.comparison.to_json(),
            "file": tier.file,
            "sha256": tier.sha256,
            "before": self.before,
            "calibrate": self.swapped and self.calibrated,
        }


class _Lesson(Record):
    """One logged call."""

    id: str
    group: str
    call: dict[str, Any]
    reply: dict[str, Any]

    @classmethod
    def of(cls, one: RightCall) -> _Lesson:
        call, reply = call_to_json(one.call), reply_to_json(one.reply)
        return cls(id=one.id, group=one.group, call=call, reply=reply)

    def task(self) -> OwnTask:
        """The call to be answered like that."""
        return OwnTask(self.id, self.group, call_from_json(self.call), self.reply, "reference")


class _Begun(Record):
    """What a run began with: the log may grow while it works."""

    learned: tuple[_Lesson, ...]
    judged: tuple[_Lesson, ...]

    @property
    def key(self) -> str:
        return content_key(**self.model_dump(mode="json"))


class _Verdict(Record):
    """How a run ended."""

    learned: int
    swapped: bool
    comparison: dict[str, Any]


def learn_tier(
    folder: str | os.PathLike[str],
    logs: Sequence[Path],
    *,
    tier: str | None = None,
    config: LearnConfig | None = None,
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> Learned:
    """Teaches a tier what better ones had to answer for it, and swaps it in if it is better.

    Args:
        folder: Of the family.
        logs: Decision logs with text.
        tier: Whom to teach; by default the cheapest local tier of those that gave way most often.
        config: How.
        threads: For torch and llama.cpp.
        reporter: Told of the stages.

    Raises:
        ConfigError: A log is none, has no text, or holds too few calls; or there is no such tier.
        FamilyError: The family is not usable.
        MissingExtraError: A package for training is missing.
        UnsupportedModelError: The tier is of a shape that cannot be trained.
        BuildError: Training failed, or the tier was changed meanwhile.
        DiskFullError: There is no room; the same call goes on.
    """
    config, family = config or LearnConfig(), Family.load(folder)
    suites = tuple(load_suite(one, seed=config.seed) for one in config.suites)  # before all work
    found = right_calls(row for log in logs for row in read_log(log))
    name = family.tier(tier or choose_tier(found, family)).name
    run = _Run(
        family,
        family.tier(name),
        tuple(str(log.resolve()) for log in logs),
        config,
        suites,
        threads or probe().threads,
        reporter or Silent(),
    )
    return run.result(found)


@dataclass(frozen=True)
class _Run:
    """One tier's lessons."""

    family: Family
    tier: Tier
    logs: tuple[str, ...]
    config: LearnConfig
    suites: tuple[Suite, ...]
    threads: int
    reporter: Reporter

    def result(self, found: RightCalls) -> Learned:
        options = self.config.model_dump(mode="json")
        key = content_key(tier=self.tier.sha256, logs=self.logs, options=options)
        work = self.family.folder / WORK
        begun = Stages(work).load("begun", key, _Begun) if work.is_dir() else None
        if begun is None:
            plan = make_syllabus(found, self.family, self.tier.name, seed=self.config.seed)
            begun = _Begun(
                learned=tuple(map(_Lesson.of, (*plan.learned, *plan.reviewed))),
                judged=tuple(map(_Lesson.of, (*plan.held_out, *plan.kept))),
            )
            if (known := self._known(begun)) is not None:
                return known
            Stages(work).save("begun", key, begun)
        return self._learn(begun, Stages(work))

    def _verdict_key(self, begun: _Begun, sha256: str) -> str:
        options = self.config.model_dump(mode="json")
        return content_key(calls=begun.key, tier=sha256, options=options)

    def _known(self, begun: _Begun) -> Learned | None:
        """The result of the same run, if that was finished before (but for what follows a swap)."""
        work = self.family.folder / WORK
        if not work.is_dir():
            return None
        stages, learning = Stages(work), self.tier.lineage.learning
        old = before_swap(self.family, self.tier)
        swapped = old is not None and learning is not None and learning.calls_key == begun.key
        parent = old.sha256 if old is not None and swapped else self.tier.sha256
        verdict = stages.load("verdict", self._verdict_key(begun, parent), _Verdict)
        if verdict is None or verdict.swapped != swapped:
            return None
        if old is not None and swapped:
            after_swap(self.family, self.tier, old, reporter=self.reporter)
        _tidy(work)
        return self._learned(self.family, verdict, before=True)

    def _learn(self, begun: _Begun, stages: Stages) -> Learned:
        calls = [(call_from_json(one.call), reply_from_json(one.reply)) for one in begun.learned]
        made = retrain_tier(
            self.family,
            self.tier,
            calls,
            self.config,
            stages,
            self.reporter,
            threads=self.threads,
        )
        found = self._compare(begun, made, stages)
        verdict = _Verdict(learned=made.calls, swapped=found.better, comparison=found.to_json())
        family = self.family
        if found.better:
            new = self._record(begun, made, found, stages)
            stages.save("verdict", self._verdict_key(begun, self.tier.sha256), verdict)
            family = swap_tier(family.folder, self.tier, new, made.file, reporter=self.reporter)
        else:
            stages.save("verdict", self._verdict_key(begun, self.tier.sha256), verdict)
        _tidy(stages.folder)
        return self._learned(family, verdict, before=False)

    def _compare(self, begun: _Begun, made: Retrained, stages: Stages) -> Comparison:
        """Both files answer the held-out calls and the suites."""
        tasks = tuple(one.task() for one in begun.judged)
        logged = Suite(f"logged-{begun.key}", tasks, tuple(one.group for one in begun.judged))
        taught = made.tier.model_copy(
            update={
                "name": f"{self.tier.name[:56]}-taught",
                "file": made.file.relative_to(self.family.folder).as_posix(),
            }
        )
        pair = self.family.model_copy(update={"tiers": (self.tier, taught), "remotes": ()})
        with OutcomeStore(stages.folder / OUTCOMES) as store:
            with (
                Pool(pair, threads=self.threads) as pool,
                self.reporter.stage("Asking the tier as it was and as it is") as progress,
            ):
                collect_outcomes(pair, [logged, *self.suites], store, pool=pool, progress=progress)
            shas = self.tier.sha256, taught.sha256
            return compare(
                pairs_of(store, [logged], *shas),
                pairs_of(store, self.suites, *shas) if self.suites else None,
                tolerance=self.config.tolerance,
            )

    def _record(self, begun: _Begun, made: Retrained, found: Comparison, stages: Stages) -> Tier:
        """Of the new file, with what is measured of it and where it comes from."""
        quality = measured_quality(
            self.family, self.tier, made, stages, self.reporter, threads=self.threads
        )
        learning = Learning(
            at=utc_now(),
            calls=made.calls,
            calls_key=begun.key,
            parent_sha256=self.tier.sha256,
            held_out=found.logged.tasks,
            before=found.logged.before,
            after=found.logged.after,
            training=made.training,
        )
        lineage = made.tier.lineage.model_copy(update={"learning": learning})
        return made.tier.model_copy(update={"quality": quality, "lineage": lineage})

    def _learned(self, family: Family, verdict: _Verdict, *, before: bool) -> Learned:
        return Learned(
            family=family,
            tier=self.tier.name,
            swapped=verdict.swapped,
            comparison=comparison_from(verdict.comparison),
            learned=verdict.learned,
            before=before,
            calibrated=(family.folder / FOUND).is_file(),
        )


def _tidy(folder: Path) -> None:
    """Leaves verdicts and what undoes swaps; all that was needed on the way goes."""
    for item in folder.iterdir():
        if item.name.startswith(("verdict-", "before-")):
            continue
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink()
