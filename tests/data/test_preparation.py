"""One preparation for every door: a raw file gives the same codes in training, prompts, scores,
evaluation and `tokenize`.
"""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmtok.commands import score as scoring
from mmtok.commands.prompts import first_segment
from mmtok.commands.tokenize import tokenize_files
from mmtok.data.image_preparation import ImagePreparation
from mmtok.data.preparation import DEFAULTS, chosen_preparation, load_preparation
from mmtok.data.speech_preparation import SpeechPreparation
from mmtok.data.tasks import Task
from mmtok.data.text_preparation import TextPreparation
from mmtok.data.tokens import read_tokens
from mmtok.errors import UserError
from mmtok.run.build import fit, tokenise
from mmtok.run.run import open_run
from mmtok.sources.images import ImageFolder
from mmtok.sources.speech import SpeechFolder
from mmtok.sources.text import TextFile

RNG = np.random.default_rng(0)
FIELDS = {"text": "text", "speech": "speech", "image": "image"}


def make_text(folder):
    path = folder / "book.txt"
    path.write_text("CAFE\u0301 au lait\n", encoding="utf-8")
    return TextFile(str(path), chunk_chars=64, heldout_share=0.4), path


def make_speech(folder):
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(name)
        soundfile.write(folder / f"{name}.wav", RNG.uniform(-0.5, 0.5, (4_410, 2)), 44_100)
    return SpeechFolder(str(folder)), folder / "a.wav"


def make_image(folder):
    for name in ("a", "b"):
        Image.fromarray(RNG.integers(0, 256, (9, 14, 4), np.uint8)).save(folder / f"{name}.png")
    return ImageFolder(str(folder)), folder / "a.png"


MAKE = {"text": make_text, "speech": make_speech, "image": make_image}
PREPARED = {"text": TextPreparation("NFC", lower_case=True), "speech": SpeechPreparation("right"),
            "image": ImagePreparation("crop", "black")}  # fmt: skip


@pytest.fixture(params=list(MAKE))
def fitted(request, tiny_recipe, tmp_path):
    """(modality, the raw file, the run), tokenised but not trained, with a preparation that is not
    the default.
    """
    m = request.param
    (tmp_path / "raw").mkdir()
    source, path = MAKE[m](tmp_path / "raw")
    tokenizers = {name: tiny_recipe.tokenizers[name] for name in dict.fromkeys(("text", m))}
    recipe = replace(
        tiny_recipe,
        sources=(source,),
        tokenizers=tokenizers,
        tasks=(Task((), (FIELDS[m],)),),
        input_masking={},
        sampling={},
        preparation={m: PREPARED[m]},
    )
    with warnings.catch_warnings(action="ignore"):
        tokenise(fit(recipe, tmp_path / "run"))
    return m, path, open_run(tmp_path / "run")


def codes_in_training(run, field):
    """The codes of every training example, by the token file and as evaluation reads them."""
    file = read_tokens(run.token_path(0))
    stored = [file.segment(field, row).codes for row in range(len(file))]
    tokenizer = run.tokenizers[run.recipe.fields[field]]
    for codes, example in zip(stored, run.examples("train", field), strict=True):
        assert np.array_equal(codes, tokenizer.encode(example[field]).codes)
    return stored + [
        tokenizer.encode(example[field]).codes for example in run.examples("heldout", field)
    ]


def codes_in_score(run, path, monkeypatch):
    seen = []

    def score_documents(documents):
        seen.extend(documents)
        raise StopIteration

    monkeypatch.setattr(run, "score_documents", score_documents)
    with pytest.raises(StopIteration):
        scoring.score(run, [str(path)])
    return seen[0].target.codes


@pytest.mark.filterwarnings("ignore")
def test_every_door_gives_the_same_codes(fitted, tmp_path, monkeypatch):
    m, path, run = fitted
    if (
        m == "text"
    ):  # what the source cuts and holds out is a part of the file: that part as a file of its own
        path = tmp_path / "passage.txt"
        path.write_text(
            next(run.recipe.sources[0].examples("train", tmp_path))["text"], encoding="utf-8"
        )
    prompt = first_segment(run, str(path)).codes
    assert any(np.array_equal(prompt, codes) for codes in codes_in_training(run, FIELDS[m]))
    assert np.array_equal(prompt, codes_in_score(run, path, monkeypatch))
    folder = run.folder / "tokenizers" / m
    assert load_preparation(folder, m) == PREPARED[m] == run.recipe.preparation[m]
    tokenize_files(m, [path], tmp_path / "t.parquet", folder)
    assert np.array_equal(prompt, read_tokens(tmp_path / "t.parquet").segment(m, 0).codes)
    (folder / "preparation.json").unlink()  # and it is the preparation that makes them
    with pytest.warns(
        UserWarning,
        match=(
            f"{m} has no preparation.json, which its run wrote there: .* prepared by the defaults"
        ),
    ):
        tokenize_files(m, [path], tmp_path / "other.parquet", folder)
    other = read_tokens(tmp_path / "other.parquet").segment(m, 0).codes
    assert other.shape != prompt.shape or (other != prompt).any()


