"""A run that starts from a pretrained Llama: it speaks text as before at the start, and learns the
other modalities.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from mmtok.cli import main
from mmtok.commands.show import describe_run
from mmtok.core.segment import Document, Segment
from mmtok.errors import UserError
from mmtok.run.build import fit, start_run, train
from mmtok.run.pretrained import load_start, resolve_start
from mmtok.run.recipe import load_recipe
from mmtok.run.run import open_run
from mmtok.train.log import read_log

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.fixture(scope="module", params=["smollm2", "llama3"])
def pretrained(request, tmp_path_factory, make_llama):
    """(its folder, the model): tied with plain positions, or untied with scaled ones."""
    folder = tmp_path_factory.mktemp(request.param)
    tied = request.param == "smollm2"
    return folder, make_llama(
        folder, tied, {"rope_type": "default", "rope_theta": 1e4} if tied else LLAMA3
    )


@pytest.fixture(scope="module")
def recipe(pretrained, tiny_words):
    return load_recipe(
        tiny_words[0],
        [
            *tiny_words[1:],
            "--start",
            str(pretrained[0]),
            "--train.steps",
            "4",
            "--train.log_every",
            "2",
        ],
    )


def test_the_first_text_is_the_language_models_own(pretrained, recipe, tmp_path):
    """Its logits of a text after its own mark; and our p of a text is its p, shared out among what
    may come in a text.
    """
    run = fit(recipe, tmp_path / "run")
    lm = run.untrained().float()
    llama = pretrained[1]
    v = run.vocabulary
    load_start(lm, run.recipe)
    assert set(v.signatures) == {"text", "speech", "image", "jets"} and v.signatures[
        "text"
    ].levels == (288,)
    text = "dark and light: été"
    segment = run.tokenizers["text"].encode(text)
    codes = torch.as_tensor(segment.codes[:, 0]).long()
    auto = transformers.AutoTokenizer.from_pretrained(pretrained[0])
    assert (
        codes.tolist() == auto(text, add_special_tokens=False).input_ids
        and run.tokenizers["text"].decode(segment) == text
    )
    with torch.no_grad():
        ids = torch.cat([torch.tensor([v.document_mark]), codes])[None]
        mine = lm.logits(
            lm.model(
                lm.model.embed_tokens(ids), torch.arange(ids.shape[1])[None], torch.zeros_like(ids)
            )
        )
        theirs = llama(torch.cat([torch.tensor([0]), codes])[None]).logits
        assert theirs.std() > 0.2 and torch.allclose(mine[..., :288], theirs, rtol=0, atol=1e-5)

        begun = llama(torch.cat([torch.tensor([0, 0]), codes])[None]).logits[
            0, 1:
        ]  # document mark, begin mark
    legal = np.setdiff1d(
        np.arange(288), np.setdiff1d(v.signatures["text"].banned, [1])
    )  # its end is our end
    assert 0 not in legal and 1 in legal
    log_p = begun.double()[:, legal].log_softmax(-1)
    wanted = [np.searchsorted(legal, i) for i in [*codes.tolist(), 1]]
    nats = -sum(float(log_p[k, i]) for k, i in enumerate(wanted))
    assert run.score_documents([Document((segment,), (True,))], lm)[0].total == pytest.approx(
        nats, abs=1e-4
    )


def test_it_trains_and_stands_without_the_checkpoint(
    pretrained, recipe, tmp_path, tiny_words, capsys
):
    place = tmp_path / "place"
    out = tmp_path / "run"
    shutil.copytree(pretrained[0], place)
    words = [
        *tiny_words,
        "--start",
        str(place),
        "--train.steps",
        "4",
        "--log_every",
        "2",
        "--out",
        str(out),
    ]
    assert main(["train", *words]) == 0
    lines = read_log(out / "log.jsonl")
    assert [x["step"] for x in lines] == [2, 4] and all(np.isfinite(x["loss"]) for x in lines)
    stored = json.loads((out / "recipe.json").read_text())
    assert (
        stored["start"] == str(place)
        and stored["tokenizers"]["text"]["kind"] == "PretrainedTextConfig"
    )
    assert (
        stored["model"]["trunk"]["depth"] == 2
        and (stored["model"]["trunk"]["rope_scaling"] is None) != stored["model"]["untied"]
    )
    shutil.rmtree(place)
    capsys.readouterr()
    assert main(["train", *words]) == 0 and "nothing to do" in capsys.readouterr().err
    (out / "model.safetensors").unlink()  # as if cut between the last checkpoint and the end
    assert main(["train", *words]) == 0 and "resuming at step 4" in capsys.readouterr().err
    assert main(["sample", str(out), "--prompt", "dark", "--to", "image", "-n", "2"]) == 0
    assert main(["score", str(out), capsys.readouterr().out.split()[0], "--condition", "dark"]) == 0
    assert f"starting from {place}" in describe_run(open_run(out))
    assert (
        main(["train", *words, "--dropout", "0.5"]) == 2
        and "model.trunk.dropout: 0.0 -> 0.5" in capsys.readouterr().err
    )


def test_a_recipe_without_text_gets_it_and_dropout_stays(pretrained, recipe, tmp_path):
    trunk = dataclasses.replace(recipe.model.trunk, dropout=0.2)
    done = resolve_start(
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, trunk=trunk)), tmp_path
    )
    assert (
        done.model.trunk.dropout == 0.2
        and done.model.heads == recipe.model.heads
        and done.model.trunk.n_kv_heads == 2
    )
    assert list(done.tokenizers) == ["text", "speech", "image", "jets"]
    plain = dataclasses.replace(recipe, start=None)
    assert resolve_start(plain, tmp_path) is plain


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "gpt2"}, "type 'gpt2'; what can be opened is llama, mistral"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"vocab_size": 200}, "200 rows"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": "two"}, "config.json .* num_hidden_layers is 'two'"),
        ({"num_hidden_layers": 3}, "do not fit its config.json; missing"),
        (
            {"intermediate_size": 40},
            r"has shape \(48, 32\), but its config.json asks for \(40, 32\)",
        ),
        ({"vocab_size": 300}, "has 288 ids"),
    ],
)
def test_what_cannot_be_a_start_is_refused_in_one_line_and_leaves_nothing(
    pretrained, recipe, change, says, tmp_path
):
    place = shutil.copytree(pretrained[0], tmp_path / "place")
    config = json.loads((place / "config.json").read_text()) | change
    (place / "config.json").write_text(json.dumps(config))
    for start, message in ((str(place), says), (str(tmp_path / "nowhere"), "no checkpoint folder")):
        with pytest.raises(UserError, match=message) as error:
            train(dataclasses.replace(recipe, start=start), tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "damage, says",
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-100]),
            "model.safetensors cannot be read as safetensors",
        ),
        (lambda path: path.unlink(), "has no model.safetensors"),
    ],
)
def test_damaged_weights_are_found_before_anything_is_written(
    pretrained, recipe, damage, says, tmp_path
):
    place = shutil.copytree(pretrained[0], tmp_path / "place")
    damage(place / "model.safetensors")
    with pytest.raises(UserError, match=says):
        fit(dataclasses.replace(recipe, start=str(place)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_while_nothing_is_trained_the_start_is_looked_at_again(pretrained, recipe, tmp_path):
    place = shutil.copytree(pretrained[0], tmp_path / "place")
    asked = dataclasses.replace(recipe, start=str(place))
    start_run(resolve_start(asked, tmp_path / "run"), tmp_path / "run")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.125}))
    done = resolve_start(asked, tmp_path / "run")
    assert done.model.trunk.norm_eps == 0.125 and start_run(done, tmp_path / "run").recipe == done


def test_an_empty_text_is_still_a_text(pretrained, recipe, tmp_path):
    text = resolve_start(recipe, tmp_path).tokenizers["text"].build()
    assert (
        len(text.encode("")) == 0
        and text.decode(Segment("text", codes=np.zeros((0, 1), int))) == ""
    )
