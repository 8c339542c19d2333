"""The Free Spoken Digit Dataset: its splits, strings of its recordings, what is refused."""

import tarfile
from collections import Counter

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.fsdd import FSDD, heldout_strings
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import DIGITS

SPEAKERS = ("anna", "bert")
N_TAKES = 7  # 5 of them held out


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Each recording is as long as it is loud: (digit + 1) * 10 samples of one value."""
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    for speaker in SPEAKERS:
        for digit in range(10):
            for take in range(N_TAKES):
                sound = np.full((digit + 1) * 10, (take + 1) / 16, np.float32)
                write_sound(folder / f"{digit}_{speaker}_{take}.wav", sound, 8_000)
    (folder / "README.md").write_text("not a recording")
    return folder


def test_single_words_are_split_by_index_and_strings_are_joined_of_one_split(recordings):
    source = FSDD(str(recordings), n_strings=40)
    for split, takes, n_strings in (("train", {5, 6}, 40), ("heldout", set(range(5)), 100)):
        examples = list(source.examples(split))
        said = source.said(split)
        singles = [example for example in examples if " " not in example["caption"]]
        assert len(singles) == 2 * 10 * len(takes) and len(examples) == len(singles) + n_strings
        assert source.count(split) == len(examples)
        assert source.voices(split) == [example.voice for example in examples]
        assert Counter(example["caption"] for example in singles) == dict.fromkeys(
            DIGITS, 2 * len(takes)
        )
        for example, words in zip(examples, said, strict=True):
            digits = [DIGITS.index(word) for word in example["caption"].split()]
            sound = example["speech"]
            assert sound.rate_hz == 8_000
            assert len(sound.samples) == sum((digit + 1) * 10 for digit in digits)
            assert {take for _, _, take in words.takes} <= takes
            assert {who for _, who, _ in words.takes} == {example["speaker"]}
            levels = np.unique(np.round(sound.samples * 16) - 1)
            assert set(levels) == {take for _, _, take in words.takes}
        speakers = Counter(example["speaker"] for example in examples)
        assert len(set(speakers.values())) == 1


def test_held_out_strings_are_of_three_words_and_never_in_training(recordings):
    source = FSDD(str(recordings), n_strings=2_000)
    training = Counter(said.caption for said in source.said("train"))
    heldout = {said.caption for said in source.said("heldout") if len(said.takes) == 3}
    assert heldout == {" ".join(words) for words in heldout_strings(0)}
    assert not heldout & training.keys()
    lengths = Counter(len(caption.split()) for caption in training.elements())
    assert lengths[2] + lengths[3] == 2_000 and min(lengths[2], lengths[3]) > 900
    assert source.said("train") == FSDD(str(recordings), n_strings=2_000).said("train")
    other = FSDD(str(recordings), n_strings=2_000, seed=1)
    assert other.said("train") != source.said("train")
    assert other.said("train")[:40] == source.said("train")[:40]  # the single words


def test_a_tar_and_the_folder_above_give_the_same(recordings, tmp_path):
    tar = tmp_path / "fsdd.tar.gz"
    with tarfile.open(tar, "w:gz") as file:
        file.add(recordings, "dataset/recordings")
    wanted = list(FSDD(str(recordings), 10).examples("heldout"))
    for path in (tar, recordings.parent):
        found = list(FSDD(str(path), 10).examples("heldout"))
        assert found == [example | {"speech": found[i]["speech"]} for i, example in
                         enumerate(wanted)]  # fmt: skip
        for a, b in zip(found, wanted, strict=True):
            assert np.array_equal(a["speech"].samples, b["speech"].samples)
    assert "140 recordings of digits by 2 speakers" in FSDD(str(tar)).found()


def test_what_is_no_such_dataset_is_refused_in_one_line(recordings, tmp_path):
    cut = tmp_path / "cut.tar.gz"
    with tarfile.open(cut, "w:gz") as file:
        file.add(recordings, "recordings")
    cut.write_bytes(cut.read_bytes()[:2_000])
    (tmp_path / "empty").mkdir()
    some = tmp_path / "some"
    some.mkdir()
    write_sound(some / "3_anna_0.wav", np.zeros(10, np.float32), 8_000)
    for path, words in (
        ("", "no path"),
        (tmp_path / "nowhere", "no folder, and no tar"),
        (tmp_path / "empty", "no recordings named DIGIT_SPEAKER_INDEX.wav"),
        (cut, "cannot be read as a tar"),
        (some, "no recording of the split train"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            FSDD(str(path)).check()
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="n_strings is -1"):
        FSDD(str(recordings), -1)
