"""Cells that were guarded against spreadsheets' formulas, read back as they were."""

import re

# Spreadsheets take a cell that begins with one of these for a formula (the wide signs in East Asian
# editions).
FORMULA_SIGNS = r"=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20"

_GUARDED = re.compile(f"'+[{FORMULA_SIGNS}]")


def unguard_formula(cell: str) -> str:
    """Remove the apostrophe that our CSV files put before a cell that looks like a formula."""
    return cell[1:] if _GUARDED.match(cell) else cell
