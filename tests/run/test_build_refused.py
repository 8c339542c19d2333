"""A run folder: what does not belong in it is refused, what is damaged is named, and nothing is
overwritten.
"""

import json
import shutil
from dataclasses import replace

import pytest

from mmtok.cli import main
from mmtok.commands.show import describe_run
from mmtok.errors import UserError
from mmtok.run import build as room
from mmtok.run.build import start_run, train
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import open_run
from mmtok.tokenizers.text import SentencePieceConfig

# ---- what does not belong


def test_changed_fields_are_refused_naming_the_difference(tiny_copy, tiny_words, contents):
    before = contents(tiny_copy)
    changed = load_recipe(
        tiny_words[0], [*tiny_words[1:], "--train.steps", "30", "--tasks.0.weight", "2"]
    )
    with pytest.raises(UserError) as error:
        train(changed, tiny_copy)
    assert (
        "train.steps: 24 -> 30" in str(error.value)
        and "tasks.0.weight: 1.0 -> 2.0" in str(error.value)
        and "--out" in str(error.value)
    )
    assert "learning_rate" not in str(error.value) and contents(tiny_copy) == before


def test_many_differences_are_cut_short(tiny_copy, tiny_recipe):
    other = Recipe("other", tiny_recipe.tokenizers, tiny_recipe.sources, tiny_recipe.tasks[:1])
    with pytest.raises(UserError, match=r"and \d+ more\): choose another --out"):
        train(other, tiny_copy)


def test_a_foreign_folder_is_refused_and_left_alone(tiny_recipe, tmp_path, contents):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty and not a run folder"):
        train(tiny_recipe, tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"precious"}


def test_what_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not a run folder: it has no recipe.json"):
            open_run(path)


def swap_jets(run, tiny_recipe):
    """Put a jets tokenizer of the same class and other settings into a run; returns it."""
    config = replace(tiny_recipe.tokenizers["jets"], max_constituents=7)
    config.build().save(run / "tokenizers" / "jets")
    return config.build()


def test_a_swapped_tokenizer_is_caught_naming_both(tiny_copy, tiny_recipe):
    stored = json.loads((tiny_copy / "vocabulary.json").read_text())["fingerprint"]
    swap_jets(tiny_copy, tiny_recipe)
    for call in (
        lambda: open_run(tiny_copy).lm,
        lambda: describe_run(open_run(tiny_copy)),
        lambda: train(tiny_recipe, tiny_copy),
    ):
        with pytest.raises(UserError, match=f"{stored}, but this one is [0-9a-f]{{12}}"):
            call()
    assert stored not in str(open_run(tiny_copy).tokenizers["jets"].signature)


def test_tokens_of_other_tokenizers_are_caught_naming_both(tiny_copy, tiny_recipe):
    """As above, but the vocabulary's own record is gone too."""
    (tiny_copy / "vocabulary.json").unlink()
    (tiny_copy / "model.safetensors").unlink()
    old = open_run(tiny_copy).tokenizers["jets"].signature.fingerprint
    new = swap_jets(tiny_copy, tiny_recipe)
    with pytest.raises(
        UserError,
        match=f"made by the jets tokenizers {old}, but {new.signature.fingerprint} is expected",
    ):
        train(tiny_recipe, tiny_copy)


def test_a_tokenizer_of_another_class_than_the_recipes_is_refused(tiny_copy):
    shutil.rmtree(tiny_copy / "tokenizers" / "text")
    SentencePieceConfig(n_pieces=300).fit(["dark light low high"] * 9).save(
        tiny_copy / "tokenizers" / "text"
    )
    with pytest.raises(UserError, match="text.* a 'SentencePiece' tokenizer, expected 'Bytes'"):
        open_run(tiny_copy).vocabulary


def test_a_missing_tokenizer_is_named(tiny_copy):
    shutil.rmtree(tiny_copy / "tokenizers" / "jets")
    with pytest.raises(UserError, match="no fitted jets tokenizer yet"):
        open_run(tiny_copy).vocabulary


# ---- what is damaged

DAMAGE = {
    "model.safetensors": ["", "cut", "noise"],
    "recipe.json": ["", "cut", "noise", "[]", "{}", '{"kind": "Recipe", "name": 3}'],
    "vocabulary.json": ["", "cut", "noise", "[]", "{}"],
    "tokenizers/text/tokenizer.json": ["", "cut", "noise", "{}", '{"kind": "Runes"}'],
}


@pytest.mark.parametrize(
    "name, how", [(name, how) for name, hows in DAMAGE.items() for how in hows]
)
def test_damaged_files_are_named_in_one_line(tiny_copy, name, how):
    path = tiny_copy / name
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[: len(content) // 2], "noise": b"\xff\xfe\x00\x01" * 9}.get(
            how, how.encode()
        )
    )
    with pytest.raises(UserError) as error:
        open_run(tiny_copy).lm
    assert name.rpartition("/")[2] in str(error.value) and "\n" not in str(error.value)


def test_a_flipped_bit_in_the_weights_is_found_out_and_the_last_checkpoint_mends_it(
    tiny_copy, tiny_recipe
):
    path = tiny_copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        UserError,
        match=(
            "model.safetensors cannot be loaded .it is not what was written.*`mmtok train` makes it"
            " again"
        ),
    ) as error:
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
    with pytest.raises(UserError, match="recipe.json is not valid JSON"):
        train(tiny_recipe, tiny_copy)
    assert (tiny_copy / "recipe.json").read_text() == "{"


