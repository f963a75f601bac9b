"""How much each tensor's rounding costs: real KL of a few groups, and weight errors for the rest.

KL grows in proportion to the squared error of a tensor's products: for SmolLM2's ``ffn_down`` of
layer 3, from Q8_0 to Q4_0, 250 times the error gave 120 times the KL, and from Q5_0 to Q4_0 3.9
times gave 3.6 times. So a group of alike tensors is probed once, at one type, and its slope (KL
per weighted error) tells the loss of every other type from that type's error, which needs no
model, only the weights and the importance matrix. The groups whose rounding costs most are split
and probed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tierwise.compression.precision.ggml import Weight, read_weights, rounded
from tierwise.compression.precision.groups import (
    Group,
    Progress,
    initial_groups,
    slopes_of,
    split_groups,
)
from tierwise.compression.precision.probe import OUTPUT_STEP, Probe, probing
from tierwise.compression.precision.types import tensor_type
from tierwise.compression.precision.weight_errors import (
    PROBE_TYPES,
    SAMPLED_ROWS,
    SEARCHED,
    all_errors,
    importance_of,
    probe_type,
)
from tierwise.compression.quantize import ImportanceMatrix
from tierwise.compression.stages import Stages, content_key
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.files import FileHashes
from tierwise.runtime.record import Record

PROBES = 64
PROBE_TOKENS = 384
EXCERPT_TOKENS = 96

Documents = Sequence[Sequence[int]]


class Sensitivities(Record):
    """Of the tensors of one file.

    Args:
        errors: Squared error by tensor and type, each input channel weighted with its mean
            squared activation: what the tensor's products lose, summed over its rows.
        slopes: KL (nats per token) for each unit of that error, by tensor.
        groups: KL of each group that was probed, by its name.
    """

    errors: dict[str, dict[str, float]]
    slopes: dict[str, float]
    groups: dict[str, float]

    def loss(self, tensor: str, kind: str) -> float:
        """KL that a tensor's rounding to a type should bring."""
        return self.slopes[tensor] * self.errors[tensor][kind]


class _Errors(Record):
    errors: dict[str, dict[str, float]]


class _Probed(Record):
    """KL of the groups probed so far, by their name."""

    kl: dict[str, float] = Field(default={})


def measure_sensitivities(
    source: Path,
    documents: Documents,
    *,
    imatrix: ImportanceMatrix,
    stages: Stages,
    threads: int,
    types: Sequence[str] = SEARCHED,
    probes: int = PROBES,
    progress: Progress | None = None,
) -> Sensitivities:
    """Measures them, or finds them again; a measurement that was interrupted goes on.

    About a second a probe for SmolLM2 on two cores, and half a minute for the weights' errors.

    Args:
        source: A GGUF file.
        documents: Token ids of calibration text; `PROBE_TOKENS` of them are read, from all over.
        imatrix: By name in ``source``; channels of tensors that it does not name count alike.
        stages: Keeps what is measured, and the model in F16 meanwhile.
        types: Names in `TENSOR_TYPES`.
        probes: How often the text is read at most.

    Raises:
        ConfigError: A type is not known, or there is no text.
        DiskFullError: There is no room for the model in F16.
    """
    kinds = [tensor_type(name) for name in types]
    weights = read_weights(source)
    tell = progress or (lambda _text, _share: None)
    inputs = {
        "source": FileHashes.shared().sha256(source),
        "imatrix": {n: _fingerprint(imatrix[n]) for n in sorted(weights) if n in imatrix},
    }
    key = content_key(**inputs, types=sorted(types), rows=SAMPLED_ROWS)
    known = stages.load("weight-errors", key, _Errors)
    if known is None:
        known = _Errors(errors=all_errors(weights, kinds, imatrix, threads, tell))
        stages.save("weight-errors", key, known)

    with _Prober(
        source, weights, imatrix, excerpts_of(documents), stages, inputs, threads
    ) as prober:
        leaves = split_groups(initial_groups(list(weights)), prober.kl, probes, tell)
    errors = {name: known.errors[name][probe_type(weights[name]).name] for name in weights}
    return Sensitivities(
        errors=known.errors,
        slopes=slopes_of(leaves, errors),
        groups={group.name: kl for group, kl in leaves},
    )


class _Prober:
    """Measures groups' KL, each once; the model is only loaded for those that are not known."""

    def __init__(
        self,
        source: Path,
        weights: Mapping[str, Weight],
        imatrix: ImportanceMatrix,
        excerpts: Documents,
        stages: Stages,
        inputs: Mapping[str, object],
        threads: int,
    ) -> None:
        self._source, self._weights, self._imatrix = source, weights, imatrix
        self._excerpts, self._stages, self._threads = excerpts, stages, threads
        self._key = content_key(**inputs, text=excerpts, types=PROBE_TYPES, step=OUTPUT_STEP)
        self._known = dict((stages.load("probed", self._key, _Probed) or _Probed()).kl)
        self._probe: Probe | None = None
        self._open = ExitStack()

    def kl(self, group: Group) -> float:
        if group.name not in self._known:
            if self._probe is None:
                opening = probing(self._source, self._excerpts, self._stages, threads=self._threads)
                self._probe = self._open.enter_context(opening)
            with ThreadPoolExecutor(self._threads) as pool:
                values = dict(zip(group.names, pool.map(self._rounded, group.names), strict=True))
            self._known[group.name] = self._probe.loss(values)
            self._stages.save("probed", self._key, _Probed(kl=self._known))
        return self._known[group.name]

    def _rounded(self, name: str) -> NDArray[np.float16]:
        weight = self._weights[name]
        values = rounded(probe_type(weight), weight.floats(), importance_of(weight, self._imatrix))
        return values.astype(np.float16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def excerpts_of(documents: Documents) -> list[list[int]]:
    """`PROBE_TOKENS` in pieces, from documents spread over all, and from all parts of them."""
    usable = [document for document in documents if len(document) > 1]
    if not usable:
        raise ConfigError("measuring sensitivities needs calibration text, and there was none")
    count = -(-PROBE_TOKENS // EXCERPT_TOKENS)
    out = []
    for number, index in enumerate(np.linspace(0, len(usable) - 1, count).round().astype(int)):
        document = usable[index]
        start = max(0, len(document) - EXCERPT_TOKENS) * number // max(1, count - 1)
        out.append([int(token) for token in document[start : start + EXCERPT_TOKENS]])
    return out


def _fingerprint(values: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, np.float32).tobytes()).hexdigest()[:16]
