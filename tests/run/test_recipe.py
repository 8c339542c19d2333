"""A recipe: from a file and back from JSON, its fields overridden, and one clear line for what is
wrong in it.
"""

from dataclasses import replace

import pytest

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import open_run


def test_the_recipe_survives_json(tiny_recipe):
    assert Recipe.from_json(tiny_recipe.to_json()) == tiny_recipe


@pytest.mark.parametrize(
    "override, parts",
    [
        (["--train.stepz", "3"], ["no field --train.stepz", "--train.steps"]),
        (["--stps", "3"], ["no field --stps", "--train.steps"]),
        (["--train.steps", "many"], ["train.steps must be int", "'many'"]),
        (["--train.steps", "1e3"], ["train.steps must be int"]),
        (["--train.steps", "0"], ["steps is 0"]),
        (["--train.steps"], ["--train.steps needs a value"]),
        (["--train.precision", "fp8"], ["'auto', 'float32', 'bf16'"]),
        (["--path", "x"], ["--path is ambiguous", "--sources.0.path"]),
        (["--trunk.width", "33"], ["model.trunk", "got"]),
        (["--sampling.text.top_p", "2"], ["top_p"]),
        (["--tasks.0.inputs", "caption"], ["tasks.0.inputs must be a list"]),
        (["--tasks.0.inputs", '["title"]'], ["'title'", "the sources yield caption"]),
        (["--tokenizers", "{}"], ["recipe 'tiny' has no tokenizers"]),
        (["--trunk.n_heads", "0"], ["model.trunk", "n_heads must be at least 1, got 0"]),
        (["--train.loss_weights", "3"], ["train.loss_weights is '3'; it must be NAME=VALUE"]),
        (
            ["--train.loss_weights", '{"txet": 2}'],
            ["train.loss_weights names the modality 'txet'", "did you mean 'text'?"],
        ),
        (
            ["--sampling", '{"txet": {}}'],
            ["sampling names the modality 'txet'", "did you mean 'text'?"],
        ),
        (["--sampling", '{"smell": {}}'], ["'smell', but the recipe has tokenizers for text, "]),
        (["train.steps", "3"], ["expected --field value"]),
    ],
)
def test_wrong_overrides_are_refused(tiny_words, override, parts):
    with pytest.raises(UserError) as error:
        load_recipe(tiny_words[0], [*tiny_words[1:], *override])
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_overrides_reach_every_kind_of_field(tiny_words):
    words = [
        "--depth=2",
        "--input_masking.image.drop_prob",
        "0.3",
        "--sampling.jets.max-frames",
        "5",
        "--learning_rate",
        "1",
    ]
    changed = load_recipe(
        tiny_words[0], [*tiny_words[1:], *words, "--train.loss_weights", '{"text": 2}']
    )
    assert (
        changed.train.loss_weights == {"text": 2.0}
        and changed.model.trunk.depth == 2
        and changed.input_masking["image"].drop_prob == 0.3
    )
    assert changed.sampling["jets"].max_frames == 5 and changed.train.learning_rate == 1.0


@pytest.mark.parametrize(
    "text, parts",
    [
        ("recipe = Recipe(", ["SyntaxError"]),
        ("x = 3", ["holds no value named 'recipe'"]),
        ("recipe = 3", ["holds no value named 'recipe'"]),
        ("import nowhere_to_be_found", ["line 1", "ModuleNotFoundError"]),
        ("from mmtok.train.config import TrainConfig\nTrainConfig(stepz=3)", ["line 2", "stepz"]),
        ("\n\n1 / 0", ["line 3", "ZeroDivisionError"]),
    ],
)
def test_broken_recipe_files_are_named(tmp_path, text, parts):
    (tmp_path / "r.py").write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "r.py")
    assert all(part in str(error.value) for part in ["r.py", *parts]), str(error.value)


@pytest.mark.parametrize(
    "change, parts",
    [
        (('"kind": "Bytes', '"kind": "Runes'), ["unknown kind 'RunesConfig'", "BytesConfig"]),
        (('"name": "tiny"', '"nome": "tiny"'), ["no field 'nome'", "'name'"]),
        (('"name": "tiny",', ""), ["needs the field(s) name"]),
        (('"n_samples": 6', '"n_samples": "six"'), ["n_samples must be int"]),
    ],
)
def test_wrong_recipe_json_is_named(tiny_copy, change, parts):
    path = tiny_copy / "recipe.json"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    for read in (load_recipe, lambda p: open_run(p.parent)):
        with pytest.raises(UserError) as error:
            read(path)
        assert all(part in str(error.value) for part in ["recipe.json", *parts]), str(error.value)


# ---- weights of sources


def test_sources_are_weighted_by_place_field_modality_or_class(tiny_recipe):
    def weights(**source_weights):
        train = replace(tiny_recipe.train, source_weights=source_weights)
        return replace(tiny_recipe, train=train).weights_of_sources()

    assert weights() == [1, 1, 1]
    assert weights(speech=2) == [1, 2, 1] == weights(**{"1": 2}) == weights(SpeechFolder=2)
    assert weights(caption=0.5, image=0.5) == [0.5, 0.5, 0.5]
    for wrong, message in (
        ({"speach": 2}, "names 'speach', but sources are called 0, 1, 2, .*did you mean 'speech'"),
        ({"speech": 2, "1": 3}, r"source 1 the weights 2 \(speech\) and 3 \(1\); name it once"),
        ({"text": 0}, "leaves all sources out"),
        ({"speech": -1}, "source_weights of speech is -1; it must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            weights(**wrong)


def test_the_command_line_sets_weights_of_sources(tiny_words, tmp_path, said, capsys):
    words = ["train", *tiny_words, "--out", tmp_path / "run", "--train.steps", "1"]
    assert "'spech'" in said([*words, "--weights", "spech=2"])
    assert main([str(word) for word in [*words, "--weights", "speech=2,image=0.5"]]) == 0
    assert open_run(tmp_path / "run").recipe.train.source_weights == {"speech": 2, "image": 0.5}
