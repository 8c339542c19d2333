"""A run folder: what stands is said and kept, what does not belong is refused, what is damaged is named."""

import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmtok import folder as folder_room
from mmtok import run as room
from mmtok.data.loader import Task
from mmtok.recipe import Recipe, load_recipe
from mmtok.run import Run, fit, open_run, train
from mmtok.segment import BadInput, Segment
from mmtok.tokenizers.text import SentencePieceConfig


def files(folder):
    """Path -> content of everything in a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def broken_off(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---- what a run leaves, and what a second one does

def test_a_run_folder_holds_what_the_readme_says(tiny_run, tiny_recipe):
    names = set(files(tiny_run))
    assert {"recipe.json", "vocabulary.json", "model.safetensors", "config.json", "log.jsonl"} <= names
    assert {f"tokenizers/{m}/tokenizer.json" for m in tiny_recipe.tokenizers} <= names
    assert {"tokens/0-ImageFolder.parquet", "tokens/1-SpeechFolder.parquet", "tokens/2-JetFile.parquet"} <= names
    assert sorted(p.name for p in (tiny_run / "checkpoints").iterdir()) == ["step-000020", "step-000024"]
    assert not [name for name in names if ".tmp" in name or name.endswith((".pkl", ".pt"))]
    log = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [8, 16, 24] and log[-1]["loss"] < log[0]["loss"]


def test_the_model_kept_is_the_moving_average(tiny_run):
    kept = load_file(tiny_run / "model.safetensors")
    checkpoint = tiny_run / "checkpoints" / "step-000024"
    average, weights = load_file(checkpoint / "average.safetensors"), load_file(checkpoint / "weights.safetensors")
    assert kept.keys() == weights.keys() and all(torch.equal(kept[k], average[k]) for k in average)
    assert not all(torch.equal(kept[k], weights[k]) for k in weights)


def test_a_second_run_says_what_stands_and_redoes_nothing(tiny_copy, tiny_recipe, capsys, monkeypatch):
    def again(*_):
        raise AssertionError("done again")

    for name in ("fit_tokenizer", "tokenise", "Trainer"):
        monkeypatch.setattr(room, name, again)
    before = files(tiny_copy)
    train(tiny_recipe, tiny_copy)
    said = capsys.readouterr().err
    assert all(f"{m} tokenizer stands" in said for m in tiny_recipe.tokenizers) and "is trained: nothing to do" in said
    assert files(tiny_copy) == before


def test_only_what_is_missing_is_made_again(tiny_copy, tiny_recipe, capsys):
    before = files(tiny_copy)
    (tiny_copy / "model.safetensors").unlink()
    (tiny_copy / "tokens" / "2-JetFile.parquet").unlink()
    train(tiny_recipe, tiny_copy)
    said = capsys.readouterr().err
    assert "0-ImageFolder.parquet stands" in said and "2-JetFile.parquet: 12 examples" in said and "resuming at step 24" in said
    assert files(tiny_copy) == before


def test_fitting_alone_leaves_a_run_that_can_be_shown_but_not_asked(tiny_recipe, tmp_path):
    run = fit(tiny_recipe, tmp_path / "run")
    assert "not started" in run.describe() and "jets: JetGridConfig, 41 x 31 x 31 levels" in run.describe()
    with pytest.raises(BadInput, match="holds no trained model yet; `mmtok train`"):
        open_run(tmp_path / "run").lm


def test_a_cut_run_goes_on_to_the_same_weights(tiny_run, tiny_recipe, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(trainer):
        raise Stop

    out = tmp_path / "cut"
    for at in (3, 13):
        update = room.Trainer.update
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(room.Trainer, "update", lambda t: stop(t) if t.step == at else update(t))
            train(tiny_recipe, out)
    train(tiny_recipe, out)
    assert (out / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()
    lines = lambda folder: [json.loads(x)["loss"] for x in (folder / "log.jsonl").read_text().splitlines()]
    assert lines(out) == lines(tiny_run)


def test_a_damaged_checkpoint_is_passed_over(tiny_copy, tiny_run, tiny_recipe):
    (tiny_copy / "model.safetensors").unlink()
    path = tiny_copy / "checkpoints" / "step-000024" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-000024 is damaged"):
        train(tiny_recipe, tiny_copy)
    assert (tiny_copy / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


# ---- what does not belong

def test_changed_fields_are_refused_naming_the_difference(tiny_copy, tiny_words):
    before = files(tiny_copy)
    changed = load_recipe(tiny_words[0], [*tiny_words[1:], "--train.steps", "30", "--tasks.0.weight", "2"])
    with pytest.raises(BadInput) as error:
        train(changed, tiny_copy)
    assert "train.steps: 24 -> 30" in str(error.value) and "tasks.0.weight: 1.0 -> 2.0" in str(error.value) and "--out" in str(error.value)
    assert "learning_rate" not in str(error.value) and files(tiny_copy) == before


def test_many_differences_are_cut_short(tiny_copy, tiny_recipe):
    other = Recipe("other", tiny_recipe.tokenizers, tiny_recipe.sources, tiny_recipe.tasks[:1])
    with pytest.raises(BadInput, match=r"and \d+ more\): choose another --out"):
        train(other, tiny_copy)


def test_a_foreign_folder_is_refused_and_left_alone(tiny_recipe, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BadInput, match="is not empty and not a run folder"):
        train(tiny_recipe, tmp_path)
    assert files(tmp_path) == {"mine.txt": b"precious"}


def test_what_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput, match="is not a run folder: it has no recipe.json"):
            open_run(path)


def test_a_swapped_tokenizer_is_caught_naming_both(tiny_copy, tiny_recipe):
    stored = json.loads((tiny_copy / "vocabulary.json").read_text())["fingerprint"]
    shutil.rmtree(tiny_copy / "tokenizers" / "text")
    SentencePieceConfig(n_pieces=300).fit(["dark light low high"] * 9).save(tiny_copy / "tokenizers" / "text")
    for call in (lambda: open_run(tiny_copy).lm, lambda: open_run(tiny_copy).describe(), lambda: train(tiny_recipe, tiny_copy)):
        with pytest.raises(BadInput, match=f"{stored}, but this one is [0-9a-f]{{12}}"):
            call()
    assert stored not in str(open_run(tiny_copy).tokenizers["text"].signature)


def test_tokens_of_other_tokenizers_are_caught_naming_both(tiny_copy, tiny_recipe):
    """As above, but the vocabulary's own record is gone too."""
    (tiny_copy / "vocabulary.json").unlink()
    (tiny_copy / "model.safetensors").unlink()
    old = open_run(tiny_copy).tokenizers["text"].signature.fingerprint
    shutil.rmtree(tiny_copy / "tokenizers" / "text")
    new = SentencePieceConfig(n_pieces=300).fit(["dark light low high"] * 9)
    new.save(tiny_copy / "tokenizers" / "text")
    with pytest.raises(BadInput, match=f"made by the text tokenizer {old}, but {new.signature.fingerprint} is expected"):
        train(tiny_recipe, tiny_copy)