def test_what_is_done_is_said_once_for_a_source_and_split(fitted):
    m, _, run = fitted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            for split in ("train", "heldout"):
                list(run.examples(split, FIELDS[m]))
    lines = [str(warning.message) for warning in caught]
    kinds = {"text": 1, "speech": 2, "image": 3}[m]
    assert len(lines) == len(set(lines)) <= 2 * kinds


def test_choices_are_made_where_the_folder_has_none(fitted, tmp_path):
    m, path, run = fitted
    choices = {
        "text": ["normal_form=NFC", "lower_case=true"],
        "speech": ["channel=right"],
        "image": ["fit=crop", "background=black"],
    }[m]
    assert chosen_preparation(None, m, choices) == PREPARED[m] != DEFAULTS[m]
    if m == "image":  # pixels are taken in any size, where a fit would do nothing
        with pytest.raises(UserError, match="leave it out"):
            tokenize_files(m, [path], tmp_path / "fit.parquet", prepare=choices)
        choices = ["background=black"]
    with warnings.catch_warnings(action="ignore"):
        tokenize_files(m, [path], tmp_path / "plain.parquet")
        tokenize_files(m, [path], tmp_path / "chosen.parquet", prepare=choices)
    plain, chosen = (
        read_tokens(tmp_path / f"{name}.parquet").segment(m, 0).codes
        for name in ("plain", "chosen")
    )
    assert plain.shape != chosen.shape or (plain != chosen).any()
    with pytest.raises(UserError, match="preparation.json says how"):
        tokenize_files(
            m, [path], tmp_path / "t.parquet", run.folder / "tokenizers" / m, prepare=choices
        )
    for wrong in (
        "chanel=left",
        "fit",
        "kind=Nothing",
        "channel=middle",
        "fit=squeeze",
        "strip=3",
        "normal_form=NFX",
    ):
        with pytest.raises(UserError):
            chosen_preparation(None, m, [wrong])


def test_a_preparation_that_was_changed_beside_the_tokenizer_is_refused(fitted):
    m, _, run = fitted
    (run.folder / "tokenizers" / m / "preparation.json").unlink()
    with pytest.raises(UserError, match="in another way than the run's recipe.json"):
        open_run(run.folder).tokenizers  # noqa: B018


def test_a_broken_preparation_is_refused_in_one_line(tmp_path):
    assert (
        load_preparation(None, "text") == DEFAULTS["text"]
        and load_preparation(tmp_path, "protein") is None
    )
    path = tmp_path / "preparation.json"
    for text in (
        "",
        "[",
        "[1]",
        "null",
        "[" * 100_000,
        "1" * 5_000,
        '{"kind": "Nothing"}',
        '{"kind": "TextPreparation", "strip": 3}',
        json.dumps({"kind": "SpeechPreparation", "channel": "left"}),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_preparation(tmp_path, "text")
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_rate_of_the_tokenizer_is_the_only_one(tiny_data, tiny_recipe, tmp_path):
    """Clips have their length in seconds, whatever rate the tokenizer takes."""
    from mmtok.run.recipe import override

    source = replace(tiny_recipe.sources[1], path=str(tiny_data / "sounds"))
    tokenizers = {m: tiny_recipe.tokenizers[m] for m in ("text", "speech")}
    recipe = replace(
        tiny_recipe,
        sources=(source,),
        tokenizers=tokenizers,
        tasks=tiny_recipe.tasks[2:4],
        input_masking={},
        sampling={},
    )
    recipe = override(recipe, ["--tokenizers.speech.mel.rate_hz", "22050"])
    with warnings.catch_warnings(action="ignore"):
        run = fit(recipe, tmp_path / "run")
        example = next(run.examples("train", "speech"))
        raw = next(source.examples("train", tmp_path))["speech"]
    assert len(example["speech"]) / 22_050 == pytest.approx(
        len(raw.samples) / raw.rate_hz, abs=1 / 22_050
    )
    with pytest.raises(UserError, match="no field --sources.0.rate_hz"):
        override(recipe, ["--sources.0.rate_hz", "16000"])


def test_columns_of_jets_that_disagree_are_refused(tiny_recipe):
    jets = replace(
        tiny_recipe.tokenizers["jets"],
        features=("pt_gev", "eta_rel", "phi_rel", "charge"),
        bins=(9, 9, 9, 5),
        low=(0.5, -1, -1, -1.5),
        high=(900, 1, 1, 1.5),
    )
    with pytest.raises(
        UserError,
        match=(
            "sources.2.features are pt_gev, eta_rel, phi_rel, but the tokenizer of jets takes"
            " .*charge"
        ),
    ):
        replace(tiny_recipe, tokenizers={**tiny_recipe.tokenizers, "jets": jets})
