"""Text files: reading, writing, and a source that cuts a file, or a folder of them, into passages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.files import write_bytes
from mmtok.io.walk import file_at, files_among
from mmtok.sources.base import Example
from mmtok.sources.screen import Limit, Screen, Screened

CHARACTER_BYTES = 6  # of memory per byte of a file, as bytes and as characters of up to four


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line ends as they are.

    Raises UserError when it is missing, empty or not UTF-8.
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
    """Write a UTF-8 file, whole or not at all. Raises UserError when it cannot be written."""
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


def passages(text: str, chunk_chars: int) -> Iterator[str]:
    """Cut a text into pieces of at most `chunk_chars` characters, behind white space where there is
    some; joined they are the text.
    """
    start = 0
    while start < len(text):
        stop = min(start + chunk_chars, len(text))
        if stop < len(text):
            stop = max(
                (
                    end
                    for end in range(stop, start + chunk_chars // 2, -1)
                    if text[end - 1].isspace()
                ),
                default=stop,
            )
        yield text[start:stop]
        start = stop


@dataclass(frozen=True)
class TextFileConfig(Screened):
    """A UTF-8 file, or a folder of .txt files, cut into passages: examples {"text": passage}.

    The end of the file is held out, or the end of all files, in the order of their names.

    path           of the file or folder
    chunk_chars  a passage has at most so many characters
    heldout_share  share of the characters, from the end
    min_chars      of a passage; shorter ones are left out and counted. 0: any
    """

    path: str = ""
    chunk_chars: int = 256
    heldout_share: float = 0.1
    min_chars: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.chunk_chars < 1:
            raise UserError(
                f"TextFileConfig: chunk_chars is {self.chunk_chars}; it must be at least 1"
            )
        if not 0 < self.heldout_share < 1:
            raise UserError(
                f"TextFileConfig: heldout_share is {self.heldout_share}; it must be between 0 and 1"
            )
        if not 0 <= self.min_chars <= self.chunk_chars:
            raise UserError(
                f"TextFileConfig: min_chars is {self.min_chars}; it is from 0 to chunk_chars,"
                f" {self.chunk_chars}"
            )

    @property
    def fields(self) -> dict[str, str]:
        return {"text": "text"}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

    def check(self) -> None:
        """Raise UserError when the text is not there or cannot be split."""
        self._texts()

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, str]]:
        """The passages of "train" or "heldout", in the order of the files.

        Raises UserError on unusable files.
        """
        if split not in self.splits:
            raise UserError(f"TextFileConfig: no split {split!r}; one of {', '.join(self.splits)}")
        texts = self._texts()
        n_chars = sum(map(len, texts.values()))
        cut = min(n_chars - 1, max(1, round(n_chars * (1 - self.heldout_share))))
        found = [
            (path, p)
            for path, text in _side(texts, cut, split)
            for p in passages(text, self.chunk_chars)
        ]
        screen = Screen(
            range(len(found)),
            lambda i: {"chars": len(found[i][1])},
            self,
            "passages",
            (Limit("chars", self.min_chars),),
        )
        yield from (
            Example({"text": text}, path) for path, text in (found[i] for i in screen.items)
        )

    def _texts(self) -> dict[Path, str]:
        """The texts that can be used, by their files."""
        found: dict[Path, str] = {}

        def look(path: Path) -> dict[str, int]:
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
        place = Path(self.path).expanduser() if str(self.path) else None
        if place is None or not place.is_dir():
            return [file_at(self.path, "TextFileConfig", "a UTF-8 text, or a folder of them")]
        return files_among([place], (".txt",))


def _side(texts: dict[Path, str], cut: int, split: str) -> Iterator[tuple[Path, str]]:
    """(file, text) of what lies before the cut, a character of all texts together, or from it on."""
    for path, text in texts.items():
        side = text[:cut] if split == "train" else text[cut:]
        cut = max(0, cut - len(text))
        if side:
            yield path, side
