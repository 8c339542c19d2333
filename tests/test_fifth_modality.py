"""A modality that the package does not know: one tokenizer file, one reader, one recipe
(tests/fifth), and nothing else.
"""

import random
import re
from pathlib import Path

import pytest

from mmtok.cli import main
from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.evaluation.evaluate import evaluate
from mmtok.report.report import write_report
from mmtok.run.build import train
from mmtok.run.recipe import Recipe, kinds_of, load_recipe
from mmtok.run.run import open_run

RECIPE = Path(__file__).parent / "fifth" / "protein_recipe.py"
FAMILIES = {"helix": "AELKM", "sheet": "VIYFT"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run trained on two made-up families, each of five residues of its own."""
    rng = random.Random(0)
    home = tmp_path_factory.mktemp("fifth")
    records = []
    for i in range(200):
        family = rng.choice(list(FAMILIES))
        residues = "".join(rng.choice(FAMILIES[family]) for _ in range(rng.randint(8, 20)))
        records.append(f">p{i} {family}\n{residues[:10]}\n{residues[10:]}\n")
    (home / "all.fasta").write_text("".join(records))
    train(load_recipe(RECIPE, ["--path", str(home / "all.fasta")]), home / "run")
    return home / "run"


def test_its_recipe_survives_json(folder):
    text = (folder / "recipe.json").read_text()
    recipe = load_recipe(RECIPE, ["--path", str(folder.parent / "all.fasta")])
    assert Recipe.from_json(text, tuple(kinds_of(recipe))) == recipe
    with pytest.raises(UserError, match="--recipe FILE"):
        open_run(folder)


def test_samples_are_strings_of_residues_of_the_family_asked_for(folder):
    run = open_run(folder, RECIPE)
    tokenizer = run.tokenizers["protein"]
    for family, own in FAMILIES.items():
        prompt = run.prompt([run.tokenizers["text"].encode(family)], "protein")
        drawn = tokenizer.decode_batch(
            [d.segment for d in run.draw([prompt] * 16, run.sampling("protein"), seed=0)]
        )
        letters = "".join(drawn)
        assert letters and set(letters) <= set(tokenizer.config.residues)
        assert sum(letter in own for letter in letters) > 0.7 * len(letters)


def test_scores_tell_the_families_apart(folder):
    run = open_run(folder, RECIPE)
    text = run.tokenizers["text"]
    protein = run.tokenizers["protein"].encode("AELKMAELKMAE")
    documents = [Document((text.encode(family), protein), (False, True)) for family in FAMILIES]
    helix, sheet = run.score_documents(documents)
    assert helix.nats[1] < sheet.nats[1]
    assert helix.kind == "exact" and helix.frames[1] == 12


def test_the_command_line_serves_it(folder, capsys, tmp_path):
    words = [
        "sample",
        str(folder),
        "--recipe",
        str(RECIPE),
        "--prompt",
        "sheet",
        "--to",
        "protein",
        "-n",
        "2",
        "-o",
        str(tmp_path),
    ]
    assert main(words) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [p.suffix for p in paths] == [".txt", ".txt"] and all(
        set(p.read_text()) <= set("ACDEFGHIKLMNPQRSTVWY") for p in paths
    )
    assert main(["show", str(folder), "--recipe", str(RECIPE)]) == 0
    assert "protein: ProteinConfig, 20 levels" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--recipe", str(RECIPE)]) == 0
    assert "score.protein.nats_per_frame" in capsys.readouterr().out


def test_it_may_bring_figures_and_a_section_of_the_report(folder):
    pytest.importorskip("matplotlib")
    run = open_run(folder, RECIPE)
    figures = evaluate(run, force=True)["protein_from_text"]
    assert figures["own_residues"] > 0.7 and 0 <= figures["stopped"] <= 1
    files = list((folder / "samples" / "protein_from_text").glob("*.txt"))
    assert len(files) == run.recipe.n_samples == 8
    page = write_report(run, force=True).read_text()
    assert "<code>own_residues</code>" in page
    section = re.search(r'<section id="protein-from-text">.*?</section>', page, re.DOTALL)[0]
    assert "Residues by family." in section
    for family in FAMILIES:
        residues = "".join(path.read_text() for path in files if family in path.name)
        assert f"{residues[0]} {residues.count(residues[0])}" in section


def test_what_is_no_protein_is_refused(folder):
    with pytest.raises(UserError, match="'BZ' are no residues"):
        open_run(folder, RECIPE).tokenizers["protein"].encode("ABZ")
