"""Activations collected inside llama.cpp, held against those of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from build_tools import FileLimit
from gguf import GGUFReader
from numpy.typing import NDArray
from tiny_models import write_tiny_checkpoint, write_tiny_gguf

from tierwise.compression.activations import Activations, load_activations, observe
from tierwise.compression.export import export_gguf
from tierwise.compression.precision.ggml import read_weights
from tierwise.runtime.errors import DiskFullError
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


def importance_of_mixture(
    path: Path, documents: list[list[int]], *, layers: int, used: int
) -> dict[str, NDArray[np.float64]]:
    """Mean squared inputs of the experts' matrices, shape (experts, width), by a forward pass of
    our own; NaN for experts to which no token came."""
    data = {name: weight.floats() for name, weight in read_weights(path).items()}
    stacks = {name: weight.experts for name, weight in read_weights(path).items()}
    heads, kv_heads, epsilon = 4, 2, 1e-5
    data |= {
        one.name: np.array(one.data, np.float32)
        for one in GGUFReader(path).tensors
        if "norm" in one.name or "gate_inp" in one.name
    }

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * data[name]

    def turned(x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rotary positions of shape (tokens, heads, pairs · 2), neighbours being pairs."""
        angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, x.shape[2], 2) / x.shape[2])
        pairs = x[..., ::2] + 1j * x[..., 1::2]
        pairs = pairs * np.exp(1j * angles)[:, None]
        return np.stack((pairs.real, pairs.imag), -1).reshape(x.shape)

    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, NDArray[np.float64]] = {}

    def note(name: str, expert: int, row: NDArray[np.float64]) -> None:
        sums.setdefault(name, np.zeros((stacks[name], len(row))))[expert] += row * row
        counts.setdefault(name, np.zeros(stacks[name]))[expert] += 1

    for document in documents:
        x = data["token_embd.weight"][document].astype(np.float64)
        mask = np.triu(np.full((len(x), len(x)), -np.inf), 1)
        for layer in range(layers):
            part = f"blk.{layer}."
            h = norm(x, f"{part}attn_norm.weight")
            q, k, v = (h @ data[f"{part}attn_{one}.weight"].T for one in "qkv")
            q, k = turned(q.reshape(len(x), heads, -1)), turned(k.reshape(len(x), kv_heads, -1))
            v = v.reshape(len(x), kv_heads, -1)
            seen = []
            for head in range(heads):
                group = head * kv_heads // heads
                scores = q[:, head] @ k[:, group].T / q.shape[2] ** 0.5 + mask
                shares = np.exp(scores - scores.max(1, keepdims=True))
                seen.append(shares / shares.sum(1, keepdims=True) @ v[:, group])
            x = x + np.concatenate(seen, 1) @ data[f"{part}attn_output.weight"].T
            h = norm(x, f"{part}ffn_norm.weight")
            scores = h @ data[f"{part}ffn_gate_inp.weight"].T
            stack = stacks[f"{part}ffn_gate_exps.weight"]
            gate, up, down = (
                data[f"{part}ffn_{one}_exps.weight"].reshape(stack, -1, columns)
                for one, columns in (("gate", h.shape[1]), ("up", h.shape[1]), ("down", 128))
            )
            out = np.zeros_like(x)
            for token, row in enumerate(h):
                best = np.argsort(-scores[token])[:used]
                shares = np.exp(scores[token][best] - scores[token].max())
                for expert, share in zip(best, shares / shares.sum(), strict=True):
                    gated = gate[expert] @ row
                    inner = gated / (1 + np.exp(-gated)) * (up[expert] @ row)
                    out[token] += share * (down[expert] @ inner)
                    note(f"{part}ffn_gate_exps.weight", expert, row)
                    note(f"{part}ffn_up_exps.weight", expert, row)
                    note(f"{part}ffn_down_exps.weight", expert, inner)
            x = x + out
    with np.errstate(invalid="ignore"):
        return {name: total / counts[name][:, None] for name, total in sums.items()}


def test_of_a_mixture_each_expert_has_its_own(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "moe.gguf", experts=4, layers=2, file_type="F32")
    texts = ("hello Paris, the weather is 12 degrees.", "def add(a, b): return a + b")
    found = observe(path, texts, threads=1)
    with Model(path, vocab_only=True) as model:
        documents = [model.tokenize(text) for text in texts]
    wanted = importance_of_mixture(path, documents, layers=2, used=2)
    assert wanted.keys() == {name for name in found.imatrix if "_exps" in name} and len(wanted) == 6
    for name, values in wanted.items():
        own = found.imatrix[name].reshape(values.shape)
        np.testing.assert_allclose(own, values, rtol=2e-2, atol=1e-3, err_msg=name)
    assert all(np.isfinite(values).all() for values in wanted.values())
    different = wanted["blk.0.ffn_gate_exps.weight"]
    assert np.abs(different[0] - different[1]).max() > 0.1


def test_an_expert_that_nothing_came_to_has_the_mean_of_the_others(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "moe.gguf", experts=8, layers=1, file_type="F32")
    found = observe(path, ["a"], threads=1).imatrix["blk.0.ffn_down_exps.weight"].reshape(8, -1)
    with Model(path, vocab_only=True) as model:
        (token,) = model.tokenize("a")
    importance = importance_of_mixture(path, [[token]], layers=1, used=2)
    wanted = importance["blk.0.ffn_down_exps.weight"]
    seen = np.isfinite(wanted).all(1)
    assert seen.sum() == 2
    np.testing.assert_allclose(found[seen], wanted[seen], rtol=2e-2, atol=1e-3)
    mean = np.broadcast_to(found[seen].mean(0), found[~seen].shape)
    np.testing.assert_allclose(found[~seen], mean, rtol=1e-5)


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
