"""Text as a pretrained language model reads it: its own `tokenizers` file, with its ids.

Every string comes back exactly, or is refused. The model's special pieces (`<|end_of_text|>`) are
banned: in a text their letters are letters. The file's own rules may normalise a text, or drop a
space next to an added piece. A text that they would change is spelled in smaller parts, at worst in
bytes; only a file without pieces for all bytes leaves strings that cannot be spelled.

With `chat`, conversations are encoded too, by the checkpoint's own chat template; then the special
pieces that the template writes are not banned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError, missing_extra, reading
from mmtok.io.conversations import Conversation
from mmtok.io.files import write_text
from mmtok.io.messages import shown
from mmtok.io.serialize import Within, read_json_as
from mmtok.io.strict_json import read_json
from mmtok.tokenizers.base import fingerprint, load_config, write_config
from mmtok.tokenizers.chat import ChatEncoder, ChatTemplate, read_template
from mmtok.tokenizers.text import TextConfig, TextTokenizer, as_segment, utf8

# in a tokenizer's folder; a checkpoint's folder calls the same file tokenizer.json
PIECES = "pieces.json"
CHAT = "chat.json"  # beside it: the chat template
MOST_ROWS = 2**24  # of an embedding; the largest published ones have less than 2**19
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def library() -> Any:
    """The package `tokenizers`. Raises UserError where it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise missing_extra("a pretrained model's text tokenizer", "hub") from None
    return tokenizers


def checkpoint_folder(start: str) -> Path:
    """The folder of a checkpoint: `start`, or the local copy of that name on the Hugging Face hub.

    The copy is fetched once. Raises UserError when `start` is neither.
    """
    if Path(start).is_dir():
        return Path(start)
    if not HUB_ID.fullmatch(start):
        raise UserError(f"no checkpoint folder at {start} (on the hub a name is OWNER/MODEL)")
    try:
        import huggingface_hub
    except ImportError:
        raise missing_extra(
            f"fetching {start} from the hub, as there is no such folder,", "hub"
        ) from None
    try:
        wanted = ["*.json", "*.safetensors", "*.jinja"]
        return Path(huggingface_hub.snapshot_download(start, allow_patterns=wanted))
    # no network, no such model, no permission: each has its own type there
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"there is no folder {start}, and the hub does not give it: {lines[0]}"
        ) from None


@dataclass(frozen=True)
class PretrainedTextConfig(TextConfig):
    """The text tokenizer of a pretrained language model.

    Attributes:
        start: a checkpoint's folder, or its id on the Hugging Face hub.
        chat: also encode conversations, as the checkpoint's chat template lays them out.
    """

    start: str = ""
    chat: bool = False

    def signature(self) -> None:
        """None: the checkpoint may have to be fetched first."""
        return None

    def check(self) -> None:
        """Raise what `build` raises."""
        self.build()

    def build(self) -> PretrainedText:
        """Open the checkpoint's tokenizer.json.

        Raises UserError where there is none, or one with more ids than the model has rows.
        """
        if not self.start:
            raise UserError("PretrainedTextConfig: no checkpoint given; pass --start CHECKPOINT")
        folder = checkpoint_folder(self.start)
        try:
            pieces = (folder / "tokenizer.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(
                f"{folder} has no tokenizer.json;"
                f" AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r}) writes one"
            ) from None
        try:
            n_rows = read_json(folder / "config.json", nan=True).get("vocab_size")
        except (OSError, UserError, AttributeError):
            n_rows = None  # a tokenizer without a model
        if n_rows is not None and (type(n_rows) is not int or not 1 <= n_rows <= MOST_ROWS):
            raise UserError(
                f"{folder / 'config.json'}: its vocab_size is {shown(n_rows)}, where a whole number"
                f" above 0 belongs, at most {MOST_ROWS:,}"
            )
        template = None
        if self.chat:
            template = read_template(folder, self.start)
        return PretrainedText(self, pieces, n_rows, folder / "tokenizer.json", template)

    def load(self, folder: Path) -> PretrainedText:
        """Open the tokenizer that was saved in `folder`."""
        return PretrainedText.load(folder)


