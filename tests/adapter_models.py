"""Tiny transformers models of every shape that the adapter knows, and a task they can learn."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 48
CLASSES = 3


def tiny_model(kind: str, *, layers: int = 3, seed: int = 0, **changes: Any) -> Any:
    """Random weights, large enough that every part matters to the answer.

    Args:
        kind: "bert", "roberta", "distilbert", "electra", "llama", "qwen2", "gemma" for
            classifiers, "llama-lm", "qwen3-lm", "gemma-lm", "gpt2-lm" for language models.
    """
    import transformers

    name, _, head = kind.partition("-")
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "num_labels": CLASSES, "pad_token_id": 0}
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
    }
    if name == "distilbert":
        sizes = {"dim": 32, "n_layers": layers, "n_heads": 4, "hidden_dim": 64}
        sizes["max_position_embeddings"] = 40
    elif name == "gpt2":
        sizes = {"n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 40}
    elif name in ("llama", "qwen2", "qwen3", "gemma"):
        sizes |= {"num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": 1}
        if name in ("qwen3", "gemma"):
            sizes["head_dim"] = 8
    title = {
        "bert": "Bert",
        "roberta": "Roberta",
        "distilbert": "DistilBert",
        "electra": "Electra",
        "llama": "Llama",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma": "Gemma",
        "gpt2": "GPT2",
    }[name]
    ending = "ForSequenceClassification"
    if head == "lm":
        ending = "LMHeadModel" if name == "gpt2" else "ForCausalLM"
    config = getattr(transformers, f"{title}Config")(**(common | sizes | changes))
    torch.manual_seed(seed)
    model = getattr(transformers, title + ending)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
    return model.eval()


def examples(count: int, *, seed: int = 0, length: int = 12) -> list[dict[str, Any]]:
    """Rows of tokens whose label is told by which of three groups of tokens they come from."""
    noise = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        label = int(torch.randint(CLASSES, (1,), generator=noise))
        tokens = int(torch.randint(length // 2, length + 1, (1,), generator=noise))
        low = 3 + label * 15
        ids = torch.randint(low, low + 15, (tokens,), generator=noise)
        noisy = torch.randint(3, VOCABULARY, (tokens,), generator=noise)
        swap = torch.rand(tokens, generator=noise) < 0.3
        rows.append({"input_ids": torch.where(swap, noisy, ids).tolist(), "label": label})
    return rows


def batch_of(model: Any, rows: int = 4, length: int = 10, seed: int = 0) -> dict[str, Any]:
    """Random tokens, the last rows padded."""
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=noise)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    ids[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Of a batch, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        answer: torch.Tensor = model(**batch).logits
    return answer


def accuracy(model: Any, rows: list[dict[str, Any]]) -> float:
    """Share of the examples that a classifier gets right."""
    right = 0
    for row in rows:
        answer = logits(model, {"input_ids": torch.tensor([row["input_ids"]])})
        right += int(answer.argmax()) == row["label"]
    return right / len(rows)