def test_a_missing_tokenizer_is_named(tiny_copy):
    shutil.rmtree(tiny_copy / "tokenizers" / "jets")
    with pytest.raises(BadInput, match="no fitted jets tokenizer yet"):
        open_run(tiny_copy).vocabulary


# ---- what is damaged

DAMAGE = {
    "model.safetensors": ["", "cut", "noise"],
    "recipe.json": ["", "cut", "noise", "[]", "{}", '{"kind": "Recipe", "name": 3}'],
    "vocabulary.json": ["", "cut", "noise", "[]", "{}"],
    "tokenizers/text/tokenizer.json": ["", "cut", "noise", "{}", '{"kind": "Runes"}'],
}


@pytest.mark.parametrize("name, how", [(name, how) for name, hows in DAMAGE.items() for how in hows])
def test_damaged_files_are_named_in_one_line(tiny_copy, name, how):
    path = tiny_copy / name
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "noise": b"\xff\xfe\x00\x01" * 9}.get(how, how.encode()))
    with pytest.raises(BadInput) as error:
        open_run(tiny_copy).lm
    assert name.rpartition("/")[2] in str(error.value) and "\n" not in str(error.value)


def test_a_flipped_bit_in_the_weights_is_found_out_and_the_last_checkpoint_mends_it(tiny_copy, tiny_recipe):
    path = tiny_copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadInput, match="model.safetensors cannot be loaded .it is not what was written.*`mmtok train` makes it again") as error:
        open_run(tiny_copy).lm
    assert "\n" not in str(error.value)
    path.unlink()
    train(tiny_recipe, tiny_copy)
    assert path.read_bytes() == whole and open_run(tiny_copy).lm


