"""Quantizing and pruning with llama.cpp: sizes, types, quality, and what is left of a failure."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
from build_tools import FileLimit
from numpy.typing import NDArray
from tiny_models import write_tiny_gguf

from tierwise.compression.quantize import FILE_TYPES, plan_quantization, quantize
from tierwise.evaluation.divergence import BaseDistribution
from tierwise.runtime.context import Context
from tierwise.runtime.errors import BuildError, ConfigError, DiskFullError
from tierwise.runtime.llama import Model

SOME_TYPES = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M")


def importance(path: Path) -> dict[str, np.ndarray]:
    """An importance matrix of that model's shape, strongly uneven."""
    rng = np.random.default_rng(0)
    return {
        tensor.name: rng.lognormal(0, 3, int(tensor.shape[0])).astype(np.float32)
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }


def types_of(path: Path) -> dict[str, int]:
    return dict(Counter(t.tensor_type.name.lower() for t in gguf.GGUFReader(path).tensors))


@pytest.mark.parametrize("pruned", [(), (2, 4)])
@pytest.mark.parametrize("file_type", SOME_TYPES)
def test_the_size_is_known_beforehand(
    wide_gguf: Path, tmp_path: Path, file_type: str, pruned: tuple[int, ...]
) -> None:
    planned = plan_quantization(wide_gguf, file_type, pruned_layers=pruned)
    target = tmp_path / "tier.gguf"
    counted = quantize(wide_gguf, target, file_type, pruned_layers=pruned, threads=1)
    assert target.stat().st_size == planned.bytes
    assert set(planned.types) == {tensor.name for tensor in gguf.GGUFReader(target).tensors}
    assert planned.fallbacks == 0
    assert {kind.lower(): n for kind, n in counted.items()} == types_of(target)
    assert [file.name for file in tmp_path.iterdir()] == ["tier.gguf"]


def test_every_known_type_can_be_planned(wide_gguf: Path) -> None:
    sizes = {name: plan_quantization(wide_gguf, name).bytes for name in FILE_TYPES}
    assert sizes["F16"] > sizes["Q8_0"] > sizes["Q6_K"] > sizes["Q4_K_M"] > sizes["IQ3_XXS"]
    whole = ("F32", "F16", "BF16")
    assert all(size < sizes["F16"] for name, size in sizes.items() if name not in whole)


def test_planning_writes_nothing(tmp_path: Path, wide_gguf: Path) -> None:
    copy = tmp_path / "base.gguf"
    copy.write_bytes(wide_gguf.read_bytes())
    plan_quantization(copy, "Q8_0")
    assert [file.name for file in tmp_path.iterdir()] == ["base.gguf"]


def test_narrow_tensors_fall_back_to_a_larger_type(tiny_gguf: Path) -> None:
    assert plan_quantization(tiny_gguf, "Q4_K_M").fallbacks > 0
    assert plan_quantization(tiny_gguf, "Q8_0").fallbacks == 0


def test_a_tier_is_smaller_and_still_speaks(wide_gguf: Path, tmp_path: Path) -> None:
    for file_type in ("Q8_0", "Q4_K_M"):
        tier = tmp_path / f"{file_type}.gguf"
        quantize(wide_gguf, tier, file_type, threads=1)
        assert tier.stat().st_size < 0.6 * wide_gguf.stat().st_size
        with Model(tier) as model, Context(model, 64, threads=1) as context:
            context.decode(model.tokenize("hello Paris"), 0)
            assert np.isfinite(context.logits()).all()


def test_eight_bits_stay_near_the_base(wide_gguf: Path, tmp_path: Path) -> None:
    quantize(wide_gguf, tmp_path / "q8_0.gguf", "Q8_0", threads=1)
    quantize(wide_gguf, tmp_path / "q3_k_m.gguf", "Q3_K_M", threads=1)
    with Model(wide_gguf, vocab_only=True) as model:
        documents = [model.tokenize("The weather in Paris is mild, says get_weather. " * 5)]
    base = BaseDistribution(wide_gguf, documents, tmp_path / "base.f16", threads=1)
    near = base.compare(tmp_path / "q8_0.gguf", threads=1)
    far = base.compare(tmp_path / "q3_k_m.gguf", threads=1)
    base.close()
    assert near.kl_mean < 0.02
    assert near.top1_agreement.value > 0.9
    assert far.kl_mean > 5 * near.kl_mean


def test_pruned_layers_are_gone_and_the_others_are_renumbered(
    wide_gguf: Path, tmp_path: Path
) -> None:
    quantize(wide_gguf, tmp_path / "less.gguf", "F16", pruned_layers=(4, 2, 4), threads=1)
    before = {t.name: t.data for t in gguf.GGUFReader(wide_gguf).tensors}
    after = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "less.gguf").tensors}
    assert len(after) == len(before) - 2 * 9
    for new, old in enumerate((0, 1, 3, 5)):
        np.testing.assert_array_equal(
            after[f"blk.{new}.ffn_up.weight"], before[f"blk.{old}.ffn_up.weight"]
        )
    with Model(tmp_path / "less.gguf", no_alloc=True) as model:
        assert model.layers == 4


