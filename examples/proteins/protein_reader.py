"""FASTA files, read strictly: a header line `>NAME ...`, then residues on any number of lines.

Small letters (masked regions) become capitals, and a closing `*` (a stop codon) is taken off. A
record with letters that are no residues, or with none at all, is left out. All of that is counted,
and said once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmtok.errors import UserError
from mmtok.io.compressed import COMPRESSED, lines
from mmtok.io.files import write_text
from mmtok.io.signal_files import SignalFiles
from mmtok.io.tally import Tally
from mmtok.sources.base import Example, Source

# IUPAC-IUB 1984: 20 amino acids; X any, B of D or N, Z of E or Q; U selenocysteine, O pyrrolysine
RESIDUES = "ACDEFGHIKLMNPQRSTVWYXBZUO"
WIDTH = 60  # residues of a line that is written
SUFFIXES = (".fasta", ".fa", ".faa")
HELD_OUT = 10  # every tenth protein


class Record(NamedTuple):
    """A record: where it begins, its header without the `>`, and its residues."""

    name: str
    header: str
    residues: str


def raw_records(path: Path) -> Iterator[Record]:
    """The records of a file as they are written, lines joined; `.gz` and `.zst` are unpacked.

    Raises UserError for a missing or damaged file, and for one that is no FASTA.
    """
    header: str | None = None
    name = ""
    parts: list[str] = []
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    for number, (_, line) in enumerate(lines(path), 1):
        text = _decoded(line, f"{path}: line {number}").strip()
        if text.startswith(">"):
            if header is not None:
                yield Record(name, header, "".join(parts))
            header = text[1:].strip()
            name = f"{path}: line {number}"
            parts = []
            if not header:
                raise UserError(f"{name}: a header without a name; write >NAME")
        elif text and header is None:
            raise UserError(
                f"{path}: line {number}: not FASTA: there are residues before the first header,"
                " a line >NAME"
            )
        else:
            parts.append("".join(text.split()))
    if header is None:
        raise UserError(f"{path}: not FASTA: no line begins with '>'")
    yield Record(name, header, "".join(parts))


def _decoded(line: bytes, name: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name}: not UTF-8 text; is this a FASTA file?") from None


def read_fasta(path: Path) -> Iterator[Record]:
    """The records of a file whose residues can be used.

    Raises UserError as `raw_records` does, and where none can be used.
    """
    fault = ""
    n_used = 0
    with Tally("proteins") as tally:
        for record in raw_records(path):
            tally.count()
            residues = record.residues.upper()
            if residues != record.residues:
                tally.add("written in small letters, and read as capitals", record.name)
            if residues.endswith("*"):
                tally.add("read without the * at the end", record.name)
                residues = residues[:-1]
            if found := fault_of(residues):
                fault = fault or f"{record.name}: {found}"
                tally.add(f"left out: {found}", record.name)
                continue
            n_used += 1
            yield record._replace(residues=residues)
    if not n_used:
        raise UserError(f"{fault}; no protein of the file can be used; residues are {RESIDUES}")


def fault_of(residues: str) -> str:
    """Why residues cannot be used; "" where they can."""
    if not residues:
        return "it has no residues"
    wrong = set(residues) - set(RESIDUES)
    if "-" in wrong:
        return "it has gaps, as rows of an alignment have"
    if wrong:
        return "it has letters that are no residues"
    return ""


def read_proteins(path: Path, takes: Mapping[str, Any]) -> Iterator[str]:
    """The residues of every record."""
    return (record.residues for record in read_fasta(path))


def write_proteins(path: Path, proteins: Sequence[str], takes: Mapping[str, Any]) -> None:
    """A record for each protein, named by its number, in lines of WIDTH residues."""
    records = []
    for i, protein in enumerate(proteins):
        rows = [protein[k : k + WIDTH] for k in range(0, len(protein), WIDTH)]
        records.append("\n".join([f">{i}", *rows]) + "\n")
    write_text(path, "".join(records))


FASTA = SignalFiles(
    (*SUFFIXES, *(suffix + more for suffix in SUFFIXES for more in COMPRESSED)),
    ".fasta",
    read_proteins,
    write_proteins,
    many=True,
    unit="proteins",
)


@dataclass(frozen=True)
class FastaFile(Source):
    """Examples {"header": text, "protein": residues}; every tenth protein is held out.

    A protein whose residues came before is left out, so none is in both splits. Relatives may be:
    cluster the file first where that matters.

    Attributes:
        path: of a FASTA file, which may be compressed.
    """

    path: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """A header is a text."""
        return {"header": "text", "protein": "protein"}

    def check(self) -> None:
        """Raise UserError where there is no such file."""
        if not Path(self.path).is_file():
            raise UserError(f"{self.path or 'FastaFile'}: no such file; give --path FILE.fasta")

    def examples(self, split: str, cache: Path) -> Iterator[Example]:
        """The examples of a split, in the file's order."""
        self.check_split(split)
        seen: set[str] = set()
        with Tally("proteins") as tally:
            for record in read_fasta(Path(self.path)):
                tally.count()
                if record.residues in seen:
                    tally.add("left out: its residues came before", record.name)
                    continue
                is_heldout = len(seen) % HELD_OUT == 0
                seen.add(record.residues)
                if is_heldout == (split == "heldout"):
                    fields = {"header": record.header, "protein": record.residues}
                    yield Example(fields, record.name)
