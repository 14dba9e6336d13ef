"""Cells that were made harmless for spreadsheets, read back as they were."""

import re

# What makes a spreadsheet take a cell for a formula (the wide signs do in East Asian editions).
FORMULA_SIGNS = r"=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20"

_DISARMED = re.compile(f"'+[{FORMULA_SIGNS}]")


def unguard_formula(cell: str) -> str:
    """Take off the apostrophe that a CSV file of ours puts before what looks like a formula."""
    return cell[1:] if _DISARMED.match(cell) else cell
