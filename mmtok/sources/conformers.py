"""Conformers of drug-like molecules: where the atoms of each are, in its local minima of energy.

Starts are embedded by ETKDGv3 (Riniker and Landrum 2015, J. Chem. Inf. Model. 55, 2562; Wang et al.
2020, J. Chem. Inf. Model. 60, 2044) and relaxed with all hydrogens in the force field MMFF94
(Halgren 1996, J. Comput. Chem. 17, 490), both as RDKit has them. Of minima that are alike the
lowest is kept. Positions are of the heavy atoms, in angstrom; energies in kcal/mol.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.files import atomic_write
from mmtok.io.molecules import Conformer, as_molecule, conformer_of, need_rdkit, read_smiles
from mmtok.io.progress import Progress
from mmtok.io.tally import Tally
from mmtok.sources.base import Example, Source, check_heldout_share, split_order
from mmtok.sources.molecule_grammar import DRUGS, drawn_molecules

MOST_ITERATIONS = 2_000  # of a relaxation
MOST_MATCHES = 1_000  # symmetric numberings of a molecule that are tried


@dataclass(frozen=True, eq=False)
class Minima:
    """The distinct minima of a molecule, by rising energy.

    Attributes:
        smiles: the molecule, its stereo centres all named.
        positions: (K, P, 3).
        energies: (K,) in kcal/mol.
    """

    smiles: str
    positions: np.ndarray
    energies: np.ndarray


@dataclass(frozen=True)
class Conformers(Source):
    """Examples {"molecule": SMILES, "conformer": Conformer}, one for each minimum.

    No molecule is in both splits. Stereo centres and double bonds that a SMILES leaves open are
    set, at random by the seed.

    Attributes:
        path: a file of molecules (.smi, .sdf, a table with a column `smiles`); "": the package's
            own, some known drugs and others put together from fragments.
        n_molecules: of those of the package.
        heldout_share: of the molecules.
        n_starts: embeddings of each molecule.
        max_conformers: of a molecule, those of the lowest energy.
        max_energy_kcal_mol: above the lowest minimum.
        least_rmsd_angstrom: minima closer than this are one.
        max_atoms: heavy ones; larger molecules are left out, and counted.
        seed: of fragments, splits, embeddings.
    """

    path: str = ""
    n_molecules: int = 340
    heldout_share: float = 0.1
    n_starts: int = 20
    max_conformers: int = 10
    max_energy_kcal_mol: float = 10.0
    least_rmsd_angstrom: float = 0.25
    max_atoms: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_heldout_share(self, self.heldout_share)
        for name in ("n_molecules", "n_starts", "max_conformers", "max_atoms"):
            if getattr(self, name) < 1:
                raise UserError(f"Conformers: {name} is {getattr(self, name)}; at least 1")
        if min(self.max_energy_kcal_mol, self.least_rmsd_angstrom, self.seed) < 0:
            raise UserError(
                "Conformers: max_energy_kcal_mol, least_rmsd_angstrom and seed must not be negative"
            )

    @property
    def fields(self) -> dict[str, str]:
        """The molecule is what is given, the conformer what is asked for."""
        return {"molecule": "molecule", "conformer": "conformer"}

    def check(self) -> None:
        """Raise UserError for a file that is not there."""
        if self.path and not Path(self.path).is_file():
            raise UserError(f"{self.path}: there is no such file; name one of SMILES")

    def molecules(self) -> list[str]:
        """The SMILES of all molecules that can be used, in order; how many cannot is said.

        Raises UserError where fewer than two are left.
        """
        need_rdkit("making conformers")
        from rdkit import Chem

        found: dict[str, None] = {}
        with Tally("molecules") as tally:
            for smiles, where in self._listed():
                tally.count()
                try:
                    molecule = as_molecule(smiles)
                except UserError as error:
                    tally.add(f"left out: {error}", where)
                    continue
                name = Chem.MolToSmiles(molecule)
                if not 2 <= molecule.GetNumAtoms() <= self.max_atoms:
                    tally.add(f"left out: not of 2 to {self.max_atoms} heavy atoms", where)
                elif name in found:
                    tally.add("left out: listed before", where)
                else:
                    found[name] = None
        if len(found) < 2:
            raise UserError(f"Conformers: {len(found)} molecules; two are needed, one held out")
        return list(found)

    def _listed(self) -> Iterator[tuple[str, str]]:
        if self.path:
            yield from read_smiles(Path(self.path))
            return
        drugs = list(DRUGS.items())[: self.n_molecules]
        yield from ((smiles, name) for name, smiles in drugs)
        drawn = drawn_molecules(self.seed)
        yield from ((smiles, smiles) for smiles in islice(drawn, self.n_molecules - len(drugs)))

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The minima of a split, molecule by molecule; made on first use, kept under `cache`."""
        self.check_split(split)
        for minima in self.minima(split, cache):
            for positions in minima.positions:
                conformer = Conformer(minima.smiles, positions)
                yield Example({"molecule": minima.smiles, "conformer": conformer}, minima.smiles)

    def minima(self, split: str, cache: Path) -> list[Minima]:
        """Those of each molecule of a split; made on first use, kept under `cache`."""
        self.check_split(split)
        path = self.make(cache)
        with np.load(path) as stored:
            smiles = stored["smiles"].tolist()
            is_split = stored["split"] == split
            n_atoms = stored["n_atoms"]
            n_minima = stored["n_minima"]
            energies = np.split(stored["energies"], np.cumsum(n_minima)[:-1])
            positions = np.split(stored["positions"], np.cumsum(n_atoms * n_minima)[:-1])
        return [
            Minima(smiles[i], positions[i].reshape(n_minima[i], n_atoms[i], 3), energies[i])
            for i in np.flatnonzero(is_split)
        ]

    def make(self, cache: Path) -> Path:
        """Make all minima in one file under `cache`, and return its path; a file is kept.

        Its name has the settings, the molecules and RDKit's version, which all change them.
        Molecules without a minimum are counted.
        """
        molecules = self.molecules()
        path = self._path(cache, molecules)
        if path.exists():
            return path
        order = split_order(len(molecules), self.heldout_share, self.seed)
        found: list[Minima] = []
        splits = []
        with Tally("molecules") as tally, Progress("relaxing", len(molecules), "molecules") as bar:
            for i, smiles in enumerate(molecules):
                tally.count()
                try:
                    found.append(minima_of(smiles, self, seed=self.seed + i))
                    splits.append("train" if i in order["train"] else "heldout")
                except UserError as error:
                    tally.add(f"left out: {error}", smiles)
                bar.advance(1)
        if set(splits) != {"train", "heldout"}:
            raise UserError("Conformers: a split has no molecule with a minimum; give more of them")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **_columns(found, splits))
        return path

    def _path(self, cache: Path, molecules: Sequence[str]) -> Path:
        import rdkit

        settings = {**asdict(self), "path": "", "molecules": molecules}
        text = json.dumps(settings, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Path(cache) / f"conformers_{key}_rdkit-{rdkit.__version__}.npz"


def _columns(found: Sequence[Minima], splits: Sequence[str]) -> dict[str, np.ndarray]:
    """Minima of all molecules, one behind the other."""
    return {
        "smiles": np.array([minima.smiles for minima in found]),
        "split": np.array(splits),
        "n_atoms": np.array([minima.positions.shape[1] for minima in found]),
        "n_minima": np.array([len(minima.energies) for minima in found]),
        "energies": np.concatenate([minima.energies for minima in found]),
        "positions": np.concatenate([minima.positions.reshape(-1, 3) for minima in found]),
    }


def minima_of(smiles: str, settings: Conformers, seed: int) -> Minima:
    """The distinct minima of a molecule. Raises UserError where none is found."""
    from rdkit.Chem import rdForceFieldHelpers

    molecule = embedded(smiles, settings.n_starts, seed)
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        raise UserError("MMFF94 has no parameters for it")
    relaxed = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, 1, MOST_ITERATIONS)
    is_minimum = np.array([not_yet == 0 for not_yet, _ in relaxed])
    energies = np.array([energy for _, energy in relaxed])
    if not is_minimum.any():
        raise UserError(f"no start was relaxed within {MOST_ITERATIONS:,} iterations")
    numbers = [conformer.GetId() for conformer in molecule.GetConformers()]
    order = [i for i in np.argsort(energies, kind="stable") if is_minimum[i]]
    order = [i for i in order if energies[i] - energies[order[0]] <= settings.max_energy_kcal_mol]
    kept: list[int] = []
    heavy = _without_hydrogens(molecule)
    for i in order:
        if len(kept) < settings.max_conformers and all(
            _rmsd(heavy, numbers[i], numbers[j]) >= settings.least_rmsd_angstrom for j in kept
        ):
            kept.append(int(i))
    conformers = [conformer_of(molecule, numbers[i]) for i in kept]
    positions = np.stack([conformer.positions for conformer in conformers])
    return Minima(conformers[0].smiles, positions.astype(np.float32), energies[kept])


