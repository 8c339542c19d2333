"""Text tokenizers as files that `transformers.AutoTokenizer` opens, with the same ids.

Known difference, of sentencepiece's `bpe` alone: where a piece can be merged in two overlapping
places, `transformers` may choose the other one. The string is the same either way.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.tokenizers.pretrained import PretrainedText, byte_letters, library
from mmtok.tokenizers.published import PublishedPieces
from mmtok.tokenizers.text import SPACE_MARK, Bytes, Pieces

# A text that spells the name of a byte or of an unused piece must not become that piece, so its
# first letter is split off.
SPELT_OUT = r"<(?=0x[0-9A-F]{2}>|\|unused_[0-9]+\|>)"


def write_autotokenizer(
    tokenizer: Any,
    folder: Path,
    others: Sequence[str],
    opening: Sequence[str],
    special: dict[str, str],
) -> None:
    """Write tokenizer.json and tokenizer_config.json of a text tokenizer's ids and `others`.

    Args:
        tokenizer: A text tokenizer of the package.
        folder: Where the two files are written.
        others: Names of the ids after the text's, in order; they are special tokens, and never read
            from a text.
        opening: Names that are put before every text, unless `add_special_tokens=False`.
        special: "bos_token", "eos_token", "pad_token" -> name.

    Raises:
        UserError: The tokenizer is of another class, its ids have gaps, or one of `others` is among
            `taken_names`.
    """
    n_text = tokenizer.signature.levels[0]
    tok = _converted(tokenizer)
    _check_gaps(tok)
    tok.add_special_tokens([*_unused(tok, n_text), *others])
    for id, name in enumerate(others, n_text):
        if tok.token_to_id(name) != id:
            raise UserError(
                f"AutoTokenizer could not give {name} the id {id}: {tok.token_to_id(name)} of the"
                " text tokenizer has that name; choose another one"
            )
    processors = library().processors
    tok.post_processor = processors.TemplateProcessing(
        single=[*opening, "$A"],
        special_tokens=[(name, tok.token_to_id(name)) for name in dict.fromkeys(opening)],
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        **special,
    }
    write_text(folder / "tokenizer.json", tok.to_str(pretty=True))
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def taken_names(tokenizer: Any) -> set[str]:
    """Names of the text tokenizer's ids in the written file; no other id may have them.

    Raises UserError as `write_autotokenizer`.
    """
    tok = _converted(tokenizer)
    return {*tok.get_vocab(with_added_tokens=True), *_unused(tok, tokenizer.signature.levels[0])}


def free_name(label: str, taken: Container[str]) -> str:
    """`<|label|>`, or `<|mmtok_label|>` (and so on) where that name is taken."""
    while f"<|{label}|>" in taken:
        label = f"mmtok_{label}"
    return f"<|{label}|>"


def _unused(tok: Any, n_text: int) -> list[str]:
    """Names for the ids that a model has beyond its tokenizer's pieces."""
    pieces = tok.get_vocab(with_added_tokens=True)
    return [free_name(f"unused_{id}", pieces) for id in range(len(pieces), n_text)]


def _check_gaps(tok: Any) -> None:
    """Raise UserError where an id below the last piece's has no piece.

    The library numbers added pieces by the count of pieces, so they would get other ids.
    """
    known = set(tok.get_vocab(with_added_tokens=True).values())
    missing = next(id for id in range(len(known) + 1) if id not in known)
    if missing < max(known):
        raise UserError(
            f"the text tokenizer has no piece for the id {missing}, but for {max(known)}:"
            " AutoTokenizer could not give the same ids; only a tokenizer.json that numbers its"
            " pieces without gaps can be exported"
        )


def _converted(tokenizer: Any) -> Any:
    """The tokenizer as one of the package `tokenizers`."""
    # by class, not by a method: a translation knows both sides, and a tokenizer only its own
    match tokenizer:
        case Bytes():
            return _bytes()
        case Pieces():
            _check_pieces(tokenizer)
            return _sentencepiece(tokenizer)
        case PretrainedText():
            return library().Tokenizer.from_str(tokenizer.pieces)
    raise UserError(
        f"a text tokenizer of class {type(tokenizer).__name__} has no counterpart that"
        " AutoTokenizer could open"
    )


