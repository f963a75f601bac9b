"""What stands before a line that says how something went, on terminals that have no "✓" too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tierwise.plugin.doctor import Finding, Status

_SIGNS = {"ok": ("✓", "+", "green"), "warn": ("!", "!", "yellow"), "fail": ("✗", "x", "red")}
"""In Unicode, in ASCII (where both ends would else be a "?"), and the colour."""


def sign(console: Console, status: Status) -> Text:
    """The sign of that status, in characters that the console can write."""
    full, plain, color = _SIGNS[status]
    return Text(plain if console.options.ascii_only else full, style=color)


def findings_table(console: Console, findings: Sequence[Finding]) -> Table:
    """A line per finding; the cure stands below what it cures."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    arrow = "->" if console.options.ascii_only else "→"
    for finding in findings:
        detail = Text(finding.detail)
        if finding.cure:
            detail.append(f"\n{arrow} {finding.cure}", style="bold")
        table.add_row(sign(console, finding.status), Text(finding.name), detail)
    return table
