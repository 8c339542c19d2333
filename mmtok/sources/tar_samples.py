"""Samples in tars, as sources of any modality read them: which members, and where captions are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, reason_of
from mmtok.io.columns import cell_of, known_column, named_column
from mmtok.io.messages import listed
from mmtok.io.strict_json import unique_keys
from mmtok.io.tally import Tally
from mmtok.io.tars import PACKED_TARS, TARS, TarIndex, read_span, tar_index
from mmtok.sources.captions import CAPTION_COLUMNS, caption_of
from mmtok.sources.screen import Broken, Tolerance

TEXTS = ("txt", "text", "caption", "cls", "cls.txt")  # members that hold a caption, likeliest first
JSON = "json"


@dataclass(frozen=True)
class Caption:
    """Where the captions of samples are.

    Attributes:
        suffix: of the member.
        key: in its JSON; "" where the member is the caption, as is a JSON that is one string.
        names: of the classes 0, 1, ..., where captions are numbers.
    """

    suffix: str
    key: str = ""
    names: tuple[str, ...] = ()

    def text(self, content: bytes, where: str) -> str:
        """The caption in a member. Raises UserError where there is none."""
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{where}: not UTF-8 text") from None
        if self.suffix == JSON:
            text = self._in_json(text, where)
        return caption_of(text, self.names, where)

    def _in_json(self, text: str, where: str) -> str:
        found = json_value(text, where)
        if not self.key:
            if not isinstance(found, str):
                raise UserError(f"{where}: holds {type(found).__name__}, and others a string")
            return found
        found = cell_of(json_object(found, where), self.key)
        if isinstance(found, bool) or not isinstance(found, (str, int, float)):
            raise UserError(f"{where}: its {self.key} is {found!r:.60}, and no text")
        return str(found)


def json_value(text: str, where: str) -> Any:
    """What a text of JSON holds. Raises UserError for another text."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({reason_of(error)})") from None


def json_object(found: Any, where: str) -> dict:
    """A value of JSON as the object that it is. Raises UserError for another thing."""
    if not isinstance(found, dict):
        raise UserError(f"{where}: holds {type(found).__name__}, not an object")
    return found


def tars_of(files: Sequence[Path]) -> list[Path]:
    """The tars among files, and packed ones, which cannot be used; not where unpacked beside."""
    plain = [path for path in files if path.name.lower().endswith(TARS)]
    unpacked = {path.with_suffix("") for path in plain}
    packed = [
        path
        for path in files
        if path.name.lower().endswith(PACKED_TARS) and _unpacked(path) not in unpacked
    ]
    return sorted([*plain, *packed])


def _unpacked(path: Path) -> Path:
    """The path of a packed tar without its suffixes."""
    return path.with_name(re.sub(r"\.(tgz|tar\.\w+)$", "", path.name, flags=re.IGNORECASE))


class Tars:
    """Some tars, of which a few may be unusable.

    Raises UserError where there are none, and where more are unusable than the user allows.

    Attributes:
        indices: of those that can be used.
        n_having: suffix -> how many samples have a member of it.
    """

    def __init__(self, paths: Sequence[Path], tolerance: Tolerance, shown: str) -> None:
        if not paths:
            raise UserError(f"{shown}: no tars in it")
        self.indices: list[TarIndex] = []
        broken = Broken(len(paths), "tars", tolerance)
        tally = Tally("tars")
        for path in paths:
            tally.count()
            try:
                self.indices.append(tar_index(path))
            except UserError as error:
                broken.add(str(path), error, tally)
        broken.stop_if_many()
        tally.report()
        self.n_having: dict[str, int] = {}
        with Tally("members of tars") as tally:
            for index in self.indices:
                tally.count(index.n_members)
                for what, (count, first) in index.notes.items():
                    tally.add(what, first, count)
                for suffix in index.suffixes:
                    n = int(index.having(suffix).sum())
                    self.n_having[suffix] = self.n_having.get(suffix, 0) + n

    def suffixes(self, field: str, known: Sequence[str], columns: Mapping[str, str]) -> list[str]:
        """The suffixes of a field's members: the one that the user names, else those of a format.

        Raises UserError where there are none.
        """
        there = list(self.n_having)
        where = self.indices[0].path
        if field in columns:
            return [named_column(columns[field].lstrip("."), there, where)]
        found = sorted(set(known) & set(there))
        if not found:
            raise UserError(
                f"{where}: no member can be the {field}; their suffixes are"
                f" {listed(there) or 'none'}; name one: --columns {field}=SUFFIX"
            )
        return found

    def caption(self, columns: Mapping[str, str], names: tuple[str, ...] = ()) -> Caption:
        """Where captions are: members of a known suffix, or a key of the JSON beside them.

        The user may name either: caption=txt, caption=alt_text.

        Raises UserError where there are none.
        """
        there = list(self.n_having)
        where = self.indices[0].path
        wanted = columns.get("caption", "").lstrip(".")
        if wanted in there and wanted != JSON:
            return Caption(wanted, "", names)
        found = [suffix for suffix in TEXTS if suffix in there]
        if wanted == JSON and JSON in there:  # a key of it, which its names tell
            found = []
            wanted = ""
        if found and not wanted:
            return Caption(found[0], "", names)
        if JSON not in there:
            if wanted:
                named_column(wanted, there, where)
            raise UserError(
                f"{where}: no captions; looked for members called"
                f" {listed([f'.{suffix}' for suffix in (*TEXTS, JSON)])}, and their suffixes are"
                f" {listed(there)}; name one: --columns caption=SUFFIX"
            )
        found, where_json = self._first_json()
        if isinstance(found, str) and not wanted:
            return Caption(JSON, "", names)
        keys = list(json_object(found, where_json))
        if wanted:
            return Caption(JSON, named_column(wanted, [*keys, *there], where_json, True), names)
        key = known_column(CAPTION_COLUMNS, keys)
        if key is None:
            raise UserError(
                f"{where_json}: which key is the caption? It has {listed(keys)}; name it: --columns"
                " caption=KEY"
            )
        return Caption(JSON, key, names)

    def known_key(self, spellings: Sequence[str]) -> Caption | None:
        """The first of these keys in the JSON beside the samples; None where it has none."""
        if JSON not in self.n_having:
            return None
        try:
            key = known_column(spellings, list(json_object(*self._first_json())))
        except UserError:
            return None  # the samples of such JSON are counted when they are read
        if key is None:
            return None
        return Caption(JSON, key)

    def _first_json(self) -> tuple[Any, str]:
        """What the first JSON holds, and what messages call it."""
        index = next(index for index in self.indices if JSON in index.suffixes)
        k = int(np.argmax(index.having(JSON)))
        span = index.span(k, JSON)
        assert span is not None  # the first that has one
        where = f"{index.path}: {index.key(k)}.{JSON}"
        content = read_span(index.path, span, where)
        return json_value(content.decode("utf-8-sig", "replace"), where), where
