"""The pruners by name: each returns a copy and keeps at least what it was asked to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_decoders import (
    SHAPES,
    fingerprint,
    logits_of,
    parameters_of,
    tiny_decoder,
    token_batches,
)

from tierwise.compression.pruning.decoder import decoder_of
from tierwise.compression.pruning.registry import PRUNERS
from tierwise.compression.pruning.sparsity import sparsity_of
from tierwise.runtime.errors import ConfigError, UnsupportedModelError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_pruners_are_these() -> None:
    assert list(PRUNERS) == ["depth", "width", "wanda", "2:4"]
    assert all(pruner.__doc__ for pruner in PRUNERS.values())


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pruner_takes_every_shape(name: str, shape: str) -> None:
    model = tiny_decoder(shape)
    before = fingerprint(model)
    pruned = PRUNERS[name](model, token_batches(), 0.5)
    assert fingerprint(model) == before
    assert type(pruned) is type(model)
    assert torch.isfinite(logits_of(pruned, token_batches()[0])).all()
    assert not torch.equal(
        logits_of(pruned, token_batches()[0]), logits_of(model, token_batches()[0])
    )
    if name in ("depth", "width"):
        assert parameters_of(pruned) < parameters_of(model)


@pytest.mark.parametrize(
    ("keep", "layers"), [(1.0, 5), (0.9, 5), (0.8, 4), (0.7, 4), (0.6, 3), (0.4, 2)]
)
def test_depth_keeps_at_least_what_was_asked(keep: float, layers: int) -> None:
    pruned = PRUNERS["depth"](tiny_decoder("llama"), token_batches(), keep)
    assert len(decoder_of(pruned).layers) == layers


def test_depth_refuses_what_protection_forbids() -> None:
    with pytest.raises(ConfigError, match="4 layers shall go"):
        PRUNERS["depth"](tiny_decoder("llama"), token_batches(), 0.2)


def test_width_keeps_at_least_what_was_asked() -> None:
    pruned = PRUNERS["width"](tiny_decoder("qwen3"), token_batches(), 0.7)
    decoder = decoder_of(pruned)
    assert (decoder.ffn, decoder.kv_heads, decoder.heads) == (96, 4, 8)  # 3 groups: 144 wide


def test_wanda_keeps_what_was_asked() -> None:
    pruned = PRUNERS["wanda"](tiny_decoder("llama"), token_batches(), 0.75)
    shares = sparsity_of(pruned).by_layer
    assert {share for name, share in shares.items() if name != "lm_head"} == {0.25}


def test_two_of_four_is_half() -> None:
    with pytest.raises(ConfigError, match=r"keep is 0\.6, give 0\.5"):
        PRUNERS["2:4"](tiny_decoder("llama"), token_batches(), 0.6)


@pytest.mark.parametrize("name", PRUNERS)
def test_senseless_shares_and_models_are_refused(name: str) -> None:
    for keep in (0.0, 1.5):
        with pytest.raises(ConfigError, match=f"keep is {keep}"):
            PRUNERS[name](tiny_decoder("llama"), token_batches(), keep)
    with pytest.raises(UnsupportedModelError, match="a Linear"):
        PRUNERS[name](torch.nn.Linear(2, 2), token_batches(), 0.5)
