"""Fields by name: every one that is listed can be set, and what cannot be set is answered in one
line with what could.
"""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.io.overrides import field_groups, set_fields
from mmtok.io.serialize import CommandLineText, from_plain, to_plain
from mmtok.run.recipe import load_recipe, override

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))


def leaves(node, way=()):
    """The way to every plain value that holds no other, and to every empty list and mapping."""
    items = [
        (k, x)
        for k, x in (node.items() if isinstance(node, dict) else enumerate(node))
        if k != "kind"
    ]
    for key, child in items:
        yield from (
            leaves(child, (*way, key))
            if isinstance(child, (dict, list)) and child
            else [(*way, key)]
        )


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def digits():
    return load_recipe(next(path for path in RECIPES if path.stem == "digits"))


# ---- what `mmtok show RECIPE` lists


def listed(path, capsys):
    """[(--NAME, value)] of the block that `mmtok show` prints, read as a shell reads words."""
    assert main(["show", str(path)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("--")]


def test_every_field_listed_is_set_to_its_own_value_and_changes_nothing(path, capsys):
    recipe = load_recipe(path)
    words = listed(path, capsys)
    assert all(len(pair) == 2 for pair in words)
    for pair in words:
        assert override(recipe, pair) == recipe
    assert override(recipe, [word for pair in words for word in pair]) == recipe


def test_every_field_is_listed_once(path, capsys):
    """By itself, or within a list or a mapping of plain values, which is set as a whole."""
    names = [name for name, _ in listed(path, capsys)]
    assert len(set(names)) == len(names)
    for way in leaves(to_plain(load_recipe(path))):
        dotted = [f"--{'.'.join(map(str, way[:n]))}" for n in range(1, len(way) + 1)]
        assert len(set(dotted) & set(names)) == 1, way
    ends = {name.split(".")[0] for name in names}
    assert {"--n_samples", "--start", "--sampling", "--input_masking"} <= ends


def test_a_listed_field_takes_another_value(digits):
    for words, read in (
        (["--tasks.0.weight", "0.5"], lambda r: r.tasks[0].weight == 0.5),
        (["--sources.1.n_utterances", "60"], lambda r: r.sources[1].n_utterances == 60),
        (
            ["--tokenizers.speech.mel.hop_samples", "200"],
            lambda r: r.tokenizers["speech"].mel.hop_samples == 200,
        ),
        (["--sampling.speech.max_frames", "9"], lambda r: r.sampling["speech"].max_frames == 9),
        (
            ["--input_masking.view.drop_prob", ".25"],
            lambda r: r.input_masking["view"].drop_prob == 0.25,
        ),
        (
            ["--tokenizers.jets.bins", "[51, 31, 31]"],
            lambda r: r.tokenizers["jets"].bins == (51, 31, 31),
        ),
        (["--model.totals", "{}"], lambda r: r.model.totals == {}),
    ):
        assert read(override(digits, words)) and not read(digits)


def test_names_with_dashes_and_dots_of_their_own_are_listed_and_set():
    plain = {
        "kind": "X",
        "tokens": {"my-kind": {"kind": "Y", "size": 3}, "a.b": {"kind": "Y", "size": 4}},
        "snake_case": 1,
    }
    [words] = [[f"--{n}=7" for _, _, fields in field_groups(plain) for n in fields]]
    assert words == ["--snake_case=7", "--tokens.my-kind.size=7", "--tokens.a.b.size=7"]
    set_fields(plain, [*words, "--snake-case", "8"])
    assert (
        plain["tokens"]["my-kind"]["size"],
        plain["tokens"]["a.b"]["size"],
        plain["snake_case"],
    ) == ("7", "7", "8")


# ---- values


def test_a_part_is_exchanged_for_another_kind(digits):
    changed = override(
        digits,
        [
            "--tokenizers.image",
            '{"kind": "PixelsConfig", "n_levels": 4}',
            "--tokenizers.image.n_levels",
            "8",
        ],
    )
    assert (
        type(changed.tokenizers["image"]).__name__ == "PixelsConfig"
        and changed.tokenizers["image"].n_levels == 8
    )
    assert override(
        digits, ["--train.loss_weights", '{"image": 2}', "--train.loss_weights.image", "3"]
    ).train.loss_weights == {"image": 3.0}


def test_words_are_read_as_the_type_of_their_field(digits):
    started = override(digits, ["--start", "2024"])
    assert (
        started.start == "2024" and override(started, ["--start", "null"]).start is None
    )  # text or nothing
    assert override(digits, ["--name", "null"]).name == "null"  # text
    for text, value in ((".5", 0.5), ("5.", 5.0), ("1e-3", 1e-3), ("+2", 2.0), ("7", 7.0)):
        learning_rate = override(digits, ["--learning_rate", text]).train.learning_rate
        assert isinstance(learning_rate, float) and math.isclose(learning_rate, value)
    assert override(digits, ["--fsdp", "True"]).train.fsdp is True


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--train.stps", "3"], ["nearest: --train.steps;"]),
        (["--tasks.0.wieght", "3"], ["nearest: --tasks.0.weight,"]),
        (["--tasks.9.weight", "3"], ["nearest: --tasks.0.weight,"]),
        (["--wieght", "3"], ["--tasks.0.weight"]),
        (["--sources.1.n_uterances", "60"], ["nearest: --sources.1.n_utterances;"]),
        (["--model.trunc.width", "4"], ["--model.trunk.width"]),
        (["--tokenizers.speech.mel.n_mel", "3"], ["--tokenizers.speech.mel.n_mels"]),
        (["--sampling.imag.temperature", "1"], ["--sampling.image.temperature"]),
        (["--n_sample", "3"], ["nearest: --n_samples;"]),
        (["--xq", "3"], ["no field --xq; `mmtok show RECIPE` lists them all"]),
        (["--weight", "1"], ["ambiguous", "--tasks.0.weight", "--tasks.6.weight"]),
        (["--image", "1"], ["ambiguous", "--tokenizers.image", "--sampling.image"]),
        (["--train.steps", "--batch_size", "8"], ["--train.steps needs a value"]),
        (
            ["--sources.1.n_utterances", "sixty"],
            ["sources.1.n_utterances must be int, got 'sixty'"],
        ),
        (
            ["--sampling.image.temperature", "hot"],
            ["sampling.image.temperature must be float, got 'hot'"],
        ),
        (["--fsdp", "yes"], ["train.fsdp must be true or false, got 'yes'"]),
        (
            ["--tasks.0.inputs", "caption"],
            ['tasks.0.inputs must be a list such as ["caption"], got'],
        ),
        (["--tokenizers.jets.bins", "41"], ["tokenizers.jets.bins must be a list such as [41]"]),
        (
            ["--tokenizers.image", "PixelsConfig"],
            ['tokenizers.image must be {"kind": ...} with one of', "PixelsConfig"],
        ),
        (
            ["--tokenizers.image", '{"n_levels": 4}'],
            ['tokenizers.image must be {"kind": ...} with one of', "PixelsConfig"],
        ),
        (["--model.trunk", "4"], ["model.trunk must be a TransformerConfig, got 4"]),
        (["--n_samples", "0"], ["n_samples is 0; it must be at least 1"]),
    ],
)
def test_what_cannot_be_set_is_answered_in_one_line(digits, words, parts):
    with pytest.raises(UserError) as told:
        override(digits, words)
    assert all(part in str(told.value) for part in parts) and "\n" not in str(told.value), (
        told.value
    )


def test_one_is_counted_as_one():
    assert [counted(n, "row") for n in (0, 1, 2, 2000)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "2,000 rows",
    ]


def test_plain_values_are_json(path):
    recipe = load_recipe(path)
    assert json.loads(recipe.to_json()) == to_plain(recipe)


def test_a_mapping_in_words_of_the_command_line():
    def read(text, of=str):
        return from_plain(CommandLineText(text), Mapping[str, of], "columns")

    assert read("file=path, caption=sentence") == {"file": "path", "caption": "sentence"}
    assert read('{"file": "a=b,c"}') == {"file": "a=b,c"}
    assert read("speech=2,text=0.5", float) == {"speech": 2.0, "text": 0.5}
    assert read("") == {}
    for wrong, message in (
        ("file", "must be NAME=VALUE"),
        ("file=", "must be NAME=VALUE"),
        ("a=b,a=c", "names a twice"),
    ):
        with pytest.raises(UserError, match=message):
            read(wrong)
    with pytest.raises(UserError, match="columns.speech must be float"):
        read("speech=two", float)
