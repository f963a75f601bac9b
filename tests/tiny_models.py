"""Models made on the spot, in the real formats: GGUF files and transformers checkpoints.

* `write_tiny_gguf`: random weights. For whatever needs a model that loads and runs.
* `write_scripted_gguf`: a real llama whose greedy answer is known, so that a test knows what
  comes out *behind* the real tokenizer, chat template, grammar, sampler and parser.
* `write_tiny_checkpoint`: a transformers folder of one of the shapes that can be exported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf_writer import (
    CHATML,
    CHATML_TOOLS,
    END,
    START,
    Array,
    Vocabulary,
    merge_words,
    write_gguf,
)
from scripted_model import write_scripted_gguf

__all__ = [
    "CHATML",
    "CHATML_TOOLS",
    "END",
    "START",
    "Vocabulary",
    "write_scripted_gguf",
    "write_tiny_checkpoint",
    "write_tiny_gguf",
]

_write_gguf = write_gguf


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 4,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    experts: int = 0,
    context: int = 512,
    architecture: str = "llama",
    file_type: Literal["F16", "F32"] = "F16",
    name: str = "tiny",
    chat_template: str | None = CHATML_TOOLS,
) -> Path:
    """A llama with random weights: about 0.2 M parameters, vocabulary of some 300 tokens.

    Args:
        path: Where to write; folders are made.
        seed: Of the weights. The same arguments give the same file, byte by byte.
        experts: A mixture of so many, two of them active; 0 for a plain feed-forward.
        width: Hidden size; K-quants need ``width`` and ``ffn`` to be multiples of 256.
        architecture: Written as given, so that an unknown one can be tried too.
    """
    words = (" the", " a", " is", " weather", " Paris", "hello", "ing", "er", "  ", '{"name"')
    vocabulary = Vocabulary(merge_words(words))
    rng = np.random.default_rng(seed)
    head = width // heads

    def matrix(rows: int, columns: int) -> Array:
        return (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    size = len(vocabulary.tokens)
    tensors: dict[str, Array] = {
        # Embeddings of unit size, so that the tokens drown in neither noise nor each other.
        "token_embd.weight": matrix(size, width) * np.float32(width**0.5),
        "output_norm.weight": np.ones(width, np.float32),
        # Large enough for peaked predictions: quantized copies must differ measurably.
        "output.weight": matrix(size, width) * np.float32(4.0),
    }
    for layer in range(layers):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": np.ones(width, np.float32),
            f"blk.{layer}.attn_q.weight": matrix(heads * head, width),
            f"blk.{layer}.attn_k.weight": matrix(kv_heads * head, width),
            f"blk.{layer}.attn_v.weight": matrix(kv_heads * head, width),
            f"blk.{layer}.attn_output.weight": matrix(width, heads * head),
            f"blk.{layer}.ffn_norm.weight": np.ones(width, np.float32),
        }
        for part, rows, columns in (("gate", ffn, width), ("up", ffn, width), ("down", width, ffn)):
            if experts:
                stack = [matrix(rows, columns) for _ in range(experts)]
                tensors[f"blk.{layer}.ffn_{part}_exps.weight"] = np.stack(stack)
            else:
                tensors[f"blk.{layer}.ffn_{part}.weight"] = matrix(rows, columns)
        if experts:
            tensors[f"blk.{layer}.ffn_gate_inp.weight"] = matrix(experts, width)
    numbers: dict[str, int | float] = {
        "vocab_size": size,
        "context_length": context,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "rope.dimension_count": head,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if experts:
        numbers |= {"expert_count": experts, "expert_used_count": 2}
    return write_gguf(
        path,
        vocabulary,
        tensors,
        numbers,
        architecture=architecture,
        name=name,
        chat_template=chat_template,
        file_type=file_type,
    )


# --- transformers checkpoints -----------------------------------------------------------

Shape = Literal["llama", "llama2", "smollm", "qwen2", "qwen3", "mistral"]

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_CORPUS = (
    "The weather in Paris is 18 degrees, isn't it? They'll say it's 2024-11-23, 12345 times.",
    "def add(a, b):\n    return a + b  # sum\n\n\nfor i in range(100):\n\tprint(i, end='')\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 10}}',
    "Ein Äpfel, deux œufs, três maçãs; 東京は晴れです。 Привет, мир! 🎉🎉 HTTPServer camelCase",
    "the the then there their  these   those    and and for for of of to to in in is is",
)


def write_tiny_checkpoint(
    folder: Path,
    *,
    family: Shape,
    seed: int = 0,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    context: int = 256,
    head_dim: int | None = None,
    tie_embeddings: bool | None = None,
    rope: Mapping[str, Any] | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    shard_size: str = "1GB",
    licence: str | None = "apache-2.0",
) -> Path:
    """A transformers checkpoint with random weights and a tokenizer of its family's kind.

    Args:
        folder: Where to write config.json, *.safetensors, tokenizer.json and so on.
        family: "llama" has Llama 3's tokenizer and RoPE scaling, "llama2" SentencePiece's
            (BPE with byte fallback), "smollm" tied embeddings and split digits, "mistral"
            the Tekken tokenizer.
        head_dim: Where it is not ``width / heads`` (all shapes but Qwen2 take it).
        tie_embeddings: ``None`` for the family's habit.
        rope: In place of the family's ``rope_parameters``.
        shard_size: Largest safetensors file, as transformers writes sizes ("50KB").
    """
    import torch
    import transformers
    from transformers import PreTrainedTokenizerFast

    tokenizer, special = _train_tokenizer(family)
    shape, model_type = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }.get(family, (transformers.LlamaConfig, transformers.LlamaForCausalLM))
    scaling: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "llama":
        scaling = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    extra: dict[str, Any] = {} if head_dim is None else {"head_dim": head_dim}
    if family == "qwen3":
        extra = {"head_dim": head_dim or width // heads}
    config = shape(
        # Models round their vocabulary up; the spare rows have no token.
        vocab_size=-(-tokenizer.get_vocab_size() // 32) * 32,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-6,
        tie_word_embeddings=family == "smollm" if tie_embeddings is None else tie_embeddings,
        rope_parameters=dict(rope or scaling),
        bos_token_id=tokenizer.token_to_id(special["bos_token"])
        if "bos_token" in special
        else None,
        eos_token_id=tokenizer.token_to_id(special["eos_token"]),
        pad_token_id=None,
        **extra,
    )
    model = model_type(config)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=noise)
            if "norm" in name:
                weight.copy_(1 + 0.2 * random)
            elif weight.ndim == 1 or "embed_tokens" in name or "lm_head" in name:
                weight.copy_(0.3 * random)
            else:
                weight.copy_(random * weight.shape[1] ** -0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = CHATML_TOOLS
    wrapped.save_pretrained(folder)
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# Tiny {family}\n")
    return folder


def _train_tokenizer(family: Shape) -> tuple[Any, dict[str, str]]:
    """A `tokenizers.Tokenizer` of the family's structure, and its special tokens by role."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
    from tokenizers import pre_tokenizers as pre
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    if family == "llama2":
        return _sentencepiece_tokenizer(), {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
    split = {"llama": LLAMA3_SPLIT, "mistral": TEKKEN_SPLIT}.get(family, QWEN2_SPLIT)
    special = {
        "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"},
        "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "smollm": {"bos_token": START, "eos_token": END, "unk_token": "<|endoftext|>"},
    }.get(family, {"eos_token": END, "pad_token": "<|endoftext|>"})
    whole_words = family in ("llama", "mistral")
    tokenizer = Tokenizer(BPE(ignore_merges=whole_words))
    if family.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    bytes_only = pre.ByteLevel(add_prefix_space=False, use_regex=family == "smollm")
    first = pre.Digits(True) if family == "smollm" else pre.Split(Regex(split), "isolated", False)
    tokenizer.pre_tokenizer = pre.Sequence([first, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    names = dict.fromkeys((*special.values(), "<|endoftext|>", START, END))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    # Not special: shown in text, and recognised in it ("user defined" in GGUF).
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    if family in ("llama", "mistral"):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return tokenizer, special


def _sentencepiece_tokenizer() -> Any:
    """Llama 2's structure: ``▁`` for spaces, unknown characters as bytes, no regex."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers import pre_tokenizers as pre
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre.Metaspace()
    trained.train_from_iterator(_CORPUS * 4, BpeTrainer(vocab_size=260, show_progress=False))
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    # Single letters come last in SentencePiece's files, the merged pieces in merge order first.
    ordered = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ordered += [piece for piece, _ in pieces if len(piece) > 1]
    ordered += [piece for piece, _ in pieces if len(piece) == 1]
    ids = {piece: index for index, piece in enumerate(ordered)}
    merges = _merges_of(trained)
    tokenizer = Tokenizer(
        BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ordered[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _merges_of(tokenizer: Any) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges]
