"""What a family remembers of the model it was made from, and what its tiers must share."""

from __future__ import annotations

import hashlib

import llama_cpp as lib

from tierwise.compression.quantize import FILE_TYPES
from tierwise.compression.source import BaseSource
from tierwise.compression.tier_source import FULL_PRECISION
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import UnsupportedModelError
from tierwise.runtime.family import Base
from tierwise.runtime.files import FileHashes
from tierwise.runtime.llama import Model

_TYPE_NAMES = {str(number): name for name, number in FILE_TYPES.items()} | {"0": "F32"}


def describe_base(source: BaseSource) -> tuple[Base, str]:
    """The base's record, and its llama.cpp file type (e.g. "Q4_1", "F16").

    Raises:
        DamagedModelError, UnsupportedModelError: llama.cpp cannot load it, it is no decoder, or
            it has no chat template.
    """
    with Model(source.gguf, no_alloc=True) as model:
        chat_template_of(model, source.spec)
        file_type = file_type_of(model)
        template = model.chat_template or ""
        base = Base(
            name=source.name,
            source=source.spec,
            sha256=FileHashes.shared().sha256(source.gguf),
            architecture=model.architecture,
            parameters=model.parameters,
            layers=model.layers,
            context_tokens=model.context_tokens,
            vocab_size=model.vocab_size,
            licence=source.licence,
            dequantized_from=None if file_type in FULL_PRECISION else file_type,
            tokenizer_sha256=tokenizer_hash(model),
            chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        )
    return base, file_type


def chat_template_of(model: Model, name: str) -> ChatTemplate:
    """The template of a model that can be a tier: a decoder that answers messages.

    Raises:
        UnsupportedModelError: It is no decoder-only model, or has no chat template that works.
    """
    if not lib.llama_model_has_decoder(model.handle) or lib.llama_model_has_encoder(model.handle):
        raise UnsupportedModelError(
            f"{name!r} has architecture {model.architecture!r}, which is not a decoder-only "
            "language model; Tierwise builds families of those"
        )
    return ChatTemplate.of(model)


def file_type_of(model: Model) -> str:
    """llama.cpp's file type, e.g. "Q4_K_M"; "mixed" where the file names none that is known."""
    return _TYPE_NAMES.get(model.metadata.get("general.file_type", ""), "mixed")


def tokenizer_hash(model: Model) -> str:
    """Over every token's text in order; tiers can share a conversation only if it is equal."""
    digest = hashlib.sha256(model.metadata.get("tokenizer.ggml.pre", "").encode())
    for token in range(model.vocab_size):
        digest.update(model.token_text(token).encode() + b"\0")
    return digest.hexdigest()
