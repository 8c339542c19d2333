"""Text: UTF-8 bytes without training, or learned sentencepiece pieces.

Both give every string back exactly.

A string is what UTF-8 can encode; lone surrogates cannot be and are refused. Codes that no string
gives (bytes that are not UTF-8, as a model may draw them) decode with U+FFFD in the place of the
broken part.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError, reading
from mmtok.io.files import write_bytes
from mmtok.tokenizers.base import fingerprint, load_config, write_config

# sentencepiece writes a space as this character, so the character itself must go in as bytes
SPACE_MARK = "\u2581"
NOT_LEARNED = "\u2581\u2585\0"  # sentencepiece drops every training passage that holds one of these
PIECES = "pieces.model"  # in a tokenizer's folder
# pieces that are not learned: 256 bytes, 3 specials, and one that sentencepiece wants to spare
N_OWN = 260
# of the learned pieces so many are characters at most, where not all have room: three quarters gave
# the shortest codes among 0.1 to 1,
# for 1,900 and 3,025 characters and 600 to 3,000 pieces
CHARACTERS_SHARE = 0.75
LONGEST_PASSAGE_CHARS = (
    4096  # longer ones are cut for learning only: sentencepiece's memory grows with the longest
)


def utf8(text: str) -> bytes:
    """The bytes of a string. Raises UserError when it is no string, or holds a lone surrogate."""
    if not isinstance(text, str):
        raise UserError(f"text: expected a string, got {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise UserError(
            f"text: {what} is a lone surrogate, which UTF-8 cannot encode; remove it"
        ) from None


def checked_codes(segment: Segment, levels: int) -> np.ndarray:
    """The codes (T,) of a text segment.

    Raises UserError when they are not (T, 1) codes in [0, levels).
    """
    codes = segment.codes
    if codes is None or codes.shape[1] != 1:
        raise UserError(f"text: expected codes of shape (T, 1), got {segment.values.shape}")
    if codes.size and not (codes.min() >= 0 and codes.max() < levels):
        raise UserError(
            f"text: codes run from {codes.min()} to {codes.max()}, this tokenizer has 0 to"
            f" {levels - 1}"
        )
    return codes[:, 0]


def as_segment(codes: np.ndarray) -> Segment:
    """Codes (T,) as a segment of one channel."""
    return Segment("text", codes=codes[:, None])


class TextTokenizer:
    """What the text tokenizers share: batches as loops, and their fidelity."""

    def encode_batch(self, signals: Sequence[str]) -> list[Segment]:
        return [self.encode(text) for text in signals]

    def decode_batch(self, segments: Sequence[Segment]) -> list[str]:
        return [self.decode(segment) for segment in segments]

    def fidelity(self, signals: Sequence[str]) -> dict[str, float]:
        """Share of strings that come back exactly (it is 1), and UTF-8 bytes spent per code."""
        segments = self.encode_batch(signals)
        same = [self.decode(segment) == text for segment, text in zip(segments, signals)]
        n_bytes = sum(len(utf8(text)) for text in signals)
        return {
            "exact_share": float(np.mean(same)) if same else 1.0,
            "bytes_per_code": n_bytes / max(1, sum(map(len, segments))),
        }


@dataclass(frozen=True)
class BytesConfig:
    """Text as its UTF-8 bytes: 256 codes, nothing to learn."""

    modality: ClassVar[str] = "text"

    def build(self) -> Bytes:
        """The tokenizer: nothing is to be learned."""
        return Bytes(self)


class Bytes(TextTokenizer):
    """str <-> codes (T, 1): the UTF-8 bytes."""

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
        return (
            checked_codes(segment, 256).astype(np.uint8).tobytes().decode("utf-8", errors="replace")
        )

    def save(self, folder: Path) -> None:
        write_config(Path(folder), "Bytes", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Bytes:
        return cls(load_config(folder, "Bytes", BytesConfig))


@dataclass(frozen=True)
class SentencePieceConfig:
    """Learned text pieces: sentencepiece with byte fallback, no normalisation, nothing added in
    front.

    n_pieces  at most so many pieces, the 256 bytes and 3 specials of sentencepiece included (few
              texts give fewer)
    model     "unigram" or "bpe"
    """

    n_pieces: int = 512
    model: Literal["unigram", "bpe"] = "unigram"
    modality: ClassVar[str] = "text"

    def __post_init__(self):
        if self.n_pieces < N_OWN:
            raise UserError(
                f"SentencePieceConfig: n_pieces is {self.n_pieces}; it must be at least 260: 256"
                " bytes, 3 specials, one piece"
            )
        if self.model not in ("unigram", "bpe"):
            raise UserError(
                f"SentencePieceConfig: model is {self.model!r}; it must be 'unigram' or 'bpe'"
            )

    def fit(self, signals: Sequence[str]) -> SentencePiece:
        """Learn the pieces from strings. Raises UserError when they are empty.

        Where they have more characters than pieces, the rarest are left to bytes, which is said.
        """
        import sentencepiece

        counts = Counter[str]()
        for passage in _passages(signals):
            counts.update(passage)
        del counts["\n"]  # sentencepiece learns line by line
        if not counts:
            raise UserError(
                "SentencePieceConfig: the training texts are empty; give at least one string with a"
                " letter in it"
            )
        passages = _passages(signals, self._rare(counts))
        file = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=passages,
            model_writer=file,
            model_type=self.model,
            vocab_size=self.n_pieces,
            hard_vocab_limit=False,  # a dozen captions hold fewer pieces than asked for
            byte_fallback=True,
            character_coverage=1.0,
            max_sentence_length=4 * LONGEST_PASSAGE_CHARS + 4,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        return SentencePiece(self, file.getvalue())

    def _rare(self, counts: Counter[str]) -> list[str]:
        """The characters that get no piece of their own, the rarest first.

        Says how many these are, and what share of the text the others make up.
        """
        room = self.n_pieces - N_OWN
        if len(counts) <= room:
            return []
        by_count = sorted(
            counts, key=lambda c: (c == " ", counts[c], -ord(c))
        )  # a space keeps its piece
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


def _passages(signals: Iterable[str], rare: Iterable[str] = ()) -> Iterator[str]:
    """The training texts, cut to bounded length, without the rare characters and those that
    sentencepiece would drop a whole passage for.
    """
    cut = re.compile(f"[{re.escape(''.join([*NOT_LEARNED, *rare]))}]")
    for text in signals:
        utf8(text)
        for part in cut.split(text):
            for start in range(0, len(part), LONGEST_PASSAGE_CHARS):
                yield part[start : start + LONGEST_PASSAGE_CHARS]


class Pieces(TextTokenizer):
    """str <-> codes (T, 1): the pieces of a sentencepiece model that changes nothing of a text,
    with bytes for what they cannot spell.
    """

    kind: str  # "unigram" or "bpe", of published models also "word" or "char"
    has_bytes = True  # so that nothing is left unspelled
    prefix = ""  # stands before every text that is not empty, and is taken away again

    def __init__(self, model: bytes):
        """model: the content of a .model file without a normaliser.

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
        rows = [self._lossless(text, row) for text, row in zip(texts, rows)]
        return [as_segment(self._checked(text, row)) for text, row in zip(texts, rows)]

    def _prefixed(self, signal: str) -> str:
        return self.prefix + signal if utf8(signal) else signal

    def _checked(self, text: str, row: np.ndarray) -> np.ndarray:
        """The codes (T,) of a text as they are: bytes spell whatever no piece does."""
        return row

    def _row(self, text: str) -> np.ndarray:
        """Codes (T,) of a string, nothing put before it."""
        return self._lossless(text, self.processor.encode(text, return_type="numpy"))

    def _lossless(self, text: str, row: np.ndarray) -> np.ndarray:
        """Codes (T,) of a string of which the model makes `row`: for it U+2581 and a space are one."""
        if SPACE_MARK in text:
            return self._spell_marks(text)
        return row if self.has_space else self._spell_spaces(row)

    def _spell_marks(self, text: str) -> np.ndarray:
        """Codes (T,) of a string that holds U+2581: pieces between, three bytes for each."""
        rows = []
        for part in text.split(SPACE_MARK):
            rows += [self._mark_codes, self._row(part)]
        return np.concatenate(rows[1:])

    def _spell_spaces(self, row: np.ndarray) -> np.ndarray:
        """Codes (T,) in which a space that no piece holds is one byte, not the three of U+2581."""
        first, second, third = self._mark_codes
        starts = np.flatnonzero((row[:-2] == first) & (row[1:-1] == second) & (row[2:] == third))
        row = row.copy()
        row[starts] = self._space_code
        return np.delete(row, np.concatenate([starts + 1, starts + 2]))

    def decode(self, segment: Segment) -> str:
        """Codes (T, 1) -> a string; bytes that are not UTF-8 become U+FFFD, start and stop pieces
        nothing.
        """
        return self._says(checked_codes(segment, len(self._bytes))).removeprefix(self.prefix)

    def _says(self, row: np.ndarray) -> str:
        """What codes (T,) spell, with what stands before a text."""
        return b"".join([self._bytes[code] for code in row.tolist()]).decode(
            "utf-8", errors="replace"
        )


