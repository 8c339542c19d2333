"""Text: UTF-8 bytes without training, or learned sentencepiece pieces.

Both give every string back exactly. Lone surrogates, which UTF-8 cannot encode, are refused. A
model may draw bytes that are not UTF-8; they decode to U+FFFD.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError, reading
from mmtok.io.conversations import Conversation
from mmtok.io.files import write_bytes
from mmtok.tokenizers.base import (
    Tokenizer,
    TokenizerConfig,
    checked_codes,
    fingerprint,
    load_config,
    write_config,
)

# sentencepiece writes a space as this character, so the character itself must go in as bytes
SPACE_MARK = "\u2581"
NOT_LEARNED = "\u2581\u2585\0"  # sentencepiece drops every training text that holds one of these
PIECES = "pieces.model"  # in a tokenizer's folder
# pieces that are not learned: 256 bytes, 3 specials, and one that sentencepiece wants to spare
N_OWN = 260
# Where there are more characters than learned pieces, at most this share of the pieces are single
# characters. Three quarters gave the shortest codes among 0.1 to 1, for 1,900 and 3,025 characters
# and 600 to 3,000 pieces.
CHARACTERS_SHARE = 0.75
# Longer texts are cut for learning only: sentencepiece's memory grows with the longest one.
LONGEST_CHUNK_CHARS = 4096


def utf8(text: Any) -> bytes:
    """The bytes of a string. Raises UserError when it is no string, or holds a lone surrogate."""
    if isinstance(text, Conversation):
        raise UserError(
            "text: a conversation is laid out by a checkpoint's chat template; name a checkpoint"
            " with --start, and set --tokenizers.text"
            ' \'{"kind": "PretrainedTextConfig", "chat": true}\''
        )
    if not isinstance(text, str):
        raise UserError(f"text: expected a string, got {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise UserError(
            f"text: {what} is a lone surrogate, which UTF-8 cannot encode; remove it"
        ) from None


def as_segment(codes: np.ndarray) -> Segment:
    """Codes (T,) as a segment of one channel."""
    return Segment("text", codes=codes[:, None])


class TextConfig(TokenizerConfig):
    """What the configs of text tokenizers share."""

    modality: ClassVar[str] = "text"

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Bits a byte, where the fitted tokenizer's bytes per code were measured."""
        if not fidelity.get("bytes_per_code"):
            return []
        return [f"{signature.bits_per_frame / fidelity['bytes_per_code']:.4g} bits a byte"]


class TextTokenizer(Tokenizer):
    """What the text tokenizers share: their fidelity and their unit."""

    is_ambiguous: ClassVar[bool] = True  # a string can be cut into pieces in several ways

    def fidelity(self, signals: Sequence[str]) -> dict[str, float]:
        """Share of strings that come back exactly (1.0 of none), and bytes of UTF-8 per code."""
        segments = self.encode_batch(signals)
        texts = list(map(self.text_of, signals))
        same = [self.decode(segment) == text for segment, text in zip(segments, texts, strict=True)]
        n_bytes = sum(len(utf8(text)) for text in texts)
        return {
            "exact_share": float(np.mean(same)) if same else 1.0,
            "bytes_per_code": n_bytes / max(1, sum(map(len, segments))),
        }

    def text_of(self, signal: Any) -> str:
        """The text that a signal is encoded as: a string itself."""
        return str(signal)

    def n_units(self, segment: Segment) -> int:
        """Bytes of UTF-8, of the frames that are asked for."""
        if segment.predict is not None and segment.codes is not None:
            segment = Segment("text", codes=segment.codes[segment.predict])
        return len(self.decode(segment).encode())

    def _checked_ids(self, segment: Segment) -> np.ndarray:
        """The codes (T,) of a segment. Raises UserError when they are not this tokenizer's."""
        return checked_codes(segment, self.signature)[:, 0]


@dataclass(frozen=True)
class BytesConfig(TextConfig):
    """Text as its UTF-8 bytes: 256 codes, nothing to learn."""

    def build(self) -> Bytes:
        """The tokenizer: nothing is to be learned."""
        return Bytes(self)

    def load(self, folder: Path) -> Bytes:
        """Open the tokenizer that was saved in `folder`."""
        return Bytes.load(folder)


