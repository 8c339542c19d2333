"""Molecules and their conformers: SMILES and SDF, by RDKit, which the extra `molecules` brings.

Hydrogens are implicit: a conformer has the positions of the heavy atoms alone, in the order in
which the SMILES names them. This file alone imports rdkit's core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtok.errors import UserError, missing_extra, reading
from mmtok.io.columns import known_column
from mmtok.io.files import atomic_write
from mmtok.io.messages import shown
from mmtok.io.tables import read_table

if TYPE_CHECKING:
    from rdkit.Chem import Mol

SUFFIXES = (".sdf", ".smi", ".smiles", ".csv", ".tsv")
HEADERS = ("smiles", "canonical_smiles")


@dataclass(frozen=True, eq=False)
class Conformer:
    """A molecule in space.

    Attributes:
        smiles: of the molecule.
        positions: (P, 3) of its heavy atoms in the order of the SMILES, in angstrom.
    """

    smiles: str
    positions: np.ndarray


def need_rdkit(what: str) -> None:
    """Raise UserError where the extra `molecules` is not installed; RDKit's own log is silent."""
    try:
        from rdkit import RDLogger
    except ImportError:
        raise missing_extra(what, "molecules") from None
    RDLogger.DisableLog("rdApp.*")


def as_molecule(smiles: str) -> Mol:
    """The molecule of a SMILES, without explicit hydrogens, its atoms in the SMILES' order.

    Raises UserError for what is no SMILES, has no atom, or is several molecules (a salt).
    """
    need_rdkit("reading molecules")
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(smiles.strip()) if isinstance(smiles, str) else None
    if molecule is None or not molecule.GetNumAtoms():
        raise UserError(f"{shown(smiles)} is no SMILES of a molecule, as CC(=O)O is")
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise UserError(f"{shown(smiles)} is several molecules, parted by dots; give one")
    return molecule


def canonical_smiles(smiles: str) -> str:
    """The one SMILES that RDKit writes for a molecule. Raises UserError as `as_molecule` does."""
    molecule = as_molecule(smiles)
    from rdkit import Chem

    return Chem.MolToSmiles(molecule)


def bonds_of(smiles: str) -> np.ndarray:
    """The bonds (B, 2) of a molecule, each as the places of its two atoms in the SMILES."""
    bonds = as_molecule(smiles).GetBonds()
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in bonds]
    return np.array(pairs, int).reshape(-1, 2)


def in_space(conformer: Conformer) -> Mol:
    """The molecule with this one conformer.

    Raises UserError for positions that are not those of its atoms.
    """
    from rdkit import Chem

    molecule = as_molecule(conformer.smiles)
    positions = np.asarray(conformer.positions, np.float64)
    if positions.shape != (molecule.GetNumAtoms(), 3) or not np.isfinite(positions).all():
        raise UserError(
            f"{shown(conformer.smiles)} has {molecule.GetNumAtoms()} heavy atoms, so its positions"
            f" are finite ({molecule.GetNumAtoms()}, 3); got {positions.shape}"
        )
    added = Chem.Conformer(len(positions))
    added.SetPositions(positions)
    molecule.AddConformer(added, assignId=True)
    return molecule


def conformer_of(molecule: Mol, number: int = -1) -> Conformer:
    """A molecule's conformer, its atoms in the order of the SMILES that RDKit writes."""
    from rdkit import Chem

    heavy = Chem.RemoveHs(molecule)
    smiles = Chem.MolToSmiles(heavy)
    order = list(heavy.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
    return Conformer(smiles, heavy.GetConformer(number).GetPositions()[order])


def read_smiles(path: Path) -> list[tuple[str, str]]:
    """(SMILES, where it stands) of a file: .smi, a table with a column of them, or .sdf.

    Of .smi the first word of each line counts; a table has a column `smiles`. Nothing is checked
    yet: `as_molecule` does. Raises UserError for a file that cannot be read, or without any.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: molecules are read from {', '.join(SUFFIXES)}")
    found: list[tuple[str, str]]
    if suffix == ".sdf":
        found = [(c.smiles, f"{path}:{i}") for i, c in enumerate(read_sdf(path), 1)]
    elif suffix in (".csv", ".tsv"):
        found = _column(path)
    else:
        with reading(path, "SMILES"):
            lines = path.read_text("utf-8-sig").splitlines()
        words = [(line.split(), f"{path}:{k}") for k, line in enumerate(lines, 1)]
        found = [(some[0], where) for some, where in words if some]
    if not found:
        raise UserError(f"{path}: holds no molecule; write a SMILES on each line")
    return found


def _column(path: Path) -> list[tuple[str, str]]:
    """The column of SMILES of a table."""
    table = read_table(path)
    name = known_column(HEADERS, table.columns)
    if name is None:
        raise UserError(f"{path}: has no column named {' or '.join(HEADERS)}")
    place = table.columns.index(name)
    rows = zip(table.rows, table.numbers, strict=True)
    return [(str(row[place]), f"{path}:{number}") for row, number in rows]


def read_sdf(path: Path, takes: Mapping[str, Any] | None = None) -> list[Conformer]:
    """The conformers of an SDF file.

    Raises UserError for a record that cannot be read, or has no coordinates in space.
    """
    need_rdkit("reading SDF files")
    from rdkit import Chem

    found = []
    with reading(path, "SDF"), open(path, "rb") as file:
        for k, molecule in enumerate(Chem.ForwardSDMolSupplier(file), 1):
            if molecule is None:
                raise UserError(f"{path}: record {k} cannot be read as a molecule")
            if not molecule.GetNumConformers() or not molecule.GetConformer().Is3D():
                raise UserError(f"{path}: record {k} has no coordinates in three dimensions")
            found.append(conformer_of(molecule))
    return found


def write_sdf(
    path: Path, conformers: Sequence[Conformer], takes: Mapping[str, Any] | None = None
) -> None:
    """Write one record per conformer; hydrogens are put where bond lengths and angles have them."""
    need_rdkit("writing SDF files")
    from rdkit import Chem

    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        writer = Chem.SDWriter(file)
        for conformer in conformers:
            molecule = Chem.AddHs(in_space(conformer), addCoords=True)
            molecule.SetProp("_Name", conformer.smiles)
            writer.write(molecule)
        writer.close()
