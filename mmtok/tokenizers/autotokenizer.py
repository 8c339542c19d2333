"""Text tokenizers as files that `transformers.AutoTokenizer` opens, with the same ids.

Known difference, of sentencepiece's `bpe` alone: where one piece can be merged in two overlapping
places, the other library may take the other one. The string is the same either way.
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
from mmtok.tokenizers.text import Bytes, Pieces

# what spells a piece that is no text must not be read as that piece: its first letter is kept apart
SPELT_OUT = r"<(?=0x[0-9A-F]{2}>|\|unused_[0-9]+\|>)"


def write_autotokenizer(
    tokenizer: Any,
    folder: Path,
    others: Sequence[str],
    opening: Sequence[str],
    special: dict[str, str],
) -> None:
    """Write tokenizer.json and tokenizer_config.json for the ids of a text tokenizer, followed by
    `others`.

    others   names of the ids after the text's, in order; they are special tokens, and never read
             from a text
    opening  names that go before every text, unless `add_special_tokens=False`
    special  "bos_token", "eos_token", "pad_token" -> name
    Raises UserError for a tokenizer of another class, or one whose ids have gaps, and for `others`
    that are `taken_names` already.
    """
    n_text = tokenizer.signature.levels[0]
    tok = _made(tokenizer)
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
    """Names that the ids of a text tokenizer have there, so that no other id may have them.

    Raises UserError as `write_autotokenizer`.
    """
    tok = _made(tokenizer)
    return {*tok.get_vocab(with_added_tokens=True), *_unused(tok, tokenizer.signature.levels[0])}


def free_name(label: str, taken: Container[str]) -> str:
    """`<|label|>`, or `<|mmtok_label|>` (and so on) where that name is taken."""
    while f"<|{label}|>" in taken:
        label = f"mmtok_{label}"
    return f"<|{label}|>"


def _unused(tok: Any, n_text: int) -> list[str]:
    """Names for the rows that a model has beyond its tokenizer's pieces."""
    pieces = tok.get_vocab(with_added_tokens=True)
    return [free_name(f"unused_{id}", pieces) for id in range(len(pieces), n_text)]


def _check_gaps(tok: Any) -> None:
    """Raise UserError, naming the first, where ids below the last piece's have none: the library
    numbers what is added by their count.
    """
    known = set(tok.get_vocab(with_added_tokens=True).values())
    missing = next(id for id in range(len(known) + 1) if id not in known)
    if missing < max(known):
        raise UserError(
            f"the text tokenizer has no piece for the id {missing}, but for {max(known)}:"
            " AutoTokenizer could not give the same ids; only a tokenizer.json that numbers its"
            " pieces without gaps can be exported"
        )


def _made(tokenizer: Any) -> Any:
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
    """Raise UserError for pieces that the other library would find otherwise in a text."""
    if tokenizer.kind not in ("unigram", "bpe"):
        raise UserError(
            f"AutoTokenizer has no counterpart of sentencepiece's models of kind {tokenizer.kind!r}"
        )
    if isinstance(tokenizer, PublishedPieces) and not tokenizer.has_space:
        raise UserError(
            f"{tokenizer.config.path} has no piece for a space, which AutoTokenizer would spell in"
            " other bytes"
        )
    users = tokenizer.users_pieces() if isinstance(tokenizer, PublishedPieces) else []
    if users:
        raise UserError(
            f"{tokenizer.config.path} has {len(users)} pieces of its maker's choice (first:"
            f" {users[0]!r}), which AutoTokenizer would find otherwise in a text"
        )


def _sentencepiece(tokenizer: Pieces) -> Any:
    """The same pieces and scores.

    Spaces stand in the pieces as spaces, so that U+2581 is a letter like any other.
    """
    lib, pieces = library(), tokenizer.processor
    ids = range(pieces.vocab_size())
    normal = [i for i in ids if i not in tokenizer.signature.banned and not pieces.is_byte(i)]
    names = [
        f"<|unused_{i}|>" if i in tokenizer.signature.banned else pieces.id_to_piece(i) for i in ids
    ]
    for i in normal:
        names[i] = names[i].replace("\u2581", " ")
    if tokenizer.kind == "unigram":
        least = min(
            pieces.get_score(i) for i in normal
        )  # sentencepiece takes the least of the normal ones, the library of all
        scores = [pieces.get_score(i) if i in set(normal) else least for i in ids]
        tok = lib.Tokenizer(
            lib.models.Unigram(
                list(zip(names, scores)), unk_id=pieces.unk_id(), byte_fallback=tokenizer.has_bytes
            )
        )
        tok.pre_tokenizer = lib.pre_tokenizers.Split(lib.Regex(SPELT_OUT), behavior="isolated")
    else:
        merges = _merges({names[i]: pieces.get_score(i) for i in normal})
        vocab = {name: i for i, name in enumerate(names)}
        tok = lib.Tokenizer(
            lib.models.BPE(vocab=vocab, merges=merges, byte_fallback=tokenizer.has_bytes)
        )
    steps = [lib.decoders.ByteFallback(), lib.decoders.Fuse()]
    if tokenizer.prefix:
        tok.normalizer = lib.normalizers.Prepend(tokenizer.prefix)
        steps.append(lib.decoders.Strip(tokenizer.prefix, len(tokenizer.prefix), 0))
    tok.decoder = lib.decoders.Sequence(steps)
    return tok


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best scored first."""
    pairs = [
        (-score, name[:k], name[k:]) for name, score in scores.items() for k in range(1, len(name))
    ]
    return [(left, right) for _, left, right in sorted(pairs) if left in scores and right in scores]
