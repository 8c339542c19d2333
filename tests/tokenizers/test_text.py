"""Text tokenizers give every string back, and never fail on codes that a model may draw."""

import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers.text import Bytes, BytesConfig, SentencePiece, SentencePieceConfig

CAPTIONS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "gluon jet",
    "quark jet",
]
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
MANY = ["".join(chr(0x4E00 + (i * j) % 3000) for j in range(60)) for i in range(1, 120)] + [
    JAPANESE,
    "the letters, too",
]
HARD = [
    "",
    " ",
    "  a  b ",
    "\n",
    "\r\n\r",
    "\t",
    "\0",
    "a\0b",
    "\u2581",
    " \u2581\u2581 x\u2581",
    "\u2585",
    "e\u0301 \u00e9",
    "\ufeffx",
    "\ufffd",
    "\ufffe\uffff\U0010ffff",
    "\U0001f469\u200d\U0001f680\U0001f3fd",
    "<s></s><unk><0x41>",
    JAPANESE,
    "日本 語\u3000！ｱ ",
    " a b  c   \n\n ",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ef\U0001f1f5",
    "\u00a0\u3000\u200b",
    "\u202eabc",
    "seven  seven",
]
SHORT = settings(derandomize=True, max_examples=150, deadline=None)


@pytest.fixture(
    scope="module",
    params=["bytes", "unigram", "bpe", "unigram, rare", "bpe, rare", "unigram, no space"],
)
def tokenizer(request):
    kind, _, how = request.param.partition(", ")
    if kind == "bytes":
        return BytesConfig().build()
    with warnings.catch_warnings(action="ignore"):  # that there are more characters than pieces
        if how == "rare":
            return SentencePieceConfig(700, kind).fit(MANY)
        if how == "no space":
            return SentencePieceConfig(262, kind).fit(["sevenseven", "eight"])
        return SentencePieceConfig(300, kind).fit(CAPTIONS)


@pytest.mark.parametrize("text", HARD)
def test_hard_strings_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@SHORT
@given(
    text=st.text(
        alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("seven \u2581\n\t\0"))
    )
)
def test_any_string_comes_back(tokenizer, text):
    segment = tokenizer.encode(text)
    assert segment.codes.shape[1] == 1 and segment.codes.dtype == np.int32
    assert not np.isin(segment.codes, tokenizer.signature.banned).any()
    assert tokenizer.decode(segment) == text


@SHORT
@given(data=st.data())
def test_any_codes_decode(tokenizer, data):
    (levels,) = tokenizer.signature.levels
    codes = data.draw(st.lists(st.integers(0, levels - 1), max_size=40))
    text = tokenizer.decode(Segment("text", codes=np.array(codes, np.int64).reshape(-1, 1)))
    assert text.encode("utf-8").decode("utf-8") == text


def test_batch_equals_single(tokenizer):
    batch = tokenizer.encode_batch(HARD + CAPTIONS)
    for segment, text in zip(batch, HARD + CAPTIONS, strict=True):
        assert np.array_equal(segment.codes, tokenizer.encode(text).codes)
    assert tokenizer.decode_batch(batch) == HARD + CAPTIONS
    assert tokenizer.encode_batch([]) == []


