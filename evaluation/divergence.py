"""How far a tier is from its base, or from itself with another KV cache: KL divergence, top-1
agreement and perplexity.

The base's log-probabilities are captured once, then every tier is held against them (the
method of llama.cpp's ``perplexity --kl-divergence``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tierwise.evaluation.tasks import wilson_interval
from tierwise.evaluation.texts import take_tokens
from tierwise.runtime.context import PREFILL_BATCH, Context, KVType
from tierwise.runtime.errors import UnsupportedModelError
from tierwise.runtime.family import Divergence
from tierwise.runtime.files import disk_full_named
from tierwise.runtime.llama import Model

Progress = Callable[[str, float], None]
Documents = Sequence[Sequence[int]]
_Batch = tuple[int, NDArray[np.float32], NDArray[np.int64]]
"""First row, logits of shape (n, vocab), and the token after each row or -1."""

_FEW_LOGITS = 2**22
"""16 MiB of them; half a dozen arrays of that size are held at once."""


class BaseDistribution:
    """The base's next-token log-probabilities on held-out text, in a file of float16.

    Takes ``tokens * vocab_size * 2`` bytes on disk. Rounding to float16 is symmetric, so that it
    cancels in the mean; it adds about 5e-4 to a single token's KL.

    Args:
        base: The base's GGUF file.
        documents: Token ids; each is read from an empty context. At least two tokens each.
        store: Where to keep them; removed by `close`.
        threads: For llama.cpp.

    Raises:
        DiskFullError: There is no room for ``store``.
    """

    def __init__(
        self,
        base: Path,
        documents: Documents,
        store: Path,
        *,
        threads: int,
        progress: Progress | None = None,
    ) -> None:
        self.documents = documents
        self._store = store
        count = sum(map(len, documents))
        nll = 0.0
        with Model(base) as model, disk_full_named(store):
            self.vocab_size = model.vocab_size
            try:
                # Written as a file, read as a memory map: writing through a map kills the process
                # (SIGBUS) when the disk is full.
                with store.open("wb") as file:
                    for _, logits, following in _batches(model, documents, threads, progress):
                        logprobs = _log_softmax(logits)
                        # float16 ends at -65,504; log-probabilities stay far above that.
                        file.write(logprobs.astype(np.float16).data)
                        nll += _nll(logprobs, following)
            except BaseException:
                store.unlink(missing_ok=True)
                raise
        self._rows = np.memmap(store, dtype=np.float16, mode="r", shape=(count, self.vocab_size))
        self._predicted = _predicted(documents)
        self.perplexity = math.exp(nll / self._predicted)

    def compare(
        self,
        tier: Path,
        *,
        threads: int,
        tokens: int | None = None,
        progress: Progress | None = None,
    ) -> Divergence:
        """Measures a tier against the base.

        Args:
            tokens: So many of the first; None for all.

        Raises:
            UnsupportedModelError: The tier has another vocabulary.
        """
        documents = self.documents if tokens is None else take_tokens(self.documents, tokens)
        tally, base_nll = _Tally(), 0.0
        with Model(tier) as model:
            if model.vocab_size != self.vocab_size:
                raise UnsupportedModelError(
                    f"{tier.name!r} has a vocabulary of {model.vocab_size} tokens, the base has "
                    f"{self.vocab_size}: they cannot be compared token by token"
                )
            for row, logits, following in _batches(model, documents, threads, progress):
                base = self._rows[row : row + len(logits)].astype(np.float32)
                base_nll += _nll(base, following)
                tally.add(base, _log_softmax(logits), following)
        if tokens is None:
            return tally.divergence(self.perplexity, self._predicted)
        predicted = _predicted(documents)
        return tally.divergence(math.exp(base_nll / predicted), predicted)

    def close(self) -> None:
        """Removes the file."""
        del self._rows
        self._store.unlink(missing_ok=True)


def kv_divergence(
    tier: Path,
    documents: Documents,
    *,
    threads: int,
    kv_type: KVType = "q8_0",
    progress: Progress | None = None,
) -> Divergence:
    """How far a tier with its KV cache in ``kv_type`` is from itself with f16.

    Both read the documents side by side; nothing is written. Not all of it is lost precision:
    where weights are quantized, the least change of an activation rounds differently from there
    on. For SmolLM2 (Q8_0) 0.0033 nats lie between f32 and f16 already, and 0.0039 between f32
    and q8_0.

    Raises:
        UnsupportedModelError: The model's heads are of a size that ``kv_type`` cannot hold.
    """
    with Model(tier) as model:
        exact = _batches(model, documents, threads, None)
        rounded = _batches(model, documents, threads, progress, kv_type)
        return _side_by_side(exact, rounded, documents)


def pair_divergence(
    parent: Path, variant: Path, documents: Documents, *, threads: int
) -> Divergence:
    """How far a file is from the one that it was made of, with little memory.

    Weights stay in the files (see `Model`), and both read the documents side by side, a batch of
    `_FEW_LOGITS` at a time, for which each weight is wanted once.

    Raises:
        ModelError: A file cannot be loaded.
        UnsupportedModelError: They have different vocabularies.
    """
    with Model(parent, mapped=True) as one, Model(variant, mapped=True) as other:
        if one.vocab_size != other.vocab_size:
            raise UnsupportedModelError(
                f"{variant.name!r} has a vocabulary of {other.vocab_size} tokens, {parent.name!r} "
                f"has {one.vocab_size}: they cannot be compared token by token"
            )
        batch = max(16, _FEW_LOGITS // one.vocab_size)
        return _side_by_side(
            _batches(one, documents, threads, None, batch=batch),
            _batches(other, documents, threads, None, batch=batch),
            documents,
        )


def _side_by_side(
    bases: Iterator[_Batch], tiers: Iterator[_Batch], documents: Documents
) -> Divergence:
    tally, base_nll = _Tally(), 0.0
    for (_, logits, following), (_, other, _) in zip(bases, tiers, strict=True):
        base = _log_softmax(logits)
        base_nll += _nll(base, following)
        tally.add(base, _log_softmax(other), following)
    predicted = _predicted(documents)
    return tally.divergence(math.exp(base_nll / predicted), predicted)


class _Tally:
    """What is summed up over all tokens of a comparison."""

    def __init__(self) -> None:
        self._kls: list[NDArray[np.float32]] = []
        self._agreed, self._nll = 0, 0.0

    def add(
        self,
        base: NDArray[np.float32],
        tier: NDArray[np.float32],
        following: NDArray[np.int64],
    ) -> None:
        """Log-probabilities of both, shape (n, vocab), and the token after each or -1."""
        self._kls.append(np.einsum("ij,ij->i", np.exp(base), base - tier))
        self._agreed += int((base.argmax(axis=1) == tier.argmax(axis=1)).sum())
        self._nll += _nll(tier, following)

    def divergence(self, base_perplexity: float, predicted: int) -> Divergence:
        """The figures; ``predicted`` tokens had one before them."""
        kl = np.concatenate(self._kls)
        mean = float(kl.mean(dtype=np.float64))
        return Divergence(
            tokens=kl.size,
            # A tier whose logits are not finite is as far away as can be.
            kl_mean=max(0.0, mean) if math.isfinite(mean) else math.inf,
            kl_p999=float(np.quantile(kl, 0.999)),
            top1_agreement=wilson_interval(self._agreed, kl.size),
            perplexity=math.exp(self._nll / predicted),
            base_perplexity=base_perplexity,
        )


def _predicted(documents: Documents) -> int:
    return sum(len(document) - 1 for document in documents)


def _batches(
    model: Model,
    documents: Documents,
    threads: int,
    progress: Progress | None,
    kv_type: KVType = "f16",
    batch: int = PREFILL_BATCH,
) -> Iterator[_Batch]:
    """Logits batch by batch."""
    longest = max(map(len, documents))
    row, total = 0, sum(map(len, documents))
    with Context(
        model, longest, threads=threads, all_logits=True, kv_type=kv_type, batch=batch
    ) as context:
        for document in documents:
            context.truncate(0)
            following = np.array([*document[1:], -1], dtype=np.int64)
            for start in range(0, len(document), context.batch_size):
                part = document[start : start + context.batch_size]
                context.decode(part, start)
                yield row, context.batch_logits(len(part)), following[start : start + len(part)]
                row += len(part)
                if progress is not None:
                    progress(f"{row:,} of {total:,} tokens", row / total)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    out: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


def _nll(logprobs: NDArray[np.float32], following: NDArray[np.int64]) -> float:
    known = np.flatnonzero(following >= 0)
    return -float(logprobs[known, following[known]].sum(dtype=np.float64))