@pytest.mark.parametrize("config", [None, '{"model_type": "mmtok"}'])
def test_a_run_without_a_checksum_still_opens(tiny_copy, config):
    path = tiny_copy / "config.json"
    path.unlink() if config is None else path.write_text(config)
    assert open_run(tiny_copy).lm


def test_a_damaged_recipe_is_not_overwritten(tiny_copy, tiny_recipe):
    (tiny_copy / "recipe.json").write_text("{")
    with pytest.raises(BadInput, match="recipe.json is not valid JSON"):
        train(tiny_recipe, tiny_copy)
    assert (tiny_copy / "recipe.json").read_text() == "{"


def test_missing_weights_are_said(tiny_copy):
    (tiny_copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="holds no trained model yet"):
        open_run(tiny_copy).lm


def test_weights_of_another_size_are_refused(tiny_copy):
    text = (tiny_copy / "recipe.json").read_text()
    (tiny_copy / "recipe.json").write_text(text.replace('"feed_forward": 48', '"feed_forward": 64'))
    with pytest.raises(BadInput, match="model.safetensors cannot be loaded .*`mmtok train` makes it again"):
        open_run(tiny_copy).lm


def test_a_damaged_log_does_not_stop_show(tiny_copy):
    (tiny_copy / "log.jsonl").write_bytes(b'{"step": 8, "loss": 1.0}\n\xff\n{"st')
    assert "step 8 of 24" in open_run(tiny_copy).describe()


# ---- recipes

def test_the_recipe_survives_json(tiny_recipe):
    assert Recipe.from_json(tiny_recipe.to_json()) == tiny_recipe


@pytest.mark.parametrize("override, parts", [
    (["--train.stepz", "3"], ["no field --train.stepz", "--train.steps"]),
    (["--stps", "3"], ["no field --stps", "--train.steps"]),
    (["--train.steps", "many"], ["train.steps must be int", "'many'"]),
    (["--train.steps", "1e3"], ["train.steps must be int"]),
    (["--train.steps", "0"], ["steps is 0"]),
    (["--train.steps"], ["--train.steps needs a value"]),
    (["--train.precision", "fp8"], ["'bf16' or 'float32'"]),
    (["--path", "x"], ["--path is ambiguous", "--sources.0.path"]),
    (["--trunk.width", "33"], ["model.trunk", "got"]),
    (["--sampling.text.top_p", "2"], ["top_p"]),
    (["--tasks.0.given", "caption"], ["tasks.0.given must be a list"]),
    (["--tasks.0.given", '["title"]'], ["'title'", "the sources yield caption"]),
    (["--train.weights", "3"], ["train.weights must be a mapping"]),
    (["train.steps", "3"], ["expected --field value"]),
])
def test_wrong_overrides_are_refused(tiny_words, override, parts):
    with pytest.raises(BadInput) as error:
        load_recipe(tiny_words[0], [*tiny_words[1:], *override])
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_overrides_reach_every_kind_of_field(tiny_words):
    words = "--depth=2 --corrupt.image.drop 0.3 --sampling.jets.max-frames 5 --learning_rate 1".split()
    changed = load_recipe(tiny_words[0], [*tiny_words[1:], *words, "--train.weights", '{"text": 2}'])
    assert changed.train.weights == {"text": 2.0} and changed.model.trunk.depth == 2 and changed.corrupt["image"].drop == 0.3
    assert changed.sampling["jets"].max_frames == 5 and changed.train.learning_rate == 1.0


