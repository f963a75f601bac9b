"""The report's drawing: round ticks, scales, names that keep apart, marks, numbers, types."""

from __future__ import annotations

import itertools
import math
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tierwise.compression.report.axes import frame, linear_scale, log_scale, spread_scale
from tierwise.compression.report.labels import place_labels
from tierwise.compression.report.recipes import documents_text
from tierwise.compression.report.scatter import Point, draw_scatter, front_of
from tierwise.compression.report.strip import type_keys
from tierwise.compression.report.svg import GONE, SHAPES, Mark, draw_mark, mark_of, tag
from tierwise.compression.report.tensor_types import TensorType, map_types, read_types
from tierwise.compression.report.text import (
    count_text,
    ranges_text,
    seconds_text,
    size_text,
    span_text,
)

# --- scales ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [[0.42, 1.1], [92, 145, 98], [0, 1], [5, 5], [0, 0], [-3, 4], [1e-9, 2e-9], [3e8, 9e9], []],
)
def test_linear_ticks_are_round_and_cover_the_values(values: list[float]) -> None:
    scale = linear_scale(values, 0, 300)
    marks = [value for value, _ in scale.ticks]
    assert 2 <= len(marks) <= 12
    steps = {round((b - a) / (marks[1] - marks[0]), 6) for a, b in itertools.pairwise(marks)}
    assert steps == {1.0}
    mantissa = (marks[1] - marks[0]) / 10 ** math.floor(math.log10(marks[1] - marks[0]) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 5)
    assert all(scale.low <= value <= scale.high for value in values)
    assert len({label for _, label in scale.ticks}) == len(marks)
    assert scale.at(scale.low) == 0 and scale.at(scale.high) == 300


def test_shares_stay_within_their_bounds() -> None:
    scale = linear_scale([0.4, 1.0], 0, 100, within=(0, 1))
    assert scale.high == 1 and scale.low >= 0


@pytest.mark.parametrize("values", [[0.005, 1.6], [0.02, 0.03], [1e-5, 10], [0.3], [2, 2]])
def test_logarithmic_ticks_lie_among_the_values(values: list[float]) -> None:
    scale = log_scale(values, 0, 300)
    assert scale.low <= min(values) and max(values) <= scale.high
    assert all(scale.low <= value <= scale.high for value, _ in scale.ticks)
    assert len(scale.ticks) >= 1
    middle = math.sqrt(scale.low * scale.high)
    assert scale.at(middle) == pytest.approx(150)


def test_zero_has_a_place_on_a_logarithmic_axis() -> None:
    scale = log_scale([0.0, 0.01, 0.5], 200, 0)
    assert scale.at(0.0) == 200
    assert scale.at(0.01) < 200
    assert scale.ticks[0][1] == "0"
    assert all(value > 2 * scale.low * 0.99 for value, _ in scale.ticks[1:])


def test_scales_turn_logarithmic_where_values_differ_much() -> None:
    assert not spread_scale([1, 7], 0, 1).log
    assert spread_scale([1, 9], 0, 1).log
    assert not spread_scale([0, 9], 0, 1).log


def test_tick_labels_do_not_touch() -> None:
    x = log_scale([1, 900], 50, 120)
    y = linear_scale([0, 100], 60, 20)
    drawing = ET.fromstring(frame(x, y, x_title="x", y_title="y"))
    labels = [e for e in drawing.iter("text") if e.get("class") == "tick"]
    across = [e for e in labels if e.get("text-anchor") == "middle"]
    for a, b in itertools.pairwise(across):
        wide = (len(a.text or "") + len(b.text or "")) * 6.1 / 2
        assert float(b.attrib["x"]) - float(a.attrib["x"]) >= wide
    heights = sorted(float(e.attrib["y"]) for e in labels if e.get("text-anchor") == "end")
    assert all(b - a >= 14 - 1e-6 for a, b in itertools.pairwise(heights))


# --- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_names_cover_neither_each_other_nor_points(seed: int) -> None:
    draw = random.Random(seed)
    area = (0.0, 0.0, 500.0, 300.0)
    points = [(draw.uniform(20, 480), draw.uniform(20, 280)) for _ in range(14)]
    sizes = [(draw.uniform(20, 90), 14.0) for _ in points]
    found = place_labels(points, sizes, area=area, reach=10)
    boxes = []
    for label, (width, height) in zip(found, sizes, strict=True):
        if label is not None:
            left = label.x if label.anchor == "start" else label.x - width
            boxes.append((left, label.y - 0.78 * height, left + width, label.y + 0.22 * height))
    assert len(boxes) >= 11
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for left, top, right, bottom in boxes:
        assert left >= 0 and top >= -1e-9 and right <= 500 and bottom <= 300 + 1e-9
        assert not any(left < x < right and top < y < bottom for x, y in points)


def test_what_has_no_room_has_no_name() -> None:
    spot = [(10.0, 10.0)] * 40
    found = place_labels(spot, [(30.0, 14.0)] * 40, area=(0, 0, 80, 40))
    assert found.count(None) > 30


