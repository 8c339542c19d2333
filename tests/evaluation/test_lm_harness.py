"""What a harness asks of a run's text equals its scores and samples; lm-eval itself is asked where
it is installed.
"""

import importlib.util
import json
import re
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from mmtok.commands.arguments import parse
from mmtok.core.segment import Document, Segment
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.evaluation.lm_harness import Harness, _Codes
from mmtok.heads.sampling import Sampling
from mmtok.io.tally import Tally
from mmtok.run.build import train
from mmtok.sources.text import TextFile

SCRIPT = Path(__file__).parents[2] / "scripts" / "lm_eval_run.py"


@pytest.fixture(scope="module", params=["bytes", "started"])
def run(request, tiny_recipe, tmp_path_factory, make_llama):
    """A language model of seconds, on bytes or from a pretrained Llama's own pieces."""
    home = tmp_path_factory.mktemp("harness")
    (home / "a.txt").write_text(
        "".join(f"{'light' if i % 2 else 'dark'} is {i % 2}\n" for i in range(200))
    )
    start = None
    if request.param == "started":
        pytest.importorskip("transformers")
        make_llama(home / "llama")
        start = str(home / "llama")
    recipe = replace(
        tiny_recipe,
        tokenizers={"text": tiny_recipe.tokenizers["text"]},
        sources=(TextFile(str(home / "a.txt"), chunk_chars=64),),
        tasks=(Task((), ("text",)),),
        input_masking={},
        sampling={},
        model=replace(tiny_recipe.model, heads={}),
        start=start,
        train=replace(tiny_recipe.train, steps=30, seq_len=128),
    )
    return train(recipe, home / "run")


def nats(run, text):
    """-log p of a text without its end, as `score` has it."""
    segment = replace(run.tokenizers["text"].encode(text), truncated=True)
    return run.score_documents([Document((segment,), (True,))])[0].total


def test_loglikelihoods_are_scores(run):
    harness = Harness(run)
    pairs = [("light is", " 1"), ("light is", " 0"), ("", "dark"), ("dark is 0\nlight", " is 1\n")]
    for (context, continuation), (log_p, _) in zip(
        pairs, harness.loglikelihood(pairs), strict=True
    ):
        assert log_p == pytest.approx(
            nats(run, context) - nats(run, context + continuation), abs=1e-4
        )
    texts = ["light is 1\n", "été", ""]
    assert harness.loglikelihood_rolling(texts) == pytest.approx(
        [-nats(run, x) for x in texts], abs=1e-4
    )


def test_probabilities_of_what_may_come_next_sum_to_one(run):
    """Every code that is no mark, and the end: the harness sees the run's own p."""
    harness = Harness(run)
    v = run.vocabulary
    codes = np.setdiff1d(np.arange(v.signatures["text"].levels[0]), v.signatures["text"].banned)
    known = harness._encode("light")
    total = sum(
        np.exp(log_p.sum())
        for log_p, _ in harness._log_p([_Codes(known, np.array([c])) for c in codes])
    )
    whole, cut = (
        [Document((Segment("text", codes=known[:, None], truncated=t),), (True,))]
        for t in (False, True)
    )
    end = np.exp(run.score_documents(cut)[0].total - run.score_documents(whole)[0].total)
    assert total + end == pytest.approx(1, abs=1e-4)


def test_greedy_is_what_generate_gives(run):
    harness = Harness(run)
    said = harness.generate_until([("light is", {"until": [], "max_gen_toks": 4})])[0]
    drawn = run.draw(
        [run.prompt([], "text", run.tokenizers["text"].encode("light is"))],
        Sampling(temperature=0.0, max_frames=4),
        0,
    )[0]
    assert "light is" + said == run.tokenizers["text"].decode(drawn.segment) and said
    codes = drawn.segment.codes[:, 0]
    n = len(run.tokenizers["text"].encode("light is"))
    (_, greedy), (_, other) = harness._log_p(
        [_Codes(codes[:n], codes[n:]), _Codes(codes[:n], (codes[n:] + 5) % 256)]
    )
    assert greedy.all() and not other.all()


def test_generation_stops_before_the_first_stop_string(run):
    harness = Harness(run)
    whole = harness.generate_until([("light is", {"max_gen_toks": 12})])[0]
    stops = [whole[5:7], whole[2:4]]
    cut = harness.generate_until(
        [
            ("light is", {"max_gen_toks": 12, "until": stops}),
            ("dark", {"do_sample": True, "max_gen_toks": 3}),
        ]
    )
    assert cut[0] == whole[: min(whole.index(s) for s in stops)] and isinstance(cut[1], str)
    assert (
        harness.generate_until([("light is", {"max_gen_toks": 12, "until": whole[3:5]})])[0]
        == whole[: whole.index(whole[3:5])]
    )


