"""English sentences of our own, drawn from a small grammar over word lists; a seed gives them all.

They are written as people write, with capitals, punctuation and numbers in digits, so that a
transcript's normalisation (`mmtok.core.spoken_form`) has something to do. A sentence is a template
whose slots, {noun} or {past}, are filled from lists or from templates of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

WORDS: Mapping[str, Sequence[str]] = {
    name: words.split()
    for name, words in {
        "name": """Anna Ben Clara David Emma Frank Grace Henry Irene Jack Kate Leo Maria Nina Oscar
            Paul Quentin Rosa Sam Tina Victor Wendy Peter Lucy Martin Sophie Thomas Julia Simon
            Helen""",
        "person": """teacher doctor farmer baker painter driver singer sailor nurse lawyer builder
            student neighbor captain gardener waiter writer soldier king queen boy girl child
            mother father brother sister uncle aunt grandmother friend stranger""",
        "animal": """dog cat horse cow sheep goat rabbit mouse bird duck goose fox wolf bear lion
            tiger monkey frog turtle spider donkey chicken""",
        "thing": """box book letter key lamp chair table window door clock map picture bottle cup
            plate knife spoon basket bag coat hat shoe glove umbrella pencil ticket camera radio
            phone guitar violin drum ball kite rope hammer ladder bucket candle mirror blanket
            pillow carpet ring coin boat wagon bicycle engine wheel""",
        "food": """bread butter cheese soup rice fish honey sugar salt tea coffee milk water juice
            cake pie salad chocolate breakfast lunch dinner fruit""",
        "countable": """apples pears lemons cherries potatoes carrots onions eggs cookies flowers
            trees stones books letters chairs bottles candles coins stars boats""",
        "place": """garden kitchen station market school church library museum hospital forest
            river beach island mountain village city castle bridge tower harbor field farm
            street corner office factory cellar attic hotel theater""",
        "adjective": """old young big small long short tall heavy light dark bright clean dirty
            cheap quiet loud happy sad angry tired hungry clever brave lazy gentle strange
            beautiful broken empty wooden golden silver red blue green yellow black white brown
            gray warm cold dry wet soft round""",
        "past": """found bought sold lost painted carried opened closed cleaned dropped broke fixed
            moved pulled pushed held washed wanted needed forgot brought took saw kept hid stole
            borrowed touched counted followed""",
        "verb": """find buy sell lose paint carry open close clean drop break fix move pull push
            hold wash want need forget bring take see keep hide steal borrow touch count follow""",
        "walked": """walked ran jumped slept waited danced laughed cried sang worked played sat
            stood stayed traveled swam""",
        "walk": """walk run jump sleep wait dance laugh cry sing work play sit stand stay travel
            swim""",
        "adverb": """slowly quickly quietly loudly happily sadly carefully suddenly often never
            always again alone together outside inside""",
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "month": """January February March April May June July August September October November
            December""",
        "weather": "rain snow storm thunder freeze",
        "near": "in near behind beside under above across",
        "modal": "can could should must might will would",
        "subject": "I you we they",
        "few": "two three four five six seven eight nine ten eleven twelve",
    }.items()
}

TEMPLATES: Mapping[str, Sequence[str]] = {
    "number": tuple(map(str, range(2, 100))),
    "ordinal": ("1st", "2nd", "3rd", *(f"{n}th" for n in range(4, 21))),
    "hour": tuple(map(str, range(1, 13))),
    "who": ("{name}", "{name}", "the {person}", "the {adjective} {person}", "my {person}"),
    "what": (
        "the {thing}",
        "a {adjective} {thing}",
        "the {adjective} {thing}",
        "my {thing}",
        "{few} {countable}",
        "some {food}",
        "your {adjective} {thing}",
    ),
    "where": ("{near} the {place}", "{near} the {adjective} {place}", "at the {place}"),
    "when": (
        "on {day}",
        "this morning",
        "last night",
        "yesterday",
        "before dinner",
        "after lunch",
        "in {month}",
        "every evening",
        "at {hour} o'clock",
    ),
    "sentence": (
        "{who} {past} {what} {when}.",
        "{who} {past} {what} {where}.",
        "{who} {walked} {adverb} {where}.",
        "The {adjective} {animal} {walked} {where}.",
        "The {animal} {past} {what}, and {name} {walked} {adverb}.",
        "Did {who} {verb} {what} {when}?",
        "Why did {who} {verb} {what}?",
        "Where is my {adjective} {thing}?",
        "Please {verb} {what} {where}.",
        "Don't {verb} {what}, {name}!",
        "There are {number} {countable} {where}.",
        "{name} has {number} {countable} and {few} {countable}.",
        "{who} is {adjective}, but {who} is {adjective}.",
        "It will {weather} {when}.",
        "{name} and {name} {modal} {walk} {where}.",
        "{subject} {modal} {verb} {what} {when}.",
        "{subject} {walked} {where} {when}.",
        "The {food} {where} is {adjective} and {adjective}.",
        "{what} costs {number} dollars.",
        "The meeting is on the {ordinal} of {month}.",
    ),
    "phrase": (
        "{name}",
        "{what}",
        "{where}",
        "{when}",
        "the {adjective} {animal}",
        "{number} {countable}",
        "{who} {walked}",
        "{name} and {name}",
    ),
}
SLOT = re.compile(r"\{(\w+)\}")


def sentences(
    rng: np.random.Generator, kind: str, taken: set[str], most_chars: int = 60
) -> Iterator[str]:
    """Texts without end, no one twice and none of `taken`, to which they are added.

    Args:
        rng: of the choices.
        kind: "sentence", or "phrase" for one to four words.
        taken: texts that must not come; changed in place.
        most_chars: longer ones are drawn again, so that a clip has a known longest length.
    """
    while True:
        text = _filled(rng, f"{{{kind}}}")
        text = text[0].upper() + text[1:]
        if len(text) <= most_chars and text not in taken:
            taken.add(text)
            yield text


def _filled(rng: np.random.Generator, template: str) -> str:
    """A template with every slot filled, however deep."""

    def choice(match: re.Match[str]) -> str:
        name = match[1]
        options = WORDS.get(name) or TEMPLATES[name]
        return _filled(rng, options[int(rng.integers(len(options)))])

    return SLOT.sub(choice, template)


def vocabulary() -> set[str]:
    """All words of the lists and the templates, in lower case, numbers as digits."""
    texts = [" ".join(words) for words in WORDS.values()]
    texts += [SLOT.sub(" ", " ".join(templates)) for templates in TEMPLATES.values()]
    return set(re.findall(r"[\w']+", " ".join(texts).lower()))
