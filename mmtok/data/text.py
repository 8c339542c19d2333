"""Text files: reading, writing, and a source that cuts one file into passages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmtok.files import write_bytes
from mmtok.segment import BadInput


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line ends as they are. Raises BadInput when it is missing, empty or not UTF-8."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if not content:
        raise BadInput(f"{path}: the file is empty; a text of at least one character is needed")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text: byte 0x{content[error.start]:02X} at offset {error.start}; "
                       f"convert it first, e.g. iconv -f latin1 -t utf-8") from None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all. Raises BadInput when it cannot be written."""
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: cannot be written: there is no folder {path.parent}")
    try:
        write_bytes(path, text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadInput(f"{path}: the text has a lone surrogate at character {error.start}, which UTF-8 cannot encode") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


def passages(text: str, passage_chars: int) -> Iterator[str]:
    """Cut a text into pieces of at most `passage_chars` characters, behind white space where there is some; joined they are the text."""
    start = 0
    while start < len(text):
        stop = min(start + passage_chars, len(text))
        if stop < len(text):
            stop = max((end for end in range(stop, start + passage_chars // 2, -1) if text[end - 1].isspace()), default=stop)
        yield text[start:stop]
        start = stop


@dataclass(frozen=True)
class TextFileConfig:
    """One UTF-8 file, cut into passages: examples {"text": passage}. The end of the file is held out.

    path           of the file
    passage_chars  a passage has at most so many characters
    heldout_share  share of the characters, from the end
    """

    path: str = ""
    passage_chars: int = 256
    heldout_share: float = 0.1

    def __post_init__(self):
        if self.passage_chars < 1:
            raise BadInput(f"TextFileConfig: passage_chars is {self.passage_chars}; it must be at least 1")
        if not 0 < self.heldout_share < 1:
            raise BadInput(f"TextFileConfig: heldout_share is {self.heldout_share}; it must be between 0 and 1")

    @property
    def fields(self) -> dict[str, str]:
        return {"text": "text"}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

    def check(self) -> str:
        """The text of the file. Raises BadInput when it is not there or cannot be split."""
        if not str(self.path):
            raise BadInput("TextFileConfig: no path given; pass --path FILE, a UTF-8 text")
        text = read_text(Path(self.path))
        if len(text) < 2:
            raise BadInput(f"{self.path}: a single character cannot be split into train and heldout; give a longer text")
        return text

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, str]]:
        """The passages of "train" or "heldout", in the order of the file. Raises BadInput on an unusable file."""
        if split not in self.splits:
            raise BadInput(f"TextFileConfig: no split {split!r}; one of {', '.join(self.splits)}")
        text = self.check()
        cut = min(len(text) - 1, max(1, round(len(text) * (1 - self.heldout_share))))
        for passage in passages(text[:cut] if split == "train" else text[cut:], self.passage_chars):
            yield {"text": passage}
