"""KL divergence, agreement and perplexity: against themselves, transformers, and more noise."""

from __future__ import annotations

import errno
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import write_scripted_gguf, write_tiny_checkpoint, write_tiny_gguf

from tierwise.compression.export import export_gguf
from tierwise.compression.quantize import quantize
from tierwise.evaluation.divergence import BaseDistribution, kv_divergence
from tierwise.runtime.errors import DiskFullError, UnsupportedModelError
from tierwise.runtime.family import Divergence
from tierwise.runtime.llama import Model

TEXTS = (
    "The weather in Paris is 18 degrees, isn't it? They'll say it's 2024-11-23. " * 12,
    "def add(a, b):\n    return a + b  # sum\n",
)


def documents_of(path: Path) -> list[list[int]]:
    with Model(path, vocab_only=True) as model:
        return [model.tokenize(text) for text in TEXTS]


def compare(base: Path, tier: Path, store: Path) -> Divergence:
    distribution = BaseDistribution(base, documents_of(base), store, threads=1)
    try:
        return distribution.compare(tier, threads=1)
    finally:
        distribution.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("base") / "base.gguf", context=2048)


def test_a_model_is_not_far_from_itself(base: Path, tmp_path: Path) -> None:
    found = compare(base, base, tmp_path / "base.f16")
    documents = documents_of(base)
    assert max(map(len, documents)) > 512  # several batches
    assert found.tokens == sum(map(len, documents))
    assert found.kl_mean < 1e-4  # float16 of the store, nothing else
    assert abs(found.kl_p999) < 0.02
    assert found.top1_agreement.value == 1.0
    assert found.top1_agreement.n == found.tokens
    assert found.perplexity == pytest.approx(found.base_perplexity, rel=1e-5)


def test_more_noise_is_further(base: Path, tmp_path: Path) -> None:
    found = []
    for file_type in ("F16", "Q8_0", "Q5_0", "Q4_0"):
        quantize(base, tmp_path / f"{file_type}.gguf", file_type, threads=1)
        found.append(compare(base, tmp_path / f"{file_type}.gguf", tmp_path / "base.f16"))
    for nearer, further in itertools.pairwise(found):
        assert nearer.kl_mean < further.kl_mean
        assert nearer.kl_p999 < further.kl_p999
        assert nearer.top1_agreement.value >= further.top1_agreement.value
    assert len({tier.base_perplexity for tier in found}) == 1


# --- The KV cache's type --------------------------------------------------------------------------


def test_a_quantized_cache_moves_a_model_a_little(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", width=128, heads=4, context=2048)
    documents = documents_of(path)
    same = kv_divergence(path, documents, threads=1, kv_type="f16")
    assert (same.kl_mean, same.kl_p999, same.top1_agreement.value) == (0, 0, 1)
    assert same.perplexity == same.base_perplexity
    moved = kv_divergence(path, documents, threads=1)
    assert moved.tokens == same.tokens == sum(map(len, documents))
    assert 0 < moved.kl_mean < 0.02 and moved.kl_mean < moved.kl_p999
    assert moved.top1_agreement.value > 0.9
    assert moved.base_perplexity == pytest.approx(same.base_perplexity)
    assert moved.perplexity != moved.base_perplexity
    # The base's perplexity is what the base is measured to have.
    store = BaseDistribution(path, documents, tmp_path / "base.f16", threads=1)
    assert moved.base_perplexity == pytest.approx(store.perplexity)
    store.close()


def test_heads_that_cannot_be_quantized_are_named(base: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="16 values a head"):
        kv_divergence(base, documents_of(base), threads=1)


# --- Against transformers -------------------------------------------------------------------------


def logprobs(checkpoint: Path, documents: list[list[int]]) -> list[NDArray[np.float64]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).half().float()
    with torch.no_grad():
        return [
            torch.log_softmax(model(torch.tensor([document])).logits[0].double(), -1).numpy()
            for document in documents
        ]


def test_the_numbers_are_those_of_transformers(tmp_path: Path) -> None:
    checkpoints = [
        write_tiny_checkpoint(tmp_path / f"c{seed}", family="smollm", seed=seed, context=2048)
        for seed in (0, 1)
    ]
    files = [export_gguf(folder, tmp_path / f"{folder.name}.gguf") for folder in checkpoints]
    found = compare(files[0], files[1], tmp_path / "base.f16")

    documents = documents_of(files[0])
    base, tier = (logprobs(folder, documents) for folder in checkpoints)
    kl = np.concatenate(
        [(np.exp(b) * (b - t)).sum(axis=1) for b, t in zip(base, tier, strict=True)]
    )
    agree = np.concatenate(
        [b.argmax(axis=1) == t.argmax(axis=1) for b, t in zip(base, tier, strict=True)]
    )

    def perplexity(rows: list[NDArray[np.float64]]) -> float:
        terms = [
            row[np.arange(len(row) - 1), document[1:]]
            for row, document in zip(rows, documents, strict=True)
        ]
        return math.exp(-float(np.concatenate(terms).mean()))

    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-2)
    assert found.kl_p999 == pytest.approx(np.quantile(kl, 0.999), rel=2e-2)
    assert found.top1_agreement.value == pytest.approx(agree.mean(), abs=0.01)
    assert found.base_perplexity == pytest.approx(perplexity(base), rel=1e-2)
    assert found.perplexity == pytest.approx(perplexity(tier), rel=1e-2)


# --- The store, and what is refused ---------------------------------------------------------------


def test_other_vocabularies_are_refused(base: Path, tmp_path: Path) -> None:
    other = write_scripted_gguf(tmp_path / "other.gguf", "Hello!")
    with pytest.raises(UnsupportedModelError, match=r"'other\.gguf' has a vocabulary of 260"):
        compare(base, other, tmp_path / "base.f16")


def test_the_store_is_removed_when_it_is_closed(base: Path, tmp_path: Path) -> None:
    store = tmp_path / "base.f16"
    documents = documents_of(base)
    distribution = BaseDistribution(base, documents, store, threads=1)
    rows = sum(map(len, documents))
    assert store.stat().st_size == rows * distribution.vocab_size * 2
    distribution.compare(base, threads=1)
    assert store.exists()
    distribution.close()
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told(base: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    documents = documents_of(base)
    count = sum(map(len, documents))

    def progress(text: str, share: float) -> None:
        told.append((text, share))

    distribution = BaseDistribution(
        base, documents, tmp_path / "base.f16", threads=1, progress=progress
    )
    distribution.compare(base, threads=1, progress=progress)
    distribution.close()
    assert [share for _, share in told[: len(told) // 2]] == [share for _, share in told[3:]]
    assert told[-1] == (f"{count:,} of {count:,} tokens", 1.0)


def test_a_full_disk_is_named_and_leaves_nothing(base: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    store = tmp_path / "base.f16"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DiskFullError, match=r"base\.f16") as caught:
            BaseDistribution(base, documents_of(base), store, threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(base: Path, tmp_path: Path) -> None:
    def interrupt(_text: str, share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BaseDistribution(
            base, documents_of(base), tmp_path / "base.f16", threads=1, progress=interrupt
        )
    assert list(tmp_path.iterdir()) == []
