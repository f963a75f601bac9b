"""Which tensor gets which type: the least loss that a budget of bytes or seconds buys.

This is a multiple-choice knapsack. Steps along each tensor's lower convex hull are taken by loss
saved per cost, which solves its linear relaxation but for one step (Kellerer, Pferschy and
Pisinger, "Knapsack Problems", 2004, ch. 11); then exchanges between two tensors use up what room
that leaves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tierwise.runtime.errors import ConfigError

_LEAST_GAIN = 1e-9
"""Of the total loss; exchanges that save less are not worth looking for the next one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One type that a tensor may have.

    Args:
        type: Its name.
        cost: In the budget's unit (bytes, seconds).
        loss: What the model loses by it, so that losses of several tensors add up.
    """

    type: str
    cost: float
    loss: float


_Move = tuple[float, float, str, Choice]
"""What it costs, the loss that it saves, the tensor, and the type that it gets."""


def allocate(choices: Mapping[str, Sequence[Choice]], *, budget: float) -> dict[str, Choice]:
    """Minimal total loss with a total cost of at most ``budget``.

    It may miss the best by what one step along a hull saves at most; where there are a few hundred
    tensors the exchanges leave next to nothing of that. The same choices always give the same
    allocation, whatever their order.

    Args:
        choices: By tensor name, at least one each.

    Raises:
        ConfigError: Even the cheapest choices cost more than the budget.
    """
    fronts = {name: _front(options) for name, options in sorted(choices.items())}
    taken = {name: front[0] for name, front in fronts.items()}
    room = budget - sum(choice.cost for choice in taken.values())
    if room < 0:
        raise ConfigError(
            f"a budget of {budget:,.6g} is too small: the cheapest types take "
            f"{budget - room:,.6g} together. Raise the budget or take a smaller base."
        )
    hulls = {name: _hull(front) for name, front in fronts.items()}
    steps = [
        (_slope(before, after), name, index)
        for name, hull in hulls.items()
        for index, (before, after) in enumerate(pairwise(hull))
    ]
    at = dict.fromkeys(fronts, 0)
    for _, name, index in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        before, after = hulls[name][index], hulls[name][index + 1]
        if at[name] == index and after.cost - before.cost <= room:
            taken[name], at[name] = after, index + 1
            room -= after.cost - before.cost
    return _exchanged(fronts, taken, room)


def _front(options: Sequence[Choice]) -> list[Choice]:
    """Those that no other one beats, by rising cost and falling loss."""
    if not options:
        raise ConfigError("every tensor needs at least one type to choose from")
    kept: list[Choice] = []
    for choice in sorted(options, key=lambda c: (c.cost, c.loss, c.type)):
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    return kept


def _hull(front: Sequence[Choice]) -> list[Choice]:
    """The front's lower convex hull: each step saves less per cost than the one before."""
    hull: list[Choice] = []
    for choice in front:
        while len(hull) > 1 and _slope(hull[-2], choice) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    return (before.loss - after.loss) / (after.cost - before.cost)


def _exchanged(
    fronts: Mapping[str, Sequence[Choice]], taken: dict[str, Choice], room: float
) -> dict[str, Choice]:
    """Takes the best change of one tensor, or of two, while there is one that saves loss."""
    least = _LEAST_GAIN * sum(choice.loss for choice in taken.values())
    while True:
        best, moves = _best_change(fronts, taken, room)
        if not moves or best <= least:  # measured losses, and so their sum, may be below 0
            return taken
        for name, choice in moves:
            room += taken[name].cost - choice.cost
            taken[name] = choice


def _best_change(
    fronts: Mapping[str, Sequence[Choice]], taken: Mapping[str, Choice], room: float
) -> tuple[float, list[tuple[str, Choice]]]:
    """The loss that the best change saves, and the change.

    Every move of one tensor, alone and beside the best better type of another tensor that the
    room then allows: of all better types by rising cost, the best so far of two tensors is kept.
    """
    better: list[_Move] = []
    others: list[_Move] = []
    for name, front in fronts.items():
        now = taken[name]
        for choice in front:
            cost, saved = choice.cost - now.cost, now.loss - choice.loss
            if saved > 0:
                better.append((cost, saved, name, choice))
            elif cost < 0:
                others.append((cost, saved, name, choice))
    better.sort(key=lambda move: (move[0], -move[1], move[2]))
    costs = [move[0] for move in better]
    tops: list[list[_Move]] = []
    top: list[_Move] = []
    for move in better:
        rivals = [m for m in (*top, move) if m[2] != move[2]]
        same = max((m for m in (*top, move) if m[2] == move[2]), key=lambda m: m[1])
        top = sorted((*rivals, same), key=lambda m: -m[1])[:2]
        tops.append(top)
    best, moves = 0.0, list[tuple[str, Choice]]()
    for cost, saved, name, choice in (*others, *better):
        if saved > best and cost <= room:
            best, moves = saved, [(name, choice)]
        end = bisect_right(costs, room - cost)
        for _, more, other, second in tops[end - 1] if end else ():
            if other != name and saved + more > best:
                best, moves = saved + more, [(name, choice), (other, second)]
                break
    return best, moves
