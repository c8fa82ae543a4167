"""The grids that histograms are counted on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Grid:
    """Bins of equal width, or of equal ratio. They never change, so segments' counts add up."""

    per_unit: float
    """Number of bins per unit, or per octave."""
    octaves: bool = False
    """Whether bins have equal ratios."""

    def low(self, column: str) -> str:
        """SQL for the number of a value's bin, counted from zero."""
        value = f"log2({column})" if self.octaves else column
        # An edge belongs to its own bin, although 0.29 * 100 is less than 29 in floating point.
        return f"cast(floor({value} * {self.per_unit!r} + 1e-9) as bigint)"

    def edge(self, number: int) -> float:
        """Lower edge of a bin by its number."""
        if not self.octaves:
            return number / self.per_unit
        exponent, part = divmod(number, int(self.per_unit))
        # Whole octaves are exact powers of two: 256, not 255.99999999999997.
        return math.ldexp(2 ** (part / self.per_unit), exponent)


SIMILARITY: Final = Grid(100)
SCORE: Final = Grid(20)
"""For heads: a probability has twenty bins, a mark from 0 to 10 two hundred."""
TEN_THOUSANDTHS: Final = Grid(10_000)
TEXT_LENGTH: Final = Grid(1 / 5)
CHARACTERS: Final = Grid(1)
PIXELS: Final = Grid(2, octaves=True)
ASPECT: Final = Grid(4, octaves=True)
