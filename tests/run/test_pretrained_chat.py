"""A run on conversations: it starts from a checkpoint with a template, and learns to answer."""

import json

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.core.segment import Document
from mmtok.data.loader import Loader
from mmtok.io.conversations import read_conversation
from mmtok.run.recipe import load_recipe
from mmtok.run.run import open_run
from mmtok.sources.text import TextFile

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m.role }}:\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant:\n{% endif %}"
)
SMALL = {
    "steps": 3,
    "batch_size": 2,
    "seq_len": 400,
    "warmup": 1,
    "log_every": 1,
    "precision": "float32",
}


def chat(i):
    answers = [f"low number {i}", "all is well"]
    messages = [{"role": "system", "content": "Be short."}]
    for answer in answers[: 1 + i % 2]:
        messages += [{"role": "user", "content": "dark or light?"}]
        messages += [{"role": "assistant", "content": answer}]
    return messages


@pytest.fixture(scope="module")
def home(tmp_path_factory, make_llama):
    home = tmp_path_factory.mktemp("chat")
    make_llama(home / "start")
    (home / "start" / "chat_template.jinja").write_text(TEMPLATE)
    rows = [json.dumps({"id": i, "messages": chat(i)}) for i in range(20)]
    (home / "chats.jsonl").write_text("\n".join(rows))
    return home


@pytest.fixture(scope="module")
def run(home):
    words = [f"--train.{name} {value}" for name, value in SMALL.items()]
    command = f"train recipes/text.py --path {home / 'chats.jsonl'} --start {home / 'start'}"
    assert main([*command.split(), *" ".join(words).split(), "--out", str(home / "run")]) == 0
    return open_run(home / "run")


def spoken(run, codes):
    return run.tokenizers["text"]._tok.decode(codes.tolist(), skip_special_tokens=False)


def test_the_source_finds_conversations_and_keeps_them_whole(home):
    source = TextFile(str(home / "chats.jsonl"))
    with pytest.warns(UserWarning, match=r"read as chat \(messages in chats.jsonl\)"):
        found = [example["text"] for example in source.examples("train")]
    found += [example["text"] for example in source.examples("heldout")]
    assert [list(conversation.messages) for conversation in found] == [chat(i) for i in range(20)]
    assert source.is_chat() and not TextFile(str(home / "chats.jsonl"), layout="plain").is_chat()


def test_parquet_holds_conversations_too(home, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{"conversations": chat(i), "source": "x"} for i in range(20)])
    pq.write_table(table, tmp_path / "chats.parquet")
    source = TextFile(str(tmp_path / "chats.parquet"), max_chars=50)
    with pytest.warns(UserWarning, match="10 of 20 chunks were left out: more characters than 50"):
        found = [example["text"] for example in source.examples("train")]
    assert [list(c.messages) for c in found] == [chat(i) for i in range(0, 18, 2)]


def test_rows_without_an_answer_are_left_out(tmp_path):
    rows = [{"messages": chat(i)} for i in range(200)]
    rows[3]["messages"] = chat(3)[:2]
    rows[4]["messages"] = None
    rows[5]["messages"] = "words"
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning) as warned:
        n = len(list(TextFile(str(tmp_path / "a.jsonl")).examples("train")))
    said = "\n".join(str(w.message) for w in warned)
    assert "2 of 200 rows were left out: the assistant says nothing" in said
    assert "1 of 200 rows was passed over as unusable" in said and "line 6, column" in said
    assert n + len(list(TextFile(str(tmp_path / "a.jsonl")).examples("heldout"))) == 197


def test_the_loss_of_a_batch_is_on_the_answers_alone(run):
    recipe = run.recipe
    assert recipe.tokenizers["text"].chat
    loader = Loader(run.token_files(), recipe.tasks, run.vocabulary, {}, 2, 400, 0)
    batch = loader.batch(0)
    text = run.vocabulary.span("text")
    ids = batch.ids.numpy()
    asked = batch.predict.numpy() & (ids >= text[0]) & (ids <= text[-1])
    for row in range(len(ids)):
        edges = np.flatnonzero(np.diff(asked[row].astype(int), prepend=0, append=0))
        for a, b in edges.reshape(-1, 2):
            said = spoken(run, ids[row, a:b] - text[0])
            assert said == "all is well<|end|>" or said.startswith("low number ")
            assert said.endswith("<|end|>")
            before = spoken(run, ids[row, a - 12 : a] - text[0])
            assert before.endswith("assistant:\n")
    assert asked.any()
    # the end of a document goes with the answer's end mark
    ends = ids == run.vocabulary.end("text")
    assert ends.any() and (batch.predict.numpy()[ends]).all()


def test_a_conversation_is_scored_and_continued(run, home, capsys):
    (home / "a.json").write_text(json.dumps(chat(1)))
    (home / "open.json").write_text(json.dumps({"messages": chat(1)[:2]}))
    assert main(["score", str(run.folder), str(home / "a.json")]) == 0
    said = capsys.readouterr().out
    segment = run.tokenizers["text"].encode(read_conversation(home / "a.json"))
    n_bytes = len("low number 1<|end|>all is well<|end|>")
    assert run.tokenizers["text"].n_units(segment) == n_bytes and "bits/byte" in said
    (found,) = run.score_documents([Document((segment,), (True,))])
    assert found.frames[0] == segment.predict.sum()
    command = ["sample", str(run.folder), "--prompt", str(home / "open.json"), "--to", "text"]
    assert main([*command, "--max-frames", "8", "-n", "1"]) == 0
    (written,) = (run.folder / "samples").rglob("*.txt")
    assert "<|begin|>user:\ndark or light?<|end|><|begin|>assistant:\n" in written.read_text()


def test_such_a_run_is_evaluated_and_reported(run):
    assert main(["evaluate", str(run.folder)]) == 0
    assert main(["report", str(run.folder)]) == 0


def test_the_same_command_opens_the_run_again(run, home, capsys):
    path = str(home / "chats.jsonl")
    recipe = load_recipe("recipes/text.py", ["--path", path, "--start", str(home / "start")])
    command = ["train", "recipes/text.py", "--path", path, "--start", str(recipe.start)]
    words = [word for k, v in SMALL.items() for word in (f"--train.{k}", str(v))]
    assert main([*command, *words, "--out", str(run.folder)]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_a_checkpoint_without_a_template_is_refused_before_the_run(home, tmp_path, capsys):
    for file in (home / "start").iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    command = ["train", "recipes/text.py", "--path", str(home / "chats.jsonl")]
    assert main([*command, "--start", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "has no chat template" in said and said.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()
