"""The one id space that every modality shares: which id means what.

The layout of the ids is a pure function of an ordered list of signatures:

    text span | 64 control ids, named ones first | one span per other one-channel modality, one
    frame id per other modality

The text span comes first so that a pretrained language model keeps its ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from mmtok.core.segment import Signature
from mmtok.errors import UserError

N_CONTROLS = 64
NAMED = ("pad", "document", "null", "hole", "fill", "mask")
MAX_MODALITIES = (N_CONTROLS - len(NAMED)) // 2  # a begin and an end mark each


class Layout:
    """Lays the codes of every modality out in one id space; `size` ids in all.

    signatures: in the order that fixes the layout. Raises ValueError for repeated or too many
    modalities.
    """

    def __init__(self, signatures: Sequence[Signature]):
        self.signatures = {s.modality: s for s in signatures}
        if len(self.signatures) != len(signatures):
            raise ValueError(f"two signatures share a modality: {[s.modality for s in signatures]}")
        if len(signatures) > MAX_MODALITIES:
            raise ValueError(
                f"{len(signatures)} modalities, but {N_CONTROLS} control ids leave room for"
                f" {MAX_MODALITIES}"
            )
        self.index = {m: i for i, m in enumerate(self.signatures)}
        text = self.signatures.get("text")
        n_text = text.levels[0] if text and text.one_channel else 0
        self.pad, self.document_mark, self.null, self.hole, self.fill, self.mask = range(
            n_text, n_text + len(NAMED)
        )
        self._marks = n_text + len(NAMED)
        self._spans: dict[str, range] = {}
        start = n_text + N_CONTROLS
        for m, signature in self.signatures.items():
            if m == "text" and signature.one_channel:
                self._spans[m] = range(0, n_text)
                continue
            size = signature.levels[0] if signature.one_channel else 1
            self._spans[m] = range(start, start + size)
            start += size
        self.size = start

    def begin(self, modality: str) -> int:
        """The id that opens a segment of this modality."""
        return self._marks + 2 * self.index[modality]

    def end(self, modality: str) -> int:
        """The id that closes a segment of this modality."""
        return self.begin(modality) + 1

    def span(self, modality: str) -> range:
        """The ids of the modality's codes; a single frame id for a many-channel or latent modality."""
        return self._spans[modality]

    @property
    def fingerprint(self) -> str:
        """Changes whenever an id could mean something else: a tokenizer swapped, an order changed,
        a level added.
        """
        layout = [[s.as_dict(), self.span(m)[0]] for m, s in self.signatures.items()]
        return hashlib.sha256(
            json.dumps([N_CONTROLS, NAMED, layout], sort_keys=True).encode()
        ).hexdigest()[:12]

    def as_dict(self) -> dict:
        """The fingerprint and all signatures as JSON-able values: what vocabulary.json holds."""
        return {
            "fingerprint": self.fingerprint,
            "signatures": [s.as_dict() for s in self.signatures.values()],
        }

    def check(self, fingerprint: str, owner: str) -> None:
        """Raise UserError, naming both sides, unless `fingerprint` (of `owner`) is this
        vocabulary's.
        """
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{owner} was made with vocabulary {fingerprint}, but this one is"
                f" {self.fingerprint}: its ids mean something else; use the tokenizers it was made"
                " with"
            )
