"""Several places by one name: glob patterns and ranges in braces, `shard-{0000..0099}.tar`."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.messages import listed

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:(//|\S+ )", re.IGNORECASE)  # https://, s3://, pipe:cat x
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 1_000_000  # names that braces may stand for


def is_pattern(name: str) -> bool:
    """Whether a name stands for several places: it has signs of a glob, or braces with a choice."""
    choices = (match[1] for match in BRACES.finditer(name))
    return any(sign in name for sign in "*?[") or any(
        "," in choice or RANGE.fullmatch(choice) for choice in choices
    )


def named_places(name: str, who: str, wanted: str) -> list[Path]:
    """The places that a name stands for, in order; ~ is the home.

    A name that is there as it is stands for itself, whatever signs it has.

    Args:
        name: a path, a glob pattern, or a path with {a,b} or {000..099}.
        who: whose setting it is.
        wanted: what it should be.

    Raises:
        UserError: it is empty or an address, or not all that it stands for is there.
    """
    if not name:
        raise UserError(f"{who}: no path given; pass --path FOLDER or FILE, {wanted}")
    if ADDRESS.match(name):
        raise UserError(f"{name}: is an address, and {who} reads local files; fetch it first")
    try:
        place = Path(name).expanduser()
    except RuntimeError:
        raise UserError(
            f"{who}: {name} is in the home of somebody whom this machine does not know"
        ) from None
    if not is_pattern(name) or os.path.exists(place):
        return [place]
    found = []
    missing = []
    for part in expanded(str(place)):
        if any(sign in part for sign in "*?["):
            matches = sorted(Path(match) for match in glob.iglob(part, recursive=True))
        else:
            matches = [path for path in (Path(part),) if os.path.exists(path)]
        found += matches
        if not matches:
            missing.append(part)
    if not found:
        raise UserError(f"{name}: nothing there has such a name; {who} wants {wanted}")
    if missing:
        raise UserError(
            f"{name}: {len(missing):,} of its names stand for nothing: {listed(missing, 3)}; change"
            " the pattern, or fetch the files"
        )
    return list(dict.fromkeys(found))


def expanded(name: str) -> list[str]:
    """A name for each choice of its braces, as a shell gives them: {a,b}, {08..11}.

    Raises UserError for more than a million.
    """
    match = next((m for m in BRACES.finditer(name) if "," in m[1] or RANGE.fullmatch(m[1])), None)
    if match is None:
        return [name]
    choices = match[1].split(",")
    if ends := RANGE.fullmatch(match[1]):
        first = int(ends[1])
        last = int(ends[2])
        if abs(last - first) >= MOST:
            raise UserError(f"{name}: its braces stand for more than {MOST:,} names")
        step = 1 if first <= last else -1
        # as in a shell, all have the digits of the longer end where one begins with a zero
        is_padded = any(len(end) > 1 and end.startswith("0") for end in ends.groups())
        n_digits = max(map(len, ends.groups())) if is_padded else 0
        choices = [f"{k:0{n_digits}}" for k in range(first, last + step, step)]
    rests = expanded(name[match.end() :])
    if len(choices) * len(rests) > MOST:
        raise UserError(f"{name}: its braces stand for more than {MOST:,} names")
    return [name[: match.start()] + choice + rest for choice in choices for rest in rests]
