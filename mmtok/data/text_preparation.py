"""Texts and transcripts before they are tokenised: normal forms, lower case, white space at the
ends. Nothing by default.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import ClassVar, Literal

from mmtok.io.tally import Tally


@dataclass(frozen=True)
class TextPreparation:
    """What is made of a text, in this order; by default nothing, since what is changed never comes
    back.

    normal_form  of Unicode: NFC, NFD, NFKC or NFKD; "" leaves the characters as they are
    lower_case   all letters become small ones
    strip        white space at both ends goes
    """

    modality: ClassVar[str] = "text"

    normal_form: Literal["", "NFC", "NFD", "NFKC", "NFKD"] = ""
    lower_case: bool = False
    strip: bool = False

    def prepare(self, text: str, name: str, tally: Tally) -> str:
        """A text, prepared; doing it twice changes nothing more."""
        if not isinstance(text, str):
            return text  # the tokenizer refuses it
        prepared, again = text, self._once(text)
        while (
            again != prepared
        ):  # a normal form may bring capitals, and small letters ask for it anew
            prepared, again = again, self._once(again)
        if prepared != text:
            tally.add("changed by the text's preparation", name)
        return prepared

    def _once(self, prepared: str) -> str:
        if self.lower_case:
            prepared = prepared.lower()
        if self.normal_form:
            prepared = unicodedata.normalize(self.normal_form, prepared)
        if self.strip:
            prepared = prepared.strip()
        return prepared
