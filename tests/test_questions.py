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
