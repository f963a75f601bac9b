"""`write_tiny_mamba`: a recurrent model, whose sequences can be neither cut nor shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf_writer import Vocabulary, write_gguf


def write_tiny_mamba(path: Path, *, context: int = 512) -> Path:
    """A Mamba with random weights: no attention, one state per layer."""
    width, inner, state, conv, rank = 32, 64, 16, 4, 2
    vocabulary = Vocabulary((("a", "b"),))
    size = len(vocabulary.tokens)
    rng = np.random.default_rng(3)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        weights = rng.standard_normal((rows, columns)) * scale / columns**0.5
        return np.asarray(weights, np.float32)

    tensors = {
        "token_embd.weight": matrix(size, width, 6.0),
        "output_norm.weight": np.ones(width, np.float32),
        "output.weight": matrix(size, width, 4.0),
    }
    for layer in range(2):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": np.ones(width, np.float32),
            f"blk.{layer}.ssm_in.weight": matrix(2 * inner, width, 2.0),
            f"blk.{layer}.ssm_conv1d.weight": matrix(inner, conv, 2.0),
            f"blk.{layer}.ssm_conv1d.bias": np.zeros(inner, np.float32),
            f"blk.{layer}.ssm_x.weight": matrix(rank + 2 * state, inner),
            f"blk.{layer}.ssm_dt.weight": matrix(inner, rank),
            f"blk.{layer}.ssm_dt.bias": np.zeros(inner, np.float32),
            f"blk.{layer}.ssm_a": -np.ones((inner, state), np.float32),
            f"blk.{layer}.ssm_d": np.ones(inner, np.float32),
            f"blk.{layer}.ssm_out.weight": matrix(width, inner, 2.0),
        }
    numbers: dict[str, int | float] = {
        "vocab_size": size,
        "context_length": context,
        "embedding_length": width,
        "block_count": 2,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "ssm.conv_kernel": conv,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    return write_gguf(
        path,
        vocabulary,
        tensors,
        numbers,
        architecture="mamba",
        name="mamba",
        chat_template=None,
        file_type="F32",
    )
