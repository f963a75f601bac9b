"""What tasks are generated from: one catalogue to measure with, one to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tierwise.evaluation.tool_patterns import Catalog, Pattern
from tierwise.evaluation.tool_slots import slot_names
from tierwise.evaluation.tools_for_calibration import CALIBRATION
from tierwise.evaluation.tools_for_tests import TEST

__all__ = ["CATALOGS", "Catalog", "Pattern", "Split", "slot_names"]

Split = Literal["test", "calibration"]

CATALOGS: Mapping[Split, Catalog] = {"test": TEST, "calibration": CALIBRATION}
