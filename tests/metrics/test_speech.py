"""Judges that name real words and voices, also after a round trip they never heard."""

import numpy as np
import pytest
import torch

from mmtok.data.preparation import Preparer
from mmtok.data.speech_preparation import SpeechPreparation
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.metrics.speech import (
    entropy_share,
    train_speech_judge,
    train_voice_judge,
)
from mmtok.sources.speech import SpokenDigits
from mmtok.tokenizers.speech import DMelConfig


def test_entropy_share():
    assert entropy_share(["a", "b", "c", "d"], 4) == pytest.approx(1)
    assert entropy_share(["a"] * 9, 4) == 0
    assert entropy_share(["a", "a", "b", "b"], 4) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """split -> list of (clip, utterance); fewer than the default set has, so that the test is
    quick.
    """
    pytest.importorskip("espeakng_loader")
    source = SpokenDigits(n_utterances=1500)
    cache = tmp_path_factory.mktemp("digits")
    prepare = Preparer("speech", SpeechPreparation(), {"rate_hz": 16_000})
    tally = Tally()
    return {
        split: [
            (prepare(e["speech"], "", tally), u)
            for e, u in zip(source.examples(split, cache), source.utterances(split), strict=True)
        ]
        for split in source.splits
    }


def single_words(pairs):
    chosen = [(clip, u.caption) for clip, u in pairs if " " not in u.caption]
    return [clip for clip, _ in chosen], [caption for _, caption in chosen]


@pytest.fixture(scope="module")
def word_judge(digits):
    return train_speech_judge(*single_words(digits["train"]), n_steps=150)


def test_the_judge_of_words_knows_held_out_words(word_judge, digits):
    clips, labels = single_words(digits["heldout"])
    assert word_judge.accuracy(clips, labels) >= 0.98
    assert word_judge.accuracy([0.05 * clip for clip in clips], labels) >= 0.98
    assert word_judge.probabilities(clips).sum(1) == pytest.approx(1)


@pytest.mark.parametrize("config", [DMelConfig.dmel_80hz(), DMelConfig.dmel_40hz()])
def test_the_judge_of_words_hears_through_a_round_trip(word_judge, digits, config):
    clips, labels = single_words(digits["heldout"])
    tokenizer = config.build()
    assert (
        word_judge.accuracy(tokenizer.decode_batch(tokenizer.encode_batch(clips)), labels) >= 0.95
    )


def test_the_judge_answers_on_anything(word_judge):
    odd = [np.zeros(0, np.float32), np.zeros(5, np.float32), np.ones(100_000, np.float32)]
    assert set(word_judge.predict(odd)) <= set(word_judge.classes) and word_judge.predict([]) == []


def test_judges_leave_the_random_state_alone_and_repeat(digits):
    clips, labels = (part[:60] for part in single_words(digits["train"]))
    state = torch.get_rng_state()
    a, b = (train_speech_judge(clips, labels, n_steps=3).probabilities(clips) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(a, b)
    with pytest.raises(UserError, match="two labels"):
        train_speech_judge(clips, ["one"] * 60)


def test_the_judge_of_voices_knows_held_out_strings(digits):
    parts = {
        split: ([clip for clip, _ in digits[split]], [u.voice for _, u in digits[split]])
        for split in ("train", "heldout")
    }
    judge = train_voice_judge(*parts["train"])
    assert judge.accuracy(*parts["heldout"]) >= 0.85  # of 12 voices
    assert entropy_share(judge.predict(parts["heldout"][0]), len(judge.voices)) > 0.95
    assert judge.predict([]) == [] and len(judge.predict([np.zeros(0, np.float32)])) == 1