class Bytes(TextTokenizer):
    """str <-> codes (T, 1): the UTF-8 bytes."""

    config_type: ClassVar[type] = BytesConfig
    is_ambiguous: ClassVar[bool] = False

    def __init__(self, config: BytesConfig = BytesConfig()):
        self.config = config
        self.signature = Signature(
            "text", levels=(256,), fingerprint=fingerprint("Bytes", asdict(config))
        )

    def encode(self, signal: str) -> Segment:
        """A string -> codes (T, 1) int32, T its length in bytes.

        Raises UserError on a lone surrogate.
        """
        return as_segment(np.frombuffer(utf8(signal), dtype=np.uint8).astype(np.int32))

    def decode(self, segment: Segment) -> str:
        """Codes (T, 1) -> a string; bytes that are not UTF-8 become U+FFFD."""
        content = self._checked_ids(segment).astype(np.uint8).tobytes()
        return content.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class SentencePieceConfig(TextConfig):
    """Learned text pieces: sentencepiece with byte fallback and no normalisation.

    Attributes:
        n_pieces: at most so many pieces, the 256 bytes and 3 specials of sentencepiece included
            (few texts give fewer).
        model: "unigram" or "bpe".
    """

    learns: ClassVar[bool] = True
    signature_is_bound: ClassVar[bool] = True

    n_pieces: int = 512
    model: Literal["unigram", "bpe"] = "unigram"

    def __post_init__(self) -> None:
        if self.n_pieces < N_OWN:
            raise UserError(
                f"SentencePieceConfig: n_pieces is {self.n_pieces}; it must be at least 260: 256"
                " bytes, 3 specials, one piece"
            )
        if self.model not in ("unigram", "bpe"):
            raise UserError(
                f"SentencePieceConfig: model is {self.model!r}; it must be 'unigram' or 'bpe'"
            )

    def signature(self) -> Signature:
        """Its number of pieces is an upper bound."""
        return Signature("text", (self.n_pieces,))

    def fit(self, signals: Sequence[str]) -> SentencePiece:
        """Learn the pieces from strings. Raises UserError when they are empty.

        Where there are more characters than pieces, the rarest are spelled in bytes, and a warning
        says so.
        """
        import sentencepiece

        counts = Counter[str]()
        for chunk in _chunks(signals):
            counts.update(chunk)
        del counts["\n"]  # sentencepiece learns line by line
        if not counts:
            raise UserError(
                "SentencePieceConfig: the training texts are empty; give at least one string with a"
                " letter in it"
            )
        chunks = _chunks(signals, self._rare(counts))
        file = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chunks,
            model_writer=file,
            model_type=self.model,
            vocab_size=self.n_pieces,
            hard_vocab_limit=False,  # a dozen captions hold fewer pieces than asked for
            byte_fallback=True,
            character_coverage=1.0,
            max_sentence_length=4 * LONGEST_CHUNK_CHARS + 4,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        return SentencePiece(self, file.getvalue())

    def load(self, folder: Path) -> SentencePiece:
        """Open the tokenizer that was saved in `folder`."""
        return SentencePiece.load(folder)

    def _rare(self, counts: Counter[str]) -> list[str]:
        """The characters that get no piece of their own, the rarest first.

        Warns of how many these are, and what share of the text the others make up.
        """
        room = self.n_pieces - N_OWN
        if len(counts) <= room:
            return []
        # the space sorts last, so it keeps its piece
        by_count = sorted(counts, key=lambda c: (c == " ", counts[c], -ord(c)))
        n_kept = max(1, int(CHARACTERS_SHARE * room))
        rare = by_count[:-n_kept]
        coverage = 1 - sum(counts[c] for c in rare) / counts.total()
        warnings.warn(
            f"SentencePieceConfig: {self.n_pieces:,} pieces have no room for {len(counts):,}"
            f" distinct characters; the {n_kept:,} most frequent, {100 * coverage:.4g} % of the"
            f" text, have pieces of their own, the other {len(rare):,} (first: {rare[-1]!r}) go by"
            " bytes; raise n_pieces for more",
            stacklevel=3,
        )
        return rare


def _chunks(signals: Iterable[str], rare: Iterable[str] = ()) -> Iterator[str]:
    """The training texts in chunks of bounded length, cut at characters that get no piece.

    These are the rare ones, and those for which sentencepiece would drop the whole text.
    """
    cut = re.compile(f"[{re.escape(''.join([*NOT_LEARNED, *rare]))}]")
    for text in signals:
        utf8(text)
        for part in cut.split(text):
            for start in range(0, len(part), LONGEST_CHUNK_CHARS):
                yield part[start : start + LONGEST_CHUNK_CHARS]