def test_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(UserError, match="U\\+D800 at character 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizer.encode_batch(["fine", "a\ud800"])
    for wrong in (3, b"x", None):
        expected = f"expected a string, got {type(wrong).__name__}"
        with pytest.raises(UserError, match=expected):
            tokenizer.encode(wrong)
        with pytest.raises(UserError, match=expected):
            tokenizer.encode_batch(["fine", wrong])


def test_codes_out_of_range_are_refused(tokenizer):
    with pytest.raises(UserError, match="this tokenizer has 0 to"):
        tokenizer.decode(Segment("text", codes=np.array([[10**6]])))


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    again = type(tokenizer).load(tmp_path / "t")
    assert again.signature == tokenizer.signature
    for text in HARD + CAPTIONS:
        assert np.array_equal(again.encode(text).codes, tokenizer.encode(text).codes)


def test_fidelity(tokenizer):
    figures = tokenizer.fidelity(HARD + CAPTIONS)
    assert figures["exact_share"] == 1.0 and figures["bytes_per_code"] >= 1.0


def test_bytes_are_utf8():
    assert Bytes().encode("\u00e9").codes.tolist() == [[0xC3], [0xA9]]
    assert Bytes().signature.levels == (256,) and Bytes().signature.frames is None


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_pieces_are_learned_and_specials_banned(model):
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in words]
    tokenizer = SentencePieceConfig(n_pieces=400, model=model).fit(texts)
    assert len(tokenizer.encode("the lazy fox")) <= 6
    assert tokenizer.signature.banned == (0, 1, 2)
    assert len(SentencePieceConfig(512, model).fit(CAPTIONS).encode("seven")) <= 5


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_fit_takes_any_text_of_every_size(model):
    for n_pieces in (280, 283, 300, 337, 350, 1000):
        assert (
            SentencePieceConfig(n_pieces, model).fit(CAPTIONS[:10]).signature.levels[0] <= n_pieces
        )
    odd = SentencePieceConfig(600, model).fit(HARD + ["x" * 20_000, "\u00e9 " * 10_000])
    assert all(odd.decode(odd.encode(text)) == text for text in HARD)


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_more_characters_than_pieces_go_by_bytes_the_rarest_first(model):
    """3,025 distinct characters, 2,048 pieces: three quarters of the 1,788 that are free."""
    letters = [chr(0x4E00 + i) for i in range(3025)]
    texts = ["".join(letters[: n + 1]) for n in range(0, 3025, 55)] + ["".join(letters)]
    with pytest.warns(
        UserWarning, match="2,048 pieces have no room for 3,025 distinct characters"
    ) as said:
        tokenizer = SentencePieceConfig(2048, model).fit(texts)
    assert len(said) == 1 and tokenizer.signature.levels[0] <= 2048
    n_kept, share, n_bytes = re.search(
        r"the ([\d,]+) most frequent, ([\d.]+) % .* the other ([\d,]+) \(", str(said[0].message)
    ).groups()
    assert (n_kept, n_bytes) == ("1,341", "1,684")
    everything = "".join(texts)
    assert float(share) == pytest.approx(
        100 * sum(c < letters[1341] for c in everything) / len(everything), rel=1e-3
    )
    assert [len(tokenizer.encode(letters[i])) for i in (0, 1340, 1341, 3024)] == [1, 1, 3, 3]
    for text in ("".join(letters), everything, "日本 \u2581"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("n_pieces", [260, 261, 262])
def test_the_smallest_sizes_keep_the_space(n_pieces):
    with pytest.warns(UserWarning, match="go by bytes"):
        tokenizer = SentencePieceConfig(n_pieces).fit(CAPTIONS)
    assert (
        len(tokenizer.encode("a b")) == 3
        and tokenizer.decode(tokenizer.encode(" a  b ")) == " a  b "
    )


def test_where_all_characters_have_room_nothing_is_said():
    with warnings.catch_warnings(action="error"):
        tokenizer = SentencePieceConfig(260 + 21).fit(CAPTIONS)
    assert all(len(tokenizer.encode(letter)) == 1 for letter in "".join(CAPTIONS))


def test_fit_is_deterministic():
    a, b = (SentencePieceConfig(300).fit(CAPTIONS) for _ in range(2))
    assert a.signature == b.signature


def test_unusable_settings_and_texts_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 260"):
        SentencePieceConfig(n_pieces=100)
    with pytest.raises(UserError, match="unigram"):
        SentencePieceConfig(model="words")
    for empty in ([], ["", "\0"], ["\n"]):
        with pytest.raises(UserError, match="empty"):
            SentencePieceConfig().fit(empty)
    SentencePieceConfig(300).fit(CAPTIONS).save(tmp_path)
    (tmp_path / "pieces.model").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read as a sentencepiece model"):
        SentencePiece.load(tmp_path)
