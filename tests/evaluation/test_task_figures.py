"""A task's figures where its source is tiny, huge or sorted; test_evaluate.py has a whole run's."""

import functools
import weakref
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from mmtok.data.tasks import Task
from mmtok.evaluation import images as image_figures
from mmtok.evaluation import speech as speech_figures
from mmtok.evaluation import text as text_figures
from mmtok.evaluation.evaluate import TASK_FIGURES, evaluated_tasks
from mmtok.evaluation.task import TaskEvaluation, random_labelled
from mmtok.metrics.images import frechet_pixels
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run, open_run
from mmtok.sources.base import Example
from mmtok.sources.images import ImageFolder
from mmtok.tokenizers.image_latents import PixelLatentsConfig


def task_of(run, *pair):
    tasks = [TaskEvaluation(run, task) for task in run.recipe.tasks]
    return next(task for task in tasks if task.modalities == pair)


def test_few_examples_leave_figures_out_instead_of_failing(tiny_copy, monkeypatch):
    """A user's small folder: one held-out image, one held-out jet a class."""
    examples = Run.examples

    def few(run, split, *fields):
        rows = list(examples(run, split, *fields))
        return iter(rows if split == "train" else rows[:1])

    monkeypatch.setattr(Run, "examples", few)
    monkeypatch.setattr(
        speech_figures,
        "train_speech_judge",
        functools.partial(speech_figures.train_speech_judge, n_steps=2),
    )
    run = open_run(tiny_copy)
    figures = {task.modalities: compute(task) for task, compute in evaluated_tasks(run)}
    asked = {TaskEvaluation(run, task).modalities for task in run.recipe.tasks}
    assert len(asked) == 5 and figures.keys() == TASK_FIGURES.keys() & asked
    assert (
        "frechet" not in figures["text", "image"] and "judge_accuracy" in figures["text", "image"]
    )
    assert figures["text", "jets"] == {}


def test_pictures_of_one_name_have_no_judge_but_keep_their_other_figures(tiny_copy, monkeypatch):
    examples = ImageFolder.examples
    monkeypatch.setattr(
        ImageFolder,
        "examples",
        lambda self, *a: (e for e in examples(self, *a) if e["caption"] == "dark"),
    )
    figures = image_figures.image_from_text(task_of(open_run(tiny_copy), "text", "image"))
    assert "judge_accuracy" not in figures and "copies" in figures


def test_nothing_held_out_is_no_perfect_reading(tiny_copy, monkeypatch):
    examples = Run.examples
    monkeypatch.setattr(
        Run,
        "examples",
        lambda run, split, *fields: (
            iter(()) if split == "heldout" else examples(run, split, *fields)
        ),
    )
    run = open_run(tiny_copy)
    for pair in (("image", "text"), ("speech", "text")):
        assert not any(
            "accuracy" in key or "error" in key for key in TASK_FIGURES[pair](task_of(run, *pair))
        )


# ---- sources that come sorted


def test_real_images_are_compared_across_classes_where_they_come_sorted(
    tiny_copy, monkeypatch, rng
):
    images = {
        "dark": rng.integers(0, 90, (40, 4, 4), np.uint8),
        "light": rng.integers(160, 250, (40, 4, 4), np.uint8),
    }
    rows = [{"caption": name, "image": image} for name, some in images.items() for image in some]
    monkeypatch.setattr(ImageFolder, "examples", lambda self, split, cache: iter(rows))
    run = open_run(tiny_copy)
    run.recipe = replace(run.recipe, n_samples=40)
    figures = image_figures.image_from_text(task_of(run, "text", "image"))
    apart = frechet_pixels([*images["dark"], *images["light"]], images["dark"], images["light"])
    assert figures["frechet_real"] < 0.1 * apart


@dataclass(frozen=True)
class Sorted:
    """Clips of one voice, then of another."""

    fields = {"caption": "text", "speech": "speech"}

    def voices(self, split, cache):
        return [voice for voice in "ab" for _ in range(60)]

    def examples(self, split, cache):
        rng = np.random.default_rng(len(split))
        for voice in self.voices(split, cache):
            tone = np.sin(np.arange(1600) * (0.05 if voice == "a" else 0.4))
            yield {
                "caption": "x",
                "speech": (0.1 * tone + 0.01 * rng.standard_normal(1600)).astype(np.float32),
            }


def test_voices_are_judged_by_clips_of_all_where_they_come_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(speech_figures, "N_VOICE_CLIPS", 50)
    monkeypatch.setattr(speech_figures, "N_HEARD", 50)
    recipe = SimpleNamespace(
        sources=(Sorted(),), fields=Sorted.fields, train=SimpleNamespace(seed=0)
    )

    def examples_of(source, split):
        return source.examples(split, tmp_path)

    task = TaskEvaluation(
        SimpleNamespace(recipe=recipe, folder=tmp_path, examples_of=examples_of),
        Task(("caption",), ("speech",)),
    )
    clips = [example["speech"] for example in Sorted().examples("other", tmp_path)]
    figures = speech_figures.voice_figures(task, clips, 16_000)
    assert (
        figures["voice_judge_heldout"] == 1.0
        and figures["voice_entropy"] == 1.0
        and figures["voice_entropy_real"] > 0.9
    )


