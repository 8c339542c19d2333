"""Text in the pieces of somebody else's sentencepiece model, a `.model` file as Llama 2 or T5 have
one.

Such a file says what it does to a text before it cuts it: normalise it (full-width letters become
narrow ones, a newline a space), put a space in front, drop spaces beyond one. Here its pieces are
taken and these rules are not, but for the space in front, which is taken away again: so every
string comes back exactly, or is refused where the file has no pieces for its bytes. A text that the
rules leave alone has the ids that sentencepiece gives it; `fidelity` tells how many others there
are, and `show` which rules.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.io.files import write_bytes
from mmtok.tokenizers.base import fingerprint, read_config, write_config
from mmtok.tokenizers.text import PIECES, SPACE_MARK, Pieces, model_bytes, opened

# fields of sentencepiece_model.proto, by their numbers there
PIECE, TRAINER, NORMALIZER = 1, 2, 3
MODEL_TYPE, SPACE_BEHIND = 3, 24
NAME, CHARACTERS, PREFIX, EXTRA_SPACES, ESCAPED = 1, 2, 3, 4, 5
TYPE, OF_ITS_USER = 3, 4  # of a piece
MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
# normalizer_spec: name "identity", an empty precompiled_charsmap, no prefix, spaces kept. Of a
# field
# that stands twice the later one counts, so behind a model's content this takes its rules' place
NO_RULES = b"\x1a\x12" + b"\x0a\x08identity" + b"\x12\x00" + b"\x18\x00" + b"\x20\x00" + b"\x28\x01"


@dataclass(frozen=True)
class SentencePieceFile:
    """The pieces of a sentencepiece `.model` file, with its ids; a run keeps a copy."""

    path: str
    modality: ClassVar[str] = "text"

    def check(self) -> None:
        """Raise what `build` raises."""
        PublishedPieces(self, model_bytes(Path(self.path)))

    def build(self) -> PublishedPieces:
        """Open it. Raises UserError when it cannot be read, is no model, or holds its spaces in a
        way that is not known here.
        """
        tokenizer = PublishedPieces(self, model_bytes(Path(self.path)))
        for line in tokenizer.cautions():
            warnings.warn(f"{self.path}: {line}", stacklevel=2)
        return tokenizer


@dataclass(frozen=True)
class Rules:
    """What a `.model` file says of itself."""

    model: str
    normaliser: str
    prefix: bool
    drops_spaces: bool

    @classmethod
    def of(cls, content: bytes) -> Rules:
        """Read them. Raises UserError where spaces stand behind words, or pieces hold them
        unescaped.
        """
        trainer, normaliser = _message(content, TRAINER), _message(content, NORMALIZER)
        if trainer.get(SPACE_BEHIND, 0):
            raise UserError(
                "its pieces hold the space behind a word (treat_whitespace_as_suffix), which is not"
                " supported"
            )
        if not normaliser.get(ESCAPED, 1):
            raise UserError(
                "its pieces hold spaces as they are (escape_whitespaces is off), which is not"
                " supported"
            )
        name = normaliser.get(NAME, b"")
        name = name.decode("utf-8", errors="replace") if isinstance(name, bytes) else ""
        return cls(
            model=MODELS.get(trainer.get(MODEL_TYPE, 1), "unknown"),
            normaliser=name or ("of its own" if normaliser.get(CHARACTERS) else "identity"),
            prefix=bool(normaliser.get(PREFIX, 1)),
            drops_spaces=bool(normaliser.get(EXTRA_SPACES, 1)),
        )


class PublishedPieces(Pieces):
    """str <-> codes (T, 1): a published model's own ids."""

    def __init__(self, config: SentencePieceFile, model: bytes):
        """model: the content of the .model file."""
        try:
            self.rules = Rules.of(model)
            super().__init__(model + NO_RULES)
        except UserError as error:
            raise UserError(f"{config.path} cannot be used: {error}") from None
        self.config, self._model, self.kind = config, model, self.rules.model
        self.prefix = " " if self.rules.prefix else ""
        self._unknown = self.processor.unk_id()
        self.has_bytes = sum(map(self.processor.is_byte, range(len(self._bytes)))) == 256
        self.signature = Signature(
            "text",
            levels=(len(self._bytes),),
            banned=self.banned,
            fingerprint=fingerprint("PublishedPieces", {}, model),
        )

    def _checked(self, text: str, row: np.ndarray) -> np.ndarray:
        """Raises UserError where the codes (T,) leave something unspelled."""
        if SPACE_MARK in text and self.has_bytes and not self.has_space:
            raise UserError(
                f"text: {self.config.path} spells a space as the bytes of {SPACE_MARK!r} (U+2581),"
                " so it cannot spell that letter; remove it"
            )
        if self._unknown in row:
            raise UserError(
                f"text: {self.config.path} has no pieces for {self._first_unknown(text)}; remove it"
            )
        if self._says(row) != text:  # a damaged file
            raise UserError(
                f"text: the pieces of {self.config.path} do not give {text[:40]!r} back"
            )
        return row

    def _spell_spaces(self, row: np.ndarray) -> np.ndarray:
        """Codes (T,) as they are: a space that no piece holds has the ids that the file's maker
        gets too, the bytes of U+2581.
        """
        return row

    def _says(self, row: np.ndarray) -> str:
        """What codes (T,) spell; without a piece for a space the bytes of U+2581 are one."""
        text = super()._says(row)
        return text if self.has_space else text.replace(SPACE_MARK, " ")

    def _first_unknown(self, text: str) -> str:
        unknown = (letter for letter in text if self._unknown in self._row(letter))
        letter = next(unknown, None)
        if letter is None or self.kind == "word":  # whose pieces are words, few of them letters
            return repr(text[:40])
        return f"{letter!r} (U+{ord(letter):04X})"

    def cautions(self) -> list[str]:
        """What a user should know of the file before relying on it, in lines."""
        said = []
        rules = [f"normaliser {self.rules.normaliser}"] * (self.rules.normaliser != "identity")
        rules += ["dropping of spaces"] * self.rules.drops_spaces
        if rules:
            said.append(
                f"its {' and its '.join(rules)} would lose parts of a text and so are not applied: "
                "texts that they change come back exactly, but do not have the ids of that change"
            )
        if not self.has_bytes:
            said.append(
                "it has no pieces for bytes: texts with characters that it has no pieces for are"
                " refused, newlines often among them"
            )
        if not self.has_space and self.has_bytes:
            said.append(
                f"it has no piece for a space, which goes by the bytes of {SPACE_MARK!r} (U+2581):"
                " texts with that letter are refused"
            )
        return said

    def remarks(self) -> list[str]:
        """What `show` says of it, in lines."""
        prefixed = ["a space stands before every text, and is taken away again"] * self.rules.prefix
        return [f"{self.kind} pieces of {self.config.path}", *prefixed, *self.cautions()]

    def users_pieces(self) -> list[str]:
        """Pieces that the file's maker named: they are found in a text before all others."""
        pieces = enumerate(_messages(self._model, PIECE))
        return [
            self.processor.id_to_piece(i) for i, piece in pieces if piece.get(TYPE) == OF_ITS_USER
        ]

    def fidelity(self, signals: Sequence[str]) -> dict[str, float]:
        """Adds `own_ids_share`: of the strings, how many have the ids that the file's own rules
        give.
        """
        published = opened(self._model)
        same = [
            published.encode(text) == self.encode(text).codes[:, 0].tolist() for text in signals
        ]
        return super().fidelity(signals) | {"own_ids_share": float(np.mean(same)) if same else 1.0}

    def save(self, folder: Path) -> None:
        write_bytes(Path(folder) / PIECES, self._model)
        write_config(Path(folder), "PublishedPieces", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> PublishedPieces:
        """Open what `save` wrote, without the file that it was made from.

        Raises UserError when a part is missing or broken.
        """
        config = read_config(Path(folder), "PublishedPieces")
        return cls(SentencePieceFile(str(config.get("path"))), model_bytes(Path(folder) / PIECES))


# ---- protocol buffers, as far as that


def _messages(content: bytes, number: int) -> Iterator[dict[int, int | bytes]]:
    """The fields of every message that stands in field `number` of a message."""
    for key, value in _fields(content):
        if key == number and isinstance(value, bytes):
            yield dict(_fields(value))


def _message(content: bytes, number: int) -> dict[int, int | bytes]:
    """The same where one is meant: of a field that stands several times the last."""
    found: dict[int, int | bytes] = {}
    for fields in _messages(content, number):
        found |= fields
    return found


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field of an encoded message:
    protobuf.dev/programming-guides/encoding.
    """
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        match tag & 7:
            case 0:
                value, at = _varint(content, at)
            case 1:
                value, at = content[at : at + 8], at + 8
            case 2:
                size, at = _varint(content, at)
                value, at = content[at : at + size], at + size
            case 5:
                value, at = content[at : at + 4], at + 4
            case _:
                raise UserError("it is no sentencepiece model")
        yield tag >> 3, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, and where it ends."""
    value, shift = 0, 0
    while at < len(content):
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    raise UserError("it ends in the middle")
