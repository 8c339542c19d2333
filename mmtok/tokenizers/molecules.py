"""Molecules as sets of atoms: what is known of each atom, and where each atom is.

A molecule is a condition, its atoms in the order of its SMILES; hydrogens are counted, not listed.
A frame has the features of an atom (after MCF, Wang et al. 2023, arXiv 2311.17932, appendix), and
its row of U with U U^T the Laplacian of the bonds, weighed by their orders. So the frames alone say
the whole molecule: its stereochemistry as the labels R and S, E and Z of its atoms.

A conformer is the same frames behind the positions, which are centred and in units of
`scale_angstrom`. How it lies in space means nothing: it is turned so that its axes of inertia are
those of space, and comes back so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.messages import shown
from mmtok.io.molecules import (
    SUFFIXES,
    Conformer,
    as_molecule,
    conformer_of,
    in_space,
    read_sdf,
    read_smiles,
    write_sdf,
)
from mmtok.io.signal_files import SignalFiles
from mmtok.tokenizers.base import (
    Tokenizer,
    TokenizerConfig,
    checked_latents,
    fingerprint,
    load_config,
)

if TYPE_CHECKING:
    from rdkit.Chem import Atom, Mol

ELEMENTS = (5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)  # B C N O F Si P S Cl Br I
RING_SIZES = (3, 4, 5, 6, 7, 8)
HYBRIDISATIONS = ("SP", "SP2", "SP3")
CIP_LABELS = {"R": 1.0, "S": -1.0}
CHARGE = len(ELEMENTS)
HYDROGENS = CHARGE + 1
CIP = HYDROGENS + 1
BOND = CIP + 1  # E (1) or Z (-1) of a double bond at this atom
N_FEATURES = BOND + 1 + 1 + len(HYBRIDISATIONS) + len(RING_SIZES) + 1  # aromatic, degree


@dataclass(frozen=True)
class MoleculeConfig(TokenizerConfig):
    """Atoms with what is known of them: a condition, from a SMILES.

    Attributes:
        max_atoms: heavy atoms of the largest molecule; larger ones are refused.
    """

    modality: ClassVar[str] = "molecule"
    reads_words: ClassVar[bool] = True

    max_atoms: int = 32

    def __post_init__(self) -> None:
        _check_atoms(self.max_atoms, "MoleculeConfig")

    @property
    def is_input_only(self) -> bool:
        """Molecules are given."""
        return True

    def build(self) -> Molecule:
        """Nothing is learned."""
        return Molecule(self)

    def load(self, folder: Path) -> Molecule:
        """Open the tokenizer that was saved in `folder`."""
        return Molecule(load_config(folder, "Molecule", MoleculeConfig))

    def signal_files(self) -> SignalFiles:
        """Files of SMILES and tables of them."""
        return SignalFiles(SUFFIXES[1:], ".smi", _read_smiles, _write_smiles, True, "molecules")


@dataclass(frozen=True)
class ConformerConfig(TokenizerConfig):
    """Where the atoms of a molecule are.

    Attributes:
        max_atoms: as of the recipe's `MoleculeConfig`.
        scale_angstrom: what positions are divided by, about their root mean square on each axis.
        inertial: turn each conformer into its axes of inertia, so that motions change nothing of
            its frames. False: it stays as it lies, and `SetDiffusion(rotations=True)` learns that
            all directions are alike, as MCF does.
    """

    modality: ClassVar[str] = "conformer"

    max_atoms: int = 32
    scale_angstrom: float = 2.0
    inertial: bool = True

    def __post_init__(self) -> None:
        _check_atoms(self.max_atoms, "ConformerConfig")
        if not 0 < self.scale_angstrom < np.inf:
            raise UserError(
                f"ConformerConfig: scale_angstrom is {self.scale_angstrom}; it must be above 0"
            )

    def build(self) -> Conformation:
        """Nothing is learned."""
        return Conformation(self)

    def load(self, folder: Path) -> Conformation:
        """Open the tokenizer that was saved in `folder`."""
        return Conformation(load_config(folder, "Conformation", ConformerConfig))

    def signal_files(self) -> SignalFiles:
        """SDF files, of one conformer in each record."""
        return SignalFiles((".sdf",), ".sdf", read_sdf, write_sdf, True, "conformers")


def _check_atoms(max_atoms: int, name: str) -> None:
    if not 2 <= max_atoms <= 1_000:
        raise UserError(f"{name}: max_atoms is {max_atoms}; it must be 2 to 1,000")


def _read_smiles(path: Path, takes: Any) -> list[str]:
    return [smiles for smiles, _ in read_smiles(path)]


def _write_smiles(path: Path, signals: Sequence[str], takes: Any) -> None:
    write_text(path, "".join(f"{smiles}\n" for smiles in signals))


class Molecule(Tokenizer):
    """SMILES <-> latents (P, F + K), an atom each, in the order of the SMILES.

    It decodes to the SMILES that RDKit writes, without stereochemistry.
    """

    config_type = MoleculeConfig

    def __init__(self, config: MoleculeConfig) -> None:
        super().__init__(config)
        self.signature = Signature(
            "molecule",
            latent_size=N_FEATURES + config.max_atoms - 1,
            unordered=True,
            fingerprint=fingerprint("Molecule", asdict(config)),
        )

    def encode(self, signal: Any) -> Segment:
        """Raises UserError for what is no SMILES of one molecule, and for one that is too large."""
        return Segment("molecule", latents=known_of(as_molecule(signal), self.config.max_atoms))

    def decode(self, segment: Segment) -> str:
        """The SMILES of its atoms and bonds."""
        from rdkit import Chem

        latents = checked_latents(segment, self.signature)
        return str(Chem.MolToSmiles(molecule_of(latents)))


class Conformation(Tokenizer):
    """`Conformer` <-> latents (P, 3 + F + K): positions, then what is known of each atom.

    Of a drawn conformer in which more centres are labelled otherwise than was asked, the mirror
    image is given. The round trip's error is that of float32, 1e-6 of the molecule's size.
    """

    config_type = ConformerConfig

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(config)
        given = N_FEATURES + config.max_atoms - 1
        self.signature = Signature(
            "conformer",
            latent_size=3 + given,
            unordered=True,
            given=given,
            graph=config.max_atoms - 1,
            scales=(config.scale_angstrom,) * 3 + (1.0,) * given,
            fingerprint=fingerprint("Conformation", asdict(config)),
        )

    def encode(self, signal: Conformer) -> Segment:
        """Raises UserError for what is no conformer, and for a molecule that is too large."""
        if not isinstance(signal, Conformer):
            raise UserError(f"conformer: {shown(signal)} is no conformer; give an .sdf file")
        molecule = in_space(signal)
        known = known_of(molecule, self.config.max_atoms)
        positions = np.asarray(signal.positions, np.float64)
        positions = positions - positions.mean(0)
        if self.config.inertial:
            n_electrons = [
                atom.GetAtomicNum() + atom.GetTotalNumHs() for atom in molecule.GetAtoms()
            ]
            positions = positions @ inertial_axes(positions, np.array(n_electrons, float))
        positions = (positions / self.config.scale_angstrom).astype(np.float32)
        latents = np.concatenate([positions, known], 1)
        return Segment("conformer", latents=latents)

    def decode(self, segment: Segment) -> Conformer:
        """Its SMILES names the stereochemistry that the positions have."""
        from rdkit import Chem

        latents = checked_latents(segment, self.signature).astype(np.float64)
        asked = latents[:, 3 + CIP]
        molecule = molecule_of(latents[:, 3:])
        positions = (latents[:, :3] - latents[:, :3].mean(0)) * self.config.scale_angstrom
        _place(molecule, positions)
        if (cip_labels(molecule) * asked).sum() < 0:
            _place(molecule, positions * [-1, 1, 1])
        Chem.AssignStereochemistryFrom3D(molecule)
        return conformer_of(molecule)


def inertial_axes(positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(3, 3), the axes in columns: of centred positions (P, 3), by falling spread; a rotation.

    The weights (P,) lie more to the positive side of the first two; the third follows.
    """
    _, axes = np.linalg.eigh(positions.T @ positions)
    axes = axes[:, ::-1]
    first, second = (axes * np.where(weights @ positions @ axes < 0, -1, 1)).T[:2]
    return np.stack([first, second, np.cross(first, second)], 1)


