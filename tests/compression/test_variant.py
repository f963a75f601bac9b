"""Which cheaper variant of a tier there is room for, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_factory import TierSpec, make_family
from tiny_models import write_tiny_gguf

from tierwise.compression import variant as module
from tierwise.compression.plan import LADDER, PROTECTED
from tierwise.compression.quantize import quantize
from tierwise.compression.variant import make_variant, recipes
from tierwise.evaluation.divergence import BaseDistribution, pair_divergence
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.errors import OutOfMemoryError, UnsupportedModelError
from tierwise.runtime.family import Family
from tierwise.runtime.files import sha256_of
from tierwise.runtime.llama import Model
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.resources import Resources
from tierwise.runtime.variants import FOLDER, VariantRecipe, VariantStore, Wanted

LAYERS = 10


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ggufs") / "large.gguf"
    return write_tiny_gguf(path, layers=LAYERS, width=256, ffn=512, context=2048)


@pytest.fixture
def family(gguf: Path, tmp_path: Path) -> Family:
    return make_family(tmp_path / "family", [TierSpec("large", gguf)])


def wanted(family: Family, most_bytes: int) -> Wanted:
    return Wanted(
        folder=str(family.folder),
        parent=family.tier("large"),
        context_tokens=2048,
        most_bytes=most_bytes,
        threads=1,
    )


def need(path: Path) -> int:
    return predict_memory(path, 2048).total_bytes


def test_the_best_that_fits_comes_first(family: Family) -> None:
    path = family.path("large")
    everything = list(recipes(path, wanted(family, need(path))))
    kinds = [one.quantization for one in everything if not one.pruned_layers]
    assert kinds[0] == "Q8_0" and kinds == [kind for kind in LADDER if kind in kinds]
    assert len(kinds) > 3
    less = list(recipes(path, wanted(family, need(path) - int(0.6 * path.stat().st_size))))
    assert less == everything[-len(less) :] and 0 < len(less) < len(everything)
    assert "Q8_0" not in [one.quantization for one in less]
    assert list(recipes(path, wanted(family, 1_000_000))) == []
    pruned = [one for one in everything if one.pruned_layers]
    assert [len(one.pruned_layers) for one in pruned] == [1, 2]
    for one in pruned:
        assert one.quantization == kinds[-1]
        assert all(PROTECTED <= n < LAYERS - PROTECTED for n in one.pruned_layers)


def test_what_is_made_is_what_its_record_says(family: Family) -> None:
    made, why = make_variant(wanted(family, need(family.path("large")) - 3_000_000))
    assert made is not None and not why
    tier = made.tier
    path = family.folder / tier.file
    assert path.parent == family.folder / FOLDER and path.stem == made.key
    assert (tier.sha256, tier.bytes) == (sha256_of(path), path.stat().st_size)
    assert (tier.layers, tier.context_tokens, tier.kv_bytes_per_token) == (
        LAYERS,
        2048,
        family.tier("large").kv_bytes_per_token,
    )
    assert tier.lineage.quantization == "Q8_0" and tier.lineage.tensor_types["q8_0"] > 50
    assert made.divergence.tokens == 2048
    stamp = path.stat().st_mtime_ns
    assert make_variant(wanted(family, need(family.path("large")) - 3_000_000)) == (made, "")
    assert path.stat().st_mtime_ns == stamp, "it was found"
    assert not list(path.parent.glob(".work-*"))


def test_layers_go_where_bits_do_not_suffice(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tier that lacks layers of the base already: numbers are the base's in the record."""
    parent = family.tier("large")
    lineage = parent.lineage.model_copy(update={"pruned_layers": (0, 4)})
    parent = parent.model_copy(update={"lineage": lineage})
    order = wanted(family, need(family.path("large")) - 3_000_000)
    order = order.model_copy(update={"parent": parent})
    pruned = next(one for one in recipes(family.path("large"), order) if one.pruned_layers)
    monkeypatch.setattr(module, "recipes", lambda *_: iter([pruned]))
    made, _ = make_variant(order)
    assert made is not None and made.recipe == pruned
    (gone,) = pruned.pruned_layers
    base = [n for n in range(LAYERS + 2) if n not in (0, 4)]
    assert made.tier.lineage.pruned_layers == tuple(sorted((0, 4, base[gone])))
    assert made.tier.layers == LAYERS - 1 and f"-d{LAYERS - 1}-" in made.tier.name
    call = Call((Message("user", "hello"),), max_tokens=4)
    with LoadedTier(family.folder / made.tier.file, n_ctx=512, threads=1) as loaded:
        assert loaded.reply(call).usage.completion_tokens > 0


def test_what_was_dropped_is_not_made_again(family: Family) -> None:
    order = wanted(family, need(family.path("large")) - 3_000_000)
    made, _ = make_variant(order)
    assert made is not None
    VariantStore(family).drop(made, "it is no better than small")
    assert make_variant(order) == (None, "it is no better than small")
    assert not (family.folder / made.tier.file).exists()


def test_what_turns_out_too_large_is_passed_over(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = wanted(family, need(family.path("large")) - int(0.6 * family.tier("large").bytes))
    found = [VariantRecipe(quantization="Q8_0"), *recipes(family.path("large"), order)]
    monkeypatch.setattr(module, "recipes", lambda *_: iter(found))
    made, _ = make_variant(order)
    assert made is not None and made.recipe.quantization != "Q8_0"
    monkeypatch.setattr(module, "recipes", lambda *_: iter(found[:1]))
    assert make_variant(order) == (None, "nothing that can be made of large fits")


def test_too_little_memory_to_make_it_in(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "probe", lambda: Resources(100_000_000, 2**30, 1))
    with pytest.raises(OutOfMemoryError, match=r"'large' takes .* for a while, and 100 MB are"):
        make_variant(wanted(family, need(family.path("large")) - 3_000_000))
    assert list(VariantStore(family).usable()) == []


def test_divergence_of_a_pair_with_little_memory(gguf: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    quantize(gguf, small, "Q4_K_M", threads=1)
    with Model(gguf, vocab_only=True) as model:
        documents = [model.tokenize(text * 20)[:200] for text in ("hello Paris ", "the weather ")]
    found = pair_divergence(gguf, small, documents, threads=1)
    base = BaseDistribution(gguf, documents, tmp_path / "base.f16", threads=1)
    known = base.compare(small, threads=1)
    base.close()
    # Weights that are left in their files go through other kernels.
    assert found.tokens == known.tokens == sum(map(len, documents))
    assert found.kl_mean == pytest.approx(known.kl_mean, rel=0.1)
    assert found.base_perplexity == pytest.approx(known.base_perplexity, rel=0.01)
    assert pair_divergence(gguf, gguf, documents, threads=1).kl_mean == 0.0


def test_a_pair_of_different_vocabularies(gguf: Path, tmp_path: Path) -> None:
    from scripted_model import write_scripted_gguf

    other = write_scripted_gguf(tmp_path / "other.gguf", {"apple": "Red."})
    with pytest.raises(UnsupportedModelError, match="cannot be compared token by token"):
        pair_divergence(gguf, other, [[1, 2, 3]], threads=1)
