"""How fractions are shown: the one place where they are rounded for people.

Reports hold six digits. They are read as the decimal number that is written there and rounded half up once, as a
reader would do it: 0.4095 is 41.0 %. Differences are those of shown percentages, so that a reader can check them.
"""

from decimal import ROUND_HALF_UP, Decimal

import numpy as np

DIGITS = 6  # of fractions in CSV and JSON files
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def points(fraction: float | None, digits: int = 1) -> float | None:
    """A fraction in %, rounded as it is shown; None for what was not measured (None or nan)."""
    if fraction is None or np.isnan(fraction):
        return None
    exact = 100 * Decimal(str(float(fraction)))
    return float(exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def gain(ours: float | None, other: float | None) -> float | None:
    """Difference of two shown percentages in points."""
    return None if ours is None or other is None else round(ours - other, 1)


def shown(percentage: float | None) -> str:
    return DASH if percentage is None else f"{percentage:.1f}"


def signed(difference: float | None) -> str:
    """+1.2, -3.4 (with a true minus sign), 0.0: readable without colour."""
    return DASH if difference is None else f"{difference:+.1f}".replace("-", MINUS) if difference else "0.0"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with one digit, without its sign %."""
    return shown(points(fraction))