def _place(molecule: Mol, positions: np.ndarray) -> None:
    """Give a molecule these positions (P, 3), and the stereochemistry that follows from them."""
    from rdkit import Chem

    molecule.RemoveAllConformers()
    conformer = Chem.Conformer(len(positions))
    conformer.SetPositions(np.ascontiguousarray(positions))
    molecule.AddConformer(conformer, assignId=True)
    Chem.AssignStereochemistryFrom3D(molecule)


# ---- a molecule as numbers


def known_of(molecule: Mol, max_atoms: int) -> np.ndarray:
    """(P, F + K) float32: the features of each atom, and its row of U; K is max_atoms - 1.

    Raises UserError for a molecule of more atoms, and for an element that is not among ELEMENTS.
    """
    n = molecule.GetNumAtoms()
    if n > max_atoms:
        raise UserError(f"the molecule has {n} heavy atoms; this tokenizer takes {max_atoms}")
    labels = cip_labels(molecule)
    bonds = bond_labels(molecule)
    known = np.array([_features(atom) for atom in molecule.GetAtoms()], np.float64)
    known[:, CIP] = labels
    known[:, BOND] = bonds
    graph = np.zeros((n, max_atoms - 1))
    rows = graph_rows(weights_of(molecule))
    graph[:, : rows.shape[1]] = rows
    return np.concatenate([known, graph], 1).astype(np.float32)


