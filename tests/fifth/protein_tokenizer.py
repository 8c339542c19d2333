"""Amino-acid strings, one id per residue: all that a tokenizer from outside the package needs."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from protein_figures import protein_from_text, protein_section

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.tokenizers.base import fingerprint, read_config, write_config

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


@dataclass(frozen=True)
class ProteinConfig:
    """The residues that may occur.

    A config from outside also has `load`, so that a run folder can be opened with its recipe alone.
    """

    modality: ClassVar[str] = "protein"
    residues: str = RESIDUES

    def build(self) -> "Protein":
        return Protein(self)

    def load(self, folder: Path) -> "Protein":
        return Protein.load(folder)

    def task_figures(self):
        """Optional: (input modality, target modality) -> what `mmtok evaluate` measures."""
        return {("text", "protein"): protein_from_text}

    def report_section(self, run, prompts):
        """Optional: how `mmtok report` shows samples."""
        return protein_section(run, prompts)


class Protein:
    """str <-> codes (T, 1): the number of each residue."""

    def __init__(self, config: ProteinConfig = ProteinConfig()):
        self.config = config
        self.signature = Signature(
            "protein",
            levels=(len(config.residues),),
            fingerprint=fingerprint("Protein", asdict(config)),
        )

    def encode(self, signal: str) -> Segment:
        wrong = set(signal) - set(self.config.residues)
        if wrong:
            raise UserError(
                f"protein: {''.join(sorted(wrong))!r} are no residues; use {self.config.residues}"
            )
        return Segment(
            "protein",
            codes=np.array([self.config.residues.index(r) for r in signal], np.int32).reshape(
                -1, 1
            ),
        )

    def decode(self, segment: Segment) -> str:
        return "".join(self.config.residues[code] for code in segment.codes[:, 0])

    def encode_batch(self, signals) -> list[Segment]:
        return [self.encode(signal) for signal in signals]

    def decode_batch(self, segments) -> list[str]:
        return [self.decode(segment) for segment in segments]

    def fidelity(self, signals) -> dict[str, float]:
        counts = Counter("".join(signals))
        return {
            "exact_share": float(np.mean([self.decode(self.encode(s)) == s for s in signals])),
            "residues_used": len(counts),
        }

    def save(self, folder: Path) -> None:
        write_config(Path(folder), "Protein", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> "Protein":
        return cls(ProteinConfig(**read_config(Path(folder), "Protein")))