def test_a_broken_clip_that_is_passed_over_shifts_no_voice():
    examples = [Example({"speech": i}, i, voice) for i, voice in enumerate("abcd") if i != 1]
    found = list(speech_figures._with_voices(iter(examples), list("abcd")))
    assert [(example["speech"], voice) for example, voice in found] == [
        (0, "a"),
        (2, "c"),
        (3, "d"),
    ]
    plain = [{"speech": 0}, {"speech": 1}]
    assert [voice for _, voice in speech_figures._with_voices(iter(plain), ["x", "y"])] == [
        "x",
        "y",
    ]


# ---- sources that are large


class Counted(np.ndarray):
    """Signals that know how many of them are held."""

    held = most = 0

    @classmethod
    def of(cls, signal):
        counted = signal.view(cls)
        cls.held += 1
        cls.most = max(cls.most, cls.held)
        weakref.finalize(counted, cls.gone)
        return counted

    @classmethod
    def gone(cls):
        cls.held -= 1


@pytest.fixture
def many(monkeypatch):
    """many(field) -> training examples that have it come 100 times over, the prepared signals
    counted.
    """
    Counted.held = Counted.most = 0

    def change(field):
        examples_of = Run.examples_of

        def repeated(self, source, split):
            for _ in range(100 if split == "train" else 1):
                for example in examples_of(self, source, split):
                    yield (
                        {**example, field: Counted.of(example[field].copy())}
                        if split == "train"
                        else example
                    )

        monkeypatch.setattr(Run, "examples_of", repeated)

    return change


def test_training_images_go_by_a_few_at_a_time(tiny_copy, monkeypatch, many):
    many("image")
    monkeypatch.setattr(image_figures, "FITTED_ROWS", 20)
    figures = image_figures.image_from_text(task_of(open_run(tiny_copy), "text", "image"))
    assert "judge_accuracy" in figures and "frechet" in figures
    assert 256 <= Counted.most < 600  # 1,400 images; a batch of them is encoded at once


def test_training_clips_go_by_a_few_at_a_time(tiny_copy, monkeypatch, many):
    many("speech")
    monkeypatch.setattr(speech_figures, "MAX_CLIPS", 20)
    monkeypatch.setattr(
        speech_figures,
        "train_speech_judge",
        functools.partial(speech_figures.train_speech_judge, n_steps=2),
    )
    run = open_run(tiny_copy)
    assert "judge_accuracy" in speech_figures.speech_from_text(task_of(run, "text", "speech"))
    assert "word_error_rate" in text_figures.text_from_speech(task_of(run, "speech", "text"))
    assert 20 <= Counted.most < 60  # of 1,800


def test_copies_are_sought_among_all_training_images(tiny_copy, monkeypatch):
    """Also among those that no judge is shown."""
    monkeypatch.setattr(image_figures, "FITTED_ROWS", 3)
    examples = ImageFolder.examples
    monkeypatch.setattr(
        ImageFolder, "examples", lambda self, split, cache: examples(self, "train", cache)
    )
    assert (
        image_figures.image_from_text(task_of(open_run(tiny_copy), "text", "image"))[
            "copies_heldout"
        ]
        == 1.0
    )


def test_labels_are_those_of_all_rows():
    labels, signals, all_labels = random_labelled(((i % 7, i) for i in range(100)), 5, seed=1)
    assert (
        len(signals) == 5
        and signals == sorted(signals)
        and labels == [i % 7 for i in signals]
        and all_labels == set(range(7))
    )
    assert random_labelled(iter([("a", 1), ("b", 2)])) == (["a", "b"], [1, 2], {"a", "b"})


def test_copies_of_images_of_latents_are_found_by_what_they_decode_to(tmp_path, rng):
    tokenizer = PixelLatentsConfig(4, 4, 1, n_levels=256).build()
    images = list(rng.integers(0, 256, (8, 4, 4), np.uint8))
    recipe = SimpleNamespace(fields={"image": "image"}, train=SimpleNamespace(seed=0), sources=())

    def examples(split, field):
        return ({field: image} for image in images[2:7])

    task = TaskEvaluation(
        SimpleNamespace(
            recipe=recipe, folder=tmp_path, tokenizers={"image": tokenizer}, examples=examples
        ),
        Task((), ("image",)),
    )
    near = [
        replace(x, latents=x.latents + np.float32(1e-3)) for x in tokenizer.encode_batch(images[:4])
    ]  # other latents, the same pixels
    figures, samples, _ = image_figures.novelty(
        task, images, images, [Sampled(x, "end") for x in near]
    )
    assert figures.keys() == {
        "round_trip_psnr_db",
        "frechet",
        "frechet_real",
        "copies",
        "copies_heldout",
        *[f"{name}_{end}" for name in ("copies", "frechet") for end in ("low", "high", "p")],
    }
    assert np.array_equal(samples, images[:4])
    assert figures["copies"] == 2 / 4 and figures["copies_heldout"] == 5 / 8
