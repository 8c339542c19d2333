"""Published sentencepiece models: their ids, and every string exactly or a refusal."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.tokenizers import load
from mmtok.tokenizers.autotokenizer import write_autotokenizer
from mmtok.tokenizers.published import SentencePieceFile

JAPANESE = "吾輩は猫である。名前はまだ無い。"
PLAIN = ["Hello world.", JAPANESE, "a new day", "Hello 猫", ""]  # texts that no rule changes
CHANGED = [
    "  two  spaces ",
    "line\nbreak",
    "Ｆｕｌｌ　ｗｉｄｔｈ",
    "e\u0301",
    " x",
    "\u2581\u2581 a\u2581",
    "\t",
    "a\0b",
    "ﬁ",
    "\u200d",
]
TEXTS = [
    "Hello world. A new day begins.",
    JAPANESE,
    "the quick brown fox jumps over the lazy dog",
] * 30
LLAMA_2 = dict(
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    allow_whitespace_only_pieces=True,
)
NORMALISING = dict(
    model_type="unigram", byte_fallback=True
)  # sentencepiece's own defaults: nmt_nfkc, and spaces beyond one are dropped
T5 = dict(model_type="unigram")  # and without bytes
SETTINGS = {"llama 2": LLAMA_2, "normalising": NORMALISING, "t5": T5}


def trained(path, **options):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=file,
        vocab_size=340,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(file.getvalue())
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return {
        name: trained(home / f"{name.replace(' ', '_')}.model", **options)
        for name, options in SETTINGS.items()
    }


def opened(path):
    with warnings.catch_warnings(action="ignore"):  # what the file's rules would lose
        return SentencePieceFile(str(path)).build()


@pytest.fixture(scope="module", params=["llama 2", "normalising"])
def tokenizer(request, paths):
    return opened(paths[request.param])


@pytest.mark.parametrize("name", SETTINGS)
def test_texts_that_the_rules_leave_alone_have_sentencepieces_ids(paths, name):
    tokenizer = opened(paths[name])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(paths[name]))
    for text in PLAIN:
        segment = tokenizer.encode(text)
        assert segment.codes[:, 0].tolist() == theirs.encode(text)
        assert tokenizer.decode(segment) == text == theirs.decode(theirs.encode(text))
    assert tokenizer.fidelity(PLAIN)["own_ids_share"] == 1.0
    assert tokenizer.signature.banned == (0, 1, 2)


@pytest.mark.parametrize("text", CHANGED)
def test_texts_that_the_rules_would_change_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("Hello \u2581\n猫Ａ"))
    )
)
def test_any_string_comes_back(tokenizer, text):
    segment = tokenizer.encode(text)
    assert not np.isin(segment.codes, tokenizer.signature.banned).any()
    assert tokenizer.decode(segment) == text


def test_what_its_rules_would_lose_is_said(paths):
    with warnings.catch_warnings(action="error"):
        SentencePieceFile(str(paths["llama 2"])).build()
    with pytest.warns(
        UserWarning,
        match="its normaliser nmt_nfkc and its dropping of spaces would lose parts of a text",
    ) as said:
        tokenizer = SentencePieceFile(str(paths["normalising"])).build()
    assert len(said) == 1
    figures = tokenizer.fidelity([*PLAIN, *CHANGED])
    assert figures["exact_share"] == 1.0 and figures["own_ids_share"] < 0.6
    assert any("nmt_nfkc" in line for line in tokenizer.remarks())


def test_without_bytes_what_has_no_piece_is_refused(paths):
    with pytest.warns(UserWarning, match="no pieces for bytes|normaliser") as said:
        tokenizer = SentencePieceFile(str(paths["t5"])).build()
    assert len(said) == 2
    for text, named in (
        ("Hello é", r"'é' \(U\+00E9\)"),
        ("a\nb", r"U\+000A"),
        ("a\u2581", r"U\+2581"),
        ("日", r"U\+65E5"),
    ):
        with pytest.raises(UserError, match=f"has no pieces for .*{named}"):
            tokenizer.encode(text)
        with pytest.raises(UserError, match=named):
            tokenizer.encode_batch(["Hello", text])
    assert tokenizer.decode(tokenizer.encode("Hello  world. ")) == "Hello  world. "


def test_a_folder_keeps_the_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert (
        type(again) is type(tokenizer)
        and again.signature == tokenizer.signature
        and again.config == tokenizer.config
    )
    assert again.encode(JAPANESE).codes.tolist() == tokenizer.encode(JAPANESE).codes.tolist()
    original = Path(tokenizer.config.path).read_bytes()
    assert (tmp_path / "kept" / "pieces.model").read_bytes() == original


def test_what_is_no_model_is_refused_in_a_line(paths, tmp_path):
    whole = paths["llama 2"].read_bytes()
    broken = tmp_path / "broken.model"
    for content in (b"", b"\n", b"hello", b"\xff" * 64, whole[: len(whole) // 2], whole[:-3]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match="broken.model(:| ) *cannot be") as refusal:
            opened(broken)
        assert "\n" not in str(refusal.value)
    for path in (tmp_path / "none.model", tmp_path):
        with pytest.raises(
            UserError,
            match="cannot be read as a sentencepiece model .(No such file|Is a directory)",
        ):
            opened(path)
    with pytest.raises(UserError, match="treat_whitespace_as_suffix"):
        opened(trained(tmp_path / "behind.model", **LLAMA_2, treat_whitespace_as_suffix=True))
    broken.write_bytes(whole + b"\x1a\x02\x28\x00")  # escape_whitespaces: false
    with pytest.raises(UserError, match="escape_whitespaces"):
        opened(broken)


@pytest.mark.parametrize("name", SETTINGS)
def test_autotokenizer_gives_the_same_ids(paths, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = opened(paths[name])
    names = ["<|pad|>", "<|document|>", "<|begin|>", "<|end|>"]
    write_autotokenizer(tokenizer, tmp_path, names, names[1:3], {"eos_token": names[3]})
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in PLAIN + CHANGED * tokenizer.has_bytes:
        ids = auto(text, add_special_tokens=False).input_ids
        assert ids == tokenizer.encode(text).codes[:, 0].tolist(), text
        assert auto.decode(ids) == text


def test_pieces_that_autotokenizer_cannot_find_are_refused(tmp_path):
    for options, named in (
        (dict(user_defined_symbols=["Hello"]), "'Hello'"),
        (dict(model_type="word", use_all_vocab=True), "'word'"),
    ):
        tokenizer = opened(trained(tmp_path / "x.model", **LLAMA_2 | options))
        assert tokenizer.decode(tokenizer.encode("Hello world")) == "Hello world"
        with pytest.raises(UserError, match=named):
            write_autotokenizer(tokenizer, tmp_path / "out", [], [], {})


def test_without_a_piece_for_a_space_it_has_sentencepieces_ids(tmp_path):
    """A model of words has none: its maker's ids for a space are the bytes of U+2581, which
    therefore is no letter here.
    """
    rules = dict(
        model_type="word",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    path = trained(tmp_path / "x.model", **rules)
    tokenizer = opened(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert theirs.is_unknown(theirs.piece_to_id("\u2581"))
    texts = [
        "the quick brown fox",
        "two  new  spaces",
        "zebra",
        "Hello zebra ",
        " x",
        " ",
        "猫 and 犬",
        "line\nbreak",
        "",
    ]
    for text, batched in zip(texts, tokenizer.encode_batch(texts), strict=True):
        segment = tokenizer.encode(text)
        assert (
            segment.codes[:, 0].tolist() == batched.codes[:, 0].tolist() == theirs.encode(text)
        ), text
        assert tokenizer.decode(segment) == text
    assert tokenizer.fidelity(texts)["own_ids_share"] == 1
    for text in ("\u2581", "Hello \u2581 x"):
        with pytest.raises(
            UserError,
            match=(
                "x.model spells a space as the bytes of '\u2581' .U.2581., so it cannot spell that"
                " letter"
            ),
        ):
            tokenizer.encode(text)
    assert any("no piece for a space" in line for line in tokenizer.cautions())


def test_verbs_take_the_file(paths, tmp_path, capsys):
    text = tmp_path / "a.txt"
    model = str(paths["llama 2"])
    text.write_text(JAPANESE + "\n  Hello\n")
    assert (
        main(
            [
                "tokenize",
                "text",
                str(text),
                "-o",
                str(tmp_path / "t.parquet"),
                "--tokenizer",
                model,
                "--check",
            ]
        )
        == 0
    )
    assert "own_ids_share 1" in capsys.readouterr().out
    assert (
        main(
            [
                "detokenize",
                str(tmp_path / "t.parquet"),
                "-o",
                str(tmp_path / "back"),
                "--tokenizer",
                model,
            ]
        )
        == 0
    )
    assert [path.read_text() for path in (tmp_path / "back").iterdir()] == [text.read_text()]
    assert main(["show", model]) == 0
    assert "bpe pieces of" in capsys.readouterr().out


def test_a_run_keeps_a_copy_and_its_scores_are_bounds(paths, tmp_path, capsys, said):
    """The file may go once the run is fitted; a mistyped path claims no folder."""
    model = tmp_path / "mine.model"
    data = tmp_path / "data.txt"
    run = tmp_path / "run"
    model.write_bytes(paths["llama 2"].read_bytes())
    data.write_text("".join(f"Hello world {i}.\n" for i in range(60)))
    small = [
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
        "--chunk_chars",
        "64",
        "--seq_len",
        "128",
    ]
    words = [
        "train",
        "recipes/text.py",
        "--path",
        str(data),
        *small,
        "--out",
        str(run),
        "--tokenizers.text",
    ]
    line = said(
        [*words, json.dumps({"kind": "SentencePieceFile", "path": str(tmp_path / "no.model")})]
    )
    assert "no.model: cannot be read as a sentencepiece model" in line and not run.exists()
    words.append(json.dumps({"kind": "SentencePieceFile", "path": str(model)}))
    assert main(words) == 0
    model.unlink()
    assert (
        main(words) == 0
        and main(["show", str(run)]) == 0
        and main(["score", str(run), "Hello world."]) == 0
    )
    assert "bound" in capsys.readouterr().out.splitlines()[-1]
    assert (
        main(
            [
                "sample",
                str(run),
                "--to",
                "text",
                "-n",
                "1",
                "--prompt",
                "Hello",
                "--max_frames",
                "8",
            ]
        )
        == 0
    )


def test_a_file_without_its_unknown_piece_is_refused(tmp_path):
    """Its id stands for the space, for which such a file has no piece; it is then out of range."""
    path = trained(tmp_path / "x.model", model_type="word", byte_fallback=True)
    content = path.read_bytes()
    kind = b"<unk>\x15\x00\x00\x00\x00\x18"
    assert content.count(kind + b"\x02") == 1
    path.write_bytes(content.replace(kind + b"\x02", kind + b"\x00"))
    with pytest.raises(UserError, match="x.model cannot be used: the pieces .* are damaged"):
        opened(path)
