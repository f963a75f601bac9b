"""Searched mixed precision: each tensor gets the type that costs the model least for its bytes, or
for its seconds on this machine.

sensitivities (measured once for a source) → choices → allocation → exact size. The search for
one more budget takes a fraction of a second.

What did not work: probing a mix again with each group exact in turn, and allocating by these
losses. They are differences of two KLs in which the errors of all other tensors meet the group's
own, which is noise of the group's own size; mixes became worse by 10 to 20 %. Losses that were
measured one by one add up well enough (a mix's KL was predicted to 5 %).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tierwise.compression.precision.allocate import Choice, allocate
from tierwise.compression.precision.costs import CostTable, measured_costs
from tierwise.compression.precision.ggml import Weight, read_weights
from tierwise.compression.precision.header import ALIGNMENT
from tierwise.compression.precision.sensitivity import (
    PROBES,
    Documents,
    Sensitivities,
    measure_sensitivities,
)
from tierwise.compression.precision.types import TENSOR_TYPES, file_type_of, tensor_type
from tierwise.compression.precision.weight_errors import SEARCHED
from tierwise.compression.quantize import ImportanceMatrix, plan_quantization
from tierwise.compression.stages import Stages
from tierwise.runtime.errors import ConfigError

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class CallSize:
    """The call whose seconds a speed budget is about.

    Args:
        prompt_tokens: Of the prompt, those that are not cached.
        reply_tokens: Of the reply.
    """

    prompt_tokens: int = 300
    reply_tokens: int = 40


@dataclass(frozen=True, slots=True)
class Precision:
    """A mix of types.

    Args:
        file_type: For `quantize`: the type that most weights have.
        overrides: Tensor type by name in the source, of all matrices.
        bytes: Exact size of the file.
        predicted_kl: Nats per token that the rounding of weights should bring; llama.cpp's
            rounding of activations comes on top (about 0.003 for SmolLM2).
        predicted_s: Seconds of the call that go into multiplying by weights; None where no speed
            budget was given.
    """

    file_type: str
    overrides: Mapping[str, str]
    bytes: int
    predicted_kl: float
    predicted_s: float | None = None


def search_precision(
    source: Path,
    *,
    imatrix: ImportanceMatrix,
    documents: Documents,
    stages: Stages,
    threads: int,
    budget_bytes: int | None = None,
    budget_seconds: float | None = None,
    call: CallSize | None = None,
    types: Sequence[str] = SEARCHED,
    probes: int = PROBES,
    progress: Progress | None = None,
) -> Precision:
    """The mix of least KL within a budget of bytes or of seconds.

    What is measured is kept in ``stages`` and found again by content: further budgets for the
    same source cost nothing. The same arguments give the same mix.

    Args:
        source: A GGUF file; a tensor that keeps its type there is copied and loses nothing.
        imatrix: By name in ``source``.
        documents: Token ids of calibration text.
        threads: For llama.cpp; the speeds of types are measured with as many.
        budget_bytes: Of the whole file.
        budget_seconds: Of a call, what multiplying by weights takes (`weights_s` tells what it
            takes for other types; attention, norms and sampling come on top).
        types: Names in `TENSOR_TYPES` to choose from.
        probes: At most so many KL measurements; more tell neighbouring layers apart.

    Raises:
        ConfigError: Not exactly one budget was given, or it cannot be met.
        DiskFullError: There is no room for the model in F16.
    """
    if (budget_bytes is None) == (budget_seconds is None):
        raise ConfigError("a search needs either budget_bytes or budget_seconds, and not both")
    found = measure_sensitivities(
        source,
        documents,
        imatrix=imatrix,
        stages=stages,
        threads=threads,
        types=types,
        probes=probes,
        progress=progress,
    )
    if budget_bytes is not None:
        return fit_bytes(source, found, budget_bytes, imatrix=imatrix)
    assert budget_seconds is not None
    table = costs_for(source, types=types, threads=threads, progress=progress)
    return fit_seconds(source, found, budget_seconds, table, imatrix=imatrix, call=call)


def fit_bytes(
    source: Path, found: Sensitivities, budget: int, *, imatrix: ImportanceMatrix | None = None
) -> Precision:
    """The mix of least KL whose file has at most ``budget`` bytes.

    Raises:
        ConfigError: No mix of the measured types is that small.
    """
    weights = read_weights(source)
    choices = {
        name: [
            Choice(kind, _bytes(weight, kind), found.loss(name, kind))
            for kind in found.errors[name]
        ]
        for name, weight in weights.items()
    }
    smallest = {
        name: min(options, key=lambda choice: choice.cost) for name, options in choices.items()
    }
    least = _finished(source, weights, smallest, imatrix).bytes
    if least > budget:
        raise ConfigError(
            f"no mix of types fits {budget:,} bytes: the smallest takes {least:,}. Raise the "
            "budget, allow smaller types, or take a smaller base."
        )
    room = budget - least + _total(smallest)
    return _finished(source, weights, allocate(choices, budget=room), imatrix)


def fit_seconds(
    source: Path,
    found: Sensitivities,
    budget: float,
    table: CostTable,
    *,
    imatrix: ImportanceMatrix | None = None,
    call: CallSize | None = None,
) -> Precision:
    """The mix of least KL whose weights take at most ``budget`` seconds of a call.

    Raises:
        ConfigError: No mix of the measured types is that fast.
    """
    weights = read_weights(source)
    choices = {
        name: [
            Choice(kind, _seconds(weight, kind, table, call, weights), found.loss(name, kind))
            for kind in found.errors[name]
        ]
        for name, weight in weights.items()
    }
    taken = allocate(choices, budget=budget)
    return _finished(source, weights, taken, imatrix, seconds=_total(taken))


def costs_for(
    source: Path,
    *,
    types: Sequence[str] = SEARCHED,
    threads: int,
    progress: Progress | None = None,
) -> CostTable:
    """Costs on this machine of all types that some tensor of the file can have."""
    wanted = {
        (kind.name, weight.width): (kind, weight.width)
        for weight in read_weights(source).values()
        for kind in (weight.kind, *map(tensor_type, types))
        if weight.width % kind.block == 0
    }
    return measured_costs(wanted.values(), threads=threads, progress=progress)


def weights_s(
    source: Path, types: Mapping[str, str], table: CostTable, call: CallSize | None = None
) -> float:
    """Seconds of a call that go into multiplying by weights of some types, by tensor name."""
    weights = read_weights(source)
    return sum(
        _seconds(weight, types.get(name, weight.kind.name), table, call, weights)
        for name, weight in weights.items()
    )


def _bytes(weight: Weight, kind: str) -> int:
    size = TENSOR_TYPES[kind].bytes(weight.width) * weight.rows
    return -(-size // ALIGNMENT) * ALIGNMENT


def _seconds(
    weight: Weight,
    kind: str,
    table: CostTable,
    call: CallSize | None,
    weights: Mapping[str, Weight],
) -> float:
    size = call or CallSize()
    return table.seconds(
        weight,
        TENSOR_TYPES[kind],
        prompt=size.prompt_tokens,
        reply=size.reply_tokens,
        tied="output.weight" not in weights,
    )


def _total(taken: Mapping[str, Choice]) -> float:
    return sum(choice.cost for choice in taken.values())


def _finished(
    source: Path,
    weights: Mapping[str, Weight],
    taken: Mapping[str, Choice],
    imatrix: ImportanceMatrix | None,
    *,
    seconds: float | None = None,
) -> Precision:
    overrides = {name: choice.type for name, choice in taken.items()}
    values: dict[str, int] = {}
    for name, text in overrides.items():
        kind = TENSOR_TYPES[text]
        if kind.bits < 16 and (named := file_type_of(kind)) is not None:
            values[named] = values.get(named, 0) + weights[name].values
    file_type = max(values, key=lambda name: values[name], default="Q8_0")
    plan = plan_quantization(source, file_type, overrides=overrides, imatrix=imatrix)
    return Precision(
        file_type=file_type,
        overrides=overrides,
        bytes=plan.bytes,
        predicted_kl=sum(choice.loss for choice in taken.values()),
        predicted_s=seconds,
    )
