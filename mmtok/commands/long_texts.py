"""Long texts, spoken sentence by sentence, and texts that a pipe writes."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mmtok.commands.prompts import is_file, is_text
from mmtok.core.segment import segment_of
from mmtok.io.tally import Tally
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run

TITLES = {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e"}
# of a sentence that goes on in the next line, or stops there: at the mark, with quotes behind it
END = re.compile(r"[.!?…]+[\"”’')\]]*(?=\s)|\n\s*\n")
READ_BYTES = 4096
PAUSE_S = 0.3  # between two sentences, or samples


def sentences_in(text: str) -> list[str]:
    """The sentences of a text, without white space around them.

    A sentence ends with . ! ? or … before white space, and with an empty line; not with the full
    stop of a title (Dr.) or of an initial.
    """
    return list(completed_sentences([text]))


def completed_sentences(pieces: Iterable[str]) -> Iterator[str]:
    """The same of a text that comes in pieces, each sentence as soon as it is known to be whole.

    At the end of a line too: what a pipe writes may stop there for long.
    """
    waiting = ""
    for piece in pieces:
        waiting += piece
        *whole, waiting = _split(waiting)
        yield from whole
        if waiting.strip() and waiting.endswith("\n") and _ends(waiting.rstrip()):
            yield waiting.strip()
            waiting = ""
    if waiting.strip():
        yield waiting.strip()


def _split(text: str) -> list[str]:
    """Whole sentences, and the rest, which may be empty."""
    found = []
    start = 0
    for match in END.finditer(text):
        sentence = text[start : match.end()].strip()
        if match[0].strip() and not _ends(sentence):
            continue
        if sentence:
            found.append(sentence)
        start = match.end()
    return [*found, text[start:]]


def _ends(sentence: str) -> bool:
    """Whether the full stop at the end of a text ends a sentence."""
    word = sentence.rstrip("\"”’')]").rpartition(" ")[2].lstrip("(\"“'‘")
    if not word.endswith("."):
        return word.endswith(("!", "?", "…"))
    name = word[:-1]
    is_initial = len(name) == 1 and name.isupper()
    return name.lower() not in TITLES and not is_initial


def prompts_by_sentence(run: Run, prompt: Sequence[str], modality: str) -> list[list[str]]:
    """The prompts that a prompt of a long text stands for, one for each sentence.

    It is itself where it is no text to be spoken, or one sentence.
    """
    texts = [i for i, word in enumerate(prompt) if is_text(run, word) or _is_text_file(word)]
    if modality != "speech" or len(texts) != 1:
        return [list(prompt)]
    (i,) = texts
    text = prompt[i]
    if _is_text_file(text):
        text = Path(text).read_text("utf-8-sig")
    sentences = list(spoken_only(sentences_in(text)))
    if len(sentences) < 2:
        return [list(prompt)]
    return [[*prompt[:i], sentence, *prompt[i + 1 :]] for sentence in sentences]


def spoken_only(sentences: Iterable[str]) -> Iterator[str]:
    """Sentences that have a letter or a digit; how many have none is said at the end."""
    with Tally("sentences") as tally:
        for sentence in sentences:
            tally.count()
            if any(map(str.isalnum, sentence)):
                yield sentence
            else:
                tally.add("left out, as there is nothing to say in it", sentence)


def joined(run: Run, samples: Sequence[Sampled]) -> Sampled:
    """Samples of sentences as one, with a pause of silent frames between two.

    It is cut at the cap where any of them is.
    """
    tokenizer = run.tokenizers[samples[0].segment.modality]
    n_silent = int(PAUSE_S * tokenizer.config.takes["rate_hz"])
    silence = tokenizer.encode(np.zeros(n_silent, np.float32)).values
    frames = [samples[0].segment.values]
    for sample in samples[1:]:
        frames += [silence, sample.segment.values]
    stop = "cap" if any(sample.stop == "cap" for sample in samples) else "end"
    return Sampled(segment_of(tokenizer.signature, np.concatenate(frames)), stop)


def _is_text_file(word: str) -> bool:
    return word.lower().endswith(".txt") and is_file(word)


def piped_text() -> Iterator[str]:
    """The text of standard input, as it comes; bytes that are no UTF-8 are shown as such."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        found = os.read(0, READ_BYTES)  # returns with what is there
        yield decoder.decode(found, final=not found)
        if not found:
            return
