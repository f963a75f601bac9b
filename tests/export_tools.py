"""What the tests of export share: shapes that can be exported, awkward texts, and divergence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import Shape
from transformers import AutoModelForCausalLM

from tierwise.runtime.context import Context
from tierwise.runtime.llama import Model

AWKWARD = (
    "",
    " ",
    "\n",
    "   leading and trailing   ",
    "tabs\tand\r\nWindows lines\n\n\n",
    "Hello world! It's 18 degrees; they'll say I'D GO.",
    "1 12 123 1234 12345678 3.14159 1e-10 0xFF 1,000,000",
    "def f(x):\n    return x['a'] ** 2  # sum != 0\n\n\tprint(f'{x}')",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "n": [1, 2]}}',
    "Äpfel, deux œufs, três maçãs, ŁÓDŹ",
    "東京は晴れです。你好，世界！ 안녕하세요",
    "Привет, мир! שלום مرحبا नमस्ते",
    "🎉 👩‍🚀 🇫🇷 ½ ② ℃ ™",
    "<tool_call>x</tool_call> <|im_start|>user\nhi<|im_end|>",
    "camelCase HTTPServer snake_case kebab-case path/to/file.txt",
)

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@dataclass(frozen=True)
class Case:
    family: Shape
    pre: str
    options: dict[str, Any]

    def __str__(self) -> str:
        rope = self.options.get("rope", {}).get("rope_type", "")
        return "-".join(
            filter(None, (self.family, rope, *(k for k in self.options if k != "rope")))
        )


CASES = (
    Case("llama", "llama-bpe", {}),  # untied, Llama 3's RoPE scaling
    Case("llama", "llama-bpe", {"head_dim": 32, "tie_embeddings": True}),
    Case("llama2", "default", {}),
    Case("llama2", "default", {"rope": YARN}),
    Case("smollm", "smollm", {"kv_heads": 1}),
    Case("smollm", "smollm", {"rope": LINEAR}),
    Case("qwen2", "qwen2", {}),
    Case("qwen2", "qwen2", {"rope": YARN, "dtype": "bfloat16"}),
    Case("qwen3", "qwen2", {"head_dim": 32, "shard_size": "60KB"}),
    Case("mistral", "tekken", {"head_dim": 32}),
)


def kl_per_token(checkpoint: Path, path: Path, ids: list[int]) -> torch.Tensor:
    """KL(transformers in fp32 ‖ llama.cpp) after each token, in nats; shape (len(ids),)."""
    original = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        wanted = original(torch.tensor([ids])).logits[0].log_softmax(-1)
    with Model(path) as model:
        context = Context(model, 128, threads=1, all_logits=True)
        context.decode(ids, 0)
        logits = np.array(context.batch_logits(len(ids)))
        context.close()
    found = torch.from_numpy(logits).log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum(-1)
