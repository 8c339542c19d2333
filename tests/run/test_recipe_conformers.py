"""Conformers through every verb: a short training of the recipe on four molecules."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit")

from mmtok.cli import main  # noqa: E402
from mmtok.evaluation.evaluate import evaluate  # noqa: E402
from mmtok.report.report import sample_section  # noqa: E402
from mmtok.run.build import train  # noqa: E402
from mmtok.run.recipe import load_recipe  # noqa: E402
from mmtok.run.run import open_run  # noqa: E402

RECIPE = Path(__file__).parents[2] / "recipes" / "conformers.py"
SOURCE = '[{"kind": "Conformers", "path": "PATH", "n_starts": 3, "heldout_share": 0.3}]'
SHORT = [
    *("--train.steps", "6", "--train.seq_len", "128", "--train.precision", "float32"),
    *("--model.heads.conformer.network", '{"depth": 1, "width": 16, "n_heads": 2}'),
    *("--model.heads.conformer.steps", "3", "--model.heads.conformer.ode_steps", "2"),
]
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformers")
    molecules = folder / "molecules.smi"
    molecules.write_text(f"{ASPIRIN}\nCCCO\nC[C@H](N)C(=O)O\nCCCCN\n")
    recipe = load_recipe(RECIPE, [*SHORT, "--sources", SOURCE.replace("PATH", str(molecules))])
    train(recipe, folder / "run", device="cpu")
    return folder / "run"


def test_samples_of_a_smiles_open_in_rdkit_and_can_be_scored(run, tmp_path, capsys):
    from rdkit import Chem

    out = tmp_path / "out"
    words = ["sample", str(run), "--prompt", ASPIRIN, "--to", "conformer", "-n", "3"]
    assert main([*words, "-o", str(out)]) == 0
    (file,) = out.glob("*.sdf")
    molecules = list(Chem.SDMolSupplier(str(file), removeHs=True))
    assert [Chem.MolToSmiles(molecule) for molecule in molecules] == [ASPIRIN] * 3
    for molecule in molecules:
        assert molecule.GetConformer().Is3D()
        assert np.isfinite(molecule.GetConformer().GetPositions()).all()
    rows = json.loads((out / "index.json").read_text())
    assert [(row["frames"], row["stop"]) for row in rows] == [(13, "end")] * 3
    assert main(["score", str(run), str(file), "--condition", ASPIRIN]) == 0
    assert "nats/atom" in capsys.readouterr().out


def test_the_figures_are_of_seen_and_held_out_molecules_beside_etkdg(run):
    figures = evaluate(open_run(run))["conformer_from_molecule"]
    assert figures["seen"]["n_molecules"] == 3 and figures["heldout"]["n_molecules"] == 1
    for split in ("seen", "heldout"):
        for key in ("cov_r", "cov_p", "etkdg_cov_r", "etkdg_cov_p"):
            assert 0 <= figures[split][key] <= 1
        assert figures[split]["amr_r"] > figures[split]["etkdg_amr_r"] > 0
    assert any(folder.name.endswith("seen") for folder in (run / "samples").iterdir())


def test_the_report_lays_drawn_conformers_upon_minima_of_both_splits(run):
    pytest.importorskip("matplotlib")
    opened = open_run(run)
    evaluate(opened)
    for name, words, n_molecules in (("seen", "seen in training", 3), ("heldout", "held out", 1)):
        page = "".join(sample_section(opened, f"conformer_from_molecule_{name}"))
        assert page.count("<picture") == n_molecules == page.count(words)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("C1CC", "is no SMILES"), ("C[Fe]", "none of the elements"), ("C" * 40, "40 heavy atoms")],
)
def test_what_is_no_molecule_is_refused_in_one_line(run, tmp_path, capsys, prompt, message):
    words = ["sample", str(run), "--prompt", prompt, "--to", "conformer", "-o", str(tmp_path)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
