"""Text files: reading, writing, and a source that cuts them into chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.files import write_bytes
from mmtok.io.tables import CHARACTER_BYTES
from mmtok.io.walk import file_at, files_among
from mmtok.sources.base import Example, check_heldout_share
from mmtok.sources.screen import Limit, Screen, ScreenedSource


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; line ends stay as they are.

    Raises UserError for a file that is missing, empty or not UTF-8.
    """
    path = Path(path)
    try:
        memory_budget.check(CHARACTER_BYTES * path.stat().st_size, path)
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not content:
        raise UserError(f"{path}: the file is empty; a text of at least one character is needed")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text: byte 0x{content[error.start]:02X} at offset {error.start}; "
            "convert it first, e.g. iconv -f latin1 -t utf-8"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically. Raises UserError when it cannot be written."""
    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written: there is no folder {path.parent}")
    try:
        write_bytes(path, text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}: the text has a lone surrogate at character {error.start}, which UTF-8 cannot"
            " encode"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def chunks(text: str, chunk_chars: int) -> Iterator[str]:
    """Cut a text into chunks of at most `chunk_chars` characters; joined they are the text.

    The cut is after the last white space in the second half of a chunk, where there is some.
    """
    start = 0
    while start < len(text):
        stop = min(start + chunk_chars, len(text))
        if stop < len(text):
            ends = range(stop, start + chunk_chars // 2, -1)
            stop = next((end for end in ends if text[end - 1].isspace()), stop)
        yield text[start:stop]
        start = stop


@dataclass(frozen=True)
class TextFile(ScreenedSource):
    """A UTF-8 file, or a folder of .txt files, cut into chunks: examples {"text": chunk}.

    The end of the file is held out, or the end of all files, in the order of their names.

    Attributes:
        path: of the file or folder.
        chunk_chars: a chunk has at most so many characters.
        heldout_share: share of the characters, from the end.
        min_chars: of a chunk; shorter ones are left out and counted. 0: any.
    """

    path: str = ""
    chunk_chars: int = 256
    heldout_share: float = 0.1
    min_chars: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_chars < 1:
            raise UserError(f"TextFile: chunk_chars is {self.chunk_chars}; it must be at least 1")
        check_heldout_share(self, self.heldout_share)
        if not 0 <= self.min_chars <= self.chunk_chars:
            raise UserError(
                f"TextFile: min_chars is {self.min_chars}; it is from 0 to chunk_chars,"
                f" {self.chunk_chars}"
            )

    @property
    def fields(self) -> dict[str, str]:
        """The text alone."""
        return {"text": "text"}

    def check(self) -> None:
        """Raise UserError where the text is missing or cannot be split."""
        self._texts()

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """The chunks of a split, in the order of the files.

        Raises UserError on unusable files.
        """
        self.check_split(split)
        texts = self._texts()
        n_chars = sum(map(len, texts.values()))
        cut = min(n_chars - 1, max(1, round(n_chars * (1 - self.heldout_share))))
        found = [
            (path, chunk)
            for path, text in _side(texts, cut, split)
            for chunk in chunks(text, self.chunk_chars)
        ]

        def look(i: int) -> dict[str, float]:
            return {"chars": len(found[i][1])}

        limits = (Limit("chars", self.min_chars),)
        for i in Screen(range(len(found)), look, self, "chunks", limits).items:
            path, chunk = found[i]
            yield Example({"text": chunk}, path)

    def _texts(self) -> dict[Path, str]:
        """The texts that can be used, by file."""
        found: dict[Path, str] = {}

        def look(path: Path) -> dict[str, float]:
            found[path] = read_text(path)
            return {"chars": len(found[path])}

        files = Screen(self._files(), look, self, "files").items
        texts = {path: found[path] for path in files}
        if sum(map(len, texts.values())) < 2:
            raise UserError(
                f"{self.path}: a single character cannot be split into train and heldout; give a"
                " longer text"
            )
        return texts

    def _files(self) -> list[Path]:
        if self.path:
            place = Path(self.path).expanduser()
            if place.is_dir():
                return files_among([place], (".txt",))
        return [file_at(self.path, "TextFile", "a UTF-8 text, or a folder of them")]


def _side(texts: dict[Path, str], cut: int, split: str) -> Iterator[tuple[Path, str]]:
    """(file, its text) on one side of the cut, which is an index into all texts joined.

    "train" is what comes before the cut.
    """
    for path, text in texts.items():
        side = text[:cut] if split == "train" else text[cut:]
        cut = max(0, cut - len(text))
        if side:
            yield path, side
