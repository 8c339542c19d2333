"""Amino-acid strings, one id per residue: all that a tokenizer from outside the package needs."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from protein_figures import protein_from_text, protein_section
from protein_reader import FASTA, RESIDUES

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.tokenizers.base import Tokenizer, TokenizerConfig, checked_codes, fingerprint


@dataclass(frozen=True)
class ProteinConfig(TokenizerConfig):
    """The residues that may occur.

    Its own `load` opens a run's folder, with the recipe alone and no edit in the package.
    """

    modality: ClassVar[str] = "protein"
    residues: str = RESIDUES

    def build(self) -> "Protein":
        """The tokenizer: nothing is learned."""
        return Protein(self)

    def load(self, folder: Path) -> "Protein":
        """Open the tokenizer that was saved in `folder`."""
        return Protein.load(folder)

    def task_figures(self):
        """Optional: (input modality, target modality) -> what `mmtok evaluate` measures."""
        return {("text", "protein"): protein_from_text}

    def report_section(self):
        """Optional: how `mmtok report` shows samples."""
        return protein_section

    def signal_files(self):
        """Optional: the files that `mmtok tokenize`, `detokenize` and `sample` read and write."""
        return FASTA


class Protein(Tokenizer):
    """str <-> codes (T, 1): the number of each residue. Lossless."""

    config_type = ProteinConfig

    def __init__(self, config: ProteinConfig = ProteinConfig()):
        self.config = config
        self.signature = Signature(
            "protein",
            levels=(len(config.residues),),
            fingerprint=fingerprint("Protein", asdict(config)),
        )

    def encode(self, signal: str) -> Segment:
        """Raises UserError for other letters."""
        wrong = set(signal) - set(self.config.residues)
        if wrong:
            raise UserError(
                f"protein: {''.join(sorted(wrong))!r} are no residues; use {self.config.residues}"
            )
        codes = np.array([self.config.residues.index(r) for r in signal], np.int32)
        return Segment("protein", codes=codes[:, None])

    def decode(self, segment: Segment) -> str:
        """Codes (T, 1) -> T residues."""
        codes = checked_codes(segment, self.signature)[:, 0]
        return "".join(self.config.residues[code] for code in codes)

    def fidelity(self, signals) -> dict[str, float]:
        """Optional: what `--check` and a run's log say of the round trip."""
        counts = Counter("".join(signals))
        return {
            "exact_share": float(np.mean([self.decode(self.encode(s)) == s for s in signals])),
            "residues_used": len(counts),
        }
