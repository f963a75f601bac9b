"""Measures candidates, each thing once: what was measured is found again by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np

from tierwise.compression.front import REFERENCE_PROMPT, REFERENCE_REPLY
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.reporting import Reporter
from tierwise.compression.stages import Stages, content_key
from tierwise.evaluation.divergence import BaseDistribution, kv_divergence
from tierwise.evaluation.drafting import measure_drafting, worth_measuring
from tierwise.evaluation.profiling import measure_profile
from tierwise.evaluation.quick_speed import quick_speed
from tierwise.evaluation.success import Outcome, run_suite, suite_tier
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import Task, suite_name, summarize
from tierwise.evaluation.texts import chat_documents, take_tokens
from tierwise.evaluation.tool_catalog import Split
from tierwise.runtime.chat import Reply
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import OutOfMemoryError, UnsupportedModelError
from tierwise.runtime.family import Base, Divergence, Sample, SuiteResult, Tier
from tierwise.runtime.files import FileHashes
from tierwise.runtime.llama import Model
from tierwise.runtime.profile import Profile, load_profile, machine_fingerprint, save_profile
from tierwise.runtime.record import Record

SAMPLES = 6
"""Tasks of the suite whose replies are kept, to be read side by side."""

SUITE_CONTEXT = 8192
_HELD_OUT_SEED = 1_000_000  # added to the config's, so that suite and held-out text differ


def profile_of(
    name: str, file: Path, *, threads: int, reporter: Reporter, runs: int = 3
) -> Profile:
    """A tier's speed and memory on this machine, measured unless that was done already.

    Profiles of fewer runs, or from before steps were measured, are made anew.
    """
    sha256 = FileHashes.shared().sha256(file)
    known = load_profile(sha256)
    if known is not None and known.threads == threads and known.step_s and known.runs >= runs:
        return known
    with reporter.stage(f"Speed of {name}") as progress:
        profile = measure_profile(file, sha256, threads=threads, runs=runs, progress=progress)
        profile = measure_drafting(file, profile, runs=min(runs, 2))
    save_profile(profile)
    return profile


def call_seconds(tier: Tier) -> float | None:
    """Of the reference call with this machine's profile, with the demonstration that it needs."""
    profile = load_profile(tier.sha256)
    if profile is None:
        return None
    prompt = REFERENCE_PROMPT + (tier.demonstration_tokens or 0)
    return profile.seconds(prompt, REFERENCE_REPLY, cold=False)


def measure_drafts(files: Mapping[str, Path], *, reporter: Reporter) -> None:
    """Adds to the profiles of tiers what drafts by the first of them gain, where they might.

    Args:
        files: Of tiers that have profiles, by name, the cheapest first.
    """
    hashes = FileHashes.shared()
    found = [(name, file, load_profile(hashes.sha256(file))) for name, file in files.items()]
    tiers = [(name, file, profile) for name, file, profile in found if profile is not None]
    for name, file, profile in tiers[1:]:
        if worth_measuring(profile, tiers[0][2]):
            with (
                reporter.stage(f"Drafts by {tiers[0][0]} for {name}"),
                suppress(OutOfMemoryError),  # then there is no room for both in use either
            ):
                save_profile(measure_drafting(file, profile, smaller=tiers[0][1:]))


class Success(Record):
    """What a tier did on the suite, and some of its replies."""

    result: SuiteResult
    samples: tuple[Sample, ...]


def success_of(
    name: str,
    file: Path,
    *,
    tasks: int,
    seed: int,
    context_tokens: int,
    threads: int,
    reporter: Reporter,
    menu: int = 1,
) -> Success:
    """A tier's success on so many tasks of the tool-calling suite.

    Args:
        menu: See `generate_tasks`.
        context_tokens: That the model was trained for; at most `SUITE_CONTEXT` are used.
    """
    suite = generate_tasks(tasks, seed=seed, split="test", menu=menu)
    with (
        reporter.stage(f"Tool tasks with {name}") as progress,
        suite_tier(file, suite, min(SUITE_CONTEXT, context_tokens), threads=threads) as tier,
    ):
        outcomes = run_suite(tier, suite, progress=progress)
    passed = [outcome.passed for outcome in outcomes]
    picks = np.linspace(0, len(outcomes) - 1, min(SAMPLES, len(outcomes))).round().astype(int)
    return Success(
        result=summarize(suite, passed, suite=suite_name(menu), seed=seed),
        samples=tuple(_sample(outcomes[pick]) for pick in picks),
    )


def _sample(outcome: Outcome[Task]) -> Sample:
    asked = (m.content for m in reversed(outcome.task.call.messages) if m.role == "user")
    return Sample(
        task=outcome.task.id,
        prompt=next(asked, ""),
        reply=_text(outcome.reply),
        expected=_text(outcome.task.expected),
        passed=outcome.passed,
    )


def _text(reply: Reply) -> str:
    """The reply's words, then its tool calls, a line each."""
    lines = [reply.text.strip(), *(call.to_json() for call in reply.tool_calls)]
    return "\n".join(filter(None, lines))


class Screened(Record):
    """What candidates are compared by. Seconds are of the reference call's prompt and reply."""

    divergence: Divergence
    prefill_s: float
    decode_s: float


class _KVDivergence(Record):
    """None where the tier cannot have such a KV cache."""

    divergence: Divergence | None


