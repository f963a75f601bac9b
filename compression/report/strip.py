"""A tier's layers as a strip: one cell per tensor and layer, coloured by its type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tierwise.compression.report.svg import group, line, picture, tag, text
from tierwise.compression.report.tensor_types import TensorType, TypeMap
from tierwise.compression.report.text import ranges_text
from tierwise.runtime.family import Tier

WIDTH = 1040.0
_LEFT = 104.0
_ROW = 15.0

# Viridis (S. van der Walt and N. Smith, 2015): even steps to every eye, and in grey.
_RAMP = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)
_MOST_BITS, _LEAST_BITS = 16.0, 2.0


_APART = 0.09
"""Least distance of two types on the ramp, however alike their bits."""


@dataclass(frozen=True, slots=True)
class TypeKey:
    """A legend's entry."""

    type: str
    bits: str
    colour: str


def type_keys(maps: Iterable[TypeMap]) -> tuple[TypeKey, ...]:
    """Every type that occurs, from most bits to fewest, each with a colour of its own.

    Colours follow the logarithm of the bits: 16 is dark violet, 2 is yellow.
    """
    bits = {tensor.type: tensor.bits for types in maps for tensor in _tensors(types)}
    order = sorted(bits, key=lambda name: (-bits[name], name))
    places: list[float] = []
    for name in order:
        wanted = math.log(_MOST_BITS / bits[name]) / math.log(_MOST_BITS / _LEAST_BITS)
        places.append(max(wanted, 0.0, places[-1] + _APART if places else 0.0))
    shrink = max(1.0, *places) if places else 1.0
    return tuple(
        TypeKey(name, f"{bits[name]:.1f}", _ramp(place / shrink))
        for name, place in zip(order, places, strict=True)
    )


def _ramp(share: float) -> str:
    """The colour so far along the ramp."""
    place = share * (len(_RAMP) - 1)
    below = min(int(place), len(_RAMP) - 2)
    part = place - below
    mixed = (round(a + (b - a) * part) for a, b in zip(_RAMP[below], _RAMP[below + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _tensors(types: TypeMap) -> list[TensorType]:
    inside = [tensor for row in types.layers.values() for tensor in row.values()]
    return inside + list(types.outside.values())


def columns_of(tier: Tier, base_layers: int) -> dict[int, int | None]:
    """The base's layer numbers (or the tier's own, if they do not come from it), each with the
    number that the layer has in the tier's file; None for those that went."""
    gone = set(tier.lineage.pruned_layers)
    if tier.layers != base_layers - len(gone):
        return {layer: layer for layer in range(tier.layers)}
    kept = iter(range(tier.layers))
    return {layer: None if layer in gone else next(kept) for layer in range(base_layers)}


def draw_strip(
    tier: Tier, types: TypeMap, base_layers: int, keys: Sequence[TypeKey]
) -> Markup | None:
    """The strip in the colours of ``keys``; None where the file tells no types."""
    if not types.layers:
        return None
    colours = {key.type: key.colour for key in keys}
    columns = columns_of(tier, base_layers)
    step = (WIDTH - _LEFT) / len(columns)
    top = 20.0
    parts: list[Markup] = [_numbers(columns, step, top)]
    y = top
    for kind, row in types.layers.items():
        parts.append(text(_LEFT - 8, y + _ROW - 4, kind, class_="tick", text_anchor="end"))
        parts += [
            _cell(_LEFT + place * step, y, step, tensor, colours, f"layer {layer} {kind}")
            for place, (layer, number) in enumerate(columns.items())
            if number is not None and (tensor := row.get(number)) is not None
        ]
        y += _ROW
    parts += [
        _gone(_LEFT + place * step, top, step, y - top, layer)
        for place, (layer, number) in enumerate(columns.items())
        if number is None
    ]
    y += 4
    for name, tensor in types.outside.items():
        parts.append(text(_LEFT - 8, y + _ROW - 4, name, class_="tick", text_anchor="end"))
        parts.append(_cell(_LEFT, y, WIDTH - _LEFT, tensor, colours, name))
        y += _ROW
    return picture(
        parts, width=WIDTH, height=y + 2, label=_said(tier, types, base_layers), class_="strip"
    )


def _numbers(columns: Mapping[int, int | None], step: float, top: float) -> Markup:
    """Layer numbers above the strip, every so many that they keep apart."""
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if n * step >= 20)
    return group(
        [
            text(_LEFT + (place + 0.5) * step, top - 6, str(layer), text_anchor="middle")
            for place, layer in enumerate(columns)
            if layer % every == 0
        ],
        class_="tick",
    )


def _cell(
    x: float, y: float, width: float, tensor: TensorType, colours: Mapping[str, str], where: str
) -> Markup:
    gap = 1.0 if width > 5 else 0.4
    return tag(
        "rect",
        tag("title", f"{where}: {tensor.type}, {tensor.bits:.4g} bits a weight"),
        x=x,
        y=y,
        width=width - gap,
        height=_ROW - 1.5,
        fill=colours[tensor.type],
        class_="cell",
    )


def _gone(x: float, y: float, width: float, height: float, layer: int) -> Markup:
    """A layer that was pruned: an empty column, crossed out."""
    middle = x + (width - 1) / 2
    return group(
        [
            tag("title", f"layer {layer}: pruned"),
            tag("rect", x=x, y=y, width=width - 1.0, height=height - 1.5, class_="void"),
            line(middle, y + 4, middle, y + height - 6, class_="void-line"),
        ]
    )


def _said(tier: Tier, types: TypeMap, base_layers: int) -> str:
    gone = tier.lineage.pruned_layers
    went = f"layers {ranges_text(gone)} of {base_layers} went" if gone else "no layer went"
    kinds = ", ".join(key.type for key in type_keys([types]))
    return f"Types of {tier.name} by layer: {kinds}; {went}. The table below says which is where."


def type_table(tier: Tier, types: TypeMap, base_layers: int) -> list[tuple[str, str]]:
    """The strip in words: per kind of tensor, each type with the layers that have it."""
    numbers = {own: layer for layer, own in columns_of(tier, base_layers).items()}
    told = []
    for kind, row in types.layers.items():
        of_type: dict[str, list[int]] = {}
        for number, tensor in row.items():
            of_type.setdefault(tensor.type, []).append(numbers.get(number, number))
        told.append((kind, _where(of_type)))
    return told + [(name, tensor.type) for name, tensor in types.outside.items()]


def _where(of_type: Mapping[str, Sequence[int]]) -> str:
    if len(of_type) == 1:
        return f"{next(iter(of_type))} in every layer"
    return "; ".join(f"{name}: {ranges_text(layers)}" for name, layers in of_type.items())
