"""Probes of a model's weights, against files that were really written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tierwise.compression.precision.ggml import read_weights, rounded
from tierwise.compression.precision.probe import Probe
from tierwise.compression.precision.types import TENSOR_TYPES
from tierwise.compression.quantize import quantize
from tierwise.evaluation.divergence import BaseDistribution
from tierwise.runtime.errors import BuildError, ConfigError, UnsupportedModelError
from tierwise.runtime.llama import Model
from tierwise.runtime.tensors import read_tensors

TEXT = "The weather in Paris is mild today, says get_weather. hello " * 4
NAME = "blk.2.ffn_down.weight"


def documents_for(path: Path) -> list[list[int]]:
    with Model(path, vocab_only=True) as model:
        return [model.tokenize(TEXT), model.tokenize(TEXT[::-1])]


def test_a_probe_tells_what_a_written_file_would(wide_gguf: Path, tmp_path: Path) -> None:
    documents = documents_for(wide_gguf)
    weights = read_weights(wide_gguf)
    names = dict.fromkeys(weights, "F16") | {NAME: "Q3_K"}
    quantize(wide_gguf, tmp_path / "one.gguf", "Q8_0", overrides=names, threads=1)
    base = BaseDistribution(wide_gguf, documents, tmp_path / "base.f16", threads=1)
    written = base.compare(tmp_path / "one.gguf", threads=1).kl_mean
    base.close()
    values = rounded(TENSOR_TYPES["Q3_K"], weights[NAME].floats())
    with Probe(wide_gguf, documents, threads=1) as probe:
        found = probe.loss({NAME: values})
    # Files are read with llama.cpp's rounding of activations, and at every token.
    assert found == pytest.approx(written, rel=0.25) and found > 1e-3


def test_nothing_changed_is_nothing_lost(wide_gguf: Path) -> None:
    weights = read_weights(wide_gguf)
    with Probe(wide_gguf, documents_for(wide_gguf), threads=1) as probe:
        assert set(probe.names) == set(weights)
        assert probe.loss({}) == 0.0
        assert probe.loss({NAME: weights[NAME].floats()}) == 0.0
        lost = probe.loss({NAME: 0 * weights[NAME].floats()})
        assert lost > 0.01
        assert probe.loss({}) == 0.0  # what was there is there again
        assert probe.loss({NAME: 0 * weights[NAME].floats()}) == lost


def test_losses_grow_with_the_error(wide_gguf: Path) -> None:
    weight = read_weights(wide_gguf)[NAME]
    with Probe(wide_gguf, documents_for(wide_gguf), threads=1) as probe:
        losses = [
            probe.loss({NAME: rounded(TENSOR_TYPES[kind], weight.floats())})
            for kind in ("Q8_0", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
        ]
    assert losses == sorted(losses) and losses[0] < losses[-1] / 100


def test_several_tensors_can_change_at_once(wide_gguf: Path) -> None:
    weights = read_weights(wide_gguf)
    names = ["blk.0.attn_v.weight", "blk.4.ffn_up.weight", "token_embd.weight"]
    values = {n: rounded(TENSOR_TYPES["Q4_0"], weights[n].floats()) for n in names}
    with Probe(wide_gguf, documents_for(wide_gguf), threads=1) as probe:
        alone = [probe.loss({name: values[name]}) for name in names]
        together = probe.loss(values)
    assert max(alone) < together < 3 * sum(alone)


def test_values_of_another_size_are_refused(wide_gguf: Path) -> None:
    with Probe(wide_gguf, documents_for(wide_gguf), threads=1) as probe:
        with pytest.raises(BuildError, match=NAME):
            probe.loss({NAME: np.zeros((2, 512), np.float32)})
        assert probe.loss({}) == 0.0


def test_a_probe_needs_text(wide_gguf: Path) -> None:
    with pytest.raises(ConfigError, match="two tokens"):
        Probe(wide_gguf, [[], [5]], threads=1)


def test_repacked_weights_are_refused(wide_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "q4_0.gguf"
    quantize(wide_gguf, path, "Q4_0", threads=1)
    if not any(tensor.repacked_bytes for tensor in read_tensors(path)):
        pytest.skip("this processor's ggml repacks nothing")
    with pytest.raises(UnsupportedModelError, match="layout of its own"):
        Probe(path, [[1, 2, 3]], threads=1)
