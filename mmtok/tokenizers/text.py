"""Text: UTF-8 bytes without training, or learned sentencepiece pieces. Both give every string back exactly.

A string is what UTF-8 can encode; lone surrogates cannot be and are refused. Codes that no string gives
(bytes that are not UTF-8, as a model may draw them) decode with U+FFFD in the place of the broken part.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mmtok.files import write_bytes
from mmtok.segment import BadInput, Segment, Signature
from mmtok.tokenizers.base import fingerprint, read_config, write_config

SPACE_MARK = "\u2581"  # sentencepiece writes a space as this character, so the character itself must go in as bytes
NOT_LEARNED = re.compile("[\u2581\u2585\0]")  # sentencepiece drops every training passage that holds one of these
LONGEST_PASSAGE_CHARS = 4096  # longer ones are cut for learning only: sentencepiece's memory grows with the longest


def utf8(text: str) -> bytes:
    """The bytes of a string. Raises BadInput when it is no string, or holds a lone surrogate."""
    if not isinstance(text, str):
        raise BadInput(f"text: expected a string, got {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise BadInput(f"text: {what} is a lone surrogate, which UTF-8 cannot encode; remove it") from None


def checked_codes(segment: Segment, levels: int) -> np.ndarray:
    """The codes (T,) of a text segment. Raises BadInput when they are not (T, 1) codes in [0, levels)."""
    codes = segment.codes
    if codes is None or codes.shape[1] != 1:
        raise BadInput(f"text: expected codes of shape (T, 1), got {segment.values.shape}")
    if codes.size and not (codes.min() >= 0 and codes.max() < levels):
        raise BadInput(f"text: codes run from {codes.min()} to {codes.max()}, this tokenizer has 0 to {levels - 1}")
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
        return {"exact_share": float(np.mean(same)) if same else 1.0, "bytes_per_code": n_bytes / max(1, sum(map(len, segments)))}


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
        self.signature = Signature("text", levels=(256,), fingerprint=fingerprint("Bytes", asdict(config)))

    def encode(self, signal: str) -> Segment:
        """A string -> codes (T, 1) int32, T its length in bytes. Raises BadInput on a lone surrogate."""
        return as_segment(np.frombuffer(utf8(signal), dtype=np.uint8).astype(np.int32))

    def decode(self, segment: Segment) -> str:
        """Codes (T, 1) -> a string; bytes that are not UTF-8 become U+FFFD."""
        return checked_codes(segment, 256).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        write_config(Path(folder), "Bytes", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Bytes:
        read_config(Path(folder), "Bytes")
        return cls()


@dataclass(frozen=True)
class SentencePieceConfig:
    """Learned text pieces: sentencepiece with byte fallback, no normalisation, nothing added in front.

    n_pieces  at most so many pieces, the 256 bytes and 3 specials of sentencepiece included (few texts give fewer)
    model     "unigram" or "bpe"
    """

    n_pieces: int = 512
    model: Literal["unigram", "bpe"] = "unigram"
    modality: ClassVar[str] = "text"

    def __post_init__(self):
        if self.n_pieces < 260:
            raise BadInput(f"SentencePieceConfig: n_pieces is {self.n_pieces}; it must be at least 260: 256 bytes, 3 specials, one piece")
        if self.model not in ("unigram", "bpe"):
            raise BadInput(f"SentencePieceConfig: model is {self.model!r}; it must be 'unigram' or 'bpe'")

    def fit(self, signals: Sequence[str]) -> SentencePiece:
        """Learn the pieces from strings. Raises BadInput when they are empty or have more characters than pieces."""
        import sentencepiece

        passages = list(_passages(signals))
        n_characters = len(set().union(*passages) - {"\n"})
        if n_characters == 0:
            raise BadInput("SentencePieceConfig: the training texts are empty; give at least one string with a letter in it")
        if n_characters + 260 > self.n_pieces:
            raise BadInput(f"SentencePieceConfig: n_pieces is {self.n_pieces}, too few for texts of {n_characters} distinct characters; "
                           f"give at least {n_characters + 260}")
        file = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(passages), model_writer=file, model_type=self.model, vocab_size=self.n_pieces,
            hard_vocab_limit=False,  # a dozen captions hold fewer pieces than asked for
            byte_fallback=True, character_coverage=1.0, max_sentence_length=4 * LONGEST_PASSAGE_CHARS + 4,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2)
        return SentencePiece(self, file.getvalue())


def _passages(signals: Iterable[str]) -> Iterator[str]:
    """The training texts without what sentencepiece would drop a whole passage for, cut to bounded length."""
    for text in signals:
        utf8(text)
        for part in NOT_LEARNED.split(text):
            for start in range(0, len(part), LONGEST_PASSAGE_CHARS):
                yield part[start:start + LONGEST_PASSAGE_CHARS]


class SentencePiece(TextTokenizer):
    """str <-> codes (T, 1): learned pieces, with bytes for whatever the pieces cannot spell."""

    def __init__(self, config: SentencePieceConfig, model: bytes):
        """model: the content of a sentencepiece .model file, trained as `SentencePieceConfig.fit` does."""
        import sentencepiece

        self.config, self._model = config, model
        self.processor = pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        ids = range(pieces.vocab_size())
        self._bytes = [_piece_bytes(pieces, i) for i in ids]
        self._mark_codes = np.array([pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()], np.int32)
        banned = tuple(i for i in ids if pieces.is_unknown(i) or pieces.is_control(i) or pieces.is_unused(i))
        self.signature = Signature("text", levels=(len(ids),), banned=banned,
                                   fingerprint=fingerprint("SentencePiece", asdict(config), model))

    def encode(self, signal: str) -> Segment:
        """A string -> codes (T, 1) int32. Raises BadInput on a lone surrogate."""
        utf8(signal)
        return as_segment(self._spell_marks(signal) if SPACE_MARK in signal else self.processor.encode(signal, return_type="numpy"))

    def encode_batch(self, signals: Sequence[str]) -> list[Segment]:
        """Strings -> segments, by sentencepiece's own threads."""
        signals = list(signals)
        try:
            rows = self.processor.encode(signals, return_type="numpy") if signals else []
        except (RuntimeError, TypeError, UnicodeError):  # sentencepiece does not say which string it could not read
            for text in signals:
                utf8(text)
            raise
        return [as_segment(self._spell_marks(text) if SPACE_MARK in text else row) for text, row in zip(signals, rows)]

    def _spell_marks(self, text: str) -> np.ndarray:
        """Codes (T,) of a string that holds U+2581: pieces between, three bytes for each."""
        rows = []
        for part in text.split(SPACE_MARK):
            rows += [self._mark_codes, self.processor.encode(part, return_type="numpy")]
        return np.concatenate(rows[1:])

    def decode(self, segment: Segment) -> str:
        """Codes (T, 1) -> a string; bytes that are not UTF-8 become U+FFFD, start and stop pieces nothing."""
        codes = checked_codes(segment, len(self._bytes))
        return b"".join([self._bytes[code] for code in codes.tolist()]).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        write_bytes(Path(folder) / "pieces.model", self._model)
        write_config(Path(folder), "SentencePiece", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> SentencePiece:
        """Open what `save` wrote. Raises BadInput when the .model file is missing or broken."""
        config = SentencePieceConfig(**read_config(Path(folder), "SentencePiece"))
        path = Path(folder) / "pieces.model"
        try:
            return cls(config, path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise BadInput(f"{path} cannot be opened as a sentencepiece model: {str(error).splitlines()[0]}") from None


def _piece_bytes(pieces, code: int) -> bytes:
    """What one piece spells."""
    if pieces.is_byte(code):
        return bytes([int(pieces.id_to_piece(code)[3:5], 16)])
    if pieces.is_unknown(code):
        return "\ufffd".encode()
    if pieces.is_control(code):
        return b""
    return pieces.id_to_piece(code).replace(SPACE_MARK, " ").encode()