class Pieces(TextTokenizer):
    """str <-> codes (T, 1): the pieces of a sentencepiece model without a normaliser.

    Bytes spell what the pieces cannot.
    """

    kind: str  # "unigram" or "bpe"; of published models also "word" or "char"
    has_bytes = True  # there are pieces for all bytes, so everything can be spelled
    prefix = ""  # put before every text that is not empty, and taken away by `decode`

    def __init__(self, model: bytes):
        """Open the content of a .model file.

        Raises UserError when it is damaged.
        """
        self.processor = pieces = opened(model)
        try:
            self._bytes = [_piece_bytes(pieces, i) for i in range(pieces.vocab_size())]
            self.has_space = not pieces.is_unknown(pieces.piece_to_id(SPACE_MARK))
        except (ValueError, IndexError) as error:  # IndexError: of a model without an unknown piece
            raise UserError(f"the pieces of the sentencepiece model are damaged: {error}") from None
        self._mark_codes = np.array(
            [pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()], np.int32
        )
        self._space_code = pieces.piece_to_id("<0x20>")
        self.banned = tuple(
            i
            for i in range(pieces.vocab_size())
            if pieces.is_unknown(i) or pieces.is_control(i) or pieces.is_unused(i)
        )

    def encode(self, signal: str) -> Segment:
        """A string -> codes (T, 1) int32.

        Raises UserError on a lone surrogate, and on what there are no pieces for.
        """
        text = self._prefixed(signal)
        return as_segment(self._checked(text, self._row(text)))

    def encode_batch(self, signals: Sequence[str]) -> list[Segment]:
        """Strings -> segments, by sentencepiece's own threads."""
        texts = [self._prefixed(signal) for signal in signals]
        rows = self.processor.encode(texts, return_type="numpy") if texts else []
        rows = [self._lossless(text, row) for text, row in zip(texts, rows, strict=True)]
        return [as_segment(self._checked(text, row)) for text, row in zip(texts, rows, strict=True)]

    def _prefixed(self, signal: str) -> str:
        return self.prefix + signal if utf8(signal) else signal

    def _checked(self, text: str, row: np.ndarray) -> np.ndarray:
        """The codes (T,) of a text, if they give it back.

        Here they always do: bytes spell whatever no piece does.
        """
        return row

    def _row(self, text: str) -> np.ndarray:
        """Codes (T,) of a string, without the prefix."""
        return self._lossless(text, self.processor.encode(text, return_type="numpy"))

    def _lossless(self, text: str, row: np.ndarray) -> np.ndarray:
        """Codes (T,) of a string, from the model's own `row`, which takes U+2581 for a space."""
        if SPACE_MARK in text:
            return self._spell_marks(text)
        if not self.has_space:
            return self._spell_spaces(row)
        return row

    def _spell_marks(self, text: str) -> np.ndarray:
        """Codes (T,) of a string that holds U+2581: its three bytes, and pieces between."""
        rows = []
        for part in text.split(SPACE_MARK):
            rows += [self._mark_codes, self._row(part)]
        return np.concatenate(rows[1:])

    def _spell_spaces(self, row: np.ndarray) -> np.ndarray:
        """Codes (T,) with one byte for a space that no piece holds, not the three of U+2581."""
        first, second, third = self._mark_codes
        starts = np.flatnonzero((row[:-2] == first) & (row[1:-1] == second) & (row[2:] == third))
        row = row.copy()
        row[starts] = self._space_code
        return np.delete(row, np.concatenate([starts + 1, starts + 2]))

    def decode(self, segment: Segment) -> str:
        """Codes (T, 1) -> a string.

        Bytes that are not UTF-8 become U+FFFD; start and stop pieces become nothing.
        """
        return self._spelled(self._checked_ids(segment)).removeprefix(self.prefix)

    def _spelled(self, row: np.ndarray) -> str:
        """The string that codes (T,) spell, with the prefix."""
        content = b"".join([self._bytes[code] for code in row.tolist()])
        return content.decode("utf-8", errors="replace")

    def users_pieces(self) -> list[str]:
        """Pieces that the maker of the file named: they are found in a text before all others."""
        return []


class SentencePiece(Pieces):
    """str <-> codes (T, 1): learned pieces, with bytes for whatever the pieces cannot spell."""

    def __init__(self, config: SentencePieceConfig, model: bytes):
        """model: the content of a .model file, trained as `SentencePieceConfig.fit` does."""
        super().__init__(model)
        self.config = config
        self.kind = config.model
        self._model = model
        self.signature = Signature(
            "text",
            levels=(len(self._bytes),),
            banned=self.banned,
            fingerprint=fingerprint("SentencePiece", asdict(config), model),
        )

    def save(self, folder: Path) -> None:
        """Write the model and the config."""
        write_bytes(Path(folder) / PIECES, self._model)
        write_config(Path(folder), "SentencePiece", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> SentencePiece:
        """Open what `save` wrote. Raises UserError when the .model file is missing or broken."""
        config = load_config(folder, "SentencePiece", SentencePieceConfig)
        return cls(config, model_bytes(Path(folder) / PIECES))


def model_bytes(path: Path) -> bytes:
    """The content of a .model file.

    Raises UserError, naming it, when it cannot be read or is none.
    """
    with reading(path, "a sentencepiece model"):
        model = path.read_bytes()
    opened(model, path)
    return model


def opened(model: bytes, name: Path | str = "the pieces") -> Any:
    """Sentencepiece's processor of a .model file's content.

    Raises UserError, naming it, when it is none.
    """
    import sentencepiece

    if not model:  # the library would take this for a processor without a model yet
        raise UserError(f"{name}: cannot be read as a sentencepiece model (it is empty)")
    with reading(name, "a sentencepiece model"):
        return sentencepiece.SentencePieceProcessor(model_proto=model)


def _piece_bytes(pieces: Any, code: int) -> bytes:
    """What one piece spells."""
    if pieces.is_byte(code):
        return bytes([int(pieces.id_to_piece(code)[3:5], 16)])
    if pieces.is_unknown(code):
        return "\ufffd".encode()
    if pieces.is_control(code):
        return b""
    return pieces.id_to_piece(code).replace(SPACE_MARK, " ").encode()
