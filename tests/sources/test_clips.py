"""Laws of listed clips: their order, what is held out, and what is taken once."""

import hashlib
from pathlib import PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.clips import Clip, in_order, split_clips, wanted_clips

NAMES = st.lists(
    st.builds(
        "{}/{}{}".format,
        st.sampled_from(["a", "a-b", "a/b", "b"]),
        st.sampled_from([str(i) for i in range(30)] + ["n.1", "n.2"]),
        st.sampled_from([".wav", ".flac"]),
    ),
    unique=True,
    max_size=60,
)


def clips_of(names):
    return in_order([Clip(name, name) for name in names], Tally())


@given(NAMES)
@settings(deadline=None)
def test_a_tenth_of_the_files_is_held_out_by_the_hash_of_their_names(names):
    clips = clips_of(names)
    assert [PurePath(clip.path).parts for clip in clips] == sorted(
        PurePath(name).parts for name in names
    )
    parts = split_clips(clips, "", "")
    held = [clip.unit for clip in parts["heldout"]]
    assert not set(held) & {clip.unit for clip in parts["train"]}
    assert sorted(parts["train"] + parts["heldout"]) == sorted(clips)
    if held:
        digests = [hashlib.sha256(PurePath(unit).name.encode()).digest() for unit in held]
        assert len(held) >= max(1, len(names) // 10)
        assert all(
            hashlib.sha256(PurePath(clip.unit).name.encode()).digest() >= max(digests)
            for clip in parts["train"]
        )


def test_the_split_of_some_names_stays_what_it_was():
    parts = split_clips(clips_of([f"{i:02}.wav" for i in range(20)]), "", "")
    assert [clip.path for clip in parts["heldout"]] == ["03.wav", "07.wav"]


def test_parts_of_a_file_stay_together_and_in_time():
    clips = [Clip(f"{i % 5}.wav", str(i), start_s=30.0 - i, duration_s=1.0) for i in range(30)]
    ordered = in_order(clips, Tally())
    assert [clip.start_s for clip in ordered if clip.path == "0.wav"] == [5, 10, 15, 20, 25, 30]
    parts = split_clips(ordered, "", "")
    assert len(parts["heldout"]) == 6 and len({clip.path for clip in parts["heldout"]}) == 1


def test_named_splits():
    clips = [
        Clip(f"{split}/{i}.wav", f"{split} {i}", split=split)
        for split in ("train-a", "dev", "test")
        for i in range(10)
    ]
    assert {clip.split for clip in wanted_clips(clips, "train", "dev")} == {"train-a", "dev"}
    assert {clip.split for clip in wanted_clips(clips, "", "dev")} == {"train-a", "dev", "test"}
    parts = split_clips(clips, "", "dev")
    assert {clip.split for clip in parts["train"]} == {"train-a", "test"}
    assert {clip.split for clip in parts["heldout"]} == {"dev"}
    parts = split_clips(clips, "train", "")
    assert len(parts["train"]) == 9 and len(parts["heldout"]) == 1
    with pytest.raises(UserError, match="no clip is in a split 'validation'; the corpus has trai"):
        wanted_clips(clips, "", "validation")
    with pytest.raises(UserError, match="no clip is left to train on"):
        split_clips(clips, "dev", "dev")


def test_a_split_without_a_usable_clip_says_why():
    clips = [Clip(f"train/{name}.wav", name, split="train") for name in "ab"]
    gone = [Clip(f"dev/{name}.wav", name, split="dev") for name in "cd"]
    lost = [(clip, f"{clip.path}: no such file") for clip in gone]
    match = "the split 'dev' has 2 clips, and none can be used; the first: dev/c.wav: no such file"
    with pytest.raises(UserError, match=match):
        split_clips(clips, "", "dev", lost=lost)
    with pytest.raises(UserError, match=match):
        split_clips(clips, "dev", "", lost=lost)
    with pytest.raises(UserError, match="no clip is in a split 'test'; the corpus has train"):
        split_clips(clips, "train", "test", lost=lost)


def test_a_split_that_leaks_is_counted_and_refused_above_one_in_a_hundred():
    held = [Clip(f"{i}.wav", f"text {i}", split="dev") for i in range(200)]
    train = [Clip(f"t{i}.wav", "text 3", split="train") for i in range(10)]
    leak = Clip("7.flac", "other", split="train")
    with pytest.warns(UserWarning) as said:
        parts = split_clips([*train, leak, *held], "train", "dev")
    lines = " ".join(str(w.message) for w in said)
    assert parts["train"] == train and "1 of 11 training clips was left out: their files" in lines
    assert "1 of 200 held-out clips was of a transcript that training has too" in lines
    more = [Clip(f"{i}.wav", "x", split="train") for i in range(3)]
    with pytest.raises(UserError, match="0.wav: in the training split .* 3 of 200 held-out files"):
        split_clips([*more, *held], "train", "dev")


def test_rows_that_cannot_be_used_are_no_copies_of_each_other():
    faulty = [Clip("a.wav", "", fault=f"line {i}: start is '-1'") for i in (2, 3)]
    assert len(in_order([*faulty, Clip("b.wav", "said")], Tally())) == 3