class SentencePiece(Pieces):
    """str <-> codes (T, 1): learned pieces, with bytes for whatever the pieces cannot spell."""

    def __init__(self, config: SentencePieceConfig, model: bytes):
        """model: the content of a sentencepiece .model file, trained as `SentencePieceConfig.fit`
        does.
        """
        super().__init__(model)
        self.config, self._model, self.kind = config, model, config.model
        self.signature = Signature(
            "text",
            levels=(len(self._bytes),),
            banned=self.banned,
            fingerprint=fingerprint("SentencePiece", asdict(config), model),
        )

    def save(self, folder: Path) -> None:
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

    if not model:  # which the library would take for a processor that waits for its model
        raise UserError(f"{name}: cannot be read as a sentencepiece model (it is empty)")
    with reading(name, "a sentencepiece model"):
        return sentencepiece.SentencePieceProcessor(model_proto=model)


def _piece_bytes(pieces, code: int) -> bytes:
    """What one piece spells."""
    if pieces.is_byte(code):
        return bytes([int(pieces.id_to_piece(code)[3:5], 16)])
    if pieces.is_unknown(code):
        return "\ufffd".encode()
    if pieces.is_control(code):
        return b""
    return pieces.id_to_piece(code).replace(SPACE_MARK, " ").encode()
