"""Recordings by windows: all of them read, overlaps joined, memory bounded, words timed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtok.cli import main
from mmtok.commands import recordings
from mmtok.commands.pauses import loudness, pauses, spoken_windows, windows
from mmtok.commands.recordings import Word, join, read_recording, timed, word_spans
from mmtok.core.segment import Document
from mmtok.sources.sound_files import write_sound
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig


@given(st.integers(0, 500), st.integers(8, 60))
def test_windows_cover_a_recording_and_overlap(n_frames, size):
    spans = windows(n_frames, size)
    assert spans[0][0] == 0 and spans[-1][1] == n_frames
    assert all(stop - start <= size for start, stop in spans)
    for (start, stop), (later, _) in zip(spans, spans[1:], strict=False):
        assert start < later <= stop - size // 4
    if len(spans) > 1:
        assert {stop - start for start, stop in spans} == {size}


@given(st.integers(0, 300), st.integers(8, 40), st.lists(st.integers(0, 300), max_size=20))
def test_windows_end_in_pauses_where_there_are_some(n_frames, size, middles):
    quiet = [(middle - 1, middle + 1) for middle in sorted(set(middles))]
    spans = windows(n_frames, size, quiet)
    assert spans[0][0] == 0 and spans[-1][1] == n_frames
    assert all(0 < stop - start <= size for start, stop in spans if n_frames)
    for (start, stop), (later, _) in zip(spans, spans[1:], strict=False):
        if stop in middles and later == stop:
            assert stop - start >= size // 4
        else:
            in_reach = [m for m in middles if start + max(1, size // 4) <= m <= start + size]
            assert not in_reach and start < later <= stop - size // 4


def test_the_longest_pause_is_taken():
    quiet = [(20, 24), (30, 40), (50, 53)]
    assert windows(100, 60, quiet) == [(0, 35), (35, 51), (51, 100)]
    levels = np.repeat([1.0, -6.0, 0.5, -6.0, 0.0], [30, 8, 20, 3, 30])
    assert pauses(levels, 0.025) == [(30, 38)]  # the other is shorter than 0.15 s


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(2, 30)), max_size=12),
    st.booleans(),
    st.integers(25, 60),
)
def test_windows_hold_what_is_between_pauses(lengths, begins_quiet, size):
    """Every frame of a stretch, a frame of 0.05 s of each long pause beside it, and no more."""
    quiet = []
    at = 0
    for n_said, n_quiet in lengths:
        if not (begins_quiet and at == 0):
            at += n_said
        quiet.append((at, at + n_quiet))
        at += n_quiet
    spans = spoken_windows(at, size, quiet, 0.05)
    heard = np.zeros(at, int)
    for start, stop in spans:
        heard[start:stop] += 1
        assert 0 <= start <= stop <= at and stop - start <= size
    ends = [(a, b) for a, b in quiet if b - a >= 4]
    said = np.ones(at, bool)
    for a, b in ends:
        said[a:b] = False
    if not said.any():
        return
    assert heard[said].all()
    for start, stop in spans:
        inside = said[start:stop]
        assert max(np.argmax(side) for side in (inside, inside[::-1])) <= 1


def test_sentences_are_windows_of_their_own():
    """However many fit a row; a short one goes with its neighbour."""
    quiet = [(40, 48), (90, 100), (104, 110)]
    assert spoken_windows(160, 200, quiet, 0.05) == [(0, 41), (47, 105), (109, 160)]
    assert spoken_windows(160, 55, quiet, 0.05) == [(0, 41), (47, 91), (99, 105), (109, 160)]
    assert spoken_windows(160, 200, [], 0.05) == [(0, 160)]
    assert spoken_windows(20, 200, [(0, 20)], 0.05) == [(0, 20)]


def test_pauses_are_heard_in_codes_of_any_reduction(rng):
    """Two bursts of noise with 0.5 s of silence between them."""
    sound = np.concatenate(
        [rng.normal(0, 0.1, 16_000), np.zeros(8_000), rng.normal(0, 0.1, 16_000)]
    )
    for k in (1, 2, 4):
        tokenizer = replace(DMelConfig.dmel_40hz(), reduction_factor=k).build()
        speech = tokenizer.encode(sound.astype(np.float32))
        levels = loudness(tokenizer, speech)
        assert len(levels) == len(speech)
        ((start, stop),) = pauses(levels, 0.025 * k)
        assert start * k * 0.025 == pytest.approx(1.0, abs=0.11)
        assert stop * k * 0.025 == pytest.approx(1.5, abs=0.11)
    assert loudness(BytesConfig().build(), speech) is None


def words(text, nats=1.0):
    return [Word(word, nats) for word in text.split()]


@pytest.mark.parametrize(
    "before, after, whole",
    [
        ("the dog ran to", "ran to the house", "the dog ran to the house"),
        ("the dog ran t", "dog ran to the house", "the dog ran to the house"),
        ("", "a b", "a b"),
        ("a b", "", "a b"),
    ],
)
def test_readings_are_joined_at_what_they_share(before, after, whole):
    assert [word.text for word in join(words(before), words(after))] == whole.split()


def test_a_common_small_word_far_from_the_seam_joins_nothing():
    """However much was read before."""
    before = words("the cat saw the bird and the old man slept near a warm stove at home")
    after = words("long journeys begin early so the dog ran")
    found = [w.text for w in join(before, after, n_last=8, seam=lambda: (1, 0))]
    assert found == [w.text for w in before[:-1]] + [w.text for w in after]
    read = []
    phrase = "the cat and the dog and the man and the bird and the fish"
    text = phrase.split() * 6
    last = None
    for start, stop in windows(len(text), 12):
        read = join(read, words(" ".join(text[start:stop])), last)
        last = stop - start
    assert len(read) == pytest.approx(len(text), abs=8)


def test_what_both_windows_read_at_the_seam_is_there_once():
    found = join(words("a b warm"), words("warm c"), 3, seam=lambda: (0, 0))
    assert [w.text for w in found] == ["a", "b", "warm", "c"]
    found = join(words("a b c hot"), words("x warm c2"), 4, seam=lambda: (1, 1))
    assert [w.text for w in found] == ["a", "b", "c", "warm", "c2"]


def test_without_a_common_word_the_less_likely_one_at_the_seam_goes():
    likely = words("one two", 1.0)
    unlikely = words("hou home", 9.0)
    assert [w.text for w in join(likely, unlikely)] == ["one", "two", "home"]
    assert [w.text for w in join(unlikely, likely)] == ["hou", "one", "two"]


@given(st.integers(4, 30), st.integers(4, 12))
def test_any_text_comes_back_from_right_readings_of_its_windows(n, size):
    text = [f"w{i}" for i in range(n)]
    joined = []
    for start, stop in windows(n, size):
        joined = join(joined, words(" ".join(text[start:stop])))
    assert [word.text for word in joined] == text


def test_words_have_the_scores_of_their_codes(speaking_run):
    """Their sum, and that of the end mark, is the score of the text."""
    speech = speaking_run.encode("speech", [next(speaking_run.examples("heldout"))["speech"]])[0]
    text = speaking_run.encode("text", ["Ben  ran, twice."])[0]
    assert [word for word, *_ in word_spans(speaking_run, text)] == ["ben", "ran", "twice"]
    (found,) = recordings.read_words(speaking_run, [speech], [text])
    nats = recordings.last_nats(speaking_run.lm, [Document((speech, text), (False, True))])[0]
    (score,) = speaking_run.score_documents([Document((speech, text), (False, True))])
    assert len(nats) == len(text) + 1
    assert sum(word.nats for word in found) + nats[-1] == pytest.approx(score.total, rel=1e-5)


def test_times_are_ordered_and_within_the_clip(speaking_run):
    speech = speaking_run.encode("speech", [next(speaking_run.examples("heldout"))["speech"]])[0]
    text = speaking_run.encode("text", ["Ben ran twice."])[0]
    (found,) = recordings.read_words(speaking_run, [speech], [text])
    placed = timed(speaking_run, speech, text, found, 0.025, 10.0)
    edges = [10.0, *(word.end_s for word in placed)]
    assert [word.start_s for word in placed] == edges[:-1]
    assert edges == sorted(edges)
    assert edges[-1] == pytest.approx(10 + len(speech) * 0.025)


def test_the_middle_of_a_word_is_where_half_of_its_score_is_known(speaking_run, monkeypatch):
    """A clip of which each ten frames tell one word."""
    speech = recordings.part(
        speaking_run.tokenizers["speech"].encode(np.zeros(32_000, np.float32)), 0, 30
    )
    text = speaking_run.encode("text", ["ab cd ef"])[0]
    spans = recordings.word_spans(speaking_run, text)
    n_codes = [last - first for _, first, last in spans]

    def nats(run, heard, texts):
        rows = []
        for clip in heard:
            known = np.clip(len(clip) / 10 - np.arange(3), 0, 1)
            rows.append(np.append(np.repeat(10 - 9 * known, n_codes), 0.5))
        return rows

    monkeypatch.setattr(recordings, "_nats", nats)
    assert recordings.middle_frames(speaking_run, speech, text) == pytest.approx([6, 16, 26], abs=2)


def test_a_recording_longer_than_rows_is_read_by_windows(speaking_run, tmp_path, capsys):
    clips = [example["speech"] for example in speaking_run.examples("heldout", "speech")]
    path = tmp_path / "long.wav"
    write_sound(path, np.tile(np.concatenate(clips), 40)[: 79 * 16_000])
    out = tmp_path / "out"
    call = [
        "sample",
        speaking_run.folder,
        "--prompt",
        path,
        "--to",
        "text",
        "-n",
        "1",
        "--out",
        out,
    ]
    assert main([str(word) for word in [*call, "--timestamps"]]) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if " windows, " in line]
    assert len(lines) == 1 and lines[0].startswith("79.0 s are read in ")
    (row,) = json.loads((out / "index.json").read_text())
    table = (out / row["file"]).with_suffix(".words.csv").read_text().splitlines()
    assert table[0] == "word,start_s,end_s,nats"
    text = (out / row["file"]).read_text()
    assert len(table) - 1 == len(text.split())
    assert main([str(word) for word in [*call[:-4], "--out", "-"]]) == 0
    assert capsys.readouterr().out.split() == text.split()


def test_windows_are_drawn_in_bounded_batches(speaking_run):
    speech = speaking_run.tokenizers["speech"].encode(np.zeros(16_000 * 100, np.float32))
    sizes = []

    def draw(prompts, seed):
        sizes.append((len(prompts), max(len(p.segments[0]) for p in prompts)))
        return speaking_run.draw(prompts, speaking_run.sampling("text"), seed)

    read_recording(speaking_run, speech, 0, draw)
    assert max(n for n, _ in sizes) <= recordings.WINDOWS_AT_ONCE
    assert max(n for _, n in sizes) == recordings.window_frames(speaking_run)
    assert len(sizes) > 1
