"""Channels and KV groups go: whole groups, kept multiples, and the least important first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import (
    SHAPES,
    fingerprint,
    kl_in_llama_cpp,
    logits_of,
    mean_kl,
    parameters_of,
    tiny_decoder,
    token_batches,
)
from tiny_models import Shape, write_tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from tierwise.compression.export import export_gguf
from tierwise.compression.pruning.decoder import decoder_of
from tierwise.compression.pruning.width import (
    channel_importance,
    group_importance,
    possible_channels,
    possible_kv_heads,
    prune_width,
    refitted,
)
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.llama import Model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_narrower_model_is_smaller_runs_and_is_loaded(
    shape: str, refit: bool, tmp_path: Path
) -> None:
    model = tiny_decoder(shape)
    before = fingerprint(model)
    pruned = prune_width(model, token_batches(), channels=96, kv_heads=2, refit=refit)
    assert fingerprint(model) == before
    head_dim = decoder_of(model).head_dim
    decoder = decoder_of(pruned)  # checks every layer's widths against the configuration
    assert (decoder.ffn, decoder.heads, decoder.kv_heads) == (96, 4, 2)
    assert decoder.head_dim == head_dim == pruned.config.head_dim
    attention = 2 * head_dim * (4 + 2) * 64  # q and o of four heads, k and v of two
    biases = head_dim * (4 + 2 + 2) if shape == "qwen2" else 0
    gone = 5 * (attention + biases + 3 * 32 * 64)
    assert parameters_of(model) - parameters_of(pruned) == gone
    pruned.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < 4 * parameters_of(model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = token_batches()[0]
    torch.testing.assert_close(logits_of(loaded, ids), logits_of(pruned, ids))
    with torch.no_grad():
        first = loaded(input_ids=ids[:, :20], use_cache=True)
        rest = loaded(input_ids=ids[:, 20:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, logits_of(pruned, ids)[:, 20:], atol=1e-4, rtol=1e-4)
    loaded(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize("shape", SHAPES)
def test_groups_stay_whole(shape: str) -> None:
    model = tiny_decoder(shape)
    pruned = prune_width(model, token_batches(), kv_heads=2, refit=False)
    size = decoder_of(model).head_dim
    for before, after in zip(decoder_of(model).layers, decoder_of(pruned).layers, strict=True):
        heads = before.k.weight.reshape(4, size, 64)
        kept = [
            next(g for g in range(4) if torch.equal(heads[g], part))
            for part in after.k.weight.reshape(2, size, 64)
        ]
        assert kept == sorted(set(kept))
        groups = before.q.weight.reshape(4, 2 * size, 64)
        assert torch.equal(after.q.weight, groups[kept].reshape(-1, 64))
        values = before.v.weight.reshape(4, size, 64)
        assert torch.equal(after.v.weight, values[kept].reshape(-1, 64))
        outputs = before.o.weight.reshape(64, 4, 2 * size)
        assert torch.equal(after.o.weight, outputs[:, kept].reshape(64, -1))
        if before.q.bias is not None:
            assert after.q.bias is not None
            biases = before.q.bias.reshape(4, 2 * size)
            assert torch.equal(after.q.bias, biases[kept].flatten())


@pytest.mark.parametrize("shape", SHAPES)
def test_what_adds_nothing_goes_first(shape: str) -> None:
    model = tiny_decoder(shape)
    size = decoder_of(model).head_dim
    dead_channels = torch.arange(64) * 2 + 1
    with torch.no_grad():
        for layer in decoder_of(model).layers:
            layer.down.weight[:, dead_channels] = 0  # never read
            layer.v.weight[: 2 * size] = 0  # the first two groups say nothing
            if layer.v.bias is not None:
                layer.v.bias[: 2 * size] = 0
    pruned = prune_width(model, token_batches(), channels=64, kv_heads=2)
    ids = token_batches(seed=5)[0]
    torch.testing.assert_close(logits_of(pruned, ids), logits_of(model, ids), atol=1e-4, rtol=1e-4)


def test_what_stays_takes_over_for_what_goes() -> None:
    """Every other channel is a copy of its neighbour: nothing is lost, where it is refitted."""
    model = tiny_decoder("llama")
    with torch.no_grad():
        for layer in decoder_of(model).layers:
            layer.gate.weight[1::2] = layer.gate.weight[::2]
            layer.up.weight[1::2] = layer.up.weight[::2]
            layer.down.weight[:, 1::2] *= 0.5  # the copies matter less, so they go
            layer.down.weight[:, ::2].clamp_(0.2, 5)
    batches = token_batches(count=8)
    held_out = token_batches(seed=9)
    fitted = mean_kl(model, prune_width(model, batches, channels=64), held_out)
    plain = mean_kl(model, prune_width(model, batches, channels=64, refit=False), held_out)
    assert fitted < 0.2 * plain


def test_refitted_columns_are_least_squares() -> None:
    noise = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 6, generator=noise) @ torch.randn(6, 6, generator=noise)
    weight = torch.randn(3, 6, generator=noise)
    kept = torch.tensor([0, 2, 3])
    found = refitted(weight, inputs.T @ inputs / 500, kept, damping=1e-6)
    wanted = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution.T
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    untouched = refitted(weight, torch.zeros(6, 6), kept)  # nothing was ever seen
    torch.testing.assert_close(untouched, weight[:, kept])


def test_importance_is_what_a_part_adds_to_the_output() -> None:
    noise = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=noise)
    weight = torch.randn(3, 6, generator=noise)
    moment = inputs.T @ inputs / 40
    groups = group_importance(weight, moment, 2)
    for group, columns in enumerate((slice(0, 3), slice(3, 6))):
        added = inputs[:, columns] @ weight[:, columns].T
        torch.testing.assert_close(groups[group], added.square().sum(1).mean().sqrt())
    torch.testing.assert_close(
        channel_importance(weight, moment), group_importance(weight, moment, 6)
    )


@pytest.mark.parametrize(
    ("keep", "multiple", "channels"),
    [
        (1.0, 32, 128),
        (0.76, 32, 128),
        (0.75, 32, 96),
        (0.74, 32, 96),
        (0.1, 32, 32),
        (0.5, 1, 64),
        (0.3, 16, 48),
        (0.5, 256, 128),
    ],
)
def test_channels_are_multiples_and_never_fewer_than_asked(
    keep: float, multiple: int, channels: int
) -> None:
    decoder = decoder_of(tiny_decoder("llama"))
    assert possible_channels(decoder, keep, multiple=multiple) == channels


@pytest.mark.parametrize(
    ("shape", "keep", "multiple", "kv_heads"),
    [
        ("llama", 0.5, 32, 2),
        ("llama", 0.6, 32, 4),  # six heads do not divide 64, which Llama's configuration wants
        ("gemma3", 0.6, 16, 4),
        ("gemma", 0.6, 16, 3),
        ("gemma", 0.6, 32, 4),  # three groups are 48 wide
        ("qwen2", 0.5, 32, 4),  # llama.cpp wants its query projection square
        ("qwen3", 0.6, 16, 3),
        ("qwen3", 0.1, 16, 1),
        ("mistral", 0.1, 32, 2),
        ("mistral", 0.1, 256, 4),
    ],
)
def test_kv_heads_are_such_as_the_model_can_have(
    shape: str, keep: float, multiple: int, kv_heads: int
) -> None:
    decoder = decoder_of(tiny_decoder(shape))
    assert possible_kv_heads(decoder, keep, multiple=multiple) == kv_heads


def test_heads_of_a_size_of_their_own_survive(tmp_path: Path) -> None:
    """Three of four groups: no longer heads · head_dim = width, and not a divisor of it."""
    for shape in ("qwen2", "mistral", "qwen3", "gemma"):
        pruned = prune_width(tiny_decoder(shape), token_batches(), kv_heads=3)
        pruned.save_pretrained(tmp_path / shape)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / shape, dtype=torch.float32)
        assert loaded.config.num_attention_heads == 6
        ids = token_batches()[0]
        torch.testing.assert_close(logits_of(loaded, ids), logits_of(pruned, ids))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama2", {"heads": 8, "kv_heads": 4, "width": 128}),
        ("smollm", {"heads": 6, "kv_heads": 2, "width": 96, "head_dim": 16}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("mistral", {"head_dim": 32}),
    ],
)
def test_llama_cpp_says_the_same_of_a_narrower_model(
    family: Shape, options: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "base", family=family, **options)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    kv_heads = possible_kv_heads(decoder_of(model), 0.5, multiple=16)
    assert kv_heads == options.get("kv_heads", 2) // (1 if family == "qwen2" else 2)
    pruned = prune_width(model, token_batches(), channels=96, kv_heads=kv_heads)
    pruned.save_pretrained(tmp_path / "pruned")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "pruned")
    path = export_gguf(tmp_path / "pruned", tmp_path / "pruned.gguf")
    whole = export_gguf(checkpoint, tmp_path / "base.gguf")
    assert path.stat().st_size < whole.stat().st_size
    with Model(path, no_alloc=True) as loaded:
        prefix = loaded.metadata["general.architecture"]
        assert loaded.metadata[f"{prefix}.feed_forward_length"] == "96"
        assert loaded.metadata[f"{prefix}.attention.head_count_kv"] == str(kv_heads)
    ids = [int(i) for i in torch.randint(3, 260, (60,), generator=torch.manual_seed(0))]
    assert kl_in_llama_cpp(pruned, path, ids) < 1e-3


def test_nothing_to_do_gives_a_copy() -> None:
    model = tiny_decoder("llama")
    for options in ({}, {"channels": 128, "kv_heads": 4}):
        copied = prune_width(model, token_batches(), **options)
        assert copied is not model
        assert torch.equal(copied.lm_head.weight, model.lm_head.weight)
        assert parameters_of(copied) == parameters_of(model)


def test_progress_rises_to_one() -> None:
    seen: list[tuple[str, float]] = []
    prune_width(
        tiny_decoder("llama"),
        token_batches(),
        channels=64,
        progress=lambda *step: seen.append(step),
    )
    assert seen[0] == ("layer 1 of 5", 0.2)
    assert seen[-1] == ("layer 5 of 5", 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "cannot keep 0 of 128 channels"),
        ({"channels": 129}, "cannot keep 129 of 128 channels"),
        ({"kv_heads": 5}, "cannot keep 5 of 4 KV heads"),
        ({"kv_heads": 3}, r"LlamaModel cannot have 3 KV heads.*64.*6.*possible_kv_heads"),
    ],
)
def test_widths_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prune_width(tiny_decoder("llama"), token_batches(), **options)


def test_an_error_leaves_gradients_on() -> None:
    with pytest.raises(ConfigError, match="none were given"):
        prune_width(tiny_decoder("llama"), [], channels=64)

    def stop(_text: str, _share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        prune_width(tiny_decoder("llama"), token_batches(), channels=64, progress=stop)
    assert caught and torch.is_grad_enabled()


@pytest.mark.parametrize(("keep", "multiple"), [(0.0, 32), (1.1, 32), (0.5, 0)])
def test_senseless_shares_are_refused(keep: float, multiple: int) -> None:
    decoder = decoder_of(tiny_decoder("llama"))
    for choose in (possible_channels, possible_kv_heads):
        with pytest.raises(ConfigError, match=rf"keep is {keep} and multiple {multiple}"):
            choose(decoder, keep, multiple=multiple)
