"""Where streams stand in the rows of a picture, while its codes are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmtok.core.rows import row_layout
from mmtok.errors import UserError


class RowsDrawn:
    """The rows of N pictures of any size.

    Attributes:
        row: (N,) complete rows.
        column: (N,) codes drawn of the row that is being drawn.
        columns: (N,) codes of every row; 0 in a first row whose length is still open.
        n_rows: rows of all pictures; 0: open.
    """

    def __init__(
        self,
        known: Sequence[np.ndarray],
        mark: int,
        n_rows: int = 0,
        n_columns: int = 0,
        columns: int = 0,
    ):
        """The state behind known codes.

        Args:
            known: (T,) of each picture.
            mark: the row mark.
            n_rows: how many rows are asked for; 0: any.
            n_columns: how many codes of a row; 0: any.
            columns: how many codes each row has, as the signature says; 0: it does not.

        Raises:
            UserError: The known codes have more rows than are asked for, or other columns.
        """
        layouts = [row_layout(codes, mark, columns=columns) for codes in known]
        self.row = np.array([int((codes == mark).sum()) for codes in known], int)
        self.column = np.array([layout.column for layout in layouts], int)
        self.columns = np.array([layout.columns for layout in layouts], int)
        self.n_rows = n_rows
        if n_rows and (self.row >= n_rows).any():
            raise UserError(
                f"the beginning has {self.row.max()} rows, of {n_rows} that are asked for: nothing"
                " is left to draw"
            )
        has = np.maximum(self.columns, self.column)
        n_columns = columns or n_columns
        fits = (self.columns == n_columns) | ((self.columns == 0) & (self.column <= n_columns))
        if n_columns and not fits.all():
            raise UserError(
                f"the beginning has {has[~fits][0]} columns, but {n_columns} are asked for; leave"
                " columns out"
            )
        if n_columns:
            self.columns[:] = n_columns

    def legal(self, logits: Tensor) -> Tensor:
        """Logits (N, n + 1) of the codes and the end mark, -inf for what cannot follow."""
        may_go_on = (self.columns == 0) | (self.column < self.columns)
        may_end = np.where(self.column > 0, (self.columns == 0) | ~may_go_on, self.row > 0)
        if self.n_rows:
            at_start = self.column == 0
            may_end &= ~at_start | (self.row == self.n_rows)
            may_go_on &= ~at_start | (self.row < self.n_rows)
        low = float("-inf")
        logits[:, -1].masked_fill_(torch.from_numpy(~may_end).to(logits.device), low)
        full = torch.from_numpy(~may_go_on).to(logits.device)
        logits[:, :-1].masked_fill_(full[:, None], low)
        return logits

    def ended(self, is_end: np.ndarray) -> np.ndarray:
        """Note which end marks (N,) were drawn; which of them end their picture."""
        ended: np.ndarray = is_end & (self.column == 0)
        self.row = self.row + is_end
        self.columns = np.where(is_end & (self.columns == 0), self.column, self.columns)
        self.column = np.where(is_end, 0, self.column + 1)
        return ended

    def keep(self, kept: np.ndarray) -> None:
        """Forget the others."""
        self.row = self.row[kept]
        self.column = self.column[kept]
        self.columns = self.columns[kept]

    def join(self, other: RowsDrawn) -> None:
        """Take other pictures behind these, of which as many rows are asked for."""
        self.row = np.concatenate([self.row, other.row])
        self.column = np.concatenate([self.column, other.column])
        self.columns = np.concatenate([self.columns, other.columns])
