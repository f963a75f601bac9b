"""Groups, slopes, and what is kept of a measurement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tierwise.compression.precision.ggml import read_weights, rounded
from tierwise.compression.precision.groups import Group, initial_groups, slopes_of
from tierwise.compression.precision.probe import Probe
from tierwise.compression.precision.sensitivity import Sensitivities, measure_sensitivities
from tierwise.compression.precision.types import TENSOR_TYPES
from tierwise.compression.precision.weight_errors import weight_errors
from tierwise.compression.stages import Stages
from tierwise.runtime.errors import ConfigError

DOCUMENTS = [[(7 * i + n) % 250 for i in range(60)] for n in range(5)]
TYPES = ("Q8_0", "Q5_K", "Q4_0", "Q3_K")


def measured(path: Path, stages: Stages, probes: int = 16, **more: object) -> Sensitivities:
    options: dict[str, object] = {"imatrix": {}, "types": TYPES, "documents": DOCUMENTS} | more
    documents = options.pop("documents")
    return measure_sensitivities(
        path,
        documents,
        stages=stages,
        threads=1,
        probes=probes,
        **options,  # type: ignore[arg-type]
    )


# --- Groups -----------------------------------------------------------------------------


def test_groups_hold_every_tensor_once() -> None:
    names = ["token_embd.weight", *(f"blk.{i}.{k}.weight" for i in range(9) for k in ("a", "b"))]
    groups = initial_groups(names)
    assert sorted(name for group in groups for name in group.names) == sorted(names)
    assert [group.name for group in groups if group.kind != "b.weight"] == [
        "token_embd.weight",
        "a.weight 0-0",
        "a.weight 1-3",
        "a.weight 4-7",
        "a.weight 8-8",
    ]


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_few_layers_make_few_groups(layers: int) -> None:
    names = [f"blk.{i}.a.weight" for i in range(layers)]
    groups = initial_groups(names)
    assert [name for group in groups for name in group.names] == names
    assert all(group.names for group in groups)


def test_halves_are_in_the_order_of_layers() -> None:
    (group,) = [g for g in initial_groups([f"blk.{i}.a.weight" for i in range(12)]) if g.first == 1]
    one, two = group.halves()
    assert one.names + two.names == group.names and one.last < two.first


# --- Slopes -----------------------------------------------------------------------------


def test_slopes_give_what_was_measured_and_change_smoothly_with_depth() -> None:
    errors = {f"blk.{i}.a.weight": 1.0 + i % 3 for i in range(12)}
    truth = {name: 10.0 ** (-i / 4) for i, name in enumerate(errors)}
    groups = initial_groups(list(errors))
    leaves = [(g, sum(truth[n] * errors[n] for n in g.names)) for g in groups]
    slopes = slopes_of(leaves, errors)
    for group, kl in leaves:
        assert sum(slopes[n] * errors[n] for n in group.names) == pytest.approx(kl)
    assert list(slopes.values()) == sorted(slopes.values(), reverse=True)
    assert all(0.5 < slopes[name] / truth[name] < 2 for name in errors)


def test_tensors_without_loss_or_error_have_no_slope() -> None:
    groups = [Group("a", ("blk.0.a",), 0, 0), Group("a", ("blk.1.a",), 1, 1)]
    errors = {"blk.0.a": 1.0, "blk.1.a": 0.0}
    assert slopes_of([(groups[0], 0.0), (groups[1], 0.0)], errors) == dict.fromkeys(errors, 0.0)


# --- Weight errors ----------------------------------------------------------------------


def test_errors_of_sampled_rows_stand_for_all(wide_gguf: Path) -> None:
    weight = read_weights(wide_gguf)["blk.1.ffn_gate.weight"]
    importance = np.random.default_rng(0).lognormal(0, 1, weight.width).astype(np.float32)
    kinds = [TENSOR_TYPES[name] for name in TYPES]
    found = weight_errors(weight, kinds, importance)
    assert list(found) == ["F16", *TYPES] and found["F16"] == 0.0
    for kind in kinds:
        off = rounded(kind, weight.floats(), importance) - weight.floats()
        assert found[kind.name] == pytest.approx(float((off**2).sum(0) @ importance), rel=0.15)


def test_types_that_cannot_be_had_have_no_error(tiny_gguf: Path, wide_gguf: Path) -> None:
    kinds = [TENSOR_TYPES[name] for name in ("Q4_K", "Q4_0", "IQ3_XXS")]
    assert list(weight_errors(read_weights(tiny_gguf)["blk.0.attn_q.weight"], kinds, None)) == [
        "F16",
        "Q4_0",
    ]
    wide = read_weights(wide_gguf)["blk.0.attn_q.weight"]
    assert "IQ3_XXS" not in weight_errors(wide, kinds, None)
    assert "IQ3_XXS" in weight_errors(wide, kinds, np.ones(256, np.float32))


# --- Measuring --------------------------------------------------------------------------


def test_predicted_losses_are_near_real_ones(wide_gguf: Path, tmp_path: Path) -> None:
    found = measured(wide_gguf, Stages(tmp_path), probes=40)
    weights = read_weights(wide_gguf)
    with Probe(wide_gguf, DOCUMENTS, threads=1) as probe:
        for name in ("blk.0.ffn_down.weight", "blk.3.attn_v.weight", "output.weight"):
            for kind in ("Q5_K", "Q3_K"):
                values = rounded(TENSOR_TYPES[kind], weights[name].floats())
                assert found.loss(name, kind) == pytest.approx(probe.loss({name: values}), rel=0.7)
            assert found.loss(name, "F16") == 0.0


def test_what_was_measured_is_found_again(wide_gguf: Path, tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    first = measured(wide_gguf, stages)
    assert not list(tmp_path.glob("*.gguf"))
    (record,) = tmp_path.glob("probed-*.json")
    known = json.loads(record.read_text())["kl"]
    assert set(first.groups) <= set(known)
    doubled = {name: 2 * kl for name, kl in known.items()}
    record.write_text(json.dumps({"kl": doubled}))
    again = measured(wide_gguf, stages)
    assert {name: 2 * slope for name, slope in first.slopes.items()} == pytest.approx(again.slopes)
    assert again.errors == first.errors


def test_an_interrupted_measurement_goes_on(wide_gguf: Path, tmp_path: Path) -> None:
    stages, told = Stages(tmp_path), []

    def stop(text: str, _share: float) -> None:
        told.append(text)
        if sum("probing" in line for line in told) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(wide_gguf, stages, progress=stop)
    assert not list(tmp_path.glob("*.gguf"))
    (record,) = tmp_path.glob("probed-*.json")
    assert len(json.loads(record.read_text())["kl"]) == 5
    whole = measured(wide_gguf, stages)
    assert whole == measured(wide_gguf, Stages(tmp_path / "other"))


def test_damaged_records_are_measured_anew(wide_gguf: Path, tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    first = measured(wide_gguf, stages)
    for record in tmp_path.glob("*.json"):
        record.write_text(record.read_text()[:40])
    assert measured(wide_gguf, stages) == first


def test_more_probes_tell_more_layers_apart(wide_gguf: Path, tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    coarse, fine = (measured(wide_gguf, stages, probes=n).groups for n in (1, 40))
    assert len(coarse) == len(initial_groups(list(read_weights(wide_gguf))))
    assert len(coarse) < len(fine) <= 40


def test_other_text_and_other_importance_are_other_measurements(
    wide_gguf: Path, tmp_path: Path
) -> None:
    stages = Stages(tmp_path)
    first = measured(wide_gguf, stages, probes=1)
    other = measured(wide_gguf, stages, probes=1, documents=[d[::-1] for d in DOCUMENTS])
    assert other.errors == first.errors and other.slopes != first.slopes
    uneven = {"blk.0.ffn_down.weight": np.linspace(0.1, 9, 512).astype(np.float32)}
    assert measured(wide_gguf, stages, probes=1, imatrix=uneven).errors != first.errors


def test_measuring_needs_text(wide_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration text"):
        measured(wide_gguf, Stages(tmp_path), documents=[[1]])
