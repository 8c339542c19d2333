"""The one id space that all modalities share: which id means what.

The layout of the ids is a pure function of an ordered list of signatures:

    text span | 64 control ids | for each other modality, a span of ids

The text span comes first so that a pretrained language model keeps its ids. The named controls are
the first of the 64, then come a begin and an end mark for each modality; the rest is reserved. A
one-channel modality has an id for each code; any other modality has a single frame id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from mmtok.core.segment import Signature
from mmtok.errors import UserError

N_CONTROLS = 64
NAMED_CONTROLS = ("pad", "document", "null", "hole", "fill", "mask")
MAX_MODALITIES = (N_CONTROLS - len(NAMED_CONTROLS)) // 2  # a begin and an end mark each


class Vocabulary:
    """The ids of every modality's codes and marks; `size` ids in all.

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
        n_text = 0
        if text and text.one_channel:
            n_text = text.levels[0]
        controls = range(n_text, n_text + len(NAMED_CONTROLS))
        self.pad, self.document_mark, self.null, self.hole, self.fill, self.mask = controls
        self._first_mark = controls.stop
        self._spans: dict[str, range] = {}
        start = n_text + N_CONTROLS
        for m, signature in self.signatures.items():
            if m == "text" and signature.one_channel:
                self._spans[m] = range(0, n_text)
                continue
            n_ids = 1
            if signature.one_channel:
                n_ids = signature.levels[0]
            self._spans[m] = range(start, start + n_ids)
            start += n_ids
        self.size = start

    def begin(self, modality: str) -> int:
        """The id that opens a segment of this modality."""
        return self._first_mark + 2 * self.index[modality]

    def end(self, modality: str) -> int:
        """The id that closes a segment of this modality."""
        return self.begin(modality) + 1

    def span(self, modality: str) -> range:
        """The ids of a modality's codes; of a many-channel or latent one, its single frame id."""
        return self._spans[modality]

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change whenever an id could mean something else.

        Another tokenizer, another order or one more code changes it.
        """
        layout = [[s.as_dict(), self.span(m)[0]] for m, s in self.signatures.items()]
        content = json.dumps([N_CONTROLS, NAMED_CONTROLS, layout], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def as_dict(self) -> dict:
        """The fingerprint and all signatures as JSON-able values: what vocabulary.json holds."""
        return {
            "fingerprint": self.fingerprint,
            "signatures": [s.as_dict() for s in self.signatures.values()],
        }

    def check(self, fingerprint: str, owner: str) -> None:
        """Raise UserError, naming both sides, unless `owner` was made with this vocabulary."""
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{owner} was made with vocabulary {fingerprint}, but this one is"
                f" {self.fingerprint}: its ids mean something else; use the tokenizers it was made"
                " with"
            )
