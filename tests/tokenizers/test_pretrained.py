"""A pretrained model's own pieces: its ids are kept, its special pieces banned, every string comes
back or is refused.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers import load
from mmtok.tokenizers.pretrained import (
    PretrainedText,
    PretrainedTextConfig,
    checkpoint_folder,
)

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "hello world, it is seven o'clock",
    "été à la plage",
    "the cat  sat on the mat",
    "print(1 + 2)\n\n",
] * 3
SPECIAL = ["<|end|>", "<|begin|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(normalizer=None, alphabet=True):
    """As Llama 3's and SmolLM2's: byte-level BPE with special pieces."""
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.normalizer = normalizer
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    tok.train_from_iterator(
        TEXTS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=320, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
        ),
    )
    tok.add_tokens(
        [tokenizers.AddedToken("<think>", special=False, lstrip=True)]
    )  # eats the space before it
    tok.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
    )
    tok.enable_truncation(8)
    return tok


def metaspace():
    """As Llama 2's: a mark for the space, one put in front, and bytes for what the pieces cannot
    spell.
    """
    d = tokenizers.decoders
    n = tokenizers.normalizers
    tok = tokenizers.Tokenizer(
        tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tok.normalizer = n.Sequence([n.Prepend("\u2581"), n.Replace(" ", "\u2581")])
    tok.decoder = d.Sequence(
        [d.Replace("\u2581", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    tok.train_from_iterator(
        TEXTS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=340, special_tokens=special + BYTES, show_progress=False
        ),
    )
    plain = json.loads(tok.to_str())
    plain["added_tokens"] = plain["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(plain))


KINDS = {
    "byte_level": byte_level,
    "normalised": lambda: byte_level(tokenizers.normalizers.NFC()),
    "metaspace": metaspace,
}


def checkpoint(tok, folder, n_rows=400):
    folder.mkdir(exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    if n_rows:
        (folder / "config.json").write_text(json.dumps({"vocab_size": n_rows}))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind, tmp_path_factory):
    return PretrainedTextConfig(
        str(checkpoint(KINDS[kind](), tmp_path_factory.mktemp(kind) / "x"))
    ).build()


def test_its_ids_are_kept(tokenizer, kind):
    theirs = KINDS[kind]()
    theirs.no_truncation()
    for text in TEXTS + ["seven cats"]:
        assert (
            tokenizer.encode(text).codes[:, 0].tolist()
            == theirs.encode(text, add_special_tokens=False).ids
        )
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0])


def test_a_row_for_each_of_the_model_and_its_special_pieces_banned(tokenizer, kind):
    tok = KINDS[kind]()
    special = {"<unk>", "<s>", "</s>"} if kind == "metaspace" else set(SPECIAL)
    n = tok.get_vocab_size()
    assert tokenizer.signature.levels == (400,) and n < 400
    assert set(tokenizer.signature.banned) == {tok.token_to_id(name) for name in special} | set(
        range(n, 400)
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  a  b ",
        "\n",
        "\0",
        "<|end|>",
        " <|begin|>x</s>",
        "a <think> b",
        "\u2581",
        "x \u2581y",
        "e\u0301 \u00e9",
        "\ufffd",
        "\U0001f469\u200d\U0001f680",
        "<0x41>",
        "\u212b\u1e9b\u0323 and the cat " * 9,
    ],
)
def test_hard_strings_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("the cat \u2581\n<>"))
    )
)
def test_any_string_comes_back(tokenizer, text):
    segment = tokenizer.encode(text)
    assert segment.codes.shape[1] == 1 and segment.codes.dtype == np.int32
    assert not np.isin(segment.codes, tokenizer.signature.banned).any()
    assert tokenizer.decode(segment) == text


def test_batches_equal_single_calls_and_any_codes_decode(tokenizer, rng):
    texts = ["the cat", "", "a <think> e\u0301", "été"]
    for text, segment in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert (segment.codes == tokenizer.encode(text).codes).all()
    assert tokenizer.decode_batch(tokenizer.encode_batch(texts)) == texts
    assert isinstance(tokenizer.decode(Segment("text", codes=rng.integers(0, 400, (500, 1)))), str)
    with pytest.raises(UserError, match="400"):
        tokenizer.decode(Segment("text", codes=np.array([[400]])))
    assert tokenizer.fidelity(texts)["exact_share"] == 1


def test_it_is_saved_whole_and_its_place_does_not_matter(tokenizer, kind, tmp_path):
    tokenizer.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert (
        isinstance(again, PretrainedText)
        and again.signature == tokenizer.signature
        and again.config == tokenizer.config
    )
    elsewhere = checkpoint(KINDS[kind](), tmp_path / "elsewhere")
    assert PretrainedTextConfig(str(elsewhere)).build().signature == tokenizer.signature
    (tmp_path / "saved" / "pieces.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as pieces"):
        load(tmp_path / "saved")
    (tmp_path / "saved" / "pieces.json").unlink()
    with pytest.raises(UserError, match="pieces.json"):
        load(tmp_path / "saved")


def test_what_it_has_no_pieces_for_is_refused_by_name(tmp_path):
    tokenizer = PretrainedTextConfig(
        str(checkpoint(byte_level(alphabet=False), tmp_path / "x"))
    ).build()
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    with pytest.raises(UserError, match=r"no pieces for 'Ω' \(U\+03A9\)"):
        tokenizer.encode("the Ω")
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizer.encode("\ud800")


# ---- the checkpoint's folder, or the hub's


def test_folders_without_a_tokenizer_or_with_too_many_ids_are_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer.json"):
        PretrainedTextConfig(str(tmp_path)).build()
    with pytest.raises(UserError, match="ids up to .* but its model 10 rows"):
        PretrainedTextConfig(str(checkpoint(byte_level(), tmp_path / "x", 10))).build()
    assert (
        PretrainedTextConfig(str(checkpoint(byte_level(), tmp_path / "y", None))).build().n_rows
        == byte_level().get_vocab_size()
    )


def test_a_hub_id_is_fetched_once_by_the_hubs_own_cache(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path)
    )
    assert checkpoint_folder("owner/model") == tmp_path and asked == ["owner/model"]
    assert checkpoint_folder(str(tmp_path)) == tmp_path and len(asked) == 1

    def offline(*_, **__):
        raise ConnectionError("cannot be reached\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="the hub does not give it: cannot be reached$"):
        checkpoint_folder("owner/model")
    with pytest.raises(UserError, match="no checkpoint folder at no/such/folder"):
        checkpoint_folder("no/such/folder")
