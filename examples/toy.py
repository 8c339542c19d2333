"""The whole thing in one file: words and melodies as one stream of tokens, learned in a minute.

Two toy modalities: a word ("rise" or "fall"), and a melody, a list of notes that do so. A note is a
frame of two channels, its pitch and its length. The model learns word -> melody and melody -> word
at once. Then it samples melodies for words and computes their probabilities.

    python examples/toy.py
"""

import random

import numpy as np
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature, segment_of
from mmtok.core.vocabulary import Vocabulary
from mmtok.heads.categorical import Chained
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate
from mmtok.model.likelihood import score
from mmtok.model.lm import LM, DecoderConfig
from mmtok.model.position_nll import loss_sums
from mmtok.nn.transformer import TransformerConfig
from mmtok.tokenizers.text import BytesConfig

N_PITCHES = 24
N_LENGTHS = 4
STEPS = 400
BATCH_SIZE = 32


# ---- data: pairs of a word and a melody


def make_example(rng: random.Random) -> tuple[str, list[tuple[int, int]]]:
    """A word, and notes (pitch, length) that rise or fall by one to three semitones each."""
    word = rng.choice(["rise", "fall"])
    pitches = [rng.randrange(N_PITCHES)]
    while len(pitches) < 8:
        step = rng.randint(1, 3) if word == "rise" else -rng.randint(1, 3)
        if not 0 <= pitches[-1] + step < N_PITCHES:
            break  # a melody ends where the keyboard does
        pitches.append(pitches[-1] + step)
    return word, [(pitch, rng.randrange(N_LENGTHS)) for pitch in pitches]


# ---- tokenizers: raw signals <-> segments


class MelodyTokenizer:
    """Notes (pitch, length) <-> codes (T, 2)."""

    signature = Signature("melody", levels=(N_PITCHES, N_LENGTHS))

    def encode(self, notes: list[tuple[int, int]]) -> Segment:
        """Notes are codes already."""
        return Segment("melody", codes=np.array(notes).reshape(-1, 2))

    def decode(self, segment: Segment) -> list[tuple[int, int]]:
        """The inverse."""
        return [(int(pitch), int(length)) for pitch, length in segment.codes]


text = BytesConfig().build()
melody = MelodyTokenizer()
vocabulary = Vocabulary([text.signature, melody.signature])  # one space of ids for both


def make_document(word: str, notes: list[tuple[int, int]], to: str) -> Document:
    """A word and its melody, or the reverse: the first segment is given, the second predicted."""
    segments = [text.encode(word), melody.encode(notes)]
    if to == "text":
        segments.reverse()
    return Document(tuple(segments), (False, True))


# ---- the decoder, and its loss


def make_model() -> LM:
    """A small Llama over the ids, and a head that fills the two channels of a note in."""
    trunk = TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=128)
    return LM(DecoderConfig(trunk, heads={"melody": Chained(32)}), vocabulary)


def train(lm: LM, steps: int = STEPS, seed: int = 0) -> list[float]:
    """Minimise -log p of what is predicted; returns the loss of every step."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, steps)
    losses = []
    for _ in range(steps):
        examples = [make_example(rng) for _ in range(BATCH_SIZE)]
        documents = [make_document(*x, to=rng.choice(["text", "melody"])) for x in examples]
        batch = pack(vocabulary, [[to_stream(vocabulary, d)] for d in documents])
        total, _ = loss_sums(lm(batch), batch, vocabulary, weights={})
        loss = total / batch.predict.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


# ---- samples and scores


def sample(lm: LM, word: str, n: int, seed: int = 0) -> list[list[tuple[int, int]]]:
    """N melodies for a word."""
    empty = segment_of(melody.signature)
    prompt = Document((text.encode(word), empty), (False, True), open_end=True)
    generator = torch.Generator().manual_seed(seed)
    drawn = generate(lm, [prompt] * n, Sampling(max_frames=16), generator)
    return [melody.decode(one.segment) for one in drawn]


def nats(lm: LM, word: str, notes: list[tuple[int, int]]) -> float:
    """-log p(melody | word)."""
    return score(lm, [make_document(word, notes, to="melody")])[0].total


def follows(word: str, notes: list[tuple[int, int]]) -> bool:
    """Whether a melody does what its word says."""
    steps = np.diff([pitch for pitch, _ in notes])
    return bool((steps > 0).all() if word == "rise" else (steps < 0).all())


def main() -> None:
    """Train, draw, score."""
    torch.manual_seed(0)
    lm = make_model()
    losses = train(lm)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    for word in ("rise", "fall"):
        drawn = sample(lm, word, 100)
        share = sum(follows(word, notes) for notes in drawn) / len(drawn)
        print(f"{word}: {share:.0%} of the samples do; the first is {drawn[0]}")
    notes = [(3, 0), (5, 1), (6, 2), (9, 0)]
    for word in ("rise", "fall"):
        print(f"-log p({notes} | {word}) = {nats(lm, word, notes):.1f} nats")


if __name__ == "__main__":
    main()