def test_long_requests_lose_their_beginning_and_long_texts_are_scored_in_parts(run):
    harness = Harness(run, max_length=8)
    codes = harness._encode("light is 1\n" * 4)
    request = harness._split("light is 1\n" * 4, "dark", Tally())
    whole = harness._encode("light is 1\n" * 4 + "dark")
    assert len(request) == 8
    assert (request.continuation == whole[-len(request.continuation) :]).all()
    parts = [
        Segment("text", codes=codes[a : a + 8, None], truncated=True)
        for a in range(0, len(codes), 8)
    ]
    wanted = -sum(x.total for x in run.score_documents([Document((p,), (True,)) for p in parts]))
    assert harness.loglikelihood_rolling(["light is 1\n" * 4]) == pytest.approx([wanted], abs=1e-4)
    assert Harness(run).max_length == 126


def test_what_is_cut_or_not_supported_is_said_once_with_the_count(run):
    harness = Harness(run, max_length=8)
    long = "light is 1\n" * 4
    with pytest.warns(
        UserWarning,
        match=r"2 of 3 requests were cut to the end of its context.* \(first: 'ht is 1",
    ) as said:
        harness.loglikelihood([(long, "a"), ("d", "a"), (long, "b")])
    assert len(said) == 1
    with pytest.warns(
        UserWarning, match="1 of 2 texts was longer than 8 codes and scored in parts"
    ):
        harness.loglikelihood_rolling([long, "d"])
    with pytest.warns(UserWarning) as said:
        harness.generate_until(
            [
                ("d", {"max_gen_toks": 2, "num_beams": 4}),
                ("d", {"max_gen_toks": 2, "num_beams": 4}),
                (long, {"max_gen_toks": 2}),
            ]
        )
    assert sorted(re.sub(r" \(first.*| no more.*", "", str(w.message)) for w in said) == [
        "1 of 3 requests was cut to the end of its context:",
        "2 of 3 requests were asked with a setting that is not supported, num_beams",
    ]


def test_a_run_without_text_alone_is_refused(tiny_run, tiny_recipe, tmp_path):
    from mmtok.run.run import open_run

    with pytest.raises(UserError, match="never trained on nothing -> text"):
        Harness(open_run(tiny_run))


# ---- lm-eval


def script():
    spec = importlib.util.spec_from_file_location("lm_eval_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Request:
    args: tuple


def test_the_adapter_answers_requests(run, monkeypatch):
    """With a stand-in for lm-eval's base class: what it documents of it, no more."""
    kept = []

    class LM:
        def __init__(self):
            self.cache_hook = types.SimpleNamespace(add_partial=lambda *x: kept.append(x))

    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lm_eval.api.model"].LM = LM
    model = script().run_model(run)
    harness = Harness(run)
    assert isinstance(model, LM)
    pair = ("light is", " 1")
    asked = ("dark", {"until": ["\n"], "max_gen_toks": 3})
    assert model.loglikelihood([Request(pair)]) == harness.loglikelihood([pair])
    assert model.loglikelihood_rolling([Request(("dark",))]) == harness.loglikelihood_rolling(
        ["dark"]
    )
    assert model.generate_until([Request(asked)]) == harness.generate_until([asked])
    assert [what for what, *_ in kept] == [
        "loglikelihood",
        "loglikelihood_rolling",
        "generate_until",
    ]


def test_its_help_says_how_it_is_called(capsys):
    with pytest.raises(SystemExit):
        parse(script().lm_eval_run, ["--help"], "python scripts/lm_eval_run.py")
    assert capsys.readouterr().out.startswith("usage: python scripts/lm_eval_run.py RUN --tasks")


def test_without_lm_eval_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"pip install 'mmtok\[harness\]'"):
        script().run_model(None)


DATA = """dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
"""
TASKS = {
    "brightness": (
        """output_type: multiple_choice
doc_to_text: "{{word}} is"
doc_to_choice: ["0", "1"]
doc_to_target: "{{label}}"
target_delimiter: " "
metric_list: [{metric: acc}]
"""
    ),
    "surprise": (
        """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{word}} is {{label}}"
metric_list: [{metric: bits_per_byte}]
"""
    ),
    "saying": (
        """output_type: generate_until
doc_to_text: "{{word}} is"
doc_to_target: " {{label}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
"""
    ),
}


def test_lm_eval_runs_local_tasks(run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"word": "light", "label": 1}, {"word": "dark", "label": 0}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for name, task in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(
            f"task: {name}\n" + DATA % (tmp_path / "rows.jsonl") + task
        )
    script().lm_eval_run(
        run.folder, tasks=list(TASKS), include=tmp_path / "tasks", out=tmp_path / "results.json"
    )
    found = json.loads((tmp_path / "results.json").read_text())["results"]
    right = [
        max("01", key=lambda c: -nats(run, f"{row['word']} is {c}")) == str(row["label"])
        for row in rows
    ]
    assert found["brightness"]["acc,none"] == pytest.approx(np.mean(right))
    texts = [f"{row['word']} is {row['label']}" for row in rows]
    bits = sum(nats(run, text) for text in texts) / np.log(2) / sum(map(len, texts))
    assert found["surprise"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    said = Harness(run).generate_until(
        [(f"{row['word']} is", {"until": ["\n"], "max_gen_toks": 4}) for row in rows]
    )
    assert found["saying"]["exact_match,none"] == pytest.approx(
        np.mean([x == f" {row['label']}" for x, row in zip(said, rows, strict=True)])
    )
    assert "brightness" in capsys.readouterr().out
