"""A family's calibration on disk: the predictor's arrays, and beside them all that was found.

``calibration.npz`` comes first and ``calibration.json``, which holds its hash, last: a reader, or
a crash between the two, never sees halves of two calibrations.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tierwise.routing.bootstrap import Interval
from tierwise.routing.calibration import Calibration, Judged
from tierwise.routing.estimators_store import load_predictor, save_predictor
from tierwise.routing.features import PLAIN_SPEC
from tierwise.routing.isotonic import Bin, IsotonicCurve, Reliability, TierCurves
from tierwise.routing.signals import SURENESS, Signals
from tierwise.routing.verdict import Contender, Verdict
from tierwise.runtime.errors import CalibrationError, ConfigError
from tierwise.runtime.family import Family
from tierwise.runtime.files import sha256_of, write_atomically

ARRAYS, FOUND = "calibration.npz", "calibration.json"
FORMAT = "tierwise-calibration-2"

log = logging.getLogger("tierwise.routing")


def save_calibration(folder: Path, calibration: Calibration) -> Path:
    """Keeps it in the family's folder; returns the JSON file.

    Raises:
        DiskFullError: There is no room; an older calibration is void then.
    """
    (folder / FOUND).unlink(missing_ok=True)
    save_predictor(folder / ARRAYS, calibration.predictor, calibration.spec, calibration.tiers)
    content = {
        "format": FORMAT,
        "arrays_sha256": sha256_of(folder / ARRAYS),
        **calibration_json(calibration),
        "curves": None
        if calibration.curves is None
        else [_lists(curve.arrays()) for curve in calibration.curves.curves],
        "signals": None if calibration.signals is None else _lists(asdict(calibration.signals)),
        "judged": _lists(asdict(calibration.judged)),
    }
    write_atomically(folder / FOUND, json.dumps(_plain(content), indent=1) + "\n")
    return folder / FOUND


def calibration_json(calibration: Calibration) -> dict[str, Any]:
    """What was found, as plain data; what is not defined is null.

    Keys: ``tiers, sha256, estimator, areas, means, usual, verified, floor, suites, verdict,
    reliability``.
    """
    found = {
        "tiers": list(calibration.tiers),
        "sha256": list(calibration.sha256),
        "estimator": calibration.estimator,
        "areas": dict(calibration.areas),
        "means": calibration.means.tolist(),
        "usual": calibration.usual.tolist(),
        "verified": calibration.verified.tolist(),
        "floor": calibration.floor,
        "suites": dict(calibration.suites),
        "verdict": calibration.verdict.to_json(),
        "reliability": {name: asdict(one) for name, one in calibration.reliability.items()},
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def load_calibration(folder: Path) -> Calibration:
    """What `save_calibration` kept.

    Raises:
        CalibrationError: There is none, or it is damaged, or of another version.
    """
    path = folder / FOUND
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"it is in the format {content['format']!r}")
        stored = load_predictor(folder / ARRAYS)
        if sha256_of(folder / ARRAYS) != content["arrays_sha256"]:
            raise ValueError(f"{ARRAYS} is of another calibration")
        tiers = tuple(map(str, content["tiers"]))
        if stored.tiers != tiers or len(content["means"]) != len(tiers):
            raise ValueError("its parts are of different tiers")
        stored.spec.check(PLAIN_SPEC)
        curves = content["curves"]
        judged = content["judged"]
        shape = (-1, len(tiers))
        return Calibration(
            tiers=tiers,
            sha256=tuple(map(str, content["sha256"])),
            predictor=stored.predictor,
            curves=None
            if curves is None
            else TierCurves(
                tuple(
                    IsotonicCurve(np.array(c["scores"], float), np.array(c["chances"], float))
                    for c in curves
                )
            ),
            signals=_signals(content["signals"], len(tiers)),
            spec=stored.spec,
            means=np.array(content["means"], float),
            usual=np.array(content["usual"], float).reshape(len(tiers)),
            verified=np.array(content["verified"], float).reshape(len(tiers), 2),
            estimator=str(content["estimator"]),
            areas={name: _number(area) for name, area in content["areas"].items()},
            reliability={name: _reliability(r) for name, r in content["reliability"].items()},
            verdict=_verdict(content["verdict"]),
            floor=float(content["floor"]),
            suites={str(name): int(n) for name, n in content["suites"].items()},
            judged=Judged(
                np.array(judged["predicted"], float).reshape(shape),
                np.array(judged["outcomes"], float).reshape(shape),
                np.array(judged["cost"], float).reshape(shape),
                np.array(judged["groups"], np.intp),
            ),
        )
    except FileNotFoundError as error:
        raise CalibrationError(
            f"{str(folder)!r} is not calibrated; tierwise calibrate does that"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
        raise CalibrationError(
            f"{str(path)!r} is no calibration that this Tierwise can read ({error}). Run tierwise "
            "calibrate again: what was collected is kept."
        ) from error


def calibration_of(family: Family) -> Calibration | None:
    """The family's calibration, if it has one that can be used; a warning says why it cannot."""
    if not (family.folder / FOUND).is_file():
        return None
    try:
        found = load_calibration(family.folder)
    except CalibrationError as error:
        log.warning("routing goes by the family's own measurements: %s", error)
        return None
    if not found.is_of(family):
        log.warning(
            "routing goes by the family's own measurements: %s is calibrated, but its tiers have "
            "changed since. Run tierwise calibrate again.",
            family.folder,
        )
        return None
    return found


# --- to and from plain data -----------------------------------------------------------------


def _lists(arrays: Any) -> dict[str, Any]:
    return {name: np.asarray(array).tolist() for name, array in arrays.items()}


def _plain(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _signals(found: Any, tiers: int) -> Signals | None:
    if found is None:
        return None
    return Signals(
        np.array(found["weights"], float).reshape(tiers, SURENESS + 3),
        np.array(found["rivals"], float).reshape(tiers, tiers, 3),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _interval(found: dict[str, Any]) -> Interval:
    return Interval(*(_number(found[name]) for name in ("value", "low", "high")))


def _reliability(found: dict[str, Any]) -> Reliability:
    intervals = {name: _interval(found[name]) for name in ("brier", "ece_mass", "ece_width")}
    return Reliability(
        n=int(found["n"]), bins=tuple(Bin(**one) for one in found["bins"]), **intervals
    )


def _verdict(found: dict[str, Any]) -> Verdict:
    rows = (
        Contender(str(row["name"]), *(_interval(row[name]) for name in ("quality", "cost", "lead")))
        for row in found["table"]
    )
    return Verdict(
        route=bool(found["route"]),
        reason=str(found["reason"]),
        best_fixed=str(found["best_fixed"]),
        n=int(found["n"]),
        prompts=int(found["prompts"]),
        table=tuple(rows),
    )
