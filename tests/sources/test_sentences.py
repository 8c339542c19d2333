"""Spoken sentences: a function of the seed, no text in two splits, voices as they are named."""

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.sources import hibari
from mmtok.sources.sentence_grammar import sentences, vocabulary
from mmtok.sources.sentences import SpokenSentences, is_natural
from mmtok.tokenizers.voices import pitch_statistics

ESPEAK = SpokenSentences(
    n_utterances=60, voices_heard=("en-us", "en-us+f2"), voices_unseen=("en+m4",)
)


def test_texts_are_many_and_no_one_twice():
    rng = np.random.default_rng(0)
    taken = {"The dog ran."}
    found = [text for _, text in zip(range(3000), sentences(rng, "sentence", taken), strict=False)]
    assert len(set(found)) == 3000 and taken == {"The dog ran.", *found}
    assert all(len(text) <= 60 and text[-1] in ".?!" and text[0].isupper() for text in found)
    again = sentences(np.random.default_rng(0), "sentence", set())
    assert [next(again) for _ in range(20)] == found[:20]
    assert 500 < len(vocabulary()) < 700


def test_splits_share_no_text_and_training_no_unseen_voice():
    source = SpokenSentences(n_utterances=400)
    said = {split: source.utterances(split) for split in source.splits}
    assert {split: len(found) for split, found in said.items()} == {
        "train": 360,
        "heldout": 20,
        "unseen_voices": 20,
    }
    captions = [utterance.caption for found in said.values() for utterance in found]
    assert len(set(captions)) == 400
    heard = {utterance.voice for utterance in said["train"]}
    assert heard == set(source.voices_heard)
    assert {u.voice for u in said["heldout"]} <= heard
    assert {u.voice for u in said["unseen_voices"]} == set(source.voices_unseen)
    counts = np.unique([u.voice for u in said["train"]], return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    assert (
        source.utterances("train")
        == said["train"]
        == SpokenSentences(n_utterances=400).utterances("train")
    )
    assert SpokenSentences(seed=1, n_utterances=400).utterances("train") != said["train"]


def test_clips_are_made_once_and_come_with_another_of_their_voice(tmp_path):
    made = list(ESPEAK.examples("train", tmp_path))
    (file,) = tmp_path.rglob("*.npz")
    changed = file.stat().st_mtime_ns
    again = list(ESPEAK.examples("train", tmp_path))
    assert file.stat().st_mtime_ns == changed
    assert len(made) == ESPEAK.count("train", tmp_path) == 54
    voices = ESPEAK.voices("train", tmp_path)
    for i, (example, same) in enumerate(zip(made, again, strict=True)):
        clip = example["speech"]
        assert np.array_equal(clip.samples, same["speech"].samples)
        assert 0.2 < len(clip.samples) / clip.rate_hz < 6
        assert np.abs(clip.samples).max() <= 0.9 and clip.samples.std() <= 0.11
        assert example.voice == voices[i]
        others = [j for j in range(54) if made[j]["speech"].name == example["voice"].name]
        assert i not in others and {voices[j] for j in others} == {voices[i]}


def test_a_damaged_cache_is_named(tmp_path):
    list(ESPEAK.examples("heldout", tmp_path))
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"0000\.npz.*delete the file to make them anew"):
        list(ESPEAK.examples("heldout", tmp_path))


@pytest.mark.skipif(not hibari.is_installed(), reason="needs the extra voices")
def test_a_natural_voice_at_another_rate_keeps_the_tempo_and_moves_the_pitch():
    engine = hibari.Hibari()
    usual, again = (engine.say("Nina found my golden ring.", "heart", seed=1) for _ in range(2))
    assert np.array_equal(usual, again)
    lower = engine.say("Nina found my golden ring.", "heart@19200", seed=1)
    seconds = len(usual) / 24_000
    assert abs(len(lower) / 19_200 / seconds - 1) < 0.15
    pitches = [
        pitch_statistics(torch.from_numpy(clip), rate)[0].item()
        for clip, rate in ((usual, 24_000), (lower, 19_200))
    ]
    assert abs(pitches[1] - pitches[0] - np.log2(0.8)) < 0.1
    fast = engine.say("Nina found my golden ring.", "heart", speed=1.25, seed=1)
    assert len(fast) / 24_000 < 0.9 * seconds


def test_voices_are_checked(tmp_path):
    assert is_natural("heart@20000") and not is_natural("en-us+f2")
    assert hibari.rate_of("heart") == 24_000 and hibari.rate_of("heart@19200") == 19_200
    for wrong in ("heart@", "heart@high", "heart@9000", "emma"):
        with pytest.raises(UserError, match="hibari"):
            hibari.rate_of(wrong)
    with pytest.raises(UserError, match="is in voices_heard and in voices_unseen"):
        SpokenSentences(voices_heard=("en",), voices_unseen=("en",))
    with pytest.raises(UserError, match="at least 40"):
        SpokenSentences(n_utterances=30)
    with pytest.raises(UserError, match="no voice 'xx'"):
        list(SpokenSentences(n_utterances=40, voices_heard=("xx",)).examples("train", tmp_path))
    assert not list(tmp_path.iterdir())
