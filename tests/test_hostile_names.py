"""Names that come from files and from anybody's words, through every verb that makes a path of one:
nothing outside the folder changes.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mmtok.cli import main
from mmtok.commands import sample as sampling
from mmtok.commands.trajectories import named_prompt
from mmtok.data.tokens import write_tokens
from mmtok.errors import UserError
from mmtok.evaluation.jets import N_JETS, jets_from_text
from mmtok.evaluation.task import TaskEvaluation
from mmtok.model.llama_folder import read_files
from mmtok.report.report import sample_section
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.sources.hub import HubTable
from mmtok.sources.images import write_image
from mmtok.tokenizers import default
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.checkpoint import (
    Checkpoint,
    _digest_of,
    load_checkpoint,
    save_checkpoint,
)

HOSTILE = [
    "../x",
    "/etc/x",
    "..",
    ".",
    "a/b",
    "a\0b",
    "\x1b[31m\n",
    "x" * 320,
    "...",
    "con",
    "Seven",
    "seven",
    "e\u0301",
    "\u00e9",
    "../../victim/x",
    " ",
]


@pytest.fixture
def guarded(tmp_path, contents):
    """A folder deep in another, of which nothing else may change."""
    home = tmp_path / "a" / "b" / "home"
    home.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        (folder / "x").write_text("victim")
        (folder / "victim").mkdir()

    def outside():
        return {
            name: what
            for name, what in contents(tmp_path).items()
            if not name.startswith("a/b/home")
        }

    before = outside()
    yield home
    assert outside() == before


def test_detokenize_makes_files_of_fields_in_its_folder_only(guarded):
    text = default("text")
    out = guarded / "out"
    write_tokens(
        guarded / "t.parquet",
        {name: text.signature for name in HOSTILE},
        [{name: text.encode(name[:9]) for name in HOSTILE}],
    )
    assert main(["detokenize", str(guarded / "t.parquet"), "-o", str(out)]) == 0
    assert len(list(out.iterdir())) == len(HOSTILE) and all(
        path.suffix == ".txt" for path in out.iterdir()
    )
    assert {path.read_text() for path in out.iterdir()} == {name[:9] for name in HOSTILE}


def test_detokenize_opens_tokenizers_in_their_folder_only(guarded, said):
    """A field, or a modality, whose name leads to another tokenizer's folder."""
    elsewhere = guarded / "x"
    BytesConfig().build().save(elsewhere)
    signature = replace(default("text").signature, modality="../x")
    write_tokens(guarded / "t.parquet", {"../x": signature}, [])
    (guarded / "tokenizers").mkdir()
    line = said(
        [
            "detokenize",
            guarded / "t.parquet",
            "-o",
            guarded / "out",
            "--tokenizer",
            guarded / "tokenizers",
        ]
    )
    assert "tokenizers is not a tokenizer folder" in line and not (guarded / "out").exists()


def test_sample_names_files_after_any_words(tiny_run, guarded, monkeypatch):
    run = open_run(tiny_run.resolve())
    out = guarded / "out"
    here = guarded / "p" / "q" / "r" / "s"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)  # where words like ../x are neither files nor folders
    paths = [
        path
        for words in HOSTILE[:8]
        for path in sampling.sample(run, [words or "x"], "image", 1, out)
    ]
    assert len(set(paths)) == 8 and {path.parent for path in paths} == {out}
    prompts = [row.get("prompt") for row in sampling.read_index(out)]
    assert prompts == HOSTILE[:8]


def test_sample_writes_through_no_link(tiny_run, guarded):
    (guarded / "out").mkdir()
    (guarded / "out" / "dark-000.png").symlink_to(guarded.parent / "x")
    (path,) = sampling.sample(open_run(tiny_run), ["dark"], "image", 1, guarded / "out")
    assert path.is_symlink() is False and path.read_bytes()[:4] == b"\x89PNG"


def test_evaluation_names_samples_after_captions(tiny_run, guarded):
    run = open_run(shutil.copytree(tiny_run, guarded / "run"))
    task = TaskEvaluation(run, run.recipe.tasks[0])
    drawn = run.draw(
        [run.prompt([run.tokenizers["text"].encode("dark")], "image")] * len(HOSTILE),
        run.sampling("image"),
        0,
    )
    task.save_samples("image_from_text", HOSTILE, drawn)
    folder = guarded / "run" / "samples" / "image_from_text"
    assert len(list(folder.glob("*.png"))) == len(HOSTILE)
    assert [
        row.get("prompt", named_prompt(Path(row["file"]))) for row in sampling.read_index(folder)
    ] == HOSTILE
    page = "".join(map(str, sample_section(run, "image_from_text")))
    assert "/etc/x" in page


