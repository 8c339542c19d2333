"""The spoken form of an English text: what a transcript says, without how it is written.

Recognised texts are compared in it, and a recipe may train on it (`TextPreparation.spoken_form`).
The steps, in this order:

1. Unicode NFKC, lower case, typographic apostrophes and dashes as plain ones.
2. Numbers spelled: `12` twelve, `1,250` one thousand two hundred fifty, `3.05` three point zero
   five, `3rd` third, `7:30` seven thirty, `$2.50` two dollars fifty cents, `4%` four percent,
   `-2` minus two. A year is read as any other number. A number that begins with 0, or of more than
   fifteen digits, is read digit by digit.
3. `&` and, `+` plus, `=` equals, `@` at.
4. All other punctuation becomes white space, but for an apostrophe within a word (don't).
5. White space becomes one blank, none at the ends.

To do it again changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

# fmt: off
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)
TENS = (
    "zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)
# fmt: on
GROUPS = ("", "thousand", "million", "billion", "trillion")
ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
MONEY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
PLURALS = {"penny": "pence"}
SYMBOLS = {"&": " and ", "+": " plus ", "=": " equals ", "@": " at "}
APOSTROPHES = str.maketrans(dict.fromkeys("‘’ʼ`´", "'") | dict.fromkeys("−–—", "-"))
MOST_DIGITS = 3 * len(GROUPS)

WHOLE = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+"
AMOUNT = re.compile(rf"([$£€])\s?({WHOLE})(?:\.(\d\d)(?!\d))?")
CLOCK = re.compile(r"(?<![\d:.])(\d{1,2}):([0-5]\d)(?![\d:])")
ORDINAL = re.compile(rf"({WHOLE})(?:st|nd|rd|th)\b")
NUMBER = re.compile(rf"(?:(?<![\w)])(-))?({WHOLE})(?:\.(\d+))?(\s?%)?")


def spoken_form(text: str) -> str:
    """A text as it is said; see the module's docstring for the steps."""
    text = unicodedata.normalize("NFKC", text).translate(APOSTROPHES).lower()
    text = unicodedata.normalize("NFKC", text)  # lower case may need the normal form again
    text = AMOUNT.sub(_amount, text)
    text = CLOCK.sub(_clock, text)
    text = ORDINAL.sub(_ordinal, text)
    text = NUMBER.sub(_number, text)
    for symbol, word in SYMBOLS.items():
        text = text.replace(symbol, word)
    kept = [_kept(before, char, after) for before, char, after in _neighbours(text)]
    return " ".join("".join(kept).split())


def spelled(number: int) -> str:
    """A whole number in words: 1250 is one thousand two hundred fifty."""
    if number < 0:
        return f"minus {spelled(-number)}"
    if number >= 10**MOST_DIGITS:
        return _digits(str(number))
    words: list[str] = []
    for name in GROUPS:
        number, group = divmod(number, 1000)
        if group:
            words = [*_below_thousand(group), *([name] if name else []), *words]
        if not number:
            break
    return " ".join(words) or "zero"


def ordinal(number: int) -> str:
    """The ordinal of a whole number in words: 21 is twenty first."""
    *before, last = spelled(number).split()
    if last in ORDINALS:
        return " ".join([*before, ORDINALS[last]])
    if last.endswith("y"):
        return " ".join([*before, last[:-1] + "ieth"])
    return " ".join([*before, last + "th"])


def _below_thousand(number: int) -> list[str]:
    hundreds, rest = divmod(number, 100)
    words = []
    if hundreds:
        words += [ONES[hundreds], "hundred"]
    if 0 < rest < 20:
        words.append(ONES[rest])
    elif rest:
        tens, ones = divmod(rest, 10)
        words.append(TENS[tens])
        if ones:
            words.append(ONES[ones])
    return words


def _digits(text: str) -> str:
    return " ".join(ONES[int(digit)] for digit in text)


def _whole(text: str) -> str:
    """The digits of a whole number, with or without commas, in words."""
    text = text.replace(",", "")
    begins_with_zero = len(text) > 1 and text[0] == "0"
    if begins_with_zero or len(text) > MOST_DIGITS:
        return _digits(text)
    return spelled(int(text))


def _plural(number: str, name: str) -> str:
    if number == "one":
        return name
    return PLURALS.get(name, name + "s")


def _amount(match: re.Match[str]) -> str:
    unit, part = MONEY[match[1]]
    whole = _whole(match[2])
    words = f"{whole} {_plural(whole, unit)}"
    if match[3] and int(match[3]):
        cents = spelled(int(match[3]))
        words += f" {cents} {_plural(cents, part)}"
    return f" {words} "


def _clock(match: re.Match[str]) -> str:
    hours = int(match[1])
    minutes = int(match[2])
    if not minutes:
        return f" {spelled(hours)} o'clock "
    zero = "oh " if minutes < 10 else ""
    return f" {spelled(hours)} {zero}{spelled(minutes)} "


def _ordinal(match: re.Match[str]) -> str:
    return f" {ordinal(int(match[1].replace(',', '')))} "


def _number(match: re.Match[str]) -> str:
    words = _whole(match[2])
    if match[1]:
        words = f"minus {words}"
    if match[3]:
        words += f" point {_digits(match[3])}"
    if match[4]:
        words += " percent"
    return f" {words} "


def _neighbours(text: str) -> list[tuple[str, str, str]]:
    """Each character with the one before and the one after it, blanks at the ends."""
    padded = f" {text} "
    return [(a, b, c) for (a, b), c in zip(pairwise(padded), padded[2:], strict=False)]


def _kept(before: str, char: str, after: str) -> str:
    """A character, or a blank for punctuation."""
    if char == "'" and before.isalnum() and after.isalnum():
        return char
    if unicodedata.category(char)[0] in "LMN":
        return char
    return " "
