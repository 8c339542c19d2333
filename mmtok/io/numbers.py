"""Numbers as people and tables write them: read strictly, or refused in one line."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.messages import shown

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"  # 600, -1.5, .5, 6e2; no unit, no comma


def as_number(value: Any, where: str) -> float:
    """A cell or a word as a number.

    where: what messages call it.

    Raises UserError for what is no finite number: words, units, thousands separators, NaN.
    """
    if isinstance(value, str):
        if not re.fullmatch(NUMBER, value.strip()):
            raise UserError(
                f"{where}: {shown(value)} is no number; write it as 600, 0.5 or 6e2, without unit"
                " and thousands separator"
            )
        value = float(value)
    if not isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        raise UserError(f"{where}: {shown(value)} is no number")
    try:
        number = float(value)
    except OverflowError:  # of a whole number
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where}: the number is {number}; it must be finite, or left out")
    return number
