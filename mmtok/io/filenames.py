"""Safe names of files made from any text, and paths that stay inside their folder.

Texts come from users, captions, token files, recipes: `../x`, `/etc/x`, 320 letters, a newline.
`file_names` makes names from them; `inside` checks names that were read from a file.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmtok.errors import UserError

# Of a name without suffix. The smallest limit of file systems in use is 143 (eCryptfs); numbers,
# suffixes and temporary names take the rest.
MOST_BYTES = 100
NO_NAME = "_"  # in place of an empty name, and of a forbidden character
FORBIDDEN = set('<>:"/\\|?*')  # on Windows; "/" everywhere
# names of devices on Windows
RESERVED = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL
)


def file_names(words: Sequence[str], there: Iterable[str] = (), space: str = " ") -> list[str]:
    """A name without suffix for each text: safe, short, readable; equal texts have equal names.

    A text that is a good name is its own name. Of another the name is what is left of it, cut to
    `MOST_BYTES` bytes of UTF-8, and a part of its hash. So is that of a text which differs from
    another only in case or in its Unicode form, as some file systems take these for the same.

    there: names in the folder already, which may be given again. space: what replaces a space.
    """
    taken = {_folded(name): name for name in there}
    given: dict[str, str] = {}
    used: set[str] = set()
    for text in words:
        if text not in given:
            given[text] = next(
                name
                for name in _candidates(text, space)
                if _folded(name) not in used and taken.get(_folded(name), name) == name
            )
            used.add(_folded(given[text]))
    return [given[text] for text in words]


def tree_names(paths: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The path of names for each path of texts; names in one folder differ, as in `file_names`."""
    children: dict[tuple[str, ...], dict[str, None]] = {}
    for words in paths:
        for depth, part in enumerate(words):
            children.setdefault(tuple(words[:depth]), {})[part] = None
    named = {
        above: dict(zip(parts, file_names(list(parts)), strict=True))
        for above, parts in children.items()
    }
    return [
        tuple(named[tuple(words[:depth])][part] for depth, part in enumerate(words))
        for words in paths
    ]


def is_name(words: str) -> bool:
    """Whether a text can be the name of a file or folder as it is."""
    return (
        words not in ("", ".", "..")
        and words.isprintable()
        and not set(words) & set("/\\")
        and len(words.encode()) <= 2 * MOST_BYTES
    )


def inside(folder: Path, name: str, root: Path | None = None) -> Path:
    """The path of `name`, which was read from a file, in `folder`.

    root: a folder above, where symbolic links may lead anywhere inside of that.

    Raises UserError for a name that leads out, by itself or by a link, or to the folder itself.
    """
    home = (root or folder).resolve()
    try:
        path = folder / name
        found = path.resolve()
        stays = (
            ".." not in Path(name).parts
            and found != folder.resolve()
            and found.is_relative_to(home)
        )
    except (ValueError, OSError, RuntimeError):  # a NUL; a name too long; links that go round
        stays = False
    if not stays:
        raise UserError(
            f"{name!r} is no file inside {folder}: only names that stay in their folder are opened"
        )
    return path


def _candidates(words: str, space: str) -> Iterator[str]:
    """Names for a text, the most readable first."""
    spaced = words.replace(" ", space)
    if spaced == _cleaned(spaced, MOST_BYTES):
        yield spaced
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()
    for n_digits in (6, 12, 24, 64):
        yield f"{_cleaned(spaced, MOST_BYTES - 1 - n_digits)}-{digest[:n_digits]}"


def _cleaned(words: str, most_bytes: int) -> str:
    """What is left of a text as a name.

    It is in NFC and printable, without separators, without dots or spaces at its ends, not hidden,
    and does not look like an option.
    """
    composed = unicodedata.normalize("NFC", words[: 4 * most_bytes])
    name = "".join(c if c.isprintable() and c not in FORBIDDEN else NO_NAME for c in composed)
    name = re.sub(r"^[\s.-]+", NO_NAME, name)
    if not name or RESERVED.fullmatch(name):
        name = NO_NAME + name
    name = name.encode("utf-8")[:most_bytes].decode("utf-8", "ignore")
    return re.sub(r"[\s.]+$", NO_NAME, name)


def _folded(name: str) -> str:
    """A key that is equal for names which some file system takes for the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
