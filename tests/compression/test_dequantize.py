"""There and back: a GGUF file, the checkpoint made of it, and the file exported again agree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from build_tools import FileLimit
from export_tools import AWKWARD, CASES, Case, kl_per_token
from tiny_models import CHATML_TOOLS, write_tiny_checkpoint, write_tiny_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from tierwise.compression.base_record import tokenizer_hash
from tierwise.compression.dequantize import checkpoint_of, transformers_name
from tierwise.compression.export import export_gguf
from tierwise.compression.quantize import quantize
from tierwise.compression.source import resolve_base
from tierwise.runtime.errors import DiskFullError, UnsupportedModelError
from tierwise.runtime.llama import Model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.options.get("rope") is None], ids=str
)
def test_every_shape_comes_back(case: Case, tmp_path: Path) -> None:
    original = write_tiny_checkpoint(tmp_path / "tiny", family=case.family, **case.options)
    path = export_gguf(original, tmp_path / "tiny.gguf")
    again = checkpoint_of(resolve_base(str(path)), tmp_path / "bases")

    weights = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).state_dict()
    found = AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32).state_dict()
    assert found.keys() == weights.keys()
    for key, weight in weights.items():
        assert torch.equal(found[key], weight.half().float() if weight.ndim > 1 else weight), key
    config = json.loads((again / "config.json").read_text())
    before = json.loads((original / "config.json").read_text())
    keys = ("rope_parameters", "rms_norm_eps", "tie_word_embeddings", "num_key_value_heads")
    assert {key: config[key] for key in keys} == {key: before[key] for key in keys}
    wanted, tokenizer = (AutoTokenizer.from_pretrained(folder) for folder in (original, again))
    for text in AWKWARD:
        assert tokenizer(text).input_ids == wanted(text).input_ids, text
        assert tokenizer.decode(tokenizer(text).input_ids) == wanted.decode(wanted(text).input_ids)
    assert tokenizer.chat_template == CHATML_TOOLS
    assert tokenizer.eos_token == wanted.eos_token
    # Exported once more, with the checkpoint's tokenizer and with that of the first file.
    for name, vocabulary in (("own", None), ("copied", path)):
        file = export_gguf(again, tmp_path / f"{name}.gguf", vocabulary_from=vocabulary)
        with Model(path) as first, Model(file) as second:
            assert tokenizer_hash(first) == tokenizer_hash(second)
            assert second.chat_template == CHATML_TOOLS
            ids = first.tokenize("The weather in Paris is 18 degrees.")
            assert second.tokenize("The weather in Paris is 18 degrees.") == ids
        assert kl_per_token(again, file, ids).max() < 1e-3


def test_a_quantized_base_comes_back_as_what_llama_cpp_computes_with(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", layers=2)
    quantize(source, tmp_path / "q4.gguf", "Q4_1", threads=1)
    again = checkpoint_of(resolve_base(str(tmp_path / "q4.gguf")), tmp_path / "bases")
    exported = export_gguf(again, tmp_path / "again.gguf")
    with Model(exported) as model:
        ids = model.tokenize("hello the weather in Paris is")
    assert kl_per_token(again, exported, ids).max() < 1e-3
    found = AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32).state_dict()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "q4.gguf").tensors}
    down = tensors["blk.1.ffn_down.weight"]
    assert down.tensor_type == gguf.GGMLQuantizationType.Q4_1
    wanted = gguf.dequantize(down.data, down.tensor_type)
    assert np.array_equal(found["model.layers.1.mlp.down_proj.weight"].numpy(), wanted)


def test_it_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", layers=1)
    first = checkpoint_of(resolve_base(str(source)), tmp_path / "bases")
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_of(resolve_base(str(source)), tmp_path / "bases") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    write_tiny_gguf(source, layers=1, seed=1)
    os.utime(source, ns=(1, 1))
    assert checkpoint_of(resolve_base(str(source)), tmp_path / "bases") != first


def test_a_base_that_came_from_a_checkpoint_has_it_already(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", family="smollm")
    base = resolve_base(str(folder), cache=tmp_path / "bases")
    assert checkpoint_of(base, tmp_path / "other") == folder
    assert not (tmp_path / "other").exists()


def test_weights_are_cut_into_files_with_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierwise.compression.dequantize._SHARD_BYTES", 100_000)
    source = write_tiny_gguf(tmp_path / "tiny.gguf", layers=2)
    folder = checkpoint_of(resolve_base(str(source)), tmp_path / "bases")
    assert len(list(folder.glob("*.safetensors"))) > 2
    exported = export_gguf(folder, tmp_path / "again.gguf", vocabulary_from=source)
    for one, other in zip(
        gguf.GGUFReader(source).tensors, gguf.GGUFReader(exported).tensors, strict=True
    ):
        assert one.name in {tensor.name for tensor in gguf.GGUFReader(exported).tensors}
        assert other.tensor_type in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32)


def test_large_models_are_written_in_f16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierwise.compression.dequantize._LARGE", 1000)
    source = write_tiny_gguf(tmp_path / "tiny.gguf", layers=1)
    folder = checkpoint_of(resolve_base(str(source)), tmp_path / "bases")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float16


def test_refusals_leave_nothing_behind(tmp_path: Path, file_limit: FileLimit) -> None:
    experts = write_tiny_gguf(tmp_path / "moe.gguf", experts=4, layers=1)
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        checkpoint_of(resolve_base(str(experts)), tmp_path / "bases")
    source = write_tiny_gguf(tmp_path / "tiny.gguf", layers=1)
    with file_limit(50_000), pytest.raises(DiskFullError, match="no room"):
        checkpoint_of(resolve_base(str(source)), tmp_path / "bases")
    assert list((tmp_path / "bases").iterdir()) == []


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", family="smollm")
    other = write_tiny_gguf(tmp_path / "other.gguf", layers=1)
    with pytest.raises(UnsupportedModelError, match="not of one model"):
        export_gguf(folder, tmp_path / "out.gguf", vocabulary_from=other)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.12.attn_k.bias", "model.layers.12.self_attn.k_proj.bias"),
        ("output.weight", "lm_head.weight"),
    ],
)
def test_names(name: str, wanted: str) -> None:
    assert transformers_name(name) == wanted
    with pytest.raises(UnsupportedModelError, match="no place"):
        transformers_name("blk.0.ssm_in.weight")
