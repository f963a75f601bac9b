"""What rounding costs each tensor's products, from weights and importance matrix alone.

The squared error of an output is the weights' squared errors, each times its input's mean square,
as long as errors of different inputs do not go together (llama.cpp's quantizers minimise the
same).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tierwise.compression.precision.ggml import Floats, Weight, rounded
from tierwise.compression.precision.types import TENSOR_TYPES, TensorType
from tierwise.compression.quantize import ImportanceMatrix

SEARCHED = (
    *("F16", "Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0", "IQ4_NL"),
    *("IQ4_XS", "MXFP4", "Q3_K", "Q2_K"),
)
"""Types that a search considers. IQ3 and below take llama.cpp a second for a million weights and
more, and are hardly better than the K-quants of their size where there is an importance matrix."""

PROBE_TYPES = ("Q4_0", "Q8_0")
"""The first that fits a tensor's width and is not its own type: coarse enough to stand out from
rounding in F16, and quick to make."""

SAMPLED_ROWS = 48
"""Of each tensor, for the errors of all types but the probed one, which has all rows."""

Progress = Callable[[str, float], None]


def importance_of(weight: Weight, imatrix: ImportanceMatrix) -> Floats | None:
    """Of a tensor's input channels; None where there is none of its width. Of a mixture's experts
    it is the mean: the rows that are looked at are from all of them."""
    found = imatrix.get(weight.name)
    if found is None or found.size not in (weight.width, weight.width * weight.experts):
        return None
    mean: Floats = found.reshape(-1, weight.width).mean(axis=0)
    return mean


def probe_type(weight: Weight) -> TensorType:
    kinds = [TENSOR_TYPES[name] for name in PROBE_TYPES]
    fit = [kind for kind in kinds if weight.width % kind.block == 0 and kind != weight.kind]
    return fit[0] if fit else TENSOR_TYPES["BF16"]


def all_errors(
    weights: Mapping[str, Weight],
    kinds: Sequence[TensorType],
    imatrix: ImportanceMatrix,
    threads: int,
    tell: Progress,
) -> dict[str, dict[str, float]]:
    def errors(weight: Weight) -> dict[str, float]:
        return weight_errors(weight, kinds, importance_of(weight, imatrix))

    out = {}
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(errors, weights.values())
        for number, (name, error) in enumerate(zip(weights, found, strict=True)):
            tell(f"rounding {name}", number / len(weights))
            out[name] = error
    return out


def weight_errors(
    weight: Weight, kinds: Sequence[TensorType], importance: Floats | None
) -> dict[str, float]:
    """Weighted squared errors of the types that fit a tensor, its own and the probed one too.

    All are of `SAMPLED_ROWS` rows, evenly spread, and scaled up to all of them.
    """
    count = min(weight.rows, SAMPLED_ROWS)
    rows = np.linspace(0, weight.rows - 1, count).round().astype(np.int64)
    values = weight.floats(rows)
    out = {weight.kind.name: 0.0}
    for kind in (*kinds, probe_type(weight)):
        needs = kind.needs_imatrix and importance is None
        if kind.name in out or weight.width % kind.block or needs:
            continue
        off = values - rounded(kind, values, importance)
        columns = np.einsum("ij,ij->j", off, off, dtype=np.float64)
        total = columns.sum() if importance is None else columns @ importance
        out[kind.name] = float(total) * weight.rows / count
    return out