@pytest.mark.parametrize("text, parts", [
    ("recipe = Recipe(", ["SyntaxError"]),
    ("x = 3", ["holds no value named 'recipe'"]),
    ("recipe = 3", ["holds no value named 'recipe'"]),
    ("import nowhere_to_be_found", ["line 1", "ModuleNotFoundError"]),
    ("from mmtok.train.fit_lm import TrainConfig\nTrainConfig(stepz=3)", ["line 2", "stepz"]),
    ("\n\n1 / 0", ["line 3", "ZeroDivisionError"]),
])
def test_broken_recipe_files_are_named(tmp_path, text, parts):
    (tmp_path / "r.py").write_text(text)
    with pytest.raises(BadInput) as error:
        load_recipe(tmp_path / "r.py")
    assert all(part in str(error.value) for part in ["r.py", *parts]), str(error.value)


@pytest.mark.parametrize("change, parts", [
    (('"kind": "Bytes', '"kind": "Runes'), ["unknown kind 'RunesConfig'", "BytesConfig"]),
    (('"name": "tiny"', '"nome": "tiny"'), ["no field 'nome'", "'name'"]),
    (('"name": "tiny",', ''), ["needs the field(s) name"]),
    (('"n_samples": 6', '"n_samples": "six"'), ["n_samples must be int"]),
])
def test_wrong_recipe_json_is_named(tiny_copy, change, parts):
    path = tiny_copy / "recipe.json"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    for read in (load_recipe, lambda p: open_run(p.parent)):
        with pytest.raises(BadInput) as error:
            read(path)
        assert all(part in str(error.value) for part in ["recipe.json", *parts]), str(error.value)


def test_a_predicted_modality_without_a_head_is_refused_before_anything_is_tokenised(tiny_words, tmp_path):
    recipe = load_recipe(tiny_words[0], [*tiny_words[1:], "--model.heads", "{}"])
    with pytest.raises(BadInput, match="speech is made by the task caption -> speech, but model.heads has no head for it"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "tokens").exists()


# ---- half-written

@pytest.mark.parametrize("name, owner", [("recipe.json", "replace"), ("tokenizers/text", "save"), ("model.safetensors", "save_tensors")])
def test_a_full_disk_leaves_nothing_half_written(tiny_recipe, tiny_copy, tmp_path, monkeypatch, name, owner):
    out = tiny_copy
    (shutil.rmtree if name.startswith("tokenizers") else lambda p: p.unlink())(out / name)
    if name == "recipe.json":
        shutil.rmtree(out)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        match owner:
            case "replace":
                patch.setattr(folder_room.os, "replace", broken_off)
            case "save":
                patch.setattr("mmtok.tokenizers.text.Bytes.save", lambda self, folder: (folder.mkdir(), broken_off()))
            case "save_tensors":
                patch.setattr(room, "save_tensors", broken_off)
        train(tiny_recipe, out)
    assert not (out / name).exists() and not [p for p in out.rglob("*") if ".tmp" in p.name]
    train(tiny_recipe, out)
    assert open_run(out).lm


