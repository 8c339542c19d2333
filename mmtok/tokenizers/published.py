"""Text in the pieces of a published sentencepiece model, a `.model` file as of Llama 2 or T5.

Such a file has rules for changing a text before it is cut into pieces: normalise it (full-width
letters become narrow ones, a newline a space), put a space in front, merge spaces. Of these only
the space in front is applied here, and taken away by `decode`. So every string comes back exactly,
or is refused where the file has no pieces for its bytes. A text that the rules do not change has
the ids that sentencepiece gives it; `fidelity` says how many do, `show` which rules there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.io.files import write_bytes
from mmtok.tokenizers.base import fingerprint, read_config, write_config
from mmtok.tokenizers.text import PIECES, SPACE_MARK, Pieces, TextConfig, model_bytes, opened

# numbers of the fields in sentencepiece_model.proto: of ModelProto,
PIECE = 1
TRAINER = 2
NORMALIZER = 3
# of TrainerSpec,
MODEL_TYPE = 3
WHITESPACE_AS_SUFFIX = 24
# of NormalizerSpec,
NAME = 1
CHARSMAP = 2
DUMMY_PREFIX = 3
REMOVE_EXTRA_SPACES = 4
ESCAPE_SPACES = 5
# and of SentencePiece, with one value of its type
TYPE = 3
USER_DEFINED = 4
MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
# A normalizer_spec with name "identity", an empty precompiled_charsmap, no prefix, spaces kept. Of
# a field that occurs twice the later one counts: appended to a model, this replaces its rules.
NO_RULES = b"\x1a\x12" + b"\x0a\x08identity" + b"\x12\x00" + b"\x18\x00" + b"\x20\x00" + b"\x28\x01"


@dataclass(frozen=True)
class SentencePieceFile(TextConfig):
    """The pieces of a sentencepiece `.model` file, with its ids; a run keeps a copy."""

    path: str

    def signature(self) -> Signature | None:
        """None where the file is gone; a run that was fitted has a copy."""
        if not Path(self.path).is_file():
            return None
        return self.build().signature

    def check(self) -> None:
        """Raise what `build` raises."""
        PublishedPieces(self, model_bytes(Path(self.path)))

    def build(self) -> PublishedPieces:
        """Open the file, and warn of what it cannot spell.

        Raises UserError when it cannot be read, is no model, or holds spaces in an unknown way.
        """
        tokenizer = PublishedPieces(self, model_bytes(Path(self.path)))
        for line in tokenizer.cautions():
            warnings.warn(f"{self.path}: {line}", stacklevel=2)
        return tokenizer

    def load(self, folder: Path) -> PublishedPieces:
        """Open the tokenizer that was saved in `folder`."""
        return PublishedPieces.load(folder)


@dataclass(frozen=True)
class Rules:
    """What a `.model` file does to a text before it is cut.

    Attributes:
        model: "unigram", "bpe", "word" or "char".
        normaliser: its name.
        prefix: a space is put in front of a text.
        drops_spaces: of several spaces one is kept.
    """

    model: str
    normaliser: str
    prefix: bool
    drops_spaces: bool

    @classmethod
    def of(cls, content: bytes) -> Rules:
        """Read them from a file's content.

        Raises UserError where spaces follow words, or pieces hold them unescaped.
        """
        trainer = _message(content, TRAINER)
        rules = _message(content, NORMALIZER)
        if trainer.get(WHITESPACE_AS_SUFFIX, 0):
            raise UserError(
                "its pieces hold the space behind a word (treat_whitespace_as_suffix), which is not"
                " supported"
            )
        if not rules.get(ESCAPE_SPACES, 1):
            raise UserError(
                "its pieces hold spaces as they are (escape_whitespaces is off), which is not"
                " supported"
            )
        name = rules.get(NAME)
        if isinstance(name, bytes) and name:
            normaliser = name.decode("utf-8", errors="replace")
        elif rules.get(CHARSMAP):
            normaliser = "of its own"
        else:
            normaliser = "identity"
        model = trainer.get(MODEL_TYPE, 1)
        return cls(
            model=MODELS.get(model, "unknown") if isinstance(model, int) else "unknown",
            normaliser=normaliser,
            prefix=bool(rules.get(DUMMY_PREFIX, 1)),
            drops_spaces=bool(rules.get(REMOVE_EXTRA_SPACES, 1)),
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
        self.config = config
        self.kind = self.rules.model
        if self.rules.prefix:
            self.prefix = " "
        self._model = model
        self._unknown = self.processor.unk_id()
        self.has_bytes = sum(map(self.processor.is_byte, range(len(self._bytes)))) == 256
        self.signature = Signature(
            "text",
            levels=(len(self._bytes),),
            banned=self.banned,
            fingerprint=fingerprint("PublishedPieces", {}, model),
        )

    def _checked(self, text: str, row: np.ndarray) -> np.ndarray:
        """The codes (T,) of a text. Raises UserError where they do not spell all of it."""
        if SPACE_MARK in text and self.has_bytes and not self.has_space:
            raise UserError(
                f"text: {self.config.path} spells a space as the bytes of {SPACE_MARK!r} (U+2581),"
                " so it cannot spell that letter; remove it"
            )
        if self._unknown in row:
            raise UserError(
                f"text: {self.config.path} has no pieces for {self._first_unknown(text)}; remove it"
            )
        if self._spelled(row) != text:  # a damaged file
            raise UserError(
                f"text: the pieces of {self.config.path} do not give {text[:40]!r} back"
            )
        return row

    def _spell_spaces(self, row: np.ndarray) -> np.ndarray:
        """Codes (T,) as they are.

        A space that no piece holds is the bytes of U+2581, as sentencepiece has it too.
        """
        return row

    def _spelled(self, row: np.ndarray) -> str:
        """The string that codes (T,) spell; without a piece for a space, U+2581 is one."""
        text = super()._spelled(row)
        if not self.has_space:
            text = text.replace(SPACE_MARK, " ")
        return text

    def _first_unknown(self, text: str) -> str:
        unknown = (letter for letter in text if self._unknown in self._row(letter))
        letter = next(unknown, None)
        if letter is None or self.kind == "word":  # few pieces of a model of words are letters
            return repr(text[:40])
        return f"{letter!r} (U+{ord(letter):04X})"

    def cautions(self) -> list[str]:
        """What a user should know of the file before relying on it, in lines."""
        lines = []
        rules = []
        if self.rules.normaliser != "identity":
            rules.append(f"normaliser {self.rules.normaliser}")
        if self.rules.drops_spaces:
            rules.append("dropping of spaces")
        if rules:
            lines.append(
                f"its {' and its '.join(rules)} would lose parts of a text and so are not applied: "
                "texts that they change come back exactly, but do not have the ids of that change"
            )
        if not self.has_bytes:
            lines.append(
                "it has no pieces for bytes: texts with characters that it has no pieces for are"
                " refused, newlines often among them"
            )
        if not self.has_space and self.has_bytes:
            lines.append(
                f"it has no piece for a space, which goes by the bytes of {SPACE_MARK!r} (U+2581):"
                " texts with that letter are refused"
            )
        return lines

    def remarks(self) -> list[str]:
        """What `show` says of the file, in lines."""
        lines = [f"{self.kind} pieces of {self.config.path}"]
        if self.rules.prefix:
            lines.append("a space stands before every text, and is taken away again")
        return lines + self.cautions()

    def users_pieces(self) -> list[str]:
        """Pieces that the maker of the file named: they are found in a text before all others."""
        return [
            self.processor.id_to_piece(i)
            for i, piece in enumerate(_messages(self._model, PIECE))
            if piece.get(TYPE) == USER_DEFINED
        ]

    def fidelity(self, signals: Sequence[str]) -> dict[str, float]:
        """Adds `own_ids_share`: the share of strings with the ids of the file's own rules."""
        figures = super().fidelity(signals) | {"own_ids_share": 1.0}
        if len(signals):
            published = opened(self._model)
            segments = [self.encode(text) for text in signals]
            same = [
                published.encode(text) == segment.values[:, 0].tolist()
                for text, segment in zip(signals, segments, strict=True)
            ]
            figures["own_ids_share"] = float(np.mean(same))
        return figures

    def save(self, folder: Path) -> None:
        """Write a copy of the file and the config."""
        write_bytes(Path(folder) / PIECES, self._model)
        write_config(Path(folder), "PublishedPieces", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> PublishedPieces:
        """Open what `save` wrote, without the file that it was made from.

        Raises UserError when a part is missing or broken.
        """
        config = read_config(Path(folder), "PublishedPieces")
        return cls(SentencePieceFile(str(config.get("path"))), model_bytes(Path(folder) / PIECES))


# ---- the encoding of protocol buffers: protobuf.dev/programming-guides/encoding

FIXED_SIZES = {1: 8, 5: 4}  # wire type -> bytes
Fields = dict[int, int | bytes]


def _messages(content: bytes, number: int) -> Iterator[Fields]:
    """The fields of every message that stands in field `number` of a message."""
    for key, value in _fields(content):
        if key == number and isinstance(value, bytes):
            yield dict(_fields(value))


def _message(content: bytes, number: int) -> Fields:
    """The fields of the message in field `number`; of several, later values count."""
    found: Fields = {}
    for fields in _messages(content, number):
        found |= fields
    return found


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field of an encoded message."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        wire_type = tag & 7
        if wire_type == 0:
            number, at = _varint(content, at)
            yield tag >> 3, number
            continue
        if wire_type == 2:
            size, at = _varint(content, at)
        elif wire_type in FIXED_SIZES:
            size = FIXED_SIZES[wire_type]
        else:
            raise UserError("it is no sentencepiece model")
        yield tag >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The integer at position `at`, of seven bits a byte, and the position after it."""
    value = 0
    shift = 0
    while at < len(content):
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    raise UserError("it ends in the middle")
