"""Fitted estimators on disk: one .npz of plain arrays, never a pickle.

The file is read as hostile: nothing in it is run, its size is looked at first, and every array is
checked by what it is for.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tierwise.routing.estimators import SuccessPredictor
from tierwise.routing.estimators_linear import LogisticSuccess, RidgeSuccess
from tierwise.routing.estimators_neighbours import NeighbourSuccess
from tierwise.routing.estimators_prior import StructuralPrior
from tierwise.routing.features import FeatureSpec
from tierwise.runtime.errors import CalibrationError, ConfigError
from tierwise.runtime.files import write_atomically

FORMAT = "tierwise-success-1"

KINDS: dict[str, type[SuccessPredictor]] = {
    cls.kind: cls for cls in (StructuralPrior, RidgeSuccess, LogisticSuccess, NeighbourSuccess)
}
"""Every predictor that can be stored, by its name in the file."""

_MOST_BYTES = 1_000_000_000
"""Of all arrays, unpacked: some 100,000 neighbours have 40 MB."""

_MAY_BE_UNKNOWN = frozenset(("outcomes",))
"""Arrays in which NaN has a meaning."""


@dataclass(frozen=True, slots=True)
class StoredPredictor:
    """A predictor with what is needed to use it rightly.

    Attributes:
        predictor: What was fitted.
        spec: Of the features it was fitted on; compare it by `FeatureSpec.check`.
        tiers: Names, in the order of the predictor's columns.
    """

    predictor: SuccessPredictor
    spec: FeatureSpec
    tiers: tuple[str, ...]


def save_predictor(
    path: Path, predictor: SuccessPredictor, spec: FeatureSpec, tiers: Sequence[str]
) -> None:
    """Writes the file so that a reader, or a crash, sees the old one or the new one whole.

    Raises:
        ConfigError: Not as many names as the predictor has tiers.
        DiskFullError: There is no room; the old file is untouched.
    """
    if len(tiers) != predictor.tiers or len(set(tiers)) != len(tiers):
        raise ConfigError(f"a predictor of {predictor.tiers} tiers needs as many names: {tiers}")
    about = {
        "format": FORMAT,
        "kind": predictor.kind,
        "tiers": list(tiers),
        "features": asdict(spec),
    }
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), **predictor.arrays()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, array in arrays.items():
            # The date of the entry is always the same, so that equal predictors give equal files.
            with packed.open(zipfile.ZipInfo(f"{name}.npy"), "w") as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    write_atomically(path, file.getvalue())


def load_predictor(path: Path) -> StoredPredictor:
    """What `save_predictor` wrote.

    Raises:
        CalibrationError: There is no such file, or it is damaged, of another kind, or from a
            newer Tierwise.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
            if size > _MOST_BYTES:
                raise ValueError(f"its arrays would take {size:,} bytes")
            arrays = {
                entry.filename.removesuffix(".npy"): np.lib.format.read_array(
                    io.BytesIO(packed.read(entry)), allow_pickle=False
                )
                for entry in packed.infolist()
            }
        about = json.loads(arrays.pop("about").tobytes())
        if about["format"] != FORMAT or about["kind"] not in KINDS:
            raise ValueError(f"it holds {about['kind']!r} in the format {about['format']!r}")
        for name, array in arrays.items():
            if array.dtype.kind not in "fi":
                raise ValueError(f"{name} is of type {array.dtype}")
            if name not in _MAY_BE_UNKNOWN and not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        predictor = KINDS[about["kind"]].from_arrays(arrays)
        tiers = tuple(map(str, about["tiers"]))
        features = about["features"]
        hashed = tuple(map(int, features["hashed"]))
        spec = FeatureSpec(str(features["version"]), int(features["counts"]), hashed)
        if len(tiers) != predictor.tiers:
            raise ValueError(f"{len(tiers)} names for {predictor.tiers} tiers")
    except FileNotFoundError as error:
        raise CalibrationError(f"there is no calibration at {str(path)!r}") from error
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        MemoryError,
        RuntimeError,
    ) as error:
        raise CalibrationError(
            f"{str(path)!r} is no calibration that this Tierwise can read ({error}). Calibrate "
            "the family again."
        ) from error
    return StoredPredictor(predictor, spec, tiers)
