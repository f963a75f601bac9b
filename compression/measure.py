"""Measures candidates, each thing once: what was measured is found again by content."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from tierwise.compression.recipe import BuildConfig
from tierwise.compression.reporting import Reporter
from tierwise.compression.stages import Stages, content_key
from tierwise.evaluation.divergence import BaseDistribution
from tierwise.evaluation.profiling import measure_profile
from tierwise.evaluation.success import measure_success
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.texts import chat_documents, take_tokens
from tierwise.evaluation.tool_catalog import Split
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.family import Base, Divergence, SuiteResult
from tierwise.runtime.files import FileHashes
from tierwise.runtime.llama import Model
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.profile import Profile, load_profile, save_profile

SUITE_CONTEXT = 4096
_HELD_OUT_SEED = 1_000_000  # added to the config's, so that suite and held-out text differ


def profile_of(name: str, file: Path, *, threads: int, reporter: Reporter) -> Profile:
    """A tier's speed and memory on this machine, measured unless that was done already."""
    sha256 = FileHashes.shared().sha256(file)
    known = load_profile(sha256)
    if known is not None and known.threads == threads:
        return known
    with reporter.stage(f"Speed of {name}") as progress:
        profile = measure_profile(file, sha256, threads=threads, progress=progress)
    save_profile(profile)
    return profile


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

    def _reference(self) -> BaseDistribution:
        limit = self._config.held_out_tokens
        with self._reporter.stage("Reading held-out text with the base") as progress:
            texts = self.documents("test", limit, seed_offset=_HELD_OUT_SEED)
            with Model(self._gguf, vocab_only=True) as model:
                longest = self._base.context_tokens
                documents = take_tokens([model.tokenize(text)[:longest] for text in texts], limit)
            return BaseDistribution(
                self._gguf,
                documents,
                self._stages.file("base", "logprobs", ".f16"),
                threads=self._threads,
                progress=progress,
            )

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