def embedded(smiles: str, n: int, seed: int) -> Any:
    """The molecule, hydrogens and all, with up to n conformers of ETKDGv3, not relaxed.

    What its SMILES leaves open of stereochemistry is set. Raises UserError where none is embedded.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom
    from rdkit.Chem.EnumerateStereoisomers import (
        EnumerateStereoisomers,
        StereoEnumerationOptions,
    )

    options = StereoEnumerationOptions(maxIsomers=1, onlyUnassigned=True, rand=seed)
    isomer = next(EnumerateStereoisomers(as_molecule(smiles), options))
    molecule = Chem.AddHs(isomer)
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed = 1 + seed  # RDKit multiplies it by the number of the start
    settings.numThreads = 1
    if not len(rdDistGeom.EmbedMultipleConfs(molecule, n, settings)):
        raise UserError("ETKDGv3 embeds none of it")
    return molecule


def _without_hydrogens(molecule: Any) -> Any:
    from rdkit import Chem

    return Chem.RemoveHs(molecule)


def _rmsd(molecule: Any, i: int, j: int) -> float:
    """In angstrom, at its least over motions and symmetries; of two conformers of one molecule."""
    from rdkit.Chem import rdMolAlign

    return rdMolAlign.GetBestRMS(molecule, molecule, i, j, maxMatches=MOST_MATCHES)