def test_an_importance_matrix_steers_low_bit_types(wide_gguf: Path, tmp_path: Path) -> None:
    imatrix = importance(wide_gguf)

    def made(name: str, file_type: str, **options: object) -> bytes:
        path = tmp_path / name
        quantize(wide_gguf, path, file_type, threads=1, **options)  # type: ignore[arg-type]
        # The header may name the matrix; only the weights are of interest.
        return b"".join(bytes(t.data.tobytes()) for t in gguf.GGUFReader(path).tensors)

    assert made("a", "Q4_K_M") == made("b", "Q4_K_M")
    assert made("c", "Q4_K_M", imatrix=imatrix) != made("a", "Q4_K_M")
    assert made("d", "F16", imatrix=imatrix) == made("e", "F16")
    # The matrix has the base's layer numbers, also where layers are left out.
    rest = {n: v for n, v in imatrix.items() if not n.startswith(("blk.2.", "blk.4."))}
    assert made("f", "IQ4_XS", imatrix=imatrix, pruned_layers=(2, 4)) == made(
        "g", "IQ4_XS", imatrix=rest, pruned_layers=(2, 4)
    )


def test_each_expert_is_steered_by_its_own_importance(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "moe.gguf", experts=4, layers=1, width=256, ffn=256)
    name = "blk.0.ffn_down_exps.weight"
    even = np.ones((4, 256), np.float32)
    steered = even.copy()
    steered[2, ::7] = 100.0

    def experts(values: NDArray[np.float32]) -> list[bytes]:
        imatrix = {name: values.ravel()}
        quantize(source, tmp_path / "q", "Q4_0", imatrix=imatrix, threads=1)
        (found,) = (t for t in gguf.GGUFReader(tmp_path / "q").tensors if t.name == name)
        return [part.tobytes() for part in np.array(found.data).reshape(4, -1)]

    same = [a == b for a, b in zip(experts(even), experts(steered), strict=True)]
    assert same == [True, True, False, True]


def test_types_that_need_a_matrix_say_so(wide_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="IQ2_S"):
        quantize(wide_gguf, tmp_path / "tier.gguf", "IQ2_S", threads=1)
    assert list(tmp_path.iterdir()) == []
    quantize(wide_gguf, tmp_path / "tier.gguf", "IQ2_S", imatrix=importance(wide_gguf), threads=1)
    assert (tmp_path / "tier.gguf").is_file()