class PretrainedText(TextTokenizer):
    """str <-> codes (T, 1): a language model's own ids, one for each row of its embedding."""

    def __init__(
        self,
        config: PretrainedTextConfig,
        pieces: str,
        n_rows: int | None = None,
        name: Path | str = "",
        template: ChatTemplate | None = None,
    ):
        """Open the content of a tokenizer.json.

        Args:
            config: the settings.
            pieces: the content.
            n_rows: rows of the model's embedding, if there is a model.
            name: what messages call the file.
            template: lays out conversations.
        """
        self.config = config
        self.pieces = pieces
        lib = library()
        with reading(name or f"the tokenizer.json of {config.start}", "pieces of text"):
            self._tok = tok = lib.Tokenizer.from_str(pieces)
        tok.encode_special_tokens = True  # the letters of a special piece in a text are letters
        tok.no_truncation()
        tok.no_padding()
        known = set(tok.get_vocab(with_added_tokens=True).values())
        self.n_rows = n_rows or max(known) + 1
        if max(known) >= self.n_rows:
            raise UserError(
                f"{name or config.start}: its tokenizer has ids up to {max(known)}, but its model"
                f" {self.n_rows} rows"
            )
        special = {id for id, token in tok.get_added_tokens_decoder().items() if token.special}
        unknown = getattr(tok.model, "unk_token", None)
        if unknown:
            special |= {tok.token_to_id(unknown)} & known
        self._banned = special | (set(range(self.n_rows)) - known)  # in a text
        self._bytes = _byte_codes(tok, self._banned)
        about: dict[str, Any] = {"n_rows": self.n_rows}
        banned = self._banned
        self.chat: ChatEncoder | None = None
        if template is not None:
            own = lib.Tokenizer.from_str(pieces)
            self.chat = ChatEncoder(own, self._spelled_letters, template)
            about |= {"template": template.template, "special": dict(template.special)}
            banned = banned - self.chat.marks
        self.signature = Signature(
            "text",
            levels=(self.n_rows,),
            banned=tuple(sorted(banned)),
            fingerprint=fingerprint("PretrainedText", about, pieces.encode()),
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled for another process; the library forgets how it was set up."""
        self.__dict__.update(state)
        self._tok.encode_special_tokens = True

    def encode(self, signal: str | Conversation) -> Segment:
        """A string -> codes (T, 1) int32.

        Raises UserError on a lone surrogate, on what the file has no pieces for, and on a
        conversation without a template, or that its template refuses.
        """
        return self.encode_batch([signal])[0]

    def encode_batch(self, signals: Sequence[str | Conversation]) -> list[Segment]:
        """Strings -> segments, by the library's own threads; conversations one by one.

        A string is decoded again, and spelled in parts where it differs. Of a conversation p is
        asked of what the assistant says.
        """
        segments = {
            i: self._encode_chat(signal)
            for i, signal in enumerate(signals)
            if isinstance(signal, Conversation)
        }
        texts = [i for i in range(len(signals)) if i not in segments]
        encoded = self._encode_texts([cast(str, signals[i]) for i in texts])
        segments |= dict(zip(texts, encoded, strict=True))
        return [segments[i] for i in range(len(signals))]

    def _encode_chat(self, conversation: Conversation) -> Segment:
        if self.chat is None:
            utf8(conversation)  # raises
            raise AssertionError
        ids, asked = self.chat.encode(conversation)
        wrong = set(ids.tolist()).intersection(self.signature.banned)
        if wrong:
            piece = self._tok.id_to_token(min(wrong))
            raise UserError(
                f"text: the chat template of {self.config.start} wrote {piece!r}, which is not"
                " named in it, or is the tokenizer's unknown piece"
            )
        return replace(as_segment(ids), predict=asked)

    def _encode_texts(self, signals: list[str]) -> list[Segment]:
        for text in signals:
            utf8(text)
        rows = [e.ids for e in self._tok.encode_batch(signals, add_special_tokens=False)]
        decoded = self._tok.decode_batch(rows, skip_special_tokens=False)
        segments = []
        for ids, back, text in zip(rows, decoded, signals, strict=True):
            if back != text or not self._banned.isdisjoint(ids):
                ids = self._spell(text)
            segments.append(as_segment(np.array(ids, np.int32)))
        return segments

    def text_of(self, signal: str | Conversation) -> str:
        """The text that a signal is encoded as: of a conversation what its template writes."""
        if isinstance(signal, Conversation) and self.chat is not None:
            return self.chat.laid_out(signal)
        return super().text_of(signal)

    def _spelled_letters(self, text: str) -> list[int]:
        """Codes of a text, without special pieces."""
        codes = self._encode_texts([text])[0].codes
        assert codes is not None
        return [int(code) for code in codes[:, 0]]

    def decode(self, segment: Segment) -> str:
        """Codes (T, 1) -> a string; bytes that are not UTF-8 become U+FFFD."""
        codes = self._checked_ids(segment).tolist()
        return str(self._tok.decode(codes, skip_special_tokens=False))

    def _spell(self, text: str) -> list[int]:
        """Codes of a string that the file's own rules change: in parts that they keep, or bytes."""
        for ids in (self._spell_parts(text), self._spell_bytes(text)):
            if ids is not None and self._is_exact(ids, text):
                return ids
        for letter in text:
            spellings = (self._own_ids(letter), self._spell_parts(letter))
            if not any(ids is not None and self._is_exact(ids, letter) for ids in spellings):
                raise UserError(
                    f"text: the tokenizer of {self.config.start} has no pieces for {letter!r}"
                    f" (U+{ord(letter):04X}); remove it"
                )
        raise UserError(
            f"text: the tokenizer of {self.config.start} cannot give {text[:40]!r} back exactly"
        )

    def _spell_parts(self, text: str) -> list[int] | None:
        """Codes by the file's own rules, of halves of halves where these change the text.

        None: a letter cannot be spelled.
        """
        ids = self._own_ids(text)
        if self._is_exact(ids, text):
            return ids
        if len(text) < 2:
            return self._spell_bytes(text)
        half = len(text) // 2
        left = self._spell_parts(text[:half])
        right = self._spell_parts(text[half:])
        if left is None or right is None:
            return None
        return left + right

    def _spell_bytes(self, text: str) -> list[int] | None:
        """Codes of the bytes of a string; None: there are not pieces for all of them."""
        content = text.encode()
        if not all(byte in self._bytes for byte in content):
            return None
        return [self._bytes[byte] for byte in content]

    def _own_ids(self, text: str) -> list[int]:
        """Codes by the file's own rules."""
        ids: list[int] = self._tok.encode(text, add_special_tokens=False).ids
        return ids

    def _is_exact(self, ids: list[int], text: str) -> bool:
        """Whether codes give the string back, without special pieces."""
        if not self._banned.isdisjoint(ids):
            return False
        return bool(self._tok.decode(ids, skip_special_tokens=False) == text)

    def save(self, folder: Path) -> None:
        """Write the pieces and the config."""
        write_text(Path(folder) / PIECES, self.pieces)
        config = asdict(self.config) | {"n_rows": self.n_rows}
        if self.chat is None:
            del config["chat"]
        else:
            template = self.chat.template
            about = {"template": template.template, "special": dict(template.special)}
            write_text(Path(folder) / CHAT, json.dumps(about, indent=1))
        write_config(Path(folder), "PretrainedText", config)

    @classmethod
    def load(cls, folder: Path) -> PretrainedText:
        """Open what `save` wrote, without the checkpoint.

        Raises UserError when a file is missing or broken.
        """
        kept = load_config(folder, "PretrainedText", _Kept)
        path = Path(folder) / PIECES
        with reading(path, "a tokenizer's pieces"):
            pieces = path.read_text(encoding="utf-8")
        template = None
        if kept.chat:
            about = read_json_as(Path(folder) / CHAT, _KeptTemplate)
            template = ChatTemplate(about.template, about.special, kept.start)
        config = PretrainedTextConfig(kept.start, kept.chat)
        return cls(config, pieces, kept.n_rows, path, template)


@dataclass(frozen=True)
class _Kept:
    """The content of tokenizer.json: where the checkpoint was, and the rows of its embedding."""

    start: str
    n_rows: Annotated[int, Within(1, MOST_ROWS)]
    chat: bool = False


@dataclass(frozen=True)
class _KeptTemplate:
    """The content of chat.json."""

    template: str
    special: Mapping[str, str]


def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level pieces (Radford et al. 2019).

    A byte that prints as a letter stands for itself.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def _byte_codes(tok: Any, banned: set[int]) -> dict[int, int]:
    """Byte -> the id of the piece that is this byte alone, of the bytes that have one."""
    decoder = json.dumps(json.loads(tok.to_str()).get("decoder"))
    if '"ByteLevel"' in decoder:
        names = byte_letters()
    else:
        names = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = {byte: tok.token_to_id(name) for byte, name in enumerate(names)}
    return {byte: id for byte, id in ids.items() if id is not None and id not in banned}
