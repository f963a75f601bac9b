"""Adapted models on disk: what is loaded answers the same, and bytes are really saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import batch_of, examples, logits, tiny_model
from build_tools import FileLimit
from torch import nn

from tierwise.compression.adapter.adapter import ModelAdapter, adapt_model
from tierwise.compression.adapter.config import AdapterConfig
from tierwise.compression.adapter.saved import RECORD, load_adapted, save_adapted
from tierwise.compression.adapter.size import count_bytes, count_parameters
from tierwise.runtime.errors import (
    DamagedModelError,
    DiskFullError,
    ModelNotFoundError,
    UnsupportedModelError,
)

MODELS = ("bert", "roberta", "distilbert", "electra", "llama", "qwen3-lm", "gemma-lm", "gpt2-lm")
HEADER = 20_000
"""Bytes that the names of a tiny model's tensors take at most."""


def everything(kind: str, bits: int = 4) -> Any:
    """A model with all that can be done to its shape."""
    prune: dict[str, Any] = {"layers": 0.34, "heads": 0.5, "channels": 0.5}
    if kind == "gpt2-lm":
        prune = {"layers": 0.34, "channels": 0.0}
    elif kind == "bert":
        prune |= {"embedding_rank": 8, "min_token_count": 3}
    elif kind == "roberta":
        prune |= {"min_token_count": 3}
    config = AdapterConfig.make(prune=prune, quantize={"bits": bits or 8, "group": 16})
    adapter = ModelAdapter(tiny_model(kind), config, data=examples(16))
    return adapter.prune().quantize().model if bits else adapter.prune().model


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_loaded_is_what_was_saved(kind: str, tmp_path: Path) -> None:
    model = everything(kind)
    file = save_adapted(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD, file.name]
    assert count_bytes(model) <= file.stat().st_size <= count_bytes(model) + HEADER
    loaded = load_adapted(tmp_path)
    batch = batch_of(model)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert count_bytes(loaded) == count_bytes(model)
    assert count_parameters(loaded) == count_parameters(model)
    assert not loaded.training


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_pruned_model_in_floats(kind: str, tmp_path: Path) -> None:
    model = everything(kind, bits=0)
    save_adapted(model, tmp_path)
    loaded = load_adapted(tmp_path)
    batch = batch_of(model)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    ModelAdapter(loaded, data=examples(8)).prune().quantize()  # work goes on


def test_the_file_is_really_smaller(tmp_path: Path) -> None:
    model = tiny_model("bert", hidden_size=128, intermediate_size=512)
    whole = save_adapted(model, tmp_path / "whole").stat().st_size
    for bits, share in ((8, 0.29), (4, 0.17), (2, 0.11)):
        config = AdapterConfig.make(quantize={"bits": bits, "group": 32}, steps=("quantize",))
        file = save_adapted(adapt_model(model, config), tmp_path / str(bits))
        assert file.stat().st_size < share * whole


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = tiny_model("llama-lm", tie_word_embeddings=True)
    save_adapted(model, tmp_path)
    loaded = load_adapted(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    small = adapt_model(model, AdapterConfig.make(steps=("quantize",)))
    save_adapted(small, tmp_path)
    loaded = load_adapted(tmp_path)
    assert loaded.lm_head.codes.data_ptr() == loaded.get_input_embeddings().codes.data_ptr()
    assert count_bytes(loaded) == count_bytes(small)


def test_bfloat16_stays(tmp_path: Path) -> None:
    model = adapt_model(tiny_model("llama").bfloat16(), AdapterConfig.make(steps=("quantize",)))
    save_adapted(model, tmp_path)
    loaded = load_adapted(tmp_path)
    batch = batch_of(model)
    assert logits(loaded, batch).dtype == torch.bfloat16
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_a_second_model_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first, second = everything("bert"), everything("distilbert")
    save_adapted(first, tmp_path)
    file = save_adapted(second, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD, file.name]
    batch = batch_of(second)
    assert torch.equal(logits(load_adapted(tmp_path), batch), logits(second, batch))


def test_a_full_disk_leaves_the_old_model(tmp_path: Path, file_limit: FileLimit) -> None:
    old = everything("bert")
    save_adapted(old, tmp_path)
    with file_limit(1000), pytest.raises(DiskFullError):
        save_adapted(tiny_model("bert"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    batch = batch_of(old)
    assert torch.equal(logits(load_adapted(tmp_path), batch), logits(old, batch))


# --- what is refused --------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_adapted(everything("bert"), tmp_path)
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | fields))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=RECORD):
        load_adapted(tmp_path / "nowhere")


def test_weights_that_are_not_those(saved: Path) -> None:
    file = next(saved.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedModelError, match="not the file"):
        load_adapted(saved)
    file.unlink()
    with pytest.raises(DamagedModelError, match="missing"):
        load_adapted(saved)


def test_records_that_make_no_sense(saved: Path) -> None:
    text = (saved / RECORD).read_text()
    for fields, error in (
        ({"version": 2}, UnsupportedModelError),
        ({"kind": "AutoTokenizer"}, UnsupportedModelError),
        ({"kind": "os"}, UnsupportedModelError),
        ({"weights": "../../model-0123456789abcdef.safetensors"}, DamagedModelError),
        ({"extra": 1}, DamagedModelError),
        ({"modules": {"bert": {"kind": "linear", "shape": [1]}}}, DamagedModelError),
        ({"modules": {"nobody": {"kind": "linear", "shape": [1, 1]}}}, DamagedModelError),
        ({"tied": {"a": "b"}}, DamagedModelError),
        ({"buffers": {"bert.nothing": "float32"}}, DamagedModelError),
        ({"config": {"model_type": "nothing"}}, UnsupportedModelError),
        ({"config": {"model_type": "bert", "hidden_size": 7}}, DamagedModelError),
    ):
        (saved / RECORD).write_text(text)
        change(saved, **fields)
        with pytest.raises(error):
            load_adapted(saved)
    (saved / RECORD).write_text("{")
    with pytest.raises(DamagedModelError, match="JSON"):
        load_adapted(saved)


def test_code_of_others_is_neither_saved_nor_loaded(saved: Path) -> None:
    class Own(type(tiny_model("bert"))):  # type: ignore[misc]
        pass

    with pytest.raises(UnsupportedModelError, match="no model class of transformers"):
        save_adapted(Own(tiny_model("bert").config), saved / "own")
    with pytest.raises(UnsupportedModelError):
        save_adapted(nn.Linear(2, 2), saved / "own")
    record = json.loads((saved / RECORD).read_text())
    config = record["config"] | {"auto_map": {"AutoModel": "evil.py"}}
    change(saved, config=config)
    assert type(load_adapted(saved)).__module__.startswith("transformers.")
