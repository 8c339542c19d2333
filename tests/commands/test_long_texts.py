"""Texts by sentences: whole, in order, each as soon as it is there; spoken one after the other."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtok.cli import main
from mmtok.commands import play
from mmtok.commands.long_texts import completed_sentences, joined, prompts_by_sentence, sentences_in
from mmtok.commands.sample import prompt_document
from mmtok.run.run import open_run


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One. Two!  Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith and J. Doe left. Then?", ["Dr. Smith and J. Doe left.", "Then?"]),
        ('"Stop!" he said. 3.5 is it.', ['"Stop!"', "he said.", "3.5 is it."]),
        ("A title\n\nA line\nand more. End", ["A title", "A line\nand more.", "End"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_by_hand(text, sentences):
    assert sentences_in(text) == sentences


@given(st.lists(st.text("aB .!?\n\"'", max_size=9), max_size=9))
def test_nothing_is_lost_however_a_text_comes(pieces):
    found = list(completed_sentences(pieces))
    assert "".join(" ".join(found).split()) == "".join("".join(pieces).split())
    assert all(sentence == sentence.strip() != "" for sentence in found)


def test_a_sentence_is_known_before_the_next_one_is_written():
    written = []

    def pipe():
        for piece in ("One. T", "wo", ".\n", "Three"):
            written.append(piece)
            yield piece

    sentences = completed_sentences(pipe())
    assert next(sentences) == "One." and written == ["One. T"]
    assert next(sentences) == "Two." and written[-1] == ".\n"
    assert list(sentences) == ["Three"]


def test_a_long_text_is_its_sentences(speaking_run):
    prompt = ["Ben ran. Anna slept! ..."]
    with pytest.warns(UserWarning, match="1 of 3 sentences was left out"):
        assert prompts_by_sentence(speaking_run, prompt, "speech") == [
            ["Ben ran."],
            ["Anna slept!"],
        ]
    assert prompts_by_sentence(speaking_run, ["Ben ran."], "speech") == [["Ben ran."]]
    assert prompts_by_sentence(speaking_run, ["A. b. C."], "text") == [["A. b. C."]]


def test_sentences_are_joined_by_silence(speaking_run, tmp_path, notes):
    words = ["sample", speaking_run.folder, "--to", "speech", "-n", "1", "--out", tmp_path]
    notes([*words, "--prompt", "Ben ran. Anna slept."])
    (row,) = json.loads((tmp_path / "index.json").read_text())
    parts = [
        speaking_run.draw(
            [prompt_document(speaking_run, [text], "speech")],
            speaking_run.sampling("speech"),
            seed,
        )[0]
        for seed, text in enumerate(["Ben ran.", "Anna slept."])
    ]
    whole = joined(speaking_run, parts)
    assert row["frames"] == len(whole.segment) > sum(len(part.segment) for part in parts)
    assert row["stop"] == whole.stop
    n = len(parts[0].segment)
    assert np.array_equal(whole.segment.codes[:n], parts[0].segment.codes)


def test_a_pipe_is_spoken_while_it_writes(speaking_run, monkeypatch, capfdbinary):
    """The first sentence's sound is written, whole, before the second one is read."""
    seed = next(
        seed
        for seed in range(99)
        if len(
            first := speaking_run.draw(
                [prompt_document(speaking_run, ["Ben ran."], "speech")],
                speaking_run.sampling("speech"),
                seed,
            )[0].segment
        )
        > 12
    )
    n_samples = len(speaking_run.tokenizers["speech"].decode(first))
    monkeypatch.setattr(play, "piped_text", lambda: pieces())
    sizes = []

    def pieces():
        yield "Ben ran. "
        yield "Anna"
        sizes.append(len(capfdbinary.readouterr().out))
        yield " slept."

    words = ["sample", speaking_run.folder, "--prompt", "-", "--to", "speech", "--out", "-"]
    assert main([str(word) for word in [*words, "--seed", seed]]) == 0
    assert sizes == [44 + 2 * n_samples]


def test_the_decoder_is_open_before_a_pipe_is_waited_for(speaking_run, monkeypatch, capfdbinary):
    run = open_run(speaking_run.folder)
    was_open = []

    def pieces():
        was_open.append("lm" in vars(run))
        yield "Ben ran.\n"

    monkeypatch.setattr(play, "piped_text", pieces)
    play.sample(run, ["-"], "speech", out=play.STDOUT)
    assert was_open == [True]


def test_the_stream_of_a_pipe_is_that_of_the_text(speaking_run, monkeypatch, capfdbinary):
    words = ["sample", speaking_run.folder, "--to", "speech", "--out", "-", "--prompt"]
    text = "Ben ran. Anna slept."
    assert main([str(word) for word in [*words, text]]) == 0
    whole = capfdbinary.readouterr().out
    monkeypatch.setattr(play, "piped_text", lambda: iter([text]))
    assert main([str(word) for word in [*words, "-"]]) == 0
    assert capfdbinary.readouterr().out == whole
    assert len(whole) > 44


def test_each_line_of_a_file_is_a_prompt(speaking_run, tmp_path, notes):
    lines = tmp_path / "lines.txt"
    lines.write_text("Ben ran.\n\nAnna slept. Ben ran.\nLeo saw a fox.\n")
    words = ["sample", speaking_run.folder, "--to", "speech", "--prompts", lines, "-n", "2"]
    found = notes([*words, "--out", tmp_path / "a"])
    assert any("1 of 4 lines was left out, as it is empty" in note for note in found)
    rows = json.loads((tmp_path / "a" / "index.json").read_text())
    assert [row["prompt"] for row in rows[::2]] == [
        "Ben ran.",
        "Anna slept. Ben ran.",
        "Leo saw a fox.",
    ]
    together = [
        prompt_document(speaking_run, [text], "speech")
        for text in ("Ben ran.", "Leo saw a fox.")
        for _ in range(2)
    ]
    drawn = speaking_run.draw(together, speaking_run.sampling("speech"), 0)
    assert [row["frames"] for row in rows[:2] + rows[4:]] == [len(d.segment) for d in drawn]


def test_a_file_of_prompts_goes_alone(speaking_run, tmp_path, said):
    lines = tmp_path / "lines.txt"
    lines.write_text("\n")
    words = ["sample", speaking_run.folder, "--to", "speech", "--prompts", lines]
    assert "holds no prompt" in said(words)
    assert "leave out --prompt" in said([*words, "--prompt", "low"])
    assert "leave out --prompt" in said([*words, "--out", "-"])
