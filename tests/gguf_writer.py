"""What the GGUF files of the tests are made of: chat templates, a vocabulary, the writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that knows nothing of tools, as SmolLM2's."""

CHATML_TOOLS = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if not (tools and loop.first and message['role'] == 'system') %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>\n"
    "{\"name\": \"{{ call['function']['name'] }}\", "
    "\"arguments\": {{ call['function']['arguments'] | tojson }}}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template with tools, in the manner of Qwen2.5."""

CHATML_THINKING = CHATML_TOOLS.replace(
    "{{ message['content'] or '' }}", "{{ (message['content'] or '').split('</think>')[-1] }}"
)
"""A chat template whose model may think before it answers, in the manner of Qwen3."""

START, END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = ("<|endoftext|>", START, END)


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: byte-level vocabularies store text in these letters."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def spelled(text: str) -> str:
    """``text`` in GPT-2's byte letters."""
    letters = byte_letters()
    return "".join(letters[byte] for byte in text.encode())


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary: special tokens, 256 bytes, merges, then whole keywords."""

    merges: tuple[tuple[str, str], ...]
    keywords: tuple[str, ...] = ()

    @property
    def tokens(self) -> list[str]:
        """Token texts by id, as GGUF stores them."""
        merged = [left + right for left, right in self.merges]
        return [*SPECIAL_TOKENS, *byte_letters().values(), *merged, *self.keywords]

    @property
    def types(self) -> list[int]:
        """Token types by id. User-defined tokens are recognised in any text, before BPE."""
        normal = 256 + len(self.merges)
        return (
            [int(gguf.TokenType.CONTROL)] * len(SPECIAL_TOKENS)
            + [int(gguf.TokenType.NORMAL)] * normal
            + [int(gguf.TokenType.USER_DEFINED)] * len(self.keywords)
        )

    def ids(self, text: str) -> list[int]:
        """Token ids of ``text``, byte by byte (no merges, no specials)."""
        order = {byte: len(SPECIAL_TOKENS) + i for i, byte in enumerate(byte_letters())}
        return [order[byte] for byte in text.encode()]


def merge_words(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Merges that build each word from left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        letters = spelled(word)
        for cut in range(1, len(letters)):
            merges[letters[:cut], letters[cut]] = None
    return tuple(merges)


def write_gguf(
    path: Path,
    vocabulary: Vocabulary,
    tensors: Mapping[str, Array],
    numbers: Mapping[str, int | float],
    *,
    architecture: str,
    name: str,
    chat_template: str | None,
    file_type: Literal["F16", "F32"],
) -> Path:
    """Writes one GGUF. ``numbers`` are the keys under the architecture's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_license("apache-2.0")
    kind = gguf.LlamaFileType.MOSTLY_F16 if file_type == "F16" else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(kind)
    for key, value in numbers.items():
        if isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        else:
            writer.add_float32(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(SPECIAL_TOKENS.index(START))
    writer.add_eos_token_id(SPECIAL_TOKENS.index(END))
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for key, tensor in tensors.items():
        half = file_type == "F16" and tensor.ndim > 1
        writer.add_tensor(key, tensor.astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
