"""``tierwise show --plot``: opens a family's report and says where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from tierwise.compression.report.write import open_report


def show_report(folder: Path, as_json: bool, print_json: Callable[[Any], None]) -> None:
    """Prints the report's path on stdout, or ``{"report", "opened"}``.

    Raises:
        FamilyError: There is no usable family in the folder.
        DiskFullError: There is no room for a report that had to be written.
    """
    report, opened = open_report(folder)
    if as_json:
        print_json({"report": str(report), "opened": opened})
        return
    typer.echo(report)
    if not opened:
        typer.echo("no browser could be started; open that file in one", err=True)