class Measurements:
    """Divergence, speed and task success of GGUF files.

    Args:
        readable: The base's weights in a file that llama.cpp reads quickly: what divergence is
            from.
        base: Its record.
        stages: Where results are kept (profiles are kept with the machine's own).
    """

    def __init__(
        self,
        readable: Path,
        base: Base,
        config: BuildConfig,
        stages: Stages,
        reporter: Reporter,
        *,
        threads: int,
    ) -> None:
        self._readable = readable
        self._base = base
        self._config = config
        self._stages = stages
        self._reporter = reporter
        self._threads = threads
        self._reference: BaseDistribution | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the base's log-probabilities."""
        if self._reference is not None:
            self._reference.close()
            self._reference = None

    def screen(self, name: str, file: Path) -> Screened:
        """A candidate's divergence and speed on little text: enough to choose by."""
        tokens = min(self._config.screen_tokens, self._config.held_out_tokens)
        key = content_key(
            base=self._base.sha256,
            tier=FileHashes.shared().sha256(file),
            tokens=tokens,
            seed=self._config.seed,
            machine=machine_fingerprint(),
            threads=self._threads,
        )
        if (known := self._stages.load("screened", key, Screened)) is not None:
            return known
        reference = self._read_base()
        with self._reporter.stage(f"Comparing {name}") as progress:
            divergence = reference.compare(
                file,
                tokens=None if tokens == self._config.held_out_tokens else tokens,
                threads=self._threads,
                progress=progress,
            )
            speed = quick_speed(
                file,
                prompt_tokens=REFERENCE_PROMPT,
                reply_tokens=REFERENCE_REPLY,
                threads=self._threads,
            )
        found = Screened(divergence=divergence, prefill_s=speed.prefill_s, decode_s=speed.decode_s)
        self._stages.save("screened", key, found)
        if tokens == self._config.held_out_tokens:  # then that is all there is to measure
            self._stages.save("divergence", self._divergence_key(file), divergence)
        return found

    def divergence(self, name: str, file: Path) -> Divergence:
        """From the base, on text that calibration did not see."""
        key = self._divergence_key(file)
        if (known := self._stages.load("divergence", key, Divergence)) is not None:
            return known
        reference = self._read_base()
        with self._reporter.stage(f"Divergence of {name}") as progress:
            found = reference.compare(file, threads=self._threads, progress=progress)
        self._stages.save("divergence", key, found)
        return found

    def _divergence_key(self, file: Path) -> str:
        return content_key(
            base=self._base.sha256,
            tier=FileHashes.shared().sha256(file),
            tokens=self._config.held_out_tokens,
            seed=self._config.seed,
        )

    def kv_divergence(self, name: str, file: Path) -> Divergence | None:
        """Of the tier with a KV cache of q8_0 from itself with one of f16.

        None if its heads are of a size that q8_0 cannot hold, or if it is not to be measured.
        """
        limit = self._config.kv_tokens
        if not limit:
            return None
        sha256 = FileHashes.shared().sha256(file)
        key = content_key(tier=sha256, kv="q8_0", tokens=limit, seed=self._config.seed)
        if (known := self._stages.load("kv-divergence", key, _KVDivergence)) is not None:
            return known.divergence
        found = None
        with self._reporter.stage(f"KV cache of {name} in q8_0") as progress:
            documents = self._held_out(limit)
            with suppress(UnsupportedModelError):
                found = kv_divergence(file, documents, threads=self._threads, progress=progress)
        self._stages.save("kv-divergence", key, _KVDivergence(divergence=found))
        return found

    def _read_base(self) -> BaseDistribution:
        """The base's answers to the held-out text, read once for all candidates."""
        if self._reference is None:
            with self._reporter.stage("Reading held-out text with the base") as progress:
                self._reference = BaseDistribution(
                    self._readable,
                    self._held_out(self._config.held_out_tokens),
                    self._stages.file("base", "logprobs", ".f16"),
                    threads=self._threads,
                    progress=progress,
                )
        return self._reference

    def calibration_tokens(self, limit: int) -> list[list[int]]:
        """So many tokens of the text that importance matrices are made from, in documents."""
        texts = self.documents("calibration", limit)
        return self._tokenized(texts, limit)

    def _held_out(self, limit: int) -> list[list[int]]:
        """So many tokens of text that calibration did not see, in documents."""
        return self._tokenized(self.documents("test", limit, seed_offset=_HELD_OUT_SEED), limit)

    def _tokenized(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        with Model(self._readable, vocab_only=True) as model:
            longest = self._base.context_tokens
            return take_tokens([model.tokenize(text)[:longest] for text in texts], limit)

    def profile(self, name: str, file: Path) -> Profile:
        """Speed and memory on this machine."""
        runs = self._config.speed_runs
        return profile_of(name, file, threads=self._threads, reporter=self._reporter, runs=runs)

    def success(self, name: str, file: Path) -> Success:
        """Success on the tool-calling suite."""
        seed, size, menu = self._config.seed, self._config.suite_tasks, self._config.suite_menu
        key = content_key(tier=FileHashes.shared().sha256(file), tasks=size, seed=seed, menu=menu)
        known = self._stages.load("tools", key, Success)
        if known is not None:
            return known
        result = success_of(
            name,
            file,
            tasks=size,
            seed=seed,
            menu=menu,
            context_tokens=self._base.context_tokens,
            threads=self._threads,
            reporter=self._reporter,
        )
        self._stages.save("tools", key, result)
        return result

    def documents(self, split: Split, tokens: int, *, seed_offset: int = 0) -> tuple[str, ...]:
        """Chat-templated agent tasks with their answers, at least that many tokens together."""
        with Model(self._readable, vocab_only=True) as model:
            template = ChatTemplate.of(model)
            longest, size = self._base.context_tokens, 16
            while True:
                tasks = generate_tasks(size, seed=self._config.seed + seed_offset, split=split)
                texts = chat_documents(tasks, template)
                sizes = [min(longest, len(model.tokenize(text))) for text in texts]
                enough = next(
                    (n for n, total in enumerate(accumulate(sizes), 1) if total >= tokens), 0
                )
                if enough:
                    return texts[:enough]
                size *= 2
