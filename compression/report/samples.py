"""The same tasks as every tier answered them, to be read side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tierwise.compression.report.svg import Mark, mark_of
from tierwise.runtime.family import Family, Sample


@dataclass(frozen=True, slots=True)
class Answer:
    """One tier's reply; None if it was not given the task."""

    tier: str
    mark: Mark
    sample: Sample | None


@dataclass(frozen=True, slots=True)
class Task:
    """One task with the answers in the family's order."""

    name: str
    prompt: str
    expected: str
    answers: tuple[Answer, ...]

    @property
    def right(self) -> int:
        """How many tiers were right."""
        return sum(answer.sample is not None and answer.sample.passed for answer in self.answers)

    @property
    def asked(self) -> int:
        """How many tiers were given it."""
        return sum(answer.sample is not None for answer in self.answers)


def tasks_of(family: Family) -> tuple[Task, ...]:
    """Every task of which a tier's answer was kept, in the order of the first tier that has it."""
    by_tier = [{(s.task, s.prompt): s for s in tier.quality.samples} for tier in family.tiers]
    keys = dict.fromkeys(key for samples in by_tier for key in samples)
    having = [i for i, samples in enumerate(by_tier) if samples]
    return tuple(_task(family, key, by_tier, having) for key in keys)


def _task(
    family: Family,
    key: tuple[str, str],
    by_tier: Sequence[dict[tuple[str, str], Sample]],
    having: Sequence[int],
) -> Task:
    found = next(samples[key] for samples in by_tier if key in samples)
    answers = tuple(Answer(family.tiers[i].name, mark_of(i), by_tier[i].get(key)) for i in having)
    return Task(found.task, found.prompt, found.expected, answers)
