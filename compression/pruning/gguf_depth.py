"""Depth pruning of a GGUF file without torch, for bases that have no checkpoint.

The search is that of `depth`, with llama.cpp in the place of transformers: block influence from
the hidden states it shows (`activations.observe`), and real KL of each candidate, which is made
with llama.cpp's quantizer and removed again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tierwise.compression.activations import observe
from tierwise.compression.pruning.order import Progress, Removal, greedy_order
from tierwise.compression.quantize import quantize
from tierwise.evaluation.divergence import BaseDistribution
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.llama import Model

_LONGEST = 1024
"""Tokens of a document that are read, as in `observe`."""


def gguf_removal_order(
    base: Path,
    documents: Sequence[str],
    count: int,
    *,
    folder: Path,
    threads: int,
    protected: int = 1,
    shortlist: int = 6,
    file_type: str = "Q8_0",
    known: Sequence[Removal] = (),
    found: Callable[[Removal], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Removal, ...]:
    """Which layers of a GGUF file to take out, first the one that is missed least.

    The first n of the answer are the answer for n. Per removal ``shortlist`` files are written and
    measured, one more is made and observed; none is left at the end.

    Args:
        base: A GGUF file, quantized or not.
        documents: Calibration texts; each is cut to 1,024 tokens.
        count: How many layers shall go at most.
        folder: For temporary files: the base's log-probabilities (tokens · vocabulary · 2 bytes)
            and one candidate. What an earlier search that was killed left there is removed.
        threads: For llama.cpp.
        protected: So many layers at either end stay, at least 1: llama.cpp does not show what
            goes into the first and comes out of the last.
        shortlist: Layers of the least block influence that are measured per removal.
        file_type: Of the candidates. Q8_0 adds some 0.001 nats to a candidate of an F16 base, the
            same to each.
        known: The first removals, from a search that was cut short.
        found: Called with each new removal, to be written down.
        progress: Called after each measurement.

    Returns:
        ``count`` removals, each with the KL (nats per token) once it and those before are gone.
        They go to `quantize` as ``pruned_layers``.

    Raises:
        ConfigError: More layers shall go than may; no text.
        DiskFullError: There is no room in ``folder``.
        BuildError: llama.cpp could not make a candidate.
    """
    if protected < 1:
        raise ConfigError(f"protected is {protected}; from a GGUF file it must be 1 or more")
    with Model(base, no_alloc=True) as model:
        longest = min(_LONGEST, model.context_tokens)
        ids = [model.tokenize(document)[:longest] for document in documents]
        layers = model.layers
    ids = [document for document in ids if len(document) > 1]
    if not ids:
        raise ConfigError("the calibration documents hold no text of two tokens or more")
    work = folder / "gguf-depth"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        search = _Search(base, documents, ids, work, layers, file_type, threads)
        try:
            return greedy_order(
                layers,
                count,
                search.influence,
                search.divergence,
                protected=protected,
                shortlist=shortlist,
                known=known,
                found=found,
                progress=progress,
            )
        finally:
            search.close()
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Search:
    """Makes candidates of one base and measures them."""

    def __init__(
        self,
        base: Path,
        documents: Sequence[str],
        ids: Sequence[Sequence[int]],
        work: Path,
        layers: int,
        file_type: str,
        threads: int,
    ) -> None:
        self._base, self._documents = base, documents
        self._candidate = work / "candidate.gguf"
        self._layers, self._file_type, self._threads = layers, file_type, threads
        self._distribution = BaseDistribution(base, ids, work / "base.f16", threads=threads)

    def influence(self, gone: tuple[int, ...]) -> dict[int, float]:
        """Of the layers left, by the base's numbers."""
        file = self._make(gone) if gone else self._base
        seen = observe(file, self._documents, threads=self._threads).block_influence
        left = [layer for layer in range(self._layers) if layer not in gone]
        return {layer: float(value) for layer, value in zip(left, seen, strict=True)}

    def divergence(self, gone: tuple[int, ...]) -> float:
        """KL(base ‖ base without these layers); infinite where a candidate gives no numbers."""
        found = self._distribution.compare(self._make(gone), threads=self._threads)
        return found.kl_mean if math.isfinite(found.kl_p999) else math.inf

    def close(self) -> None:
        """Removes the files."""
        self._distribution.close()
        self._candidate.unlink(missing_ok=True)

    def _make(self, gone: Sequence[int]) -> Path:
        quantize(
            self._base,
            self._candidate,
            self._file_type,
            pruned_layers=gone,
            threads=self._threads,
        )
        return self._candidate
