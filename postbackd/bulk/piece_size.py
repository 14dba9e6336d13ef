"""The size of the next piece of a long import, by how long the last one held the lock."""

from typing import NamedTuple

# One slow piece must not make the next one much too small.
LARGEST_CUT = 0.5


class PieceSize(NamedTuple):
    """The aimed seconds of a piece, its bounds in rows, and how fast it may grow."""

    aim_seconds: float
    smallest_rows: int
    largest_rows: int
    largest_growth: float

    def adapt(self, rows: int, seconds: float) -> int:
        """Compute the rows of the next piece, after `rows` took `seconds`."""
        change = min(self.largest_growth, max(LARGEST_CUT, self.aim_seconds / max(seconds, 1e-9)))
        return max(self.smallest_rows, min(self.largest_rows, int(rows * change)))
