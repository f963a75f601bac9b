"""From features to the columns that estimators learn from: two blocks on one scale.

Counts are standardised. Hashed n-grams are weighted by how few texts hold them (TF-IDF) and
projected on the directions along which the fitted texts differ most (truncated SVD, which is
latent semantic analysis: Deerwester et al., JASIS 41, 1990). Each block is then divided by its own
largest singular value, so that neither drowns the other, whatever their numbers of columns
(multiple factor analysis: Escofier and Pagès, Computational Statistics & Data Analysis 18, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tierwise.runtime.errors import ConfigError

Floats = NDArray[np.floating[Any]]
"""Of either precision: features are kept in 32 bits, and learned from in 64."""

DIMENSIONS = 50
"""Of the text block."""

_FURTHEST = 5.0
"""Standard deviations: a count that is further off (a whole book in a chat) counts as this far."""

_SPARE_DIRECTIONS, _POWER_ITERATIONS = 10, 3


@dataclass(frozen=True, slots=True)
class Representation:
    """Fitted once, then a function of features.

    Attributes:
        hashed: Widths of the blocks of hashed n-grams, which are the last columns of the features.
        mean: Of the other columns, shape (dense,).
        scale: What these are multiplied by, shape (dense,); 0 for those that never differ.
        balance: What the standardised counts are multiplied by.
        idf: Weights of the hashed columns, shape (sum of hashed,).
        components: Directions, balanced, shape (sum of hashed, dimensions).
    """

    hashed: tuple[int, ...]
    mean: Floats
    scale: Floats
    balance: float
    idf: Floats
    components: Floats

    @classmethod
    def fit(
        cls,
        x: Floats,
        hashed: Sequence[int] = (),
        weights: Floats | None = None,
        *,
        dimensions: int = DIMENSIONS,
        seed: int = 0,
    ) -> Representation:
        """Learns from features; outcomes are not needed.

        Args:
            x: Shape (n, dense + sum(hashed)).
            weights: Of the rows; all alike by default.
            dimensions: Of the text block, at most; few rows have fewer.
            seed: Of the SVD's random projection.

        Raises:
            ConfigError: ``x`` has no rows or fewer columns than ``hashed`` says, or
                ``dimensions`` is negative.
        """
        if x.ndim != 2 or not len(x) or x.shape[1] < sum(hashed) or dimensions < 0:
            raise ConfigError(
                f"features must have rows and at least {sum(hashed)} columns, and dimensions must "
                f"be 0 or more; got the shape {x.shape} and {dimensions} dimensions"
            )
        dense = x.shape[1] - sum(hashed)
        share = np.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
        counts = x[:, :dense].astype(np.float64)
        mean = share @ counts
        spread = np.sqrt(share @ (counts - mean) ** 2)
        differs = spread > 1e-6 * (1 + np.abs(mean))
        scale = differs / np.where(differs, spread, 1.0)
        frequency = share @ (x[:, dense:] != 0) * len(x)
        # What only one text holds says nothing of others.
        idf = np.where(frequency > 1.5, np.log((1 + len(x)) / (1 + frequency)) + 1, 0.0)
        text = _weighted(x[:, dense:], idf, hashed)
        components = _directions(text * np.sqrt(share)[:, None], dimensions, seed)
        return cls(
            hashed=tuple(hashed),
            mean=mean.astype(np.float32),
            scale=scale.astype(np.float32),
            balance=_balance(_standard(counts, mean, scale), share),
            idf=idf.astype(np.float32),
            components=(components * _balance(text @ components, share)).astype(np.float32),
        )

    @property
    def width(self) -> int:
        """Columns that come out."""
        return len(self.mean) + int(self.components.shape[1])

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """All that `from_arrays` needs."""
        return {
            "hashed": np.array(self.hashed, np.int64),
            "mean": self.mean,
            "scale": self.scale,
            "balance": np.array(self.balance),
            "idf": self.idf,
            "components": self.components,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Representation:
        """The representation that had these arrays.

        Raises:
            KeyError, ValueError: One is missing or has the wrong shape.
        """
        hashed = tuple(int(width) for width in arrays["hashed"])
        mean, scale, idf = arrays["mean"], arrays["scale"], arrays["idf"]
        components = arrays["components"]
        shapes = (mean.shape, idf.shape, components.shape[:1], components.ndim)
        if shapes != (scale.shape, (sum(hashed),), (sum(hashed),), 2) or mean.ndim != 1:
            raise ValueError(f"shapes of the representation do not match: {shapes}")
        return cls(hashed, mean, scale, float(arrays["balance"]), idf, components)

    def __call__(self, x: Floats) -> Floats:
        """Features of shape (m, dense + sum(hashed)) as shape (m, dense + dimensions); raises as
        `parts`."""
        counts, text = self.parts(x)
        return np.concatenate((counts, text @ self.components), axis=1) if self.hashed else counts

    def parts(self, x: Floats) -> tuple[Floats, Floats]:
        """The counts, balanced, of shape (m, dense), and the weighted n-grams before they are
        projected onto `components`, of shape (m, sum(hashed)).

        Raises:
            ConfigError: Not as many features as it was fitted on.
        """
        dense = len(self.mean)
        if x.ndim != 2 or x.shape[1] != dense + len(self.idf):
            raise ConfigError(
                f"features must have the shape (rows, {dense + len(self.idf)}) that the estimator "
                f"was fitted on, got {x.shape}"
            )
        counts = _standard(x[:, :dense], self.mean, self.scale) * self.balance
        return counts, _weighted(x[:, dense:], self.idf, self.hashed)


def _standard(counts: Floats, mean: Floats, scale: Floats) -> Floats:
    return np.clip((counts - mean) * scale, -_FURTHEST, _FURTHEST)


def _weighted(grams: Floats, idf: Floats, hashed: Sequence[int]) -> Floats:
    """TF-IDF; in every block each row has length 1, or 0 if the text is empty."""
    out = grams * idf
    for block in _slices(hashed):
        part = out[:, block]
        length = np.sqrt(np.einsum("ij,ij->i", part, part))
        part /= np.maximum(length, 1e-9)[:, None]
    return out


def _slices(widths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for width in widths:
        yield slice(start, start + width)
        start += width


def _directions(rows: Floats, most: int, seed: int) -> Floats:
    """The leading right singular vectors, shape (columns, at most ``most``).

    By a random projection where the matrix is much larger (Halko, Martinsson and Tropp, SIAM
    Review 53, 2011, algorithm 4.4). Of either sign of a vector the one is taken whose entry of
    largest size is positive.
    """
    columns = rows.shape[1]
    drawn = most + _SPARE_DIRECTIONS
    if not columns or not most:
        return np.zeros((columns, 0))
    if min(rows.shape) > 2 * drawn:
        rng = np.random.default_rng(seed)
        basis = rows @ rng.standard_normal((columns, drawn)).astype(rows.dtype)
        for _ in range(_POWER_ITERATIONS):
            basis = np.linalg.qr(rows.T @ np.linalg.qr(basis)[0])[0]
            basis = rows @ basis
        basis = np.linalg.qr(basis)[0]
        _, sizes, vectors = np.linalg.svd(basis.T @ rows, full_matrices=False)
    else:
        _, sizes, vectors = np.linalg.svd(rows, full_matrices=False)
    kept = vectors[:most][sizes[:most] > 1e-5 * max(1e-30, sizes[0])].T
    largest = np.argmax(np.abs(kept), axis=0)
    signed: Floats = kept * np.sign(kept[largest, np.arange(kept.shape[1])])
    return signed


def _balance(block: Floats, share: Floats) -> float:
    """One over the largest singular value of the weighted, centred rows; 1 if all are alike."""
    if not block.shape[1]:
        return 1.0
    centred = (block - share @ block) * np.sqrt(share)[:, None]
    largest = float(np.linalg.eigvalsh(centred.T @ centred)[-1])
    return 1.0 / math.sqrt(largest) if largest > 1e-12 else 1.0