# --- marks and plots ------------------------------------------------------------------------


def test_forty_two_tiers_look_different() -> None:
    assert len({mark_of(index) for index in range(42)}) == 42
    assert mark_of(0).colour != mark_of(1).colour and mark_of(0).shape != mark_of(1).shape


@pytest.mark.parametrize("shape", SHAPES)
def test_marks_are_closed_and_stand_on_their_place(shape: str) -> None:
    path = ET.fromstring(draw_mark(Mark("t0", shape), 100, 50, title="a < b"))
    assert path.attrib["d"].endswith("Z")
    assert path.findtext("title") == "a < b"


def test_attributes_and_children_are_escaped() -> None:
    drawn = tag("text", "<b>&", class_='x" onload="y', stroke_width=1.0, fill=None)
    assert str(drawn) == (
        '<text class="x&#34; onload=&#34;y" stroke-width="1">&lt;b&gt;&amp;</text>'
    )


def test_the_front_has_only_what_nothing_beats() -> None:
    y = linear_scale([0, 1], 100, 0)
    points = [
        Point("cheap", mark_of(0), 1, 0.2),
        Point("beaten", mark_of(1), 3, 0.1),
        Point("good", mark_of(2), 2, 0.6),
        Point("gone", GONE, 0.5, 0.9),
        Point("equal", mark_of(3), 2.5, 0.6),
    ]
    assert [point.name for point in front_of(points, y)] == ["cheap", "good"]


def test_a_crowded_plot_is_a_drawing_all_the_same() -> None:
    points = [
        Point(f"a-tier-of-a-long-name-{i}", mark_of(i), 1 + i * 1e-6, 0.5, 0.4, 0.6, title=f"{i}")
        for i in range(12)
    ]
    points.append(Point("lost", GONE, math.nan, 0.4))
    x, y = linear_scale([p.x for p in points[:-1]], 50, 300), linear_scale([0, 1], 200, 20)
    drawing = ET.fromstring(
        draw_scatter(points, x, y, width=320, height=240, x_title="x", y_title="y", label="l")
    )
    marks = [e for e in drawing.iter("path") if (e.get("class") or "").startswith("mark")]
    assert len(marks) == 12
    empty = draw_scatter([], x, y, width=320, height=240, x_title="x", y_title="y", label="l")
    assert ET.fromstring(empty).get("aria-label") == "l"


# --- types ----------------------------------------------------------------------------------


def test_types_are_read_from_the_file(tiny_gguf: Path) -> None:
    found = {tensor.tensor: tensor for tensor in read_types(tiny_gguf)}
    assert found["blk.0.attn_q.weight"].type == "F16"
    assert found["blk.0.attn_q.weight"].bits == 16
    types = map_types(list(found.values()))
    assert list(types.layers)[:3] == ["attn_q", "attn_k", "attn_v"]
    assert set(types.layers["ffn_down"]) == {0, 1, 2, 3}
    assert "token_embd" in types.outside


def test_a_file_that_is_none_has_no_types(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF and nothing more")
    assert read_types(path) == ()
    assert read_types(tmp_path / "missing.gguf") == ()


def test_each_type_has_a_colour_of_its_own() -> None:
    names = {"F16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_K": 4.5, "IQ4_NL": 4.5, "Q2_K": 2.625}
    tensors = [TensorType(f"blk.{i}.x.weight", n, b) for i, (n, b) in enumerate(names.items())]
    keys = type_keys([map_types(tensors)])
    assert [key.type for key in keys] == ["F16", "Q8_0", "IQ4_NL", "Q4_0", "Q4_K", "Q2_K"]
    assert len({key.colour for key in keys}) == len(names)
    assert all(len(key.colour) == 7 for key in keys)
    many = [TensorType(f"blk.{i}.x.weight", f"T{i}", 4.5) for i in range(20)]
    assert len({key.colour for key in type_keys([map_types(many)])}) == 20
    assert type_keys([]) == ()


# --- numbers --------------------------------------------------------------------------------


def test_numbers_are_written_for_people() -> None:
    assert ranges_text([3, 25, 12, 13, 14, 3]) == "3, 12–14, 25"
    assert ranges_text([]) == ""
    assert [size_text(n) for n in (8_469_536, 92e6, 1.4e9, None)] == [
        "8,470 kB",
        "92 MB",
        "1.4 GB",
        "–",
    ]
    assert [seconds_text(s) for s in (0.8812, 0.01234, math.inf, None)] == [
        "0.88",
        "0.0123",
        "∞",
        "–",
    ]
    assert [span_text(s) for s in (48, 780, 9000)] == ["48 s", "13 min", "2.5 h"]
    assert [count_text(n) for n in (1234, 12_345, 134_515_008, 7e9)] == [
        "1,234",
        "12.3 k",
        "134.5 M",
        "7.0 B",
    ]


def test_documents_are_counted_by_source() -> None:
    from report_factory import make_distillation

    assert documents_text(make_distillation()) == "1,200 agent tasks, 80 transcripts"
