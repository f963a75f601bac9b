"""Quantizing and pruning with llama.cpp: sizes, types, quality, and what is left of a failure."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
from build_tools import FileLimit

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
    assert abs(target.stat().st_size - planned.bytes) <= 64 * 1024
    assert planned.fallbacks == 0
    assert {kind.lower(): n for kind, n in counted.items()} == types_of(target)
    assert [file.name for file in tmp_path.iterdir()] == ["tier.gguf"]


def test_every_known_type_can_be_planned(wide_gguf: Path) -> None:
    sizes = {name: plan_quantization(wide_gguf, name).bytes for name in FILE_TYPES}
    assert sizes["F16"] > sizes["Q8_0"] > sizes["Q6_K"] > sizes["Q4_K_M"] > sizes["IQ3_XXS"]
    assert all(size < sizes["F16"] for name, size in sizes.items() if name not in ("F16", "BF16"))


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
    with pytest.raises(ConfigError, match="'Q9_Z'; known are F16"):
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