def test_what_killed_runs_left_half_written_claims_no_folder_and_is_removed(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    names = ["recipe.json", "log.jsonl", "tokens/0-ImageFolder.parquet", "model.safetensors"]
    left = [(out / name).with_name(f".{name.rpartition('/')[2]}.999999999.tmp") for name in names]
    out.mkdir()
    left[0].write_text("half")
    fit(tiny_recipe, out)
    (out / "tokens").mkdir()
    for path in left[1:]:
        path.write_text("half")
    train(tiny_recipe, out)
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]


# ---- questions

def test_orders_that_were_trained(tiny_run):
    run = open_run(tiny_run)
    assert str(run.task_for(["text"], "image")) == "caption -> image"
    assert str(run.task_for([], "image")) == "caption -> image", "without its condition, as drop_given allows"
    for given, to in ((["image"], "speech"), ([], "speech"), (["text", "text"], "image"), (["text"], "text")):
        with pytest.raises(BadInput) as error:
            run.task_for(given, to)
        for order in ("text -> image", "image -> text", "text -> jets", "speech -> text", "nothing -> image", "nothing -> jets"):
            assert order in str(error.value)
        assert f"never trained on {' + '.join(given) or 'nothing'} -> {to}" in str(error.value)


def test_a_task_that_makes_several_fields_was_trained_on_each_given_those_before(tiny_run, tiny_recipe):
    run = Run(tiny_run, replace(tiny_recipe, tasks=(Task((), ("caption", "image")), Task(("caption",), ("image", "jets"), drop_given=0.1))))
    asked = lambda given, to: str(run.task_for(given, to))
    assert asked([], "text") == asked(["text"], "image") == "nothing -> caption + image"
    assert asked(["text", "image"], "jets") == asked([], "image") == "caption -> image + jets"
    with pytest.raises(BadInput, match="nothing -> text, text -> image, text [+] image -> jets, nothing -> image$"):
        run.task_for(["text"], "jets")


def test_prompts_carry_the_null_mark_where_the_condition_is_left_out(tiny_run):
    run = open_run(tiny_run)
    assert run.prompt([], "jets").segments[0] is None and run.prompt([], "jets").open_end
    text = run.tokenizers["text"].encode("dark")
    assert run.prompt([text], "image").segments[0] is text and len(run.prompt([text], "image").segments[1]) == 0


def test_the_untrained_decoder_is_the_recipes_whatever_was_drawn_before(tiny_run):
    run = open_run(tiny_run)
    torch.manual_seed(5)
    a = run.untrained().state_dict()
    torch.manual_seed(6)
    assert all(torch.equal(x, a[k]) for k, x in run.untrained().state_dict().items())


def test_nothing_to_draw(tiny_run):
    run = open_run(tiny_run)
    assert run.draw([], run.sampling("image"), 0) == []


def test_draws_do_not_depend_on_the_batches_other_prompts_only_on_the_seed(tiny_run):
    run = open_run(tiny_run)
    prompts = [run.prompt([run.tokenizers["text"].encode("dark")], "image")] * 4
    codes = lambda seed: np.stack([d.segment.codes for d in run.draw(prompts, run.sampling("image"), seed)])
    assert np.array_equal(codes(1), codes(1)) and not np.array_equal(codes(1), codes(2))
    assert isinstance(run.draw(prompts, run.sampling("image"), 1)[0].segment, Segment)


def test_guidance_needs_a_run_trained_with_the_null_condition(tiny_run):
    run = open_run(tiny_run)
    prompt = [run.prompt([run.tokenizers["text"].encode("low")], "speech")]
    with pytest.raises(BadInput, match="guidance 2.0 needs a run trained with drop_given > 0 on a task text -> speech"):
        run.draw(prompt, run.sampling("speech", guidance=2.0), 0)
    assert run.draw([run.prompt([run.tokenizers["text"].encode("dark")], "image")], run.sampling("image", guidance=2.0), 0)


def test_tasks_are_named(tiny_recipe):
    assert str(Task((), ("text",))) == "nothing -> text" and str(tiny_recipe.tasks[0]) == "caption -> image"
