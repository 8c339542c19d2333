"""Frames of molecules say the molecule; those of conformers say its shape, however it lies."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.tokenizers import load

pytest.importorskip("rdkit")

from mmtok.io.molecules import Conformer  # noqa: E402
from mmtok.metrics.conformers import rmsd_matrix  # noqa: E402
from mmtok.sources.conformers import embedded  # noqa: E402
from mmtok.sources.molecule_grammar import DRUGS  # noqa: E402
from mmtok.tokenizers.molecules import (  # noqa: E402
    CIP,
    ConformerConfig,
    MoleculeConfig,
    graph_rows,
    inertial_axes,
)

MOLECULE = MoleculeConfig().build()
CONFORMATION = ConformerConfig().build()
IBUPROFEN = DRUGS["ibuprofen"]


def shaped(smiles, seed=3):
    from mmtok.io.molecules import conformer_of

    return conformer_of(embedded(smiles, 1, seed))


def rotation(seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


@pytest.mark.parametrize("smiles", [*DRUGS.values(), "C[N+](=O)[O-]", "C#CC=C", "OB(O)c1ccccc1"])
def test_the_frames_alone_say_the_molecule(smiles):
    from rdkit import Chem

    flat = Chem.MolFromSmiles(smiles)
    Chem.RemoveStereochemistry(flat)
    assert MOLECULE.decode(MOLECULE.encode(smiles)) == Chem.MolToSmiles(flat)


@pytest.mark.parametrize("name", ["ibuprofen", "captopril", "caffeine", "omeprazole"])
def test_a_conformer_comes_back_with_its_stereochemistry(name):
    conformer = shaped(DRUGS[name])
    back = CONFORMATION.decode(CONFORMATION.encode(conformer))
    assert back.smiles == conformer.smiles
    assert rmsd_matrix([conformer], [back])[0, 0] < 1e-5


def test_motions_change_nothing():
    conformer = shaped(IBUPROFEN)
    moved = Conformer(conformer.smiles, conformer.positions @ rotation(0).T + [5, -2, 1])
    plain = CONFORMATION.encode(conformer).latents
    np.testing.assert_allclose(CONFORMATION.encode(moved).latents, plain, atol=1e-5)
    np.testing.assert_allclose(plain[:, :3].mean(0), 0, atol=1e-6)


def test_axes_are_a_rotation_and_go_by_falling_spread():
    positions = np.random.default_rng(1).normal(size=(9, 3)) * [1, 3, 2]
    positions -= positions.mean(0)
    axes = inertial_axes(positions, np.arange(9.0))
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    assert (np.diff((positions @ axes).std(0)) < 0).all()


def test_as_it_lies_a_conformer_is_only_centred():
    conformer = shaped("CCO")
    latents = ConformerConfig(inertial=False, scale_angstrom=1.0).build().encode(conformer).latents
    centred = conformer.positions - conformer.positions.mean(0)
    np.testing.assert_allclose(latents[:, :3], centred, atol=1e-6)


def test_a_mirrored_draw_is_given_as_its_mirror_image():
    conformer = shaped(IBUPROFEN)
    segment = CONFORMATION.encode(conformer)
    segment.latents[:, 0] *= -1
    back = CONFORMATION.decode(segment)
    assert back.smiles == conformer.smiles
    assert rmsd_matrix([conformer], [back])[0, 0] < 1e-5


def test_enantiomers_differ_in_their_label_alone():
    left = MOLECULE.encode("C[C@H](N)C(=O)O").latents
    right = MOLECULE.encode("C[C@@H](N)C(=O)O").latents
    differs = np.abs(left - right).max(0) > 1e-6
    assert differs[CIP] and differs.sum() == 1


def test_rows_of_u_are_roots_of_the_laplacian():
    weights = np.array([[0, 1, 0, 2], [1, 0, 1.5, 0], [0, 1.5, 0, 0], [2, 0, 0, 0]])
    rows = graph_rows(weights)
    np.testing.assert_allclose(rows @ rows.T, np.diag(weights.sum(1)) - weights, atol=1e-12)


@pytest.mark.parametrize("config", [MoleculeConfig(max_atoms=20), ConformerConfig(inertial=False)])
def test_saved_ones_open_again(config, tmp_path):
    tokenizer = config.build()
    tokenizer.save(tmp_path)
    assert load(tmp_path).signature == tokenizer.signature


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="has 15 heavy atoms; this tokenizer takes 8"):
        MoleculeConfig(max_atoms=8).build().encode(IBUPROFEN)
    with pytest.raises(UserError, match="Fe is none of the elements"):
        MOLECULE.encode("C[Fe]")
    with pytest.raises(UserError, match="several molecules"):
        MOLECULE.encode("[Na+].[Cl-]")
    with pytest.raises(UserError, match="is no conformer"):
        CONFORMATION.encode("CCO")
    with pytest.raises(UserError, match="scale_angstrom is 0"):
        ConformerConfig(scale_angstrom=0)
