"""Texts before they are tokenised: normal forms, lower case, white space at the ends."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import ClassVar, Literal

from mmtok.core.spoken_form import spoken_form
from mmtok.io.tally import Tally

SLASH = "/"  # around phonemes, as linguists write them


@dataclass(frozen=True)
class TextPreparation:
    """Changes of a text; by default none, since decoding cannot undo them.

    Attributes:
        lower_case: make all letters lower case.
        normal_form: of Unicode: NFC, NFD, NFKC or NFKD; "" leaves the characters as they are.
        strip: remove white space at both ends.
        spoken_form: of which language's transcripts: lower case without punctuation, numbers
            spelled (`mmtok.core.spoken_form`); "" leaves them as written.
        phonemes: a language of espeak-ng (en-us, de, ...): the text becomes its phonemes in the
            IPA, between slashes, as in /həlˈoʊ/. A text between slashes stays as it is.
    """

    modality: ClassVar[str] = "text"

    normal_form: Literal["", "NFC", "NFD", "NFKC", "NFKD"] = ""
    lower_case: bool = False
    strip: bool = False
    spoken_form: Literal["", "en"] = ""
    phonemes: str = ""

    def prepare(self, text: str, name: str, tally: Tally) -> str:
        """A text, prepared; to prepare it again changes nothing."""
        if not isinstance(text, str):
            return text  # the tokenizer refuses it
        prepared = self._once(text)
        # a normal form may bring capitals, and lower case may need the normal form again
        while (again := self._once(prepared)) != prepared:
            prepared = again
        if prepared != text:
            tally.add("changed by the text's preparation", name)
        return prepared

    def _once(self, prepared: str) -> str:
        if self.phonemes and prepared[:1] == SLASH == prepared[-1:]:
            return prepared
        if self.lower_case:
            prepared = prepared.lower()
        if self.normal_form:
            prepared = unicodedata.normalize(self.normal_form, prepared)
        if self.strip:
            prepared = prepared.strip()
        if self.spoken_form:
            prepared = spoken_form(prepared)
        if self.phonemes:
            from mmtok.sources.espeak import phonemiser

            prepared = f"{SLASH}{phonemiser().phonemes(prepared, self.phonemes)}{SLASH}"
        return prepared
