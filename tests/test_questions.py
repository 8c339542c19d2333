"""Each pair's question where a source has next to nothing; the figures of a whole run are in test_evaluate.py."""

import functools

from mmtok import questions
from mmtok.questions import QUESTIONS, Setting
from mmtok.run import Run, open_run


def test_few_examples_leave_figures_out_instead_of_failing(tiny_copy, monkeypatch):
    """A user's small folder: one held-out image, one held-out jet a class."""
    examples = Run.examples

    def few(run, split, *fields):
        rows = list(examples(run, split, *fields))
        return iter(rows if split == "train" else rows[:1])

    monkeypatch.setattr(Run, "examples", few)
    monkeypatch.setattr(questions, "train_speech_judge", functools.partial(questions.train_speech_judge, n_steps=2))
    run, figures = open_run(tiny_copy), {}
    for task in run.recipe.tasks:
        pair = tuple(run.recipe.fields[f] for f in (*task.given, *task.make))
        if pair in QUESTIONS and not task.first:
            figures[pair] = QUESTIONS[pair](Setting(run, task))
    assert figures.keys() == QUESTIONS.keys()
    assert "frechet" not in figures["text", "image"] and "judge_accuracy" in figures["text", "image"]
    assert figures["text", "jets"] == {}


def test_pictures_of_one_name_have_no_judge_but_keep_their_other_figures(tiny_copy, monkeypatch):
    examples = Run.examples

    def one_name(run, split, *fields):
        rows = list(examples(run, split, *fields))
        return iter([row for row in rows if row.get("caption") == rows[0].get("caption")])

    monkeypatch.setattr(Run, "examples", one_name)
    monkeypatch.setattr(questions, "clean_images", lambda s: ([e["image"] for e in one_name(s.run, "train", "caption", "image")], ["one"] * 99))
    run = open_run(tiny_copy)
    task = next(t for t in run.recipe.tasks if [run.recipe.fields[f] for f in (*t.given, *t.make)] == ["text", "image"])
    figures = QUESTIONS["text", "image"](Setting(run, task))
    assert "judge_accuracy" not in figures and "copies" in figures


def test_nothing_held_out_is_no_perfect_reading(tiny_copy, monkeypatch):
    examples = Run.examples
    monkeypatch.setattr(Run, "examples", lambda run, split, *fields: iter(()) if split == "heldout" else examples(run, split, *fields))
    run = open_run(tiny_copy)
    for pair in (("image", "text"), ("speech", "text")):
        task = next(t for t in run.recipe.tasks if tuple(run.recipe.fields[f] for f in (*t.given, *t.make)) == pair)
        assert not any("accuracy" in key or "error" in key for key in QUESTIONS[pair](Setting(run, task)))
