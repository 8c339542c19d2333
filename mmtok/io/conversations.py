"""Conversations as JSON has them: messages of a role and its words, in the forms that are usual."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmtok.errors import UserError, reason_of
from mmtok.io.messages import shown
from mmtok.io.strict_json import unique_keys

ASSISTANT = "assistant"
HEAD_BYTES = 2**16  # of a file, to tell what it is
# other words for roles, as ShareGPT's files have them
ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "chatgpt": ASSISTANT,
}
KEYS = {"from": "role", "value": "content"}  # other words for the keys of a message


@dataclass(frozen=True, eq=False)
class Conversation:
    """A conversation: a signal of the modality text.

    Attributes:
        messages: each has `role`, mostly `content`, and whatever else a template reads.
        tools: JSON schemas of the functions that the assistant may call.
        opens: the assistant's next turn begins at its end, as in a prompt.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...] = ()
    opens: bool = False

    @property
    def n_chars(self) -> int:
        """The characters of all contents."""
        return sum(_n_chars(message.get("content")) for message in self.messages)

    @property
    def has_answer(self) -> bool:
        """Whether the assistant says anything."""
        return any(message["role"] == ASSISTANT for message in self.messages)


def _n_chars(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, Sequence):
        return sum(_n_chars(part.get("text")) for part in content if isinstance(part, Mapping))
    return 0


def conversation_of(messages: Any, tools: Any = None) -> Conversation:
    """A conversation from the cells of a table: lists, or JSON of lists.

    Raises UserError, without naming the row, for what is none.
    """
    found = _listed(messages, "a conversation")
    return Conversation(
        tuple(message_of(i, message) for i, message in enumerate(found)),
        tuple(_listed(tools, "tools") if tools else ()),
    )


def read_conversation(path: Path) -> Conversation:
    """The conversation in a JSON file: a list of messages, or an object with messages and tools.

    Where the assistant does not speak last, its next turn begins.

    Raises UserError, naming the file, for what is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
        tools = None
        if isinstance(found, Mapping):
            tools = found.get("tools")
            found = found.get("messages")
        chat = conversation_of(found, tools)
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"{path}: no conversation that can be read: {reason_of(error)}") from None
    if not chat.messages:
        raise UserError(f"{path}: a conversation without a message")
    return replace(chat, opens=chat.messages[-1]["role"] != ASSISTANT)


def looks_like_conversation(path: Path) -> bool:
    """Whether the beginning of a JSON file has a key of conversations."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return any(f'"{key}"'.encode() in head for key in ("messages", "role", "from"))


def _listed(cell: Any, what: str) -> list[Any]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError):
            raise UserError(f"holds {shown(cell)}, where {what} as JSON belongs") from None
    if not isinstance(cell, list):
        raise UserError(f"holds {type(cell).__name__}, where {what} is a list")
    return cell


def message_of(i: int, message: Any) -> dict[str, Any]:
    """Message i with the usual keys and roles. Tables fill missing keys with None: these go.

    Raises UserError, without naming the row, for what is none.
    """
    if not isinstance(message, Mapping):
        raise UserError(f"message {i} is {shown(message)}, where role and content belong")
    found = {KEYS.get(str(k), str(k)): value for k, value in message.items() if value is not None}
    role = found.get("role")
    if not isinstance(role, str):
        raise UserError(f"message {i} has no role; its keys are {', '.join(map(str, message))}")
    found["role"] = ROLES.get(role, role)
    content = found.setdefault("content", "")
    if not isinstance(content, (str, list)):
        raise UserError(f"message {i} has {type(content).__name__} as its content, not text")
    return found
