"""Codes in rows: a picture of any size as rows of one length, each closed by a row mark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmtok.errors import UserError


@dataclass(frozen=True, eq=False)
class RowLayout:
    """What is known of codes in rows.

    Attributes:
        may_end: (T,) bool: a row, or the segment, may end at this place.
        certain: (T,) bool: nothing but the row mark may stand at this place.
        column: codes behind the last row mark.
        columns: codes of each row; 0 while no row is complete.
    """

    may_end: np.ndarray
    certain: np.ndarray
    column: int
    columns: int


def row_layout(
    codes: np.ndarray, mark: int, modality: str = "image", columns: int = 0
) -> RowLayout:
    """The layout of codes (T,), the last row of which need not be complete.

    columns: codes of each row; 0: the first row says it.

    Raises UserError where rows are empty, differ in length or have other columns.
    """
    place = np.arange(len(codes))
    is_mark = codes == mark
    said_before = columns > 0
    if not said_before and not is_mark.any():
        return RowLayout(place > 0, np.zeros(len(codes), bool), len(codes), 0)
    if not said_before:
        columns = int(is_mark.argmax())
    column = place % (columns + 1)
    at_mark = column == columns
    if columns == 0 or not np.array_equal(at_mark, is_mark):
        length = f"of {columns} codes" if said_before else "of one length"
        raise UserError(
            f"{modality}: its codes are not rows {length}, each closed by a row mark; are they"
            " another tokenizer's?"
        )
    in_first_row = place <= columns
    may_end = at_mark | (column == 0) & ~in_first_row
    if said_before:
        return RowLayout(may_end, at_mark, len(codes) % (columns + 1), columns)
    may_end = np.where(in_first_row, column > 0, may_end)
    return RowLayout(may_end, at_mark & ~in_first_row, len(codes) % (columns + 1), columns)


def in_rows(codes: np.ndarray, mark: int) -> np.ndarray:
    """Codes (rows, columns) -> (rows x (columns + 1),), each row closed by a mark."""
    marks = np.full((len(codes), 1), mark, codes.dtype)
    return np.concatenate([codes, marks], 1).ravel()


def of_rows(codes: np.ndarray, mark: int, modality: str = "image", columns: int = 0) -> np.ndarray:
    """The inverse of `in_rows`, of complete rows; of codes without a mark, all in one row.

    columns: as of `row_layout`, which says when UserError is raised; then only complete rows count.
    """
    layout = row_layout(codes, mark, modality, columns)
    if not layout.columns:
        return codes[None]
    complete = codes[: len(codes) - layout.column]
    return complete.reshape(-1, layout.columns + 1)[:, :-1]
