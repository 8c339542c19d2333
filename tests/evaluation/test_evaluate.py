"""Evaluation of the tiny run: the names of the figures, what is kept, what stands."""

import functools
import json
import math
import re
import shutil
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands.score import KINDS
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.evaluation import evaluate as room
from mmtok.evaluation import images, speech
from mmtok.evaluation.evaluate import evaluate
from mmtok.evaluation.likelihood import held_out_scores
from mmtok.evaluation.task import TaskEvaluation
from mmtok.evaluation.text import text_from_image
from mmtok.nn.audio import MelSpec
from mmtok.report.report import write_report
from mmtok.run.build import train
from mmtok.run.run import Run, open_run
from mmtok.tokenizers.griffin_lim import GriffinLim, GriffinLimConfig


@pytest.fixture(scope="module")
def quick():
    """The judge of speech in a tenth of a second: what it learns is its own tests' matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            speech,
            "train_speech_judge",
            functools.partial(speech.train_speech_judge, n_steps=2),
        )
        yield


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory, quick):
    run = open_run(shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluated") / "run"))
    return run, evaluate(run)


def leaves(table, prefix=""):
    """A nested table as dotted name -> figure."""
    inner = {
        k: v
        for name, x in table.items()
        if isinstance(x, dict)
        for k, v in leaves(x, f"{prefix}{name}.").items()
    }
    return inner | {f"{prefix}{name}": x for name, x in table.items() if not isinstance(x, dict)}


def check_values(figures):
    """Kinds of scores are words that exist, all else is finite numbers."""
    for name, value in figures.items():
        if name.startswith("score.") and name.endswith(".kind"):
            assert value in KINDS, name
        elif name.split(".")[-1] == "vocoder":
            assert value == "griffin-lim", name
        else:
            assert isinstance(value, (int, float)) and math.isfinite(value), name


def test_the_figures_have_the_names_that_others_read(evaluated):
    run, figures = evaluated
    assert json.loads((run.folder / "evaluation.json").read_text()) == figures
    names = leaves(figures)
    expected = [
        "image_from_text.judge_accuracy",
        "image_from_text.judge_accuracy_low",
        "image_from_text.judge_accuracy_p",
        "image_from_text.frechet_p",
        "speech_from_text.string_word_error_p",
        "image_from_text.judge_heldout",
        "image_from_text.copies",
        "image_from_text.copies_heldout",
        "image_from_text.frechet",
        "image_from_text.frechet_real",
        "text_from_image.accuracy",
        "speech_from_text.judge_accuracy",
        "speech_from_text.judge_heldout",
        "speech_from_text.judge_round_trip",
        "speech_from_text.stopped",
        "speech_from_text.vocoder",
        "vocoder",
        "speech_from_text.string_word_error",
        "speech_from_text.string_word_error_real",
        "text_from_speech.word_error_rate",
        "zero_shot.accuracy",
    ]
    expected += [
        f"jets_from_text.{c}.{x}_w1{end}"
        for c in ("thin", "fat")
        for x in ("mass", "multiplicity", "pt")
        for end in ("", "_low", "_high", "_p", "_raw", "_raw_p", "_halves")
    ]
    units = {
        "text": "bits_per_byte",
        "image": "bits_per_code",
        "speech": "nats_per_frame",
        "jets": "nats_per_particle",
    }
    expected += [
        f"score.{m}.{unit}{of}"
        for m, unit in units.items()
        for of in ("", "_untrained", "_unigram")
    ]
    assert set(expected) <= set(names), set(expected) - set(names)
    check_values(names)
    shares = [k for k in names if k.endswith(("accuracy", "copies", "stopped", "copies_heldout"))]
    assert all(0 <= names[k] <= 1 for k in shares)


def test_the_samples_are_kept_for_others_to_judge(evaluated):
    run, figures = evaluated
    folder = run.folder / "samples"
    assert len(list((folder / "image_from_text").glob("*.png"))) == run.recipe.n_samples
    assert len(list((folder / "speech_from_text").glob("*.wav"))) == run.recipe.n_samples
    assert sorted(p.name for p in (folder / "jets_from_text").iterdir()) == [
        "fat_jet.npz",
        "index.json",
        "thin_jet.npz",
    ]
    rows = json.loads((folder / "jets_from_text" / "index.json").read_text())
    for c in ("fat", "thin"):
        mine = [row for row in rows if row["file"] == f"{c}_jet.npz"]
        its = figures["jets_from_text"][c]
        assert (
            len(mine) == its["n"]
            and np.mean([row["stop"] == "cap" for row in mine]) == its["at_cap"]
        )
    read = json.loads((folder / "text_from_image.json").read_text())
    assert figures["text_from_image"] == {
        "accuracy": np.mean([r["truth"] == r["read"] for r in read]),
        "n": len(read),
    }


def test_training_has_helped(evaluated):
    for m, row in evaluated[1]["score"].items():
        trained, untrained, *_ = row.values()
        assert trained < untrained, m


def test_scores_without_the_condition_stand_where_it_was_dropped_in_training(evaluated):
    run, figures = evaluated
    fields = run.recipe.fields
    for m, row in figures["score"].items():
        tasks = [t for t in run.recipe.tasks if fields[t.targets[-1]] == m]
        assert any(k.endswith("_without_condition") for k in row) == all(
            t.cond_dropout and not t.loss_on_inputs for t in tasks
        ), m


def test_the_same_run_gives_the_same_figures(evaluated):
    run, figures = evaluated
    again = Run(run.folder, run.recipe)
    assert held_out_scores(again) == figures["score"]
    task = run.recipe.tasks[1]
    assert text_from_image(TaskEvaluation(again, task)) == figures["text_from_image"]


def test_an_evaluation_that_stands_is_kept_unless_forced(evaluated, monkeypatch, capsys):
    run, figures = evaluated
    monkeypatch.setattr(room, "held_out_scores", lambda run: {"again": True})
    monkeypatch.setattr(room, "TASK_FIGURES", {})
    assert evaluate(run) == figures and "stands" in capsys.readouterr().err
    before = (run.folder / "evaluation.json").read_bytes()
    assert evaluate(run, force=True)["score"] == {"again": True}
    (run.folder / "evaluation.json").write_bytes(before)


def test_figures_of_another_vocoder_are_made_again_and_say_which(evaluated, monkeypatch, capsys):
    run, _ = evaluated
    monkeypatch.setattr(room, "held_out_scores", lambda run: {})
    monkeypatch.setattr(room, "judged_speech", lambda run: {})
    monkeypatch.setattr(room, "TASK_FIGURES", {("text", "speech"): lambda task: {"n": 1}})
    before = (run.folder / "evaluation.json").read_bytes()
    tokenizer = run.tokenizers["speech"]
    other = copy(tokenizer)
    other.vocoder = NamedVocoder()
    run.tokenizers["speech"] = other
    try:
        figures = evaluate(run)
        assert "another vocoder" in capsys.readouterr().err
        assert figures["vocoder"] == figures["speech_from_text"]["vocoder"] == "other 1234"
        assert evaluate(run) == figures and "stands" in capsys.readouterr().err
    finally:
        run.tokenizers["speech"] = tokenizer
    assert evaluate(run)["vocoder"] == "griffin-lim"
    (run.folder / "evaluation.json").write_bytes(before)


class NamedVocoder(GriffinLim):
    """Of another name."""

    name = "other 1234"

    def __init__(self):
        super().__init__(GriffinLimConfig(), MelSpec(hop_samples=400))


def test_the_command_line_prints_every_figure(evaluated, capsys):
    run, figures = evaluated
    assert main(["evaluate", str(run.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(leaves(figures))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b'{"score": 3}',
        b'{"score": {"text": 3}}',
        b'{"score": {"text": {}}}',
        b'{"score": {"text": {"bits_per_byte": "1"}}}',
        b'{"image_from_text": [1]}',
        b'{"image_from_text": null}',
    ],
)
def test_a_damaged_evaluation_says_what_to_do(tiny_copy, content):
    (tiny_copy / "evaluation.json").write_bytes(content)
    with pytest.raises(
        UserError, match="evaluation.json is (not valid JSON|damaged).*--force"
    ) as error:
        evaluate(open_run(tiny_copy))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["[]", '{"score": 3}', '{"score": {"text": {}}}', '{"image_from_text": [1]}']
)
def test_a_damaged_evaluation_costs_a_report_one_line(tiny_copy, content):
    pytest.importorskip("matplotlib")
    (tiny_copy / "evaluation.json").write_text(content)
    text = write_report(open_run(tiny_copy), force=True).read_text()
    assert text.count("evaluation.json is damaged: it holds no table of figures") == 1


@pytest.mark.parametrize("content", ["{}", "[]", '{"fingerprint": 3}'])
def test_a_damaged_vocabulary_is_named_by_a_report_as_by_the_run(tiny_copy, content):
    pytest.importorskip("matplotlib")
    (tiny_copy / "vocabulary.json").write_text(content)
    for call in (lambda run: write_report(run, force=True), lambda run: run.vocabulary):
        with pytest.raises(
            UserError,
            match=(
                "vocabulary.json is damaged: vocabulary .*needs? .*fingerprint|vocabulary.json is"
                " damaged: vocabulary"
            ),
        ):
            call(open_run(tiny_copy))


def test_an_untrained_run_is_refused_before_any_judge_is_trained(tiny_copy, monkeypatch):
    monkeypatch.setattr(images, "train_image_judge", None)
    (tiny_copy / "model.safetensors").unlink()
    shutil.rmtree(tiny_copy / "checkpoints")
    with pytest.raises(UserError, match="holds no trained model yet"):
        evaluate(open_run(tiny_copy))
    assert not (tiny_copy / "evaluation.json").exists() and not (tiny_copy / "samples").exists()


# ---- tasks that are given nothing


@pytest.fixture(scope="module")
def unconditional(tiny_recipe, tmp_path_factory):
    tasks = tuple(Task((), (field,)) for field in ("image", "speech", "jets"))
    recipe = replace(tiny_recipe, tasks=tasks, train=replace(tiny_recipe.train, steps=4))
    run = train(recipe, tmp_path_factory.mktemp("unconditional") / "run")
    return run, evaluate(run)


def test_what_nothing_is_given_for_has_figures_too(unconditional):
    run, figures = unconditional
    assert figures["speech_from_nothing"].keys() == {"stopped", "vocoder"}
    expected = {
        "copies",
        "copies_heldout",
        "round_trip_psnr_db",
        "codebook_use",
        "frechet",
        "frechet_real",
        *[f"{name}_{end}" for name in ("copies", "frechet") for end in ("low", "high", "p")],
    }
    assert figures["image_from_nothing"].keys() == expected
    assert (
        figures["jets_from_nothing"].keys() == {"all"}
        and {"mass_w1", "pt_w1_raw", "at_cap"} <= figures["jets_from_nothing"]["all"].keys()
    )
    check_values(leaves(figures))
    for name, n in (
        ("image", run.recipe.n_samples),
        ("speech", run.recipe.n_samples),
        ("jets", figures["jets_from_nothing"]["all"]["n"]),
    ):
        assert (
            len(
                json.loads(
                    (run.folder / "samples" / f"{name}_from_nothing" / "index.json").read_text()
                )
            )
            == n
        )


def test_its_report_shows_them_beside_what_is_real(unconditional):
    pytest.importorskip("matplotlib")
    text = write_report(unconditional[0], force=True).read_text()
    for title in ("Image from nothing", "Speech from nothing", "Jets from nothing"):
        assert f"<h2>{title}</h2>" in text and f"<h3>{title}</h3>" in text
    jets = re.search(r'<section id="jets-from-nothing">.*?</section>', text, re.DOTALL)[0]
    assert jets.count('class="chart"') == 1 + 4 and "no samples yet" not in text
