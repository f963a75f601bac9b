"""Measures candidates, each thing once: what was measured is found again by content."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from tierwise.compression.recipe import BuildConfig
from tierwise.compression.reporting import Reporter
from tierwise.compression.stages import Stages, content_key
from tierwise.evaluation.divergence import BaseDistribution, kv_divergence
from tierwise.evaluation.drafting import measure_drafting, worth_measuring
from tierwise.evaluation.profiling import measure_profile
from tierwise.evaluation.success import measure_success
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.texts import chat_documents, take_tokens
from tierwise.evaluation.tool_catalog import Split
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import OutOfMemoryError, UnsupportedModelError
from tierwise.runtime.family import Base, Divergence, Record, SuiteResult
from tierwise.runtime.files import FileHashes
from tierwise.runtime.llama import Model
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.profile import Profile, load_profile, save_profile

KV_TOKENS = 4096
"""Of the held-out text, for the divergence that a KV cache of q8_0 brings."""

SUITE_CONTEXT = 8192
_HELD_OUT_SEED = 1_000_000  # added to the config's, so that suite and held-out text differ


def profile_of(name: str, file: Path, *, threads: int, reporter: Reporter) -> Profile:
    """A tier's speed and memory on this machine, measured unless that was done already.

    Profiles from before steps were measured are made anew.
    """
    sha256 = FileHashes.shared().sha256(file)
    known = load_profile(sha256)
    if known is not None and known.threads == threads and known.step_s:
        return known
    with reporter.stage(f"Speed of {name}") as progress:
        profile = measure_profile(file, sha256, threads=threads, progress=progress)
        profile = measure_drafting(file, profile)
    save_profile(profile)
    return profile


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


def success_of(
    name: str,
    file: Path,
    *,
    tasks: int,
    seed: int,
    context_tokens: int,
    threads: int,
    reporter: Reporter,
) -> SuiteResult:
    """A tier's success on so many tasks of the tool-calling suite.

    Args:
        context_tokens: That the model was trained for; at most `SUITE_CONTEXT` are used.
    """
    with (
        reporter.stage(f"Tool tasks with {name}") as progress,
        LoadedTier(file, n_ctx=min(SUITE_CONTEXT, context_tokens), threads=threads) as tier,
    ):
        suite = generate_tasks(tasks, seed=seed, split="test")
        return measure_success(tier, suite, seed=seed, progress=progress)


class _KVDivergence(Record):
    """None where the tier cannot have such a KV cache."""

    divergence: Divergence | None


class Measurements:
    """Divergence, speed and task success of GGUF files.

    Args:
        gguf: The base's file.
        base: Its record.
        stages: Where results are kept (profiles are kept with the machine's own).
    """

    def __init__(
        self,
        gguf: Path,
        base: Base,
        config: BuildConfig,
        stages: Stages,
        reporter: Reporter,
        *,
        threads: int,
    ) -> None:
        self._gguf = gguf
        self._base = base
        self._config = config
        self._stages = stages
        self._reporter = reporter
        self._threads = threads

    def divergences(self, files: Mapping[str, Path]) -> dict[str, Divergence]:
        """Of each named file from the base, on text that calibration did not see."""
        keys = {
            name: content_key(
                base=self._base.sha256,
                tier=FileHashes.shared().sha256(file),
                tokens=self._config.held_out_tokens,
                seed=self._config.seed,
            )
            for name, file in files.items()
        }
        out: dict[str, Divergence] = {}
        for name, key in keys.items():
            if (known := self._stages.load("divergence", key, Divergence)) is not None:
                out[name] = known
        missing = [name for name in files if name not in out]
        if not missing:
            return out
        reference = self._reference()
        try:
            for name in missing:
                with self._reporter.stage(f"Divergence of {name}") as progress:
                    out[name] = reference.compare(
                        files[name], threads=self._threads, progress=progress
                    )
                self._stages.save("divergence", keys[name], out[name])
        finally:
            reference.close()
        return out

    def kv_divergence(self, name: str, file: Path) -> Divergence | None:
        """Of the tier with a KV cache of q8_0 from itself with one of f16.

        None if its heads are of a size that q8_0 cannot hold.
        """
        limit = min(KV_TOKENS, self._config.held_out_tokens)
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

    def _reference(self) -> BaseDistribution:
        with self._reporter.stage("Reading held-out text with the base") as progress:
            return BaseDistribution(
                self._gguf,
                self._held_out(self._config.held_out_tokens),
                self._stages.file("base", "logprobs", ".f16"),
                threads=self._threads,
                progress=progress,
            )

    def _held_out(self, limit: int) -> list[list[int]]:
        """So many tokens of text that calibration did not see, in documents."""
        texts = self.documents("test", limit, seed_offset=_HELD_OUT_SEED)
        with Model(self._gguf, vocab_only=True) as model:
            longest = self._base.context_tokens
            return take_tokens([model.tokenize(text)[:longest] for text in texts], limit)

    def profile(self, name: str, file: Path) -> Profile:
        """Speed and memory on this machine."""
        return profile_of(name, file, threads=self._threads, reporter=self._reporter)

    def success(self, name: str, file: Path) -> SuiteResult:
        """Success on the tool-calling suite."""
        seed, size = self._config.seed, self._config.suite_tasks
        key = content_key(tier=FileHashes.shared().sha256(file), tasks=size, seed=seed)
        known = self._stages.load("tools", key, SuiteResult)
        if known is not None:
            return known
        result = success_of(
            name,
            file,
            tasks=size,
            seed=seed,
            context_tokens=self._base.context_tokens,
            threads=self._threads,
            reporter=self._reporter,
        )
        self._stages.save("tools", key, result)
        return result

    def documents(self, split: Split, tokens: int, *, seed_offset: int = 0) -> tuple[str, ...]:
        """Chat-templated agent tasks with their answers, at least that many tokens together."""
        with Model(self._gguf, vocab_only=True) as model:
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
