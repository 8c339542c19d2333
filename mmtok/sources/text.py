"""Texts: reading and writing files, and a source that cuts texts into chunks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.columns import check_named
from mmtok.io.files import write_bytes
from mmtok.io.messages import counted
from mmtok.io.tables import CHARACTER_BYTES
from mmtok.io.tally import Tally
from mmtok.sources.base import Chunk, Listing, check_heldout_share
from mmtok.sources.layouts import check_layout, own_heldout
from mmtok.sources.leaks import check_leaks
from mmtok.sources.screen import Screen, ScreenedSource
from mmtok.sources.text_corpus import (
    CharacterReader,
    Reader,
    RowReader,
    Window,
    named_split,
    report_rows,
    split_at_share,
)
from mmtok.sources.text_layouts import TextPlace, layout_of, layouts_of, text_place
from mmtok.sources.text_leaks import check_document_leaks
from mmtok.sources.text_pieces import Chunking, Piece, cut


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
    return (piece.text for piece in cut([Piece(text, 0, ends=True)], chunk_chars))


FIELDS = ("text", "messages", "tools")  # that columns may name


@dataclass(frozen=True)
class TextFile(ScreenedSource):
    """Texts in files, cut into chunks, or whole conversations: examples {"text": chunk}.

    A file of characters is a document, and so is a row of a table; no chunk runs over two. The end
    of all characters is held out, in the order of the files' names. Files may be of any size: they
    are read chunk by chunk. Those with .gz and .zst are unpacked on the way; every process that
    reads one does so from its start.

    Attributes:
        path: of a file, of a folder, or a pattern such as data/*.jsonl.zst. In a folder .txt files
            are read; where there are none, .md, .rst, .tex and the like, or tables (.jsonl, .csv,
            .tsv, .parquet).
        chunk_chars: a chunk has at most so many characters.
        heldout_share: share of the characters, from the end.
        min_chars: of a chunk; shorter ones are left out and counted. 0: any.
        layout: plain, the characters of files; table, a column of tables; chat, conversations in a
            column of tables; "": found out.
        columns: text=COLUMN of a table; messages=COLUMN, tools=COLUMN of conversations. Else they
            are found by their usual names.
        document_mark: between the documents of a file, such as <|endoftext|>; it is taken out.
            "blank lines": one or several. "": a file is one document.
        train: the corpus's own split to train on: the name of files or of a folder. "": all that is
            not held out.
        heldout: that to hold out. "": a share.
        max_chars: of a conversation; longer ones are left out and counted. 0: any.
    """

    path: str = ""
    chunk_chars: int = 256
    heldout_share: float = 0.1
    min_chars: int = 0
    layout: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    document_mark: str = ""
    train: str = ""
    heldout: str = ""
    max_chars: int = 0

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
        check_layout(layouts_of(), self.layout, "TextFile")
        check_named(self.columns, FIELDS, "TextFile")
        if self.max_chars < 0:
            raise UserError(f"TextFile: max_chars is {self.max_chars}; it must not be negative")

    @property
    def fields(self) -> dict[str, str]:
        """The text alone."""
        return {"text": "text"}

    def check(self) -> None:
        """Raise UserError where the text is missing or cannot be split.

        Likewise where too many of the held-out files are copies of others.
        """
        reader, windows, _ = self._windows()
        check_document_leaks(windows, reader, self)
        wholes = {
            split: [window.path for window in some if window.is_whole]
            for split, some in windows.items()
        }
        contents = {split: [str(path) for path in paths] for split, paths in wholes.items()}

        def name(i: int) -> str:
            return str(wholes["heldout"][i])

        check_leaks(contents["train"], contents["heldout"], name, self, "files")

    def found(self) -> str:
        """The layout and the files; their characters are counted where they are read."""
        place = text_place(str(self.path))
        layout = layout_of(place, self.layout or self._asked_layout(place), str(self.path))
        files = place.files(layout, self.columns)
        n_bytes = sum(path.stat().st_size for path in files)
        if not self.heldout:
            self._hint(files)
        return f"read as {layout}: {counted(len(files), 'file')} of {n_bytes:,} bytes"

    def is_chat(self) -> bool:
        """Whether the examples are conversations, as far as its files are there to tell."""
        if self.layout:
            return self.layout == "chat"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                place = text_place(str(self.path))
                return layout_of(place, self._asked_layout(place), str(self.path)) == "chat"
        except UserError:
            return False

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The chunks of a split, in the order of the files.

        Raises UserError on unusable files.
        """
        self.check_split(split)
        reader, windows, screen = self._windows()
        return screen.listing_of(self._chunks(reader, windows[split]))

    def _chunks(self, reader: Reader, windows: Sequence[Window]) -> Iterator[Chunk]:
        """The chunks, listed one after another; at the end it is said what is left out."""
        with Tally("chunks") as tally:

            def see(fault: str, path: Path) -> None:
                tally.count()
                if fault:
                    tally.add(fault, path)

            for window in windows:
                yield from reader.chunks(window.path, window.first, window.last, see)
            n_left_out = sum(tally.counts.values())
            if tally.total and n_left_out == tally.total:
                raise UserError(
                    f"none of {tally.total:,} chunks is left, such as the first of"
                    f" {windows[0].path}; widen the limits"
                )

    def _windows(self) -> tuple[Reader, dict[str, list[Window]], Screen[Path]]:
        """How files are read, the parts of them in each split, and their screen."""
        place = text_place(str(self.path))
        layout = layout_of(place, self.layout or self._asked_layout(place), str(self.path))
        reader = self._reader(layout)
        n_chars: dict[Path, int] = {}

        def look(path: Path) -> dict[str, float]:
            n_chars[path] = reader.n_chars(path)
            return {"chars": n_chars[path]}

        remedy = ""
        if place.folders and layout != "plain":
            like = f"--path '{place.folders[0]}/*.jsonl'"
            remedy = f"mend them, or name those to read, such as {like}"
        files = place.files(layout, self.columns)
        screen = Screen(files, look, self, "files", remedy=remedy)
        with Tally("files") as tally:
            for path in screen.items:
                tally.count()
                if remark := reader.remark(path):
                    tally.add(remark, path)
        report_rows([reader.faults(path) for path in screen.items], self)
        return reader, self._split(screen.items, n_chars, reader), screen

    def _asked_layout(self, place: TextPlace) -> str:
        """The layout that other settings ask for; "" for any."""
        if not place.tables:
            return ""
        if "messages" in self.columns or "tools" in self.columns:
            return "chat"
        if self.columns:
            return "table"
        return ""

    def _reader(self, layout: str) -> Reader:
        if layout in ("table", "chat"):
            if self.document_mark:
                raise UserError(
                    "TextFile: document_mark is of files of characters, and in a table each row is"
                    " a document; leave it out"
                )
            chunking = Chunking(self.chunk_chars, self.min_chars, max_chars=self.max_chars)
            return RowReader(chunking, tuple(self.columns.items()), layout == "chat")
        if self.columns:
            names = ", ".join(self.columns.values())
            raise UserError(
                f"TextFile: columns names {names}, but {self.path} is read as characters, which"
                " have none; name a table, or leave columns out"
            )
        return CharacterReader(Chunking(self.chunk_chars, self.min_chars, self.document_mark))

    def _hint(self, files: Sequence[Path]) -> None:
        """Say that the corpus has splits of its own, which are not used."""
        if self.train or len(files) < 2:
            return
        above = os.path.commonpath([file.parent for file in files])
        parts = (part for file in files for part in Path(os.path.relpath(file, above)).parts)
        own = own_heldout(parts)
        if own is not None:
            name, first = own
            warnings.warn(
                f"{self.path}: has a split of its own, {first}, and yet the end of all is held out;"
                f" heldout={name} keeps it apart",
                stacklevel=4,
            )

    def _split(
        self, files: Sequence[Path], n_chars: Mapping[Path, int], reader: Reader
    ) -> dict[str, list[Window]]:
        where = str(self.path)
        heldout: list[Path] = []
        if self.heldout:
            heldout = named_split(files, self.heldout, where)
        others = [file for file in files if file not in set(heldout)]
        train = others
        if self.train:
            train = named_split(others or files, self.train, where, heldout)
        if not heldout:
            self._hint(train)
            return split_at_share(train, n_chars, self.heldout_share, reader, where)
        if not train:
            raise UserError(f"{where}: all files are held out as {self.heldout!r}; none is left")
        return {"train": list(map(Window, train)), "heldout": list(map(Window, heldout))}
