"""Interleaved documents: JSON lines whose `content` lists texts, pictures, sounds, jets, numbers.

    {"content": [{"type": "text", "text": "A cat:"}, {"type": "image", "path": "cat.png"},
                 {"type": "audio", "path": "meow.wav", "predict": false}]}

A part is one of

    {"type": "text", "text": "..."}
    {"type": "image", "path": "..."}                   also type image_url
    {"type": "audio", "path": "..."}                   also types speech, input_audio
    {"type": "jets", "path": "...", "index": 3}        or "constituents": [[pt, eta, phi], ...]
    {"type": "number", "name": "pt_gev", "value": 600}

and carries loss unless its "predict" is false. A path is relative to the file's folder. Instead of
`content` a line may have `messages` of a role and a content each (a string or a list), also as
`conversations` of `from` and `value`; then the parts of the role "assistant" carry loss. Where a
line lists its files by itself (`image`, `images`, `audio`, `audios`), parts without a path and the
words <image> and <audio> in messages stand for them, in order:

    {"image": "cat.png", "conversations": [{"from": "human", "value": "<image> What is it?"},
                                           {"from": "gpt", "value": "A cat."}]}

A .json may also be one array of such documents, as LLaVA's is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmtok.errors import UserError
from mmtok.io.conversations import ASSISTANT, message_of
from mmtok.io.filenames import inside
from mmtok.io.json_stream import stream_list
from mmtok.io.messages import counted, listed, shown
from mmtok.io.numbers import as_number
from mmtok.io.strict_json import parse_json, read_json
from mmtok.io.walk import file_at
from mmtok.sources.base import (
    Example,
    Interleaved,
    Listing,
    Part,
    check_heldout_share,
    split_order,
)
from mmtok.sources.image_files import open_image, picture_size
from mmtok.sources.jet_formats import FEATURES, open_jets
from mmtok.sources.jets import checked_jet
from mmtok.sources.leaks import FilePart, check_leaks
from mmtok.sources.screen import Screen, ScreenedSource
from mmtok.sources.sound_files import open_sound, sound_seconds

TYPES = {  # of parts -> modality
    "text": "text",
    "image": "image",
    "image_url": "image",
    "audio": "speech",
    "speech": "speech",
    "input_audio": "speech",
    "jets": "jets",
    "number": "number",
}
PATHS = ("path", "url", "image", "audio", "image_url", "input_audio")  # keys that hold the path
MESSAGES = ("messages", "conversations")  # keys that hold these
LISTED = {"image": ("image", "images"), "audio": ("audio", "audios")}  # type -> keys of a line
PLACE = re.compile("<(image|audio)>")  # in words, for the next of these
SUFFIXES = (".json", ".jsonl", ".ndjson")
HEAD_BYTES = 2**16  # of a file, to tell what it holds
PACKED = (".gz", ".zst", ".xz", ".bz2")


class Line(NamedTuple):
    """A line of a file, or an element of the array in it: its number from 1, and its bytes."""

    number: int
    start: int
    n_bytes: int
    unit: str = "line"


@dataclass(frozen=True)
class InterleavedFile(ScreenedSource):
    """Documents of a file of JSON lines, or of one array; their field is `document`.

    A share of them is held out.

    Attributes:
        path: of the file.
        heldout_share: share of the documents that is held out.
        seed: of the choice which are held out.
        features: of jets' constituents.
    """

    path: str = ""
    heldout_share: float = 0.1
    seed: int = 0
    features: tuple[str, ...] = FEATURES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heldout_share(self, self.heldout_share)

    @property
    def fields(self) -> dict[str, str]:
        """One field: the document."""
        return {"document": "interleaved"}

    def check(self) -> None:
        """Raise UserError where too many documents cannot be used, or a split leaks."""
        parts = self._splits()
        path = self._file()
        contents = {
            split: [FilePart(str(path), line.start, line.n_bytes) for line in lines]
            for split, lines in parts.items()
        }

        def name(i: int) -> str:
            return _where(path, parts["heldout"][i])

        check_leaks(contents["train"], contents["heldout"], name, self, "documents")

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The documents of a split, in the order of the file."""
        self.check_split(split)
        path = self._file()
        screen = self._screen()
        items = self._split(screen)[split]
        reader = partial(_example, path, self.features)
        return screen.listing(items, reader, partial(_where, path), partial(_file, path))

    def _splits(self) -> dict[str, list[Line]]:
        """The lines of each split, in the order of the file."""
        return self._split(self._screen())

    def _split(self, screen: Screen[Line]) -> dict[str, list[Line]]:
        if len(screen.items) < 2:
            raise UserError(
                f"{self.path}: {counted(len(screen.items), 'document')} cannot be split into train"
                " and heldout; give at least two"
            )
        order = split_order(len(screen.items), self.heldout_share, self.seed)
        return {split: [screen.items[i] for i in np.sort(part)] for split, part in order.items()}

    def _file(self) -> Path:
        path = file_at(self.path, "InterleavedFile", "documents as JSON lines or an array")
        if path.suffix.lower() in PACKED:
            raise UserError(
                f"{path}: is packed, and lines are read by their place; unpack it first"
            )
        return path

    def _screen(self) -> Screen[Line]:
        path = self._file()
        look = partial(_look, path, self.features)
        return Screen(_lines(path), look, self, "documents", name=partial(_where, path))


