"""Tables beside pictures that no layout can read: they are refused rather than passed over."""

from __future__ import annotations

import re

from mmtok.errors import UserError
from mmtok.io.tables import SUFFIXES as TABLES
from mmtok.sources.image_captions import (
    folder_caption,
    has_columns,
    is_one_object,
    no_table,
    opened_table,
)
from mmtok.sources.pictures import CAPTIONS_TEXT, Place, ReadSettings

# a folder of such a name is a split, or says only that pictures are in it, and is no class
SPLIT_FOLDER = re.compile(r"(train|test|val|valid|validation|dev)[-_]?(images)?\d*", re.IGNORECASE)


def check_tables_used(place: Place, settings: ReadSettings) -> None:
    """Raise UserError where a folder has a table, and would be read without it for nothing.

    That is where folders give no captions, as the pictures lie in one or in those of splits, and
    where the user names columns.
    """
    if not settings.columns and _has_classes(place):
        return
    for path in place.companions:
        if not path.name.lower().endswith((*TABLES, CAPTIONS_TEXT)) or is_one_object(path):
            continue
        try:
            table = opened_table(place, path, is_needed=True)
        except UserError as error:
            raise _with_remedy(error) from None
        if table is None:
            continue
        if path.parent != place.folder and has_columns(place, table, settings):
            raise _with_remedy(
                UserError(f"{path}: a table of pictures and captions; give its own --path")
            )
        raise _with_remedy(no_table(place, settings))


def _has_classes(place: Place) -> bool:
    """Whether the folders of pictures differ by more than the split."""
    parents = {file.rpartition("/")[0] for file in place.pictures}
    names = {folder_caption(parent.split("/"), "") for parent in parents}
    return sum(SPLIT_FOLDER.fullmatch(name) is None for name in names) > 1


def _with_remedy(error: UserError) -> UserError:
    return UserError(f"{error}; or take no captions from it: --layout folder")
