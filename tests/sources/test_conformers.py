"""Conformers are distinct minima of valid molecules; no molecule is in both splits."""

import warnings
from itertools import islice

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.conformers import Conformers

pytest.importorskip("rdkit")

from mmtok.io.molecules import (  # noqa: E402
    Conformer,
    as_molecule,
    conformer_of,
    in_space,
    read_sdf,
    write_sdf,
)
from mmtok.metrics.conformers import rmsd_matrix  # noqa: E402
from mmtok.sources.molecule_grammar import DRUGS, drawn_molecules, is_drug_like  # noqa: E402

SMALL = {"n_starts": 6, "heldout_share": 0.4}


def written(tmp_path, text, name="molecules.smi"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_the_packages_own_molecules_are_many_valid_and_drug_like():
    assert all(is_drug_like(smiles) for smiles in DRUGS.values())
    drawn = list(islice(drawn_molecules(0), 60))
    assert len(set(drawn)) == 60 and drawn == list(islice(drawn_molecules(0), 60))
    names = Conformers().molecules()
    assert len(set(names)) == Conformers.n_molecules >= 300


def test_minima_are_distinct_sorted_and_the_same_again(tmp_path):
    source = Conformers(written(tmp_path, "CCCCO\nCC(N)C(=O)O\nc1ccccc1\n"), **SMALL)
    train = source.minima("train", tmp_path)
    heldout = source.minima("heldout", tmp_path)
    assert len(train) == 2 and len(heldout) == 1
    assert not {minima.smiles for minima in train} & {minima.smiles for minima in heldout}
    for minima in train + heldout:
        assert (np.diff(minima.energies) >= 0).all()
        some = [Conformer(minima.smiles, positions) for positions in minima.positions]
        apart = rmsd_matrix(some, some) + np.eye(len(some))
        assert apart.min() >= source.least_rmsd_angstrom
    assert max(len(minima.energies) for minima in train + heldout) > 1
    (file,) = tmp_path.glob("conformers_*.npz")
    before = file.read_bytes()
    file.unlink()
    assert source.make(tmp_path).read_bytes() == before


def test_stereochemistry_is_named_and_kept(tmp_path):
    source = Conformers(written(tmp_path, "C[C@H](N)C(=O)O\nCC(O)F\nCC=CF\n"), **SMALL)
    from rdkit import Chem

    for split in source.splits:
        for example in source.examples(split, tmp_path):
            molecule = in_space(example["conformer"])
            Chem.AssignStereochemistryFrom3D(molecule)
            assert Chem.MolToSmiles(molecule) == example["molecule"]
            assert {"@", "/", "\\"} & set(example["molecule"])


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    source = Conformers(written(tmp_path, "CCO\nCCN\nOCC\nxyz\nC.C\nC\n"), **SMALL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert source.molecules() == ["CCO", "CCN"]
    text = " ".join(str(warning.message) for warning in caught)
    for reason in ("listed before", "is no SMILES", "several molecules", "heavy atoms"):
        assert reason in text


def test_tables_and_sdf_give_the_same_molecules(tmp_path):
    smi = Conformers(written(tmp_path, "CCO\nCCN\n"), **SMALL)
    csv = Conformers(written(tmp_path, "name,SMILES\na,CCO\nb,CCN\n", "molecules.csv"), **SMALL)
    some = [
        example["conformer"] for split in smi.splits for example in smi.examples(split, tmp_path)
    ]
    write_sdf(tmp_path / "molecules.sdf", some)
    sdf = Conformers(str(tmp_path / "molecules.sdf"), **SMALL)
    assert smi.molecules() == csv.molecules()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # conformers of one molecule are listed again
        assert sorted(sdf.molecules()) == sorted(smi.molecules())


def test_sdf_gives_back_positions_in_the_order_of_the_smiles(tmp_path):
    positions = np.array([[0, 0, 0], [1.5, 0, 0], [2.2, 1.2, 0]])
    given = conformer_of(in_space(Conformer("OCC", positions)))
    assert given.smiles == "CCO"
    np.testing.assert_allclose(given.positions, positions[::-1])
    write_sdf(tmp_path / "one.sdf", [given, given])
    for back in read_sdf(tmp_path / "one.sdf"):
        assert back.smiles == "CCO"
        np.testing.assert_allclose(back.positions, given.positions, atol=1e-4)


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Conformers(str(tmp_path / "none.smi")).check()
    with pytest.raises(UserError, match="two are needed"):
        Conformers(written(tmp_path, "CCO\n")).molecules()
    with pytest.raises(UserError, match="no column named smiles"):
        Conformers(written(tmp_path, "a,b\n1,2\n", "molecules.csv")).molecules()
    with pytest.raises(UserError, match="n_starts is 0"):
        Conformers(n_starts=0)
    with pytest.raises(UserError, match="heavy atoms"):
        in_space(Conformer("CCO", np.zeros((2, 3))))
    with pytest.raises(UserError, match="is no SMILES"):
        as_molecule("benzene")