def _lines(path: Path) -> list[Line]:
    """The lines that are not blank; of an array of documents, as LLaVA's, its elements."""
    if _is_array(path):
        elements = enumerate(stream_list(path), 1)
        return [Line(number, e.first, e.n_bytes, "document") for number, e in elements]
    found = []
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found.append(Line(number, at, len(line)))
            at += len(line)
    return found


def _is_array(path: Path) -> bool:
    """Whether a .json is one array of documents, and not documents or lists of parts by lines."""
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"[") or not head[1:].lstrip().startswith(b"{"):
        return False
    try:
        document = next(stream_list(path)).value
    except UserError:
        return False  # what is wrong shows where the line is read
    return any(key in document for key in ("content", *MESSAGES))


def _file(path: Path, line: Line) -> Path:
    return path


def _where(path: Path, line: Line) -> str:
    return f"{path}, {line.unit} {line.number}"


def _parsed(path: Path, line: Line) -> Any:
    """The JSON value of a line; a byte-order mark before the first is left out."""
    with path.open("rb") as file:
        file.seek(line.start)
        text = file.read(line.n_bytes).removeprefix(b"\xef\xbb\xbf")
    return parse_json(text, _where(path, line))


def _example(path: Path, features: tuple[str, ...], line: Line) -> dict[str, Any]:
    where = _where(path, line)
    return Example(
        {"document": read_document(_parsed(path, line), path.parent, where, features)}, where
    )


def _look(path: Path, features: tuple[str, ...], line: Line) -> dict[str, float]:
    """Look at the headers of a document's files, not at what they hold."""
    where = _where(path, line)
    checks: dict[str, Callable[[Path], object]] = {"image": picture_size, "speech": sound_seconds}
    is_learned = False
    for i, (modality, part, predict) in enumerate(_parts(_parsed(path, line), where)):
        is_learned = is_learned or predict
        name = f"{where}, part {i}"
        if modality in checks:
            checks[modality](_file_of(part, path.parent, name))
        elif modality != "jets":
            _signal(modality, part, path.parent, name, features)
        elif "constituents" not in part:
            _file_of(part, path.parent, name)
    if not is_learned:
        raise UserError(f"{where}: no part carries loss: none is the assistant's, or to predict")
    return {}


# ---- one document


def read_documents(
    path: Path, features: tuple[str, ...] = FEATURES
) -> Iterator[tuple[str, Interleaved]]:
    """(name, document) of each line of a .jsonl, or of the document or documents of a .json.

    Raises UserError, naming the place, for what cannot be read.
    """
    if path.suffix.lower() == ".json" and not _is_array(path):
        yield str(path), read_document(read_json(path), path.parent, str(path), features)
        return
    for line in _lines(path):
        where = _where(path, line)
        yield where, read_document(_parsed(path, line), path.parent, where, features)


def read_document(
    value: Any, folder: Path, where: str, features: tuple[str, ...] = FEATURES
) -> Interleaved:
    """The document of a JSON value, its files read.

    Args:
        value: of a line, or its list of parts.
        folder: that paths are relative to.
        where: what messages call it.
        features: of jets' constituents.

    Raises:
        UserError: the value is no document, or a file cannot be read.
    """
    parts = []
    for i, (modality, part, predict) in enumerate(_parts(value, where)):
        name = f"{where}, part {i}"
        signal = _signal(modality, part, folder, name, features)
        if modality == "number":
            modality = str(part.get("name", "number"))
        parts.append(Part(modality, signal, predict))
    return Interleaved(tuple(parts))