def test_evaluation_keeps_jets_of_every_caption_apart(tiny_copy, monkeypatch):
    run = open_run(tiny_copy)
    task = TaskEvaluation(
        run,
        next(t for t in run.recipe.tasks if run.recipe.fields[t.targets[0]] == "jets" and t.inputs),
    )
    names = ["a/b", "a_b", "a b", "../x", "x" * 320]
    jet = np.array([[50.0, 0.1, 0.1], [20.0, -0.1, 0.2]], np.float32)
    monkeypatch.setattr(
        TaskEvaluation,
        "rows",
        lambda self, split: ((name, jet) for name in names for _ in range(2)),
    )
    figures = jets_from_text(task)
    folder = tiny_copy / "samples" / task.name
    assert len(figures) == len(list(folder.glob("*.npz"))) == len(names) <= N_JETS


def test_reports_show_no_file_that_an_index_names_elsewhere(tiny_copy, tmp_path):
    run = open_run(tiny_copy)
    folder = tiny_copy / "samples" / "asked"
    folder.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    write_image(tmp_path / "secret.png", np.zeros((4, 4), np.uint8))
    for file in ("../../../secret.txt", str(tmp_path / "secret.txt"), "link.txt", "a\0b", ".."):
        (folder / "index.json").write_text(json.dumps([{"file": file}]))
        with pytest.raises(UserError, match="is no file inside"):
            sample_section(run, "asked")
    (folder / "index.json").unlink()
    with pytest.raises(
        UserError, match="is no file inside"
    ):  # without an index every file is listed
        sample_section(run, "asked")
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="is no file inside"):
        sample_section(run, "asked")


def test_samples_beside_a_hostile_index_begin_it_anew(tiny_run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.json").write_text(json.dumps([{"file": "../x"}]))
    with pytest.warns(UserWarning, match="begun anew"):
        sampling.sample(open_run(tiny_run), ["dark"], "image", 1, tmp_path / "out")
    assert [row["file"] for row in sampling.read_index(tmp_path / "out")] == ["dark-000.png"]


def test_a_recipes_modalities_are_plain_names(tiny_recipe):
    plain = json.loads(tiny_recipe.to_json())
    for name in ("../x", "/abs", "..", "a/b", "a\nb", ""):
        changed = plain | {"tokenizers": plain["tokenizers"] | {name: plain["tokenizers"]["text"]}}
        with pytest.raises(UserError, match="must be a plain name") as error:
            Recipe.from_json(json.dumps(changed))
        assert "\n" not in str(error.value)


def test_weights_are_read_in_their_folder_only(tmp_path, tiny_run):
    for name in ("../x.safetensors", str(tmp_path / "x.safetensors"), "link.safetensors"):
        folder = tmp_path / "llama"
        folder.mkdir(exist_ok=True)
        save_file({"a": np.zeros(2)}, tmp_path / "x.safetensors")
        (folder / "link.safetensors").unlink(missing_ok=True)
        (folder / "link.safetensors").symlink_to(tmp_path / "x.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": name}})
        )
        with pytest.raises(UserError, match="is no file inside"):
            read_files(folder, lambda path: {})


def test_a_hubs_copy_is_links_to_files_of_the_same_model(tmp_path):
    copy = tmp_path / "models--a--b" / "snapshots" / "1"
    copy.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    save_file({"a": np.zeros(2)}, blobs / "w")
    (copy / "model.safetensors").symlink_to(Path("../../blobs/w"))
    assert read_files(copy, lambda path: {"a": path}) == {"a": copy / "model.safetensors"}


def test_a_checkpoints_state_names_files_of_its_own(tmp_path):
    save_checkpoint(tmp_path / "run", Checkpoint({"weights": {"a": torch.zeros(2)}}, {"step": 1}))
    state_file = tmp_path / "run" / "step-000001" / "state.json"
    state = json.loads(state_file.read_text())
    shutil.copy(
        tmp_path / "run" / "step-000001" / "weights.safetensors", tmp_path / "weights.safetensors"
    )
    state["files"] = {"../../weights.safetensors": state["files"]["weights.safetensors"]}
    del state["sha256"]
    state_file.write_text(json.dumps(state | {"sha256": _digest_of(state)}))
    with pytest.warns(UserWarning, match="is no file inside"), pytest.raises(UserError):
        load_checkpoint(tmp_path / "run")


def test_a_table_names_files_beside_it_only(tmp_path):
    home = tmp_path / "table"
    home.mkdir()
    write_image(tmp_path / "secret.png", np.zeros((4, 4), np.uint8))
    write_image(home / "a.png", np.zeros((4, 4), np.uint8))
    (home / "t.csv").write_text("image\na.png\n")
    table = HubTable(str(home / "t.csv"), {"image": "image"}, {"image": "image"})
    assert (
        table.file_in("a.png", "row 0") == home / "a.png"
        and table.file_in(str(home / "a.png"), "row 0") == home / "a.png"
    )
    for cell in ("../secret.png", str(tmp_path / "secret.png"), "a\0b", "."):
        with pytest.raises(UserError, match="row 0: .* is no file inside"):
            table.file_in(cell, "row 0")
