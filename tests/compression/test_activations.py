"""Activations collected inside llama.cpp, held against those of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from build_tools import FileLimit
from numpy.typing import NDArray
from tiny_models import write_tiny_checkpoint, write_tiny_gguf

from tierwise.compression.activations import Activations, load_activations, observe
from tierwise.compression.export import export_gguf
from tierwise.runtime.errors import DiskFullError, UnsupportedModelError
from tierwise.runtime.llama import Model

LAYERS = 5
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
DOCUMENTS = (
    "The weather in Paris is 18 degrees, isn't it? " * 40,  # several batches of 512 tokens
    "",
    "def add(a, b):\n    return a + b  # sum\n",
    "Äpfel, œufs, 東京は晴れです。 " * 8,
)


@dataclass(frozen=True)
class Reference:
    """What transformers finds: importance by GGUF tensor name, and influence by layer."""

    importance: dict[str, NDArray[np.float64]]
    influence: NDArray[np.float64]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("smollm")
    checkpoint = write_tiny_checkpoint(
        folder / "checkpoint", family="smollm", layers=LAYERS, context=2048
    )
    return checkpoint, export_gguf(checkpoint, folder / "base.gguf")


@pytest.fixture(scope="module")
def found(exported: tuple[Path, Path]) -> Activations:
    return observe(exported[1], DOCUMENTS, threads=1)


def with_transformers(checkpoint: Path, documents: list[list[int]]) -> Reference:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).half().float()
    sums: dict[str, NDArray[np.float64]] = {}

    def watch(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        squares = inputs[0].double().square().reshape(-1, inputs[0].shape[-1]).sum(0).numpy()
        sums[name] = sums[name] + squares if name in sums else squares

    for layer in range(LAYERS):
        for theirs, ours in PARTS.items():
            module = model.get_submodule(f"model.layers.{layer}.{theirs}")
            module.register_forward_pre_hook(
                lambda _, inputs, name=f"blk.{layer}.{ours}.weight": watch(name, inputs)
            )
    cosines = np.zeros(LAYERS)
    count = sum(map(len, documents))
    with torch.no_grad():
        for document in documents:
            states = model(torch.tensor([document]), output_hidden_states=True).hidden_states
            for layer in range(LAYERS):
                pair = states[layer][0].double(), states[layer + 1][0].double()
                cosines[layer] += float(torch.cosine_similarity(*pair).sum())
    return Reference({name: total / count for name, total in sums.items()}, 1 - cosines / count)


@pytest.fixture(scope="module")
def reference(exported: tuple[Path, Path]) -> Reference:
    checkpoint, path = exported
    with Model(path, vocab_only=True) as model:
        documents = [model.tokenize(text)[:1024] for text in DOCUMENTS if text]
    assert max(map(len, documents)) > 512
    return with_transformers(checkpoint, documents)


def test_importance_is_that_of_transformers(found: Activations, reference: Reference) -> None:
    assert found.imatrix.keys() == reference.importance.keys()
    for name, values in reference.importance.items():
        np.testing.assert_allclose(found.imatrix[name], values, rtol=2e-2, err_msg=name)


def test_block_influence_is_that_of_transformers(found: Activations, reference: Reference) -> None:
    known = np.isfinite(found.block_influence)
    assert known[1:-1].all() and not known[0]
    inner = slice(1, LAYERS - 1)  # transformers' last hidden state is behind the final norm
    np.testing.assert_allclose(
        found.block_influence[inner], reference.influence[inner], rtol=2e-2, atol=1e-4
    )


def test_tokens_are_counted_and_told(exported: tuple[Path, Path], found: Activations) -> None:
    told: list[tuple[str, float]] = []
    again = observe(
        exported[1], DOCUMENTS, threads=1, progress=lambda text, share: told.append((text, share))
    )
    with Model(exported[1], vocab_only=True) as model:
        lengths = [len(model.tokenize(text)[:1024]) for text in DOCUMENTS]
    assert again.tokens == found.tokens == sum(lengths)
    assert told[-1] == (f"{sum(lengths):,} tokens", 1.0) and len(told) == 3
    assert again.imatrix_sha256 == found.imatrix_sha256


def test_long_documents_are_cut_to_the_context(tiny_gguf: Path) -> None:
    assert observe(tiny_gguf, ["hello Paris " * 500], threads=1).tokens == 512


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "moe.gguf", experts=4, layers=2)
    with pytest.raises(UnsupportedModelError, match=r"mixture of experts.*imatrix: false"):
        observe(path, ["hello Paris"], threads=1)


def test_they_are_kept_as_they_are(found: Activations, tmp_path: Path) -> None:
    path = tmp_path / "seen.npz"
    found.save(path)
    again = load_activations(path)
    assert again is not None and again.tokens == found.tokens
    np.testing.assert_array_equal(again.block_influence, found.block_influence)
    assert again.imatrix.keys() == found.imatrix.keys()
    assert again.imatrix_sha256 == found.imatrix_sha256
    assert list(tmp_path.iterdir()) == [path]
    other = Activations(
        found.imatrix | {"blk.0.attn_q.weight": np.zeros(64, np.float32)},
        *[found.block_influence, found.tokens],
    )
    assert other.imatrix_sha256 != found.imatrix_sha256


def test_nothing_and_damage_are_none(tmp_path: Path) -> None:
    assert load_activations(tmp_path / "missing.npz") is None
    path = tmp_path / "seen.npz"
    small = Activations({"blk.0.attn_q.weight": np.arange(4, dtype=np.float32)}, np.zeros(2), 7)
    small.save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert load_activations(path) is None, size
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        known = load_activations(path)  # some bytes of a zip archive mean nothing
        assert known is None or known.imatrix_sha256 == small.imatrix_sha256, place
    path.write_bytes(b"\x93NUMPY" + whole)
    assert load_activations(path) is None


def test_a_full_disk_is_named(found: Activations, tmp_path: Path, file_limit: FileLimit) -> None:
    path = tmp_path / "seen.npz"
    for size in (0, 1000, 8000):
        with file_limit(size), pytest.raises(DiskFullError, match=r"seen\.npz"):
            found.save(path)
        assert list(tmp_path.iterdir()) == []
