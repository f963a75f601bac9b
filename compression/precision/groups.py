"""Groups of alike tensors that are probed together, and what a group's KL says of its members."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LAYER = re.compile(r"^blk\.(\d+)\.(.+)$")

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of one kind in neighbouring layers."""

    kind: str
    names: tuple[str, ...]
    first: int
    last: int

    @property
    def name(self) -> str:
        return self.kind if self.first < 0 else f"{self.kind} {self.first}-{self.last}"

    def halves(self) -> tuple[Group, Group]:
        middle = len(self.names) // 2
        parts = self.names[:middle], self.names[middle:]
        one, two = (_group(self.kind, names) for names in parts)
        return one, two


def slopes_of(
    leaves: Sequence[tuple[Group, float]], errors: Mapping[str, float]
) -> dict[str, float]:
    """KL for each unit of error, by tensor.

    Slopes change smoothly with depth, by up to a thousand times from the first layer to the last
    (SmolLM2's ``attn_v``): between the groups' middles their logarithm is interpolated, and then
    each group's slopes are scaled so that they give the KL that was measured.

    Args:
        leaves: Groups without overlap, and the KL of each.
        errors: Of every tensor, at the type it was probed with.
    """
    out: dict[str, float] = {}
    for kind in {group.kind for group, _ in leaves}:
        own = [(group, kl) for group, kl in leaves if group.kind == kind]
        totals = [sum(errors[name] for name in group.names) for group, _ in own]
        points = sorted(
            ((group.first + group.last) / 2, math.log(kl / total))
            for (group, kl), total in zip(own, totals, strict=True)
            if kl > 0 and total > 0
        )
        depths, logs = [depth for depth, _ in points], [log for _, log in points]
        for group, kl in own:
            slopes = {
                name: math.exp(float(np.interp(_layer(name), depths, logs)))
                for name in group.names
                if points
            }
            expected = sum(slope * errors[name] for name, slope in slopes.items())
            scale = kl / expected if expected > 0 else 0.0
            out |= {name: slopes.get(name, 0.0) * scale for name in group.names}
    return out


def initial_groups(names: Sequence[str]) -> list[Group]:
    """Of each kind of tensor the first layer, the last, and the halves of what lies between: the
    ends differ most from their neighbours."""
    layers: dict[str, dict[int, str]] = {}
    alone = []
    for name in names:
        found = _LAYER.match(name)
        if found is None:
            alone.append(Group(name, (name,), -1, -1))
        else:
            layers.setdefault(found[2], {})[int(found[1])] = name
    groups = []
    for kind, members in sorted(layers.items()):
        ordered = sorted(members)
        middle = ordered[1:-1]
        half = len(middle) // 2
        parts = [ordered[:1], middle[:half], middle[half:], ordered[1:][-1:]]
        groups += [_group(kind, [members[n] for n in part]) for part in parts if part]
    return [*alone, *groups]


def _group(kind: str, names: Sequence[str]) -> Group:
    return Group(kind, tuple(names), _layer(names[0]), _layer(names[-1]))


def _layer(name: str) -> int:
    """Number of a tensor's layer; -1 where it belongs to none."""
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def split_groups(
    groups: Sequence[Group], measure: Callable[[Group], float], probes: int, tell: Progress
) -> list[tuple[Group, float]]:
    """Groups with their KL; those with the largest were split in halves while probes were left."""
    leaves: list[tuple[Group, float]] = []
    left = probes

    def measured(group: Group) -> tuple[Group, float]:
        nonlocal left
        tell(f"probing {group.name}", min(1.0, 1 - left / probes))
        left -= 1
        return group, measure(group)

    leaves = [measured(group) for group in groups]
    while left >= 2 and (wide := [leaf for leaf in leaves if len(leaf[0].names) > 1]):
        largest = max(wide, key=lambda leaf: (leaf[1], leaf[0].name))
        leaves.remove(largest)
        leaves += [measured(half) for half in largest[0].halves()]
    return leaves