def _bytes() -> Any:
    """Byte-level pieces without a single merge."""
    lib = library()
    tok = lib.Tokenizer(
        lib.models.BPE(
            vocab={letter: byte for byte, letter in enumerate(byte_letters())}, merges=[]
        )
    )
    tok.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = lib.decoders.ByteLevel()
    return tok


def _check_pieces(tokenizer: Pieces) -> None:
    """Raise UserError for pieces with which the other library would cut a text otherwise."""
    if tokenizer.kind not in ("unigram", "bpe"):
        raise UserError(
            f"AutoTokenizer has no counterpart of sentencepiece's models of kind {tokenizer.kind!r}"
        )
    # pieces that are learned here spell such a space by its own byte, as AutoTokenizer does
    if isinstance(tokenizer, PublishedPieces) and not tokenizer.has_space:
        raise UserError(
            f"{tokenizer.config.path} has no piece for a space, which AutoTokenizer would spell in"
            " other bytes"
        )
    users = tokenizer.users_pieces()
    if users:
        raise UserError(
            f"{tokenizer.config.path} has {len(users)} pieces of its maker's choice (first:"
            f" {users[0]!r}), which AutoTokenizer would find otherwise in a text"
        )


def _sentencepiece(tokenizer: Pieces) -> Any:
    """The same pieces and scores.

    Spaces stand in the pieces as spaces, so that U+2581 is a letter like any other.
    """
    lib = library()
    if tokenizer.kind == "unigram":
        tok = lib.Tokenizer(_unigram(tokenizer))
        tok.pre_tokenizer = lib.pre_tokenizers.Split(lib.Regex(SPELT_OUT), behavior="isolated")
    else:
        tok = lib.Tokenizer(_bpe(tokenizer))
    steps = [lib.decoders.ByteFallback(), lib.decoders.Fuse()]
    if tokenizer.prefix:
        tok.normalizer = lib.normalizers.Prepend(tokenizer.prefix)
        steps.append(lib.decoders.Strip(tokenizer.prefix, len(tokenizer.prefix), 0))
    tok.decoder = lib.decoders.Sequence(steps)
    return tok


def _normal_ids(tokenizer: Pieces) -> list[int]:
    """The ids of pieces that are text: neither banned nor bytes."""
    pieces = tokenizer.processor
    banned = set(tokenizer.signature.banned)
    return [i for i in range(pieces.vocab_size()) if i not in banned and not pieces.is_byte(i)]


def _names(tokenizer: Pieces) -> list[str]:
    """The name of every piece."""
    pieces = tokenizer.processor
    names = [pieces.id_to_piece(i) for i in range(pieces.vocab_size())]
    for i in tokenizer.signature.banned:
        names[i] = f"<|unused_{i}|>"
    for i in _normal_ids(tokenizer):
        names[i] = names[i].replace(SPACE_MARK, " ")
    return names


def _unigram(tokenizer: Pieces) -> Any:
    pieces = tokenizer.processor
    names = _names(tokenizer)
    scores = {i: pieces.get_score(i) for i in _normal_ids(tokenizer)}
    # An unknown letter costs more than the least score: in sentencepiece that of the normal pieces,
    # in the library that of all. So the others get the least score of the normal ones.
    least = min(scores.values())
    scored = [(name, scores.get(i, least)) for i, name in enumerate(names)]
    return library().models.Unigram(
        scored, unk_id=pieces.unk_id(), byte_fallback=tokenizer.has_bytes
    )


def _bpe(tokenizer: Pieces) -> Any:
    pieces = tokenizer.processor
    names = _names(tokenizer)
    merges = _merges({names[i]: pieces.get_score(i) for i in _normal_ids(tokenizer)})
    vocab = {name: i for i, name in enumerate(names)}
    return library().models.BPE(vocab=vocab, merges=merges, byte_fallback=tokenizer.has_bytes)


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best scored first."""
    pairs = [
        (-score, name[:k], name[k:]) for name, score in scores.items() for k in range(1, len(name))
    ]
    return [(left, right) for _, left, right in sorted(pairs) if left in scores and right in scores]
