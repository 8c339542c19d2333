"""Adapters of a pretrained trunk: trained, resumed, scored, exported; all verbs know them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mmtok.cli import main
from mmtok.commands.export import export
from mmtok.commands.show import describe_run
from mmtok.errors import UserError
from mmtok.model.adapter import PREFIX
from mmtok.run.pretrained import load_start, resolve_start
from mmtok.run.recipe import load_recipe
from mmtok.run.run import Run, open_run

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

TEXTS = ["dark", "light", "low high low", "seven o'clock and all is well", "thin jet"] * 40


@pytest.fixture(scope="module")
def start(tmp_path_factory, make_llama):
    folder = tmp_path_factory.mktemp("start")
    return folder, make_llama(folder)


@pytest.fixture(scope="module")
def words(start, tmp_path_factory):
    """The options of a training of text, but for --out."""
    path = tmp_path_factory.mktemp("texts") / "my.txt"
    path.write_text("\n\n".join(TEXTS))
    sizes = "--train.steps 4 --batch_size 2 --seq_len 400 --checkpoint_every 2 --log_every 2"
    more = "--warmup 0 --learning_rate 0.05 --lora 3 --device cpu"
    names = ["recipes/text.py", "--path", str(path), "--start", str(start[0])]
    return [*names, *sizes.split(), *more.split()]


@pytest.fixture(scope="module", params=["float32", "int8"])
def trained(request, words, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    assert main(["train", *words, "--lora_base", request.param, "--out", str(out)]) == 0
    return request.param, out


def test_only_adapters_are_in_the_optimiser_and_change(trained, start):
    base, out = trained
    [*_, last] = sorted((out / "checkpoints").iterdir())
    state = load_file(last / "optimizer.safetensors")
    assert len(state) == 3 * 2 * 7 * 2  # step and two moments of A and B, 7 maps, 2 blocks
    assert all(name.partition(":")[0].endswith(("lora_A", "lora_B")) for name in state)
    before = Run(out, open_run(out).recipe, torch.device("cpu")).untrained()
    load_start(before, open_run(out).recipe)
    after = load_file(out / "model.safetensors")
    changed = {name for name, x in before.state_dict().items() if not torch.equal(x, after[name])}
    assert changed == {name for name in after if name.endswith(("lora_A", "lora_B"))}
    assert (after["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8) == (base == "int8")


def test_a_resumed_training_equals_an_uninterrupted_one(trained, words, tmp_path, capsys):
    base, out = trained
    cut = shutil.copytree(out, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "step-000004")
    (cut / "model.safetensors").unlink()
    assert main(["train", *words, "--lora_base", base, "--out", str(cut)]) == 0
    said = capsys.readouterr().err
    assert "resuming at step 2" in said and "training 0.0028 of 0.03 M parameters" in said
    one = load_file(out / "model.safetensors")
    other = load_file(cut / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(x, other[n]) for n, x in one.items())
    assert main(["train", *words, "--lora_base", base, "--lora", "2", "--out", str(cut)]) == 2
    assert "model.lora: 3 -> 2" in capsys.readouterr().err


def test_verbs_know_adapters(trained, tmp_path, capsys):
    base, out = trained
    assert f"learned (adapters of rank 3, base {base})" in describe_run(open_run(out))
    path = tmp_path / "text.txt"
    path.write_text("dark light")
    assert main(["score", str(out), str(path)]) == 0
    nats = float(capsys.readouterr().out.split("\n")[0].split(": ")[1].split()[0])
    plain = Run(out, open_run(out).recipe, torch.device("cpu")).untrained()
    load_start(plain, open_run(out).recipe)
    run = open_run(out)
    from mmtok.core.segment import Document

    document = Document((run.tokenizers["text"].encode("dark light"),), (True,))
    assert run.score_documents([document])[0].total == pytest.approx(nats, abs=1e-3)
    assert run.score_documents([document], plain)[0].total != pytest.approx(nats, abs=0.1)
    sample = ["sample", str(out), "--prompt", "dark", "--to", "text", "-n", "2"]
    assert main([*sample, "-o", str(tmp_path / "s")]) == 0
    assert main(["evaluate", str(out)]) == 0


@torch.no_grad()
def logits_after(run, ids):
    """Ours of a text after the document mark."""
    lm = run.lm.cpu()
    return lm.logits(
        lm.model(
            lm.model.embed_tokens(ids), torch.arange(ids.shape[1])[None], torch.zeros_like(ids)
        )
    )


def ids_of(run):
    codes = torch.as_tensor(run.tokenizers["text"].encode("low and high").codes[:, 0]).long()
    return torch.cat([torch.tensor([run.vocabulary.document_mark]), codes])[None]


def test_merged_on_export_logits_are_equal(trained, tmp_path):
    run = open_run(trained[1])
    folder = export(run, tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert not any("lora" in name for name in model.state_dict())
    ids = ids_of(run)
    with torch.no_grad():
        theirs = model(ids).logits
    text = [i for i in range(288) if i not in run.vocabulary.signatures["text"].banned]
    torch.testing.assert_close(
        theirs[..., text], logits_after(run, ids)[..., text], rtol=0, atol=1e-5
    )


@pytest.fixture
def adapter(trained, tmp_path, capsys):
    """(base, run, the folder of its adapters)."""
    base, out = trained
    folder = tmp_path / "adapter"
    assert main(["export", str(out), "-o", str(folder), "--adapter"]) == 0
    assert ("beside int8 weights" in capsys.readouterr().err) == (base == "int8")
    return base, open_run(out), folder


def test_adapters_are_written_as_peft_reads_them(adapter, start):
    """W + lora_alpha / r B A on the checkpoint's own weights gives our logits."""
    base, run, folder = adapter
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    about = json.loads((folder / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["peft_type"]) == (3, 6.0, "LORA")
    assert about["base_model_name_or_path"] == str(start[0].resolve())
    tensors = load_file(folder / "adapter_model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(start[0]).eval()
    n_used = 0
    ids = ids_of(run)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if name.rpartition(".")[2] in about["target_modules"]:
                a = tensors[f"{PREFIX}{name}.lora_A.weight"]
                b = tensors[f"{PREFIX}{name}.lora_B.weight"]
                layer.weight += about["lora_alpha"] / about["r"] * b @ a
                n_used += 2
        wanted = logits_after(run, ids)[..., :288]
        ids[0, 0] = 0  # the mark is a copy of theirs
        theirs = model(ids).logits
    assert n_used == len(tensors)
    tolerance = 1e-5
    if base == "int8":
        tolerance = 0.02 * float(wanted.std())
        assert not torch.allclose(theirs, wanted, rtol=0, atol=1e-4)
    assert float((theirs - wanted).square().mean().sqrt()) < tolerance


def test_peft_opens_them_with_equal_logits(adapter):
    peft = pytest.importorskip("peft")
    base, run, folder = adapter
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    ids = ids_of(run)
    wanted = logits_after(run, ids)[..., :288]
    ids[0, 0] = 0
    with torch.no_grad():
        theirs = model(ids).logits
    if base == "float32":
        torch.testing.assert_close(theirs, wanted, rtol=0, atol=1e-5)
    else:
        assert (theirs - wanted).norm() < 0.02 * wanted.norm()


def test_an_adapters_folder_is_replaced_and_others_are_not(adapter, capsys):
    _, run, folder = adapter
    before = load_file(folder / "adapter_model.safetensors")
    (folder / "mine.txt").write_text("kept")
    assert main(["export", str(run.folder), "-o", str(folder), "--adapter"]) == 0
    after = load_file(folder / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert (folder / "mine.txt").read_text() == "kept"
    assert main(["export", str(run.folder), "-o", str(folder)]) == 0
    assert not (folder / "adapter_config.json").exists()  # a model's folder holds no adapter
    assert (folder / "config.json").exists()
    other = folder.parent / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text("{}")
    assert main(["export", str(run.folder), "-o", str(other), "--adapter"]) == 2
    assert main(["export", str(run.folder), "-o", str(folder), "--adapter", "--to", "text"]) == 2


def test_other_modalities_learn_in_full_and_text_stays(start, tiny_words, tmp_path, capsys):
    """Heads, embeddings of frames, and of ids that are not of a text."""
    out = tmp_path / "run"
    words = [*tiny_words, "--start", str(start[0]), "--lora", "2", "--train.steps", "3"]
    assert main(["train", *words, "--learning_rate", "0.01", "--out", str(out)]) == 0
    run = open_run(out)
    before = Run(out, run.recipe, torch.device("cpu")).untrained()
    load_start(before, run.recipe)
    table = "model.embed_tokens.weight"
    n_text = len(run.vocabulary.span("text"))
    changed = set()
    for name, x in before.state_dict().items():
        after = run.lm.state_dict()[name].cpu()
        if name == table:
            assert torch.equal(x[:n_text], after[:n_text])
            assert not torch.equal(x[n_text:], after[n_text:])
        elif not torch.equal(x, after):
            changed.add(name)
    assert {name for name in changed if name.startswith("model.")} == {
        name for name in before.state_dict() if name.endswith(("lora_A", "lora_B"))
    }
    assert any(name.startswith("heads.") for name in changed)
    assert any(name.startswith("frame_in.") for name in changed)
    capsys.readouterr()
    with pytest.raises(UserError, match="--adapter holds adapters alone"):
        from mmtok.model.adapter import to_adapter

        to_adapter(run.lm, tmp_path / "x", "")


@pytest.mark.parametrize(
    "words, says",
    [
        (["--lora", "8"], "name a checkpoint with --start"),
        (["--lora", "-1"], "lora is -1"),
        (["--lora_base", "int8"], "there are none; give them a rank"),
        (["--lora", "2", "--lora_alpha", "0"], "alpha above 0"),
        (["--lora_r", "8"], "here it is --lora, the rank"),
        (["--lora", "2", "--start", "somewhere", "--train.fsdp", "true"], "leave --train.fsdp out"),
    ],
)
def test_what_cannot_be_adapted_is_refused_in_one_line(words, says):
    with pytest.raises(UserError, match=says) as error:
        load_recipe("recipes/text.py", words)
    assert "\n" not in str(error.value)


def test_without_adapters_there_are_none_to_export(start, words, tmp_path):
    recipe = load_recipe(words[0], [*words[1:-2], "--lora", "0"])
    run = Run(tmp_path, resolve_start(recipe, tmp_path), torch.device("cpu"))
    from mmtok.core.vocabulary import Vocabulary
    from mmtok.model.adapter import to_adapter
    from mmtok.model.lm import LM

    text = run.recipe.tokenizers["text"].build()
    lm = LM(run.recipe.model, Vocabulary([text.signature]))
    with pytest.raises(UserError, match="trained with --lora, and this one was not"):
        to_adapter(lm, tmp_path, "")