def test_missing_weights_are_said(tiny_copy):
    (tiny_copy / "model.safetensors").unlink()
    shutil.rmtree(tiny_copy / "checkpoints")
    with pytest.raises(UserError, match="holds no trained model yet, nor a checkpoint"):
        open_run(tiny_copy).lm


def test_weights_of_another_size_are_refused(tiny_copy):
    text = (tiny_copy / "recipe.json").read_text()
    (tiny_copy / "recipe.json").write_text(text.replace('"feed_forward": 48', '"feed_forward": 64'))
    with pytest.raises(
        UserError, match="model.safetensors cannot be loaded .*`mmtok train` makes it again"
    ):
        open_run(tiny_copy).lm


def test_a_damaged_log_does_not_stop_show(tiny_copy):
    (tiny_copy / "log.jsonl").write_bytes(b'{"step": 8, "loss": 1.0}\n\xff\n{"st')
    assert "step 8 of 24" in describe_run(open_run(tiny_copy))


# ---- what is found wrong before anything is trained


def test_rows_that_hold_no_document_are_refused_before_anything_is_written(tiny_words, tmp_path):
    short = load_recipe(tiny_words[0], [*tiny_words[1:], "--train.seq_len", "23"])
    with pytest.raises(
        UserError,
        match=(
            "caption -> image: a document takes 24 positions or more, but rows are 23 long: raise"
            " --train.seq_len"
        ),
    ):
        train(short, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_that_are_found_too_short_once_tokens_are_there_can_be_made_longer(
    tiny_words, tiny_run, tmp_path, contents, capsys
):
    out = tmp_path / "run"

    def recipe(*more):
        return load_recipe(tiny_words[0], [*tiny_words[1:], *more])

    with pytest.raises(
        UserError, match=r"positions, but rows are 26 long: raise --train.seq_len to at least \d+"
    ):
        train(recipe("--train.seq_len", "26"), out)
    made = contents(out / "tokens")
    with pytest.raises(UserError, match="tokenizers.image.levels"):  # what stands is of the old one
        train(recipe("--tokenizers.image.levels", "3"), out)
    with pytest.raises(UserError, match="train.seed: 0 -> 1"):
        train(recipe("--train.seed", "1"), out)
    capsys.readouterr()
    train(recipe(), out)
    said = capsys.readouterr().err
    assert (
        "its recipe is changed (train.seq_len: 26 -> 64)" in said and "0-ImageFolder stands" in said
    )
    assert (
        contents(out / "tokens") == made and (out / "recipe.json").read_text() == recipe().to_json()
    )
    assert (out / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


def test_a_first_call_that_fails_does_not_claim_the_folder(tmp_path, said, capsys, monkeypatch):
    """What its message advises can be done, and so can anything else while nothing stands that was
    made by the first recipe.
    """
    for name, text in (("a", "It was a dark night. "), ("b", "another one, it was not ")):
        (tmp_path / f"{name}.txt").write_text(text * 60)

    def words(name, n):
        return [
            "fit",
            "recipes/text.py",
            "--path",
            str(tmp_path / f"{name}.txt"),
            "--n_pieces",
            str(n),
            "--out",
            str(tmp_path / "run"),
        ]

    def refuse(*_, **__):
        raise UserError("n_pieces is too much")

    with monkeypatch.context() as patched:
        patched.setattr(room, "fit_tokenizer", refuse)
        assert "too much" in said(words("a", 262))
    assert "no-such.txt" in said(words("no-such", 300))
    stored = (tmp_path / "run" / "recipe.json").read_text()
    assert "262" in stored and "no-such" not in stored
    assert main(words("b", 280)) == 0
    assert "sources.0.path" in (err := capsys.readouterr().err) and "n_pieces: 262 -> 280" in err
    assert "b.txt" in (tmp_path / "run" / "recipe.json").read_text()
    assert "n_pieces: 280 -> 281" in said(words("b", 281)) and "sources.0.path" in said(
        words("a", 280)
    )


def test_what_stands_keeps_the_fields_that_it_was_made_by(tiny_words, tmp_path):
    """Of a run that was stopped between two tokenizers: those of the one that stands, the sources'
    and the seed, not those of the other.
    """
    out = tmp_path / "run"

    def recipe(*more):
        return load_recipe(tiny_words[0], [*tiny_words[1:], *more])

    start_run(recipe("--tokenizers.speech.n_levels", "9"), out)
    recipe().tokenizers["jets"].build().save(out / "tokenizers" / "jets")
    start_run(recipe(), out)
    old = (out / "recipe.json").read_text()
    assert old == recipe().to_json()
    for field, value in (
        ("train.seed", "1"),
        ("sources.0.heldout_share", "0.4"),
        ("tokenizers.jets.max_constituents", "99"),
    ):
        with pytest.raises(UserError, match=field):
            start_run(recipe(f"--{field}", value), out)
    (out / "vocabulary.json").write_text("{}")  # laid out over all of them
    with pytest.raises(UserError, match="tokenizers.speech.n_levels"):
        start_run(recipe("--tokenizers.speech.n_levels", "9"), out)
    assert (out / "recipe.json").read_text() == old