def _features(atom: Atom) -> list[float]:
    """(F,) of an atom, without its labels. Raises UserError for another element."""
    number = atom.GetAtomicNum()
    if number not in ELEMENTS:
        raise UserError(f"{atom.GetSymbol()} is none of the elements that molecules may have here")
    element = [float(number == known) for known in ELEMENTS]
    ring = atom.GetOwningMol().GetRingInfo()
    rings = [float(ring.IsAtomInRingOfSize(atom.GetIdx(), size)) for size in RING_SIZES]
    hybridisation = str(atom.GetHybridization())
    return [
        *element,
        float(atom.GetFormalCharge()),
        float(atom.GetTotalNumHs()),
        0.0,
        0.0,
        float(atom.GetIsAromatic()),
        *(float(hybridisation == known) for known in HYBRIDISATIONS),
        *rings,
        float(atom.GetDegree()),
    ]


def cip_labels(molecule: Mol) -> np.ndarray:
    """(P,): 1 of a centre that is R, -1 of S, 0 elsewhere."""
    from rdkit import Chem

    Chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    codes = [
        atom.GetProp("_CIPCode") if atom.HasProp("_CIPCode") else "" for atom in molecule.GetAtoms()
    ]
    return np.array([CIP_LABELS.get(code, 0.0) for code in codes])


def bond_labels(molecule: Mol) -> np.ndarray:
    """(P,): 1 at both ends of a double bond that is E, -1 of Z, 0 elsewhere."""
    labels = np.zeros(molecule.GetNumAtoms())
    for bond in molecule.GetBonds():
        label = {"STEREOE": 1.0, "STEREOZ": -1.0}.get(str(bond.GetStereo()), 0.0)
        if label:
            labels[[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()]] = label
    return labels


def weights_of(molecule: Mol) -> np.ndarray:
    """(P, P): the order of the bond between two atoms, 1.5 where it is aromatic; 0 without one."""
    n = molecule.GetNumAtoms()
    weights = np.zeros((n, n))
    for bond in molecule.GetBonds():
        weights[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] = bond.GetBondTypeAsDouble()
    return weights + weights.T


def graph_rows(weights: np.ndarray) -> np.ndarray:
    """U (P, P - 1) with U U^T the Laplacian of the weights (P, P) of a connected graph.

    Its columns are eigenvectors times the roots of their eigenvalues, by rising eigenvalue.
    """
    laplacian = np.diag(weights.sum(1)) - weights
    eigenvalues, vectors = np.linalg.eigh(laplacian)
    return vectors[:, 1:] * np.sqrt(eigenvalues[1:].clip(min=0))


# ---- and back


def molecule_of(known: np.ndarray) -> Mol:
    """The molecule that features and rows of U (P, F + K) say, without stereochemistry.

    Raises UserError for numbers that no molecule has.
    """
    from rdkit import Chem

    known = known.astype(np.float64)
    rows = known[:, N_FEATURES:]
    weights = -(rows @ rows.T)
    molecule = Chem.RWMol()
    for features in known:
        atom = Chem.Atom(ELEMENTS[int(np.argmax(features[: len(ELEMENTS)]))])
        atom.SetFormalCharge(round(features[CHARGE]))
        atom.SetNumExplicitHs(round(features[HYDROGENS]))
        atom.SetNoImplicit(True)
        molecule.AddAtom(atom)
    kinds = {
        1.0: Chem.BondType.SINGLE,
        1.5: Chem.BondType.AROMATIC,
        2.0: Chem.BondType.DOUBLE,
        3.0: Chem.BondType.TRIPLE,
    }
    orders = np.array(list(kinds))
    for i, j in zip(*np.nonzero(np.triu(weights, 1) > 0.5), strict=True):
        kind = kinds[float(orders[np.abs(orders - weights[i, j]).argmin()])]
        molecule.AddBond(int(i), int(j), kind)
        if kind == Chem.BondType.AROMATIC:
            for k in (int(i), int(j)):
                molecule.GetAtomWithIdx(k).SetIsAromatic(True)
    try:
        Chem.SanitizeMol(molecule)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"molecule: its frames are those of no molecule: {error}") from None
    return molecule.GetMol()