def test_progress_goes_from_nothing_to_all(wide_gguf: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    quantize(
        wide_gguf,
        tmp_path / "tier.gguf",
        "Q8_0",
        threads=1,
        progress=lambda text, share: told.append((text, share)),
    )
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert told[-1][0] == f"tensor {len(told)} of {len(told)}"


def test_unknown_types_are_refused(wide_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'Q9_Z'; known are F32"):
        quantize(wide_gguf, tmp_path / "tier.gguf", "Q9_Z")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_and_what_was_there(wide_gguf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(wide_gguf.read_bytes()[: wide_gguf.stat().st_size // 2])
    target = tmp_path / "out" / "tier.gguf"
    target.parent.mkdir()
    target.write_bytes(b"an older tier")
    with pytest.raises(BuildError, match="Q8_0"):
        quantize(broken, target, "Q8_0", threads=1)
    assert target.read_bytes() == b"an older tier"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95, 0.999])
def test_a_full_disk_is_named(
    wide_gguf: Path, tmp_path: Path, file_limit: FileLimit, share: float
) -> None:
    size = plan_quantization(wide_gguf, "Q8_0").bytes
    target = tmp_path / "tier.gguf"
    with file_limit(int(size * share)), pytest.raises(DiskFullError, match=r"tier\.gguf"):
        quantize(wide_gguf, target, "Q8_0", threads=1)
    assert list(tmp_path.iterdir()) == []
    quantize(wide_gguf, target, "Q8_0", threads=1)
    assert target.is_file()


# --- Types of single tensors --------------------------------------------------------------


def written(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


MIX = {
    "token_embd.weight": "Q5_0",
    "output.weight": "q6_k",
    "blk.0.ffn_down.weight": "Q8_0",
    "blk.3.ffn_down.weight": "Q2_K",
    "blk.3.attn_v.weight": "F16",
    "blk.5.ffn_down.weight": "Q8_0",
}


@pytest.mark.parametrize("pruned", [(), (1, 4)])
def test_tensors_get_the_types_that_were_asked_for(
    wide_gguf: Path, tmp_path: Path, pruned: tuple[int, ...]
) -> None:
    """Names are those of the base, also where layers are left out."""
    target = tmp_path / "mix.gguf"
    plan = plan_quantization(wide_gguf, "Q4_0", pruned_layers=pruned, overrides=MIX)
    counted = quantize(wide_gguf, target, "Q4_0", pruned_layers=pruned, overrides=MIX, threads=1)
    types = written(target)
    left = [layer for layer in range(6) if layer not in pruned]
    new = {f"blk.{layer}.": f"blk.{number}." for number, layer in enumerate(left)}
    expected = dict(plan_quantization(wide_gguf, "Q4_0", pruned_layers=pruned).types)
    for name, kind in MIX.items():
        layer = name[:6] if name.startswith("blk.") else ""
        expected[new.get(layer, layer) + name.removeprefix(layer)] = kind.upper()
    assert types == expected
    assert target.stat().st_size == plan.bytes
    assert plan.types == types
    assert counted == {name.lower(): n for name, n in Counter(types.values()).items()}


def test_types_of_pruned_layers_are_left_out(wide_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "less.gguf"
    overrides = {"blk.2.attn_q.weight": "Q6_K"}
    quantize(wide_gguf, target, "Q4_0", pruned_layers=(2,), overrides=overrides, threads=1)
    assert "Q6_K" not in {kind for name, kind in written(target).items() if "attn_q" in name}


@pytest.mark.parametrize("tied", [True, False])
def test_the_embeddings_type_can_be_chosen_where_they_are_tied(
    tmp_path: Path, wide_gguf: Path, tied: bool
) -> None:
    base = wide_gguf
    if tied:
        base = tied_copy(wide_gguf, tmp_path / "tied.gguf")
    target = tmp_path / "mix.gguf"
    quantize(base, target, "Q8_0", overrides={"token_embd.weight": "Q4_1"}, threads=1)
    types = written(target)
    assert types["token_embd.weight"] == "Q4_1"
    assert types.get("output.weight", "Q8_0") == "Q8_0"
    with Model(target) as model, Context(model, 64, threads=1) as context:
        context.decode(model.tokenize("hello Paris"), 0)
        assert np.isfinite(context.logits()).all()


def tied_copy(source: Path, target: Path) -> Path:
    """The same model without a matrix of its own for the output."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        if tensor.name != "output.weight":
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_tensors_of_their_own_type_are_copied(wide_gguf: Path, tmp_path: Path) -> None:
    base, target = tmp_path / "base.gguf", tmp_path / "mix.gguf"
    quantize(wide_gguf, base, "Q4_1", threads=1)
    quantize(base, target, "Q8_0", overrides={"blk.1.ffn_up.weight": "Q4_1"}, threads=1)
    before, after = ({t.name: t for t in gguf.GGUFReader(f).tensors} for f in (base, target))
    name = "blk.1.ffn_up.weight"
    np.testing.assert_array_equal(before[name].data, after[name].data)
    assert after["blk.2.ffn_up.weight"].tensor_type.name == "Q8_0"


@pytest.mark.parametrize(
    ("file_type", "overrides", "reason"),
    [
        ("F16", {"blk.0.attn_q.weight": "Q8_0"}, "ignores the types of single tensors"),
        ("Q8_0", {"blk.9.attn_q.weight": "Q8_0"}, "no tensor 'blk.9.attn_q.weight'"),
        ("Q8_0", {"blk.0.attn_q.weight": "Q9_Z"}, "unknown tensor type 'Q9_Z'"),
        ("Q8_0", {"output_norm.weight": "Q8_0"}, "'output_norm.weight' stays F32"),
    ],
)
def test_types_that_cannot_be_had_are_refused(
    wide_gguf: Path, tmp_path: Path, file_type: str, overrides: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        quantize(wide_gguf, tmp_path / "mix.gguf", file_type, overrides=overrides, threads=1)
    assert list(tmp_path.iterdir()) == []


def test_widths_that_do_not_fit_a_type_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp would silently take another type."""
    with pytest.raises(ConfigError, match=r"rows of 64 values are no multiple of 256. Take Q5_0"):
        quantize(
            tiny_gguf, tmp_path / "mix.gguf", "Q8_0", overrides={"blk.0.attn_q.weight": "Q4_K"}
        )
    assert list(tmp_path.iterdir()) == []


def test_types_of_single_tensors_need_a_matrix_too(wide_gguf: Path, tmp_path: Path) -> None:
    overrides = {"blk.0.attn_q.weight": "IQ3_XXS"}
    with pytest.raises(BuildError, match="imatrix"):
        quantize(wide_gguf, tmp_path / "mix.gguf", "Q8_0", overrides=overrides, threads=1)
    matrix = importance(wide_gguf)
    quantize(
        wide_gguf, tmp_path / "mix.gguf", "Q8_0", overrides=overrides, imatrix=matrix, threads=1
    )
    assert written(tmp_path / "mix.gguf")["blk.0.attn_q.weight"] == "IQ3_XXS"
