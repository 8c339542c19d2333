"""Conversations as a checkpoint reads them: laid out by its own chat template, with its own marks.

The template is a program that the checkpoint brings along; `transformers` runs it in a sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmtok.errors import UserError, missing_extra, reason_of
from mmtok.io.conversations import ASSISTANT, Conversation

TEMPLATE_FILE = "chat_template.jinja"
HAS_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What a template that asks for today's date is told, so that the same file gives the same tokens:
# Llama 3.1's own default.
DATE = (
    '{% macro strftime_now(format) %}{% if format == "%Y-%m-%d" %}2024-07-26{% else %}26 Jul 2024'
    '{% endif %}{% endmacro %}{{ "" }}'
)
FIRST_PRIVATE = 0xF0000  # characters for private use, which stand for letters of a mark in a text


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A checkpoint's template.

    Attributes:
        template: in Jinja.
        special: bos_token, eos_token and the like, as the template calls them.
        start: the checkpoint, in messages.
    """

    template: str
    special: Mapping[str, str]
    start: str

    def laid_out(
        self, conversation: Conversation, find_mark: Callable[[str, int, int], list[re.Match]]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the spans of it that the assistant says.

        A span ends with the mark that ends the turn.

        find_mark: of a text and a span of it, the marks (special pieces) in it.

        Raises UserError for a conversation that the template refuses, and for a template that does
        not tell where turns begin.
        """
        if HAS_GENERATION.search(self.template):
            text, spans = self._render(conversation, conversation.opens, marked=True)
        else:
            text, _ = self._render(conversation, opens=conversation.opens)
            spans = list(self._turns(conversation, text))
        return text, [(a, _end_of_turn(text, a, b, find_mark)) for a, b in spans]

    def _turns(self, conversation: Conversation, text: str) -> Iterator[tuple[int, int]]:
        """The spans of the assistant's turns, from the texts of the turns before each."""
        messages = conversation.messages
        for i, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before, _ = self._render(replace(conversation, messages=messages[:i]), opens=True)
            upto, _ = self._render(replace(conversation, messages=messages[: i + 1]))
            if not (upto.startswith(before) and text.startswith(upto)):
                raise UserError(
                    f"the chat template of {self.start} does not tell what the assistant says:"
                    f" message {i} changes the text of those before it; put a {TEMPLATE_FILE} with"
                    " {% generation %} tags into its folder"
                )
            yield len(before), len(upto)

    def _render(
        self, conversation: Conversation, opens: bool = False, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation; opens: with the beginning of the assistant's next turn.

        marked: the spans between {% generation %} tags are given too.
        """
        try:
            from transformers.utils.chat_template_utils import render_jinja_template
        except ImportError:
            raise missing_extra("laying out conversations", "hub") from None
        template = self.template
        if "strftime_now" in template:
            template = DATE + template
        try:
            render = cast(Any, render_jinja_template)
            texts, spans = render(
                [[dict(message) for message in conversation.messages]],
                tools=list(conversation.tools) or None,
                chat_template=template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=opens,
                **self.special,
            )
        # a template may fail in any way: it is a program
        except Exception as error:
            raise UserError(
                f"the chat template of {self.start} refuses the conversation: {reason_of(error)}"
            ) from None
        return texts[0], [(int(a), int(b)) for a, b in (spans or [[]])[0]]


def _end_of_turn(
    text: str, start: int, end: int, find_mark: Callable[[str, int, int], list[re.Match]]
) -> int:
    """Where a turn ends: behind its last mark, where nothing but white space follows that.

    A mark right behind the turn belongs to it, where it has none.
    """
    marks = find_mark(text, start, end)
    if marks and not text[marks[-1].end() : end].strip():
        return marks[-1].end()
    following = find_mark(text, end, len(text))
    if following and following[0].start() == end:
        return following[0].end()
    return end


def read_template(folder: Path, start: str) -> ChatTemplate:
    """The template in a checkpoint's folder. Raises UserError where there is none."""
    config = _json_in(folder / "tokenizer_config.json")
    special = _json_in(folder / "special_tokens_map.json") | config
    found: Any = config.get("chat_template")
    try:
        found = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        found = found or _json_in(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str) or not found.strip():
        raise UserError(
            f"{folder} has no chat template ({TEMPLATE_FILE}, or chat_template in"
            " tokenizer_config.json), so conversations cannot be laid out; start from a checkpoint"
            " that was made for chat, or put its template there"
        )
    tokens = {name: _content(token) for name, token in special.items() if name.endswith("_token")}
    return ChatTemplate(found, {k: v for k, v in tokens.items() if v is not None}, start)


def _json_in(path: Path) -> dict[str, Any]:
    """The object in a file of a checkpoint; an empty one where there is none.

    Its numbers may have any number of digits, as those of model_max_length do.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__}, not an object")
    return found


def _content(token: Any) -> str | None:
    """The letters of a special piece, which files give as a text or an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    if isinstance(token, str):
        return token
    return None


class ChatEncoder:
    """Conversations -> ids, and which of them the assistant says.

    Attributes:
        marks: ids of the special pieces that the template writes.
    """

    def __init__(self, tok: Any, letters: Callable[[str], list[int]], template: ChatTemplate):
        """Use a tokenizer that is given to this encoder alone.

        Args:
            tok: of the package `tokenizers`.
            letters: spells a text in which the letters of a special piece are letters.
            template: lays conversations out.
        """
        self._tok = tok
        self._letters = letters
        self.template = template
        tok.encode_special_tokens = False
        tok.no_truncation()
        tok.no_padding()
        added = tok.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        source = template.template
        used = [text for text in self._special if text in source]
        used += [text for name, text in template.special.items() if name in source]
        self.marks = {self._special[text] for text in used if text in self._special}

    @cached_property
    def _pattern(self) -> re.Pattern:
        """Any special piece, the longest where several begin alike."""
        texts = sorted(self._special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def laid_out(self, conversation: Conversation) -> str:
        """The text of a conversation."""
        plain, letters = self._hidden(conversation)
        text, _ = self.template.laid_out(plain, self._marks_in)
        return "".join(letters.get(letter, letter) for letter in text)

    def encode(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """Ids (T,) int32, and (T,) bool: those that the assistant says, its end marks included.

        A piece that begins before the assistant's words and holds some of them counts too.

        Raises UserError as `ChatTemplate.laid_out` does.
        """
        plain, letters = self._hidden(conversation)
        text, spans = self.template.laid_out(plain, self._marks_in)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []  # of each id, its first character and its last's end
        first = 0
        for part in re.split(f"([{''.join(letters)}])", text) if letters else [text]:
            if part in letters:
                spelled = self._letters(letters[part])
                ids += spelled
                offsets += [(first, first + 1)] * len(spelled)
            else:
                encoding = self._tok.encode(part, add_special_tokens=False)
                ids += encoding.ids
                offsets += [(first + start, first + stop) for start, stop in encoding.offsets]
            first += len(part)
        begins, stops = np.array(offsets, np.int64).reshape(-1, 2).T
        asked = np.zeros(len(ids), bool)
        for start, end in spans:
            asked |= (stops > start) & (begins < end)
        return np.array(ids, np.int32), asked

    def _marks_in(self, text: str, start: int, end: int) -> list[re.Match]:
        return list(self._pattern.finditer(text, start, end))

    def _hidden(self, conversation: Conversation) -> tuple[Conversation, dict[str, str]]:
        """The conversation with one private character for each mark that its words spell.

        Only the template writes marks: what people say of them are letters. Returns the characters
        with their letters too.
        """
        said = list(_texts(conversation.messages))
        spelled = list(dict.fromkeys(m for text in said for m in self._pattern.findall(text)))
        if not spelled:
            return conversation, {}
        used = set("".join(said))
        private = filter(lambda letter: letter not in used, map(chr, range(FIRST_PRIVATE, 2**20)))
        letters = dict(zip(private, spelled, strict=False))
        names = {text: letter for letter, text in letters.items()}

        def hidden(text: str) -> str:
            return self._pattern.sub(lambda match: names[match[0]], text)

        messages = tuple(_changed(conversation.messages, hidden))
        return replace(conversation, messages=messages), letters


def _texts(value: Any) -> Iterator[str]:
    """All texts in JSON values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """JSON values with all texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_changed(inner, change) for inner in value]
    return value
