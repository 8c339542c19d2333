"""Where streams stand in the rows of a picture, while its codes are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmtok.core.rows import row_layout


class RowsDrawn:
    """The rows of N pictures of any size.

    Attributes:
        column: (N,) codes drawn of the row that is being drawn.
        columns: (N,) codes of every row; 0 in the first row, which says it.
    """

    def __init__(self, known: Sequence[np.ndarray], mark: int):
        layouts = [row_layout(codes, mark) for codes in known]
        self.column = np.array([layout.column for layout in layouts], int)
        self.columns = np.array([layout.columns for layout in layouts], int)

    def legal(self, logits: Tensor) -> Tensor:
        """Logits (N, n + 1) of the codes and the end mark, -inf for what cannot follow."""
        is_full = (self.columns > 0) & (self.column == self.columns)
        may_end = is_full | ((self.columns == 0) != (self.column == 0))
        logits[:, -1].masked_fill_(torch.from_numpy(~may_end).to(logits.device), float("-inf"))
        logits[:, :-1].masked_fill_(
            torch.from_numpy(is_full).to(logits.device)[:, None], float("-inf")
        )
        return logits

    def ended(self, is_end: np.ndarray) -> np.ndarray:
        """Note which end marks (N,) were drawn; which of them end their picture."""
        ended: np.ndarray = is_end & (self.column == 0)
        self.columns = np.where(is_end & (self.columns == 0), self.column, self.columns)
        self.column = np.where(is_end, 0, self.column + 1)
        return ended

    def keep(self, kept: np.ndarray) -> None:
        """Forget the others."""
        self.column = self.column[kept]
        self.columns = self.columns[kept]
