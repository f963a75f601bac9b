"""The exported file says what the checkpoint says: same token ids, same logits, same metadata."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from export_tools import AWKWARD, CASES, YARN, Case, kl_per_token
from tiny_models import CHATML, CHATML_TOOLS, write_tiny_checkpoint
from transformers import AutoTokenizer

from tierwise.compression import export
from tierwise.compression.checkpoint import licence_of
from tierwise.compression.export import export_gguf
from tierwise.compression.quantize import quantize
from tierwise.evaluation.texts import demonstration_tokens
from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.chat_template import ChatTemplate, taught_tools
from tierwise.runtime.errors import (
    DamagedModelError,
    DiskFullError,
    MissingExtraError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from tierwise.runtime.llama import Model

resource = pytest.importorskip("resource")  # POSIX only: limits the size of a file


TOOL_CALL = Call(
    (Message("user", "How is the weather?"),),
    tools=(Tool("get_weather", "The weather.", {"type": "object"}),),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_and_token_ids_agree_with_transformers(case: Case, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family=case.family, **case.options)
    path = export_gguf(checkpoint, tmp_path / "out" / "tiny.gguf")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with Model(path) as model:
        for text in AWKWARD:
            wanted = tokenizer(text, add_special_tokens=False).input_ids
            assert model.tokenize(text) == wanted, text
        assert model.metadata["tokenizer.ggml.pre"] == case.pre
        assert model.chat_template == CHATML_TOOLS
    ids = tokenizer("The weather in Paris is 18 degrees, 12345 times; 東京は晴れ。" * 3).input_ids
    divergence = kl_per_token(checkpoint, path, ids[:120])
    assert len(divergence) > 50
    assert divergence.max() < 1e-3
    assert [file.name for file in path.parent.iterdir()] == ["tiny.gguf"]


def test_metadata_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(
        tmp_path / "Tiny-Llama", family="llama", layers=3, head_dim=32, licence="llama3.2"
    )
    path = export_gguf(checkpoint, tmp_path / "a.gguf", name="Tiny Llama")
    with Model(path) as model:
        meta = model.metadata
        assert model.layers == 3
        assert model.context_tokens == 256
    assert meta["general.architecture"] == "llama"
    assert meta["general.name"] == "Tiny Llama"
    assert meta["general.license"] == "llama3.2"
    assert meta["general.file_type"] == "1"
    assert meta["llama.attention.head_count_kv"] == "2"
    assert meta["llama.attention.key_length"] == "32"
    assert meta["llama.rope.dimension_count"] == "32"
    assert float(meta["llama.rope.freq_base"]) == 500000.0
    assert meta["tokenizer.ggml.add_bos_token"] == "true"
    reader = gguf.GGUFReader(path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in kinds.items() if name.endswith("attn_q.weight")} == {"F16"}
    factors = next(t.data for t in reader.tensors if t.name == "rope_freqs.weight")
    assert factors[0] == 1.0  # the quickest pair is not stretched
    assert factors[-1] == pytest.approx(8.0)  # the slowest is, by the whole factor
    texts = reader.fields["tokenizer.ggml.tokens"].contents()
    types = dict(zip(texts, reader.fields["tokenizer.ggml.token_type"].contents(), strict=True))
    assert types["<|im_end|>"] == gguf.TokenType.CONTROL
    assert types["<tool_call>"] == gguf.TokenType.USER_DEFINED
    assert types["[PAD447]"] == gguf.TokenType.UNUSED  # a row without a token
    assert types["a"] == gguf.TokenType.NORMAL


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tied", family="smollm")
    path = export_gguf(checkpoint, tmp_path / "tied.gguf")
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    assert "output.weight" not in names


def test_rope_parameters_of_older_transformers(tmp_path: Path) -> None:
    new = write_tiny_checkpoint(tmp_path / "new", family="llama")
    content = json.loads((new / "config.json").read_text())
    rope = content.pop("rope_parameters")
    content["rope_theta"] = rope.pop("rope_theta")
    content["rope_scaling"] = rope
    old = tmp_path / "old"
    old.mkdir()
    for file in new.iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    (old / "config.json").write_text(json.dumps(content))
    first = export_gguf(new, tmp_path / "a.gguf", name="same")
    second = export_gguf(old, tmp_path / "b.gguf", name="same")
    assert first.read_bytes() == second.read_bytes()


def test_a_model_that_was_taught_tools_is_not_shown_how_to_call_them(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="smollm")
    (checkpoint / "chat_template.jinja").write_text(CHATML)  # it knows nothing of tools
    plain = export_gguf(checkpoint, tmp_path / "plain.gguf")
    taught = export_gguf(checkpoint, tmp_path / "taught.gguf", taught_tools=True)
    smaller = tmp_path / "q8_0.gguf"
    quantize(taught, smaller, "Q8_0", threads=1)
    for file, says in ((plain, False), (taught, True), (smaller, True)):
        with Model(file, vocab_only=True) as model:
            assert taught_tools(model) is says
            assert (demonstration_tokens(model) == 0) is says
            shown = ChatTemplate.of(model, demonstrates=True)
            own = ChatTemplate.of(model)
            assert (own.render(TOOL_CALL) == shown.render(TOOL_CALL)) is not says


def test_progress_rises_to_one(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")
    seen: list[tuple[str, float]] = []
    export_gguf(checkpoint, tmp_path / "a.gguf", progress=lambda *args: seen.append(args))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert any("embed_tokens" in message for message, _ in seen)


def test_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="mistral")
    edit(checkpoint / "config.json", sliding_window=100)
    with Model(export_gguf(checkpoint, tmp_path / "a.gguf")) as model:
        assert model.context_tokens == 100


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, r"'GemmaForCausalLM'.*LlamaForCausalLM"),
        ({"architectures": None}, "supported are"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"gptq.*unquantized original"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE scaling.*dynamic"),
        ({"rope_parameters": YARN | {"attention_factor": 1.5}}, "attention_factor"),
        ({"num_hidden_layers": 1}, "has no place for|layers.1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_converted_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="llama")
    edit(checkpoint / "config.json", **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        export_gguf(checkpoint, tmp_path / "a.gguf")
    assert not list(tmp_path.glob("a.gguf*"))


def with_tokenizer(checkpoint: Path, change: Any) -> None:
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    change(content)
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))


def test_unknown_pre_tokenizer_is_refused_with_its_regex(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")

    def change(content: dict[str, Any]) -> None:
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}+|\s+"}

    with_tokenizer(checkpoint, change)
    with pytest.raises(UnsupportedModelError, match=r"\\p\{L\}\+\|\\s\+.*Known: gpt-2"):
        export_gguf(checkpoint, tmp_path / "a.gguf")


def test_unknown_normalizer_is_refused(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")
    with_tokenizer(checkpoint, lambda content: content.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(UnsupportedModelError, match="normalizer Lowercase"):
        export_gguf(checkpoint, tmp_path / "a.gguf")


def test_tokenizer_that_llama_cpp_reads_differently_is_refused(tmp_path: Path) -> None:
    """Known by name, and yet not the same: GGUF has no tokens that match whole words only."""
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")

    def change(content: dict[str, Any]) -> None:
        token = content["added_tokens"][-1]
        content["added_tokens"].append(token | {"id": 100, "content": "egree", "single_word": True})

    with_tokenizer(checkpoint, change)
    with pytest.raises(UnsupportedModelError, match="'qwen2' tokenizer makes"):
        export_gguf(checkpoint, tmp_path / "a.gguf")
    assert not list(tmp_path.glob("a.gguf*"))


def test_tokenizers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")
    whole = (checkpoint / "tokenizer.json").read_text()
    with_tokenizer(checkpoint, lambda content: content["model"].update(type="Unigram"))
    with pytest.raises(UnsupportedModelError, match="Unigram tokenizer; only BPE"):
        export_gguf(checkpoint, tmp_path / "a.gguf")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json' is missing"):
        export_gguf(checkpoint, tmp_path / "a.gguf")
    (checkpoint / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.model only"):
        export_gguf(checkpoint, tmp_path / "a.gguf")
    (checkpoint / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(DamagedModelError, match=r"tokenizer\.json' is not valid JSON"):
        export_gguf(checkpoint, tmp_path / "a.gguf")


def test_tokenizer_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")

    def change(content: dict[str, Any]) -> None:
        content["added_tokens"][-1]["id"] = 5000

    with_tokenizer(checkpoint, change)
    with pytest.raises(DamagedModelError, match="token number 5000, but the model has 448"):
        export_gguf(checkpoint, tmp_path / "a.gguf")


def test_broken_weights_are_named(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen3", shard_size="60KB")
    shards = sorted(checkpoint.glob("*.safetensors"))
    assert len(shards) > 2
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-100])
    with pytest.raises(DamagedModelError, match=shards[1].name):
        export_gguf(checkpoint, tmp_path / "a.gguf")
    shards[1].unlink()
    with pytest.raises(ModelNotFoundError, match=rf"lacks {shards[1].name}"):
        export_gguf(checkpoint, tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1e5, UnsupportedModelError, "beyond ±65504"),
        (float("nan"), DamagedModelError, "NaN or infinity"),
    ],
)
def test_values_that_f16_cannot_hold_are_refused(
    value: float, error: type[Exception], message: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(error, match=f"layers.1.mlp.up_proj.*{message}"):
        export_gguf(checkpoint, tmp_path / "a.gguf")
    assert not list(tmp_path.glob("a.gguf*"))


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(DamagedModelError, match=r"lacks 1 of its tensors.*blk\.1\.ffn_up"):
        export_gguf(checkpoint, tmp_path / "a.gguf")


def test_disk_full_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", family="qwen2")
    target = tmp_path / "a.gguf"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the file needs twice that
    try:
        with pytest.raises(DiskFullError, match=r"a\.gguf"):
            export_gguf(checkpoint, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"'gguf': pip install 'tierwise\[compress\]'"):
        export.export_gguf(tmp_path, tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: Apache-2.0\ntags: [x]\n---\n# Model", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\ntags: [x]\n---\n", None),
        ("---\nlicense: [unclosed\n---\n", None),
        ("# license: mit", None),
        ("---\nlicense: mit", None),
        (None, None),
    ],
)
def test_licence_is_read_from_the_model_card(
    readme: str | None, licence: str | None, tmp_path: Path
) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert licence_of(tmp_path) == licence