def _parts(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """(modality, part, whether it carries loss) of each part. Raises UserError for no document."""
    n = 0
    for content, is_asked in _contents(value, where):
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise UserError(f"{where}: content is {shown(content)}; it must be a list of parts")
        for part in content:
            name = f"{where}, part {n}"
            n += 1
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in TYPES:
                raise UserError(
                    f"{name}: {shown(part)} has no type that is known; the types are"
                    f" {listed(list(TYPES))}"
                )
            predict = part.get("predict", is_asked)
            if not isinstance(predict, bool):
                raise UserError(f"{name}: predict is {shown(predict)}; it must be true or false")
            yield TYPES[kind], part, predict
    if not n:
        raise UserError(f"{where}: the document has no parts; remove it")


def _contents(value: Any, where: str) -> Iterator[tuple[Any, bool]]:
    """(content, whether its parts carry loss) of a line: of the line itself, or of its messages."""
    if isinstance(value, list):
        yield value, True
        return
    if not isinstance(value, dict):
        value = {}
    messages = next((value[key] for key in MESSAGES if value.get(key)), None)
    if not isinstance(messages, list):
        if "content" not in value:
            raise UserError(f"{where}: has no content, a list of parts, nor messages that have one")
        yield value["content"], True
        return
    files = {kind: _listed_files(value, kind, where) for kind in LISTED}
    for i, message in enumerate(messages):
        try:
            message = message_of(i, message)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        content = _with_files(message["content"], files, where)
        yield content, message["role"] == ASSISTANT
    for kind, left in files.items():
        if left:
            raise UserError(
                f"{where}: no message has a place for {left[0]}; write <{kind}> there, or a part of"
                f" the type {kind}"
            )


def _listed_files(value: Mapping[str, Any], kind: str, where: str) -> list[str]:
    """The files of a kind that a line lists beside its messages. Raises UserError for others."""
    found: Any = next((value[key] for key in LISTED[kind] if value.get(key)), [])
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise UserError(f"{where}: {kind} is {shown(found)}; it must be a path or a list of paths")
    return list(found)


def _with_files(content: Any, files: Mapping[str, list[str]], where: str) -> Any:
    """A message's content as parts, those without a file with the next one of the line.

    Words are as they are where the line lists no files.
    """
    if isinstance(content, str):
        words = PLACE.split(content) if any(files.values()) else [content]
        kinds = words[1::2]
        parts: list[Any] = [{"type": "text", "text": words[0]}]
        for kind, text in zip(kinds, words[2::2], strict=True):
            parts += [{"type": kind}, {"type": "text", "text": text}]
        content = [part for part in parts if part.get("text") != ""]
    if not isinstance(content, list):
        return content
    return [_with_file(part, files, where) for part in content]


def _with_file(part: Any, files: Mapping[str, list[str]], where: str) -> Any:
    """A part with the next file of the line, where it needs one."""
    if not isinstance(part, dict):
        return part
    kind = str(part.get("type"))
    if kind not in files or any(part.get(key) for key in PATHS):
        return part
    if not files[kind]:
        keys = " or ".join(LISTED[kind])
        raise UserError(f"{where}: a place for an {kind} has no file, as path or in {keys}")
    return part | {"path": files[kind].pop(0)}


def _signal(
    modality: str, part: Mapping[str, Any], folder: Path, name: str, features: tuple[str, ...]
) -> Any:
    """The signal of a part. Raises UserError, naming it, for one that cannot be read."""
    if modality == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise UserError(f"{name}: text is {shown(text)}; it must be a string")
        return text
    if modality == "number":
        return as_number(part.get("value"), name)
    if modality == "image":
        return open_image(_file_of(part, folder, name))
    if modality == "speech":
        return open_sound(_file_of(part, folder, name))
    if "constituents" in part:
        return checked_jet(part["constituents"], name, features)
    index = part.get("index", 0)
    if not isinstance(index, int) or index < 0:
        raise UserError(f"{name}: index is {shown(index)}; it must be 0 or a jet's number")
    path = _file_of(part, folder, name)
    with closing(open_jets(path, features)) as reader:
        if index >= reader.n_jets:
            raise UserError(f"{name}: {path} has no jet {index}; it has {reader.n_jets:,}, from 0")
        values, _ = reader.read(index, index + 1, features)
    return checked_jet(values, name, features)


def _file_of(part: Mapping[str, Any], folder: Path, name: str) -> Path:
    """The file of a part, which lies below the folder. Raises UserError for any other."""
    given: Any = next((part[key] for key in PATHS if key in part), None)
    if isinstance(given, dict):  # {"image_url": {"url": ...}}
        given = next((given[key] for key in PATHS if key in given), None)
    if not isinstance(given, str) or not given:
        raise UserError(f'{name}: has no path; name its file as "path"')
    if "://" in given or given.startswith("data:"):
        raise UserError(f"{name}: {shown(given)} is no file; download it, and name its path")
    try:
        path = inside(folder, given.replace("\\", "/"))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if not path.is_file():
        raise UserError(f"{name}: no file {given} in {folder}")
    return path
