"""A modality that the package does not know: one tokenizer file, one reader, one recipe
(tests/fifth), and nothing else.
"""

import random
import re
from pathlib import Path

import pytest

from mmtok.cli import main
from mmtok.commands.prompts import first_segment
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


def residues_in(paths):
    """The residues of every record of FASTA files."""
    records = [record for path in paths for record in path.read_text().split(">")[1:]]
    return ["".join(record.splitlines()[1:]) for record in records]


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
    assert [p.name for p in paths] == ["sheet.fasta"]
    proteins = residues_in(paths)
    assert len(proteins) == 2 and set("".join(proteins)) <= set("ACDEFGHIKLMNPQRSTVWY")
    assert main(["show", str(folder), "--recipe", str(RECIPE)]) == 0
    assert "protein: ProteinConfig, 20 levels" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--recipe", str(RECIPE)]) == 0
    assert "score.protein.nats_per_frame" in capsys.readouterr().out


def test_it_may_bring_figures_and_a_section_of_the_report(folder):
    pytest.importorskip("matplotlib")
    run = open_run(folder, RECIPE)
    figures = evaluate(run, force=True)["protein_from_text"]
    assert figures["own_residues"] > 0.7 and 0 <= figures["stopped"] <= 1
    files = list((folder / "samples" / "protein_from_text").glob("*.fasta"))
    assert len(files) == run.recipe.n_samples == 8
    main(["sample", str(folder), "--recipe", str(RECIPE), "--prompt", "helix", "--to", "protein"])
    page = write_report(run, force=True).read_text()
    assert "<code>own_residues</code>" in page
    section = re.search(r'<section id="protein-from-text">.*?</section>', page, re.DOTALL)[0]
    assert "Residues by family." in section
    asked = re.search(r'<section id="asked-for-with-mmtok-sample">.*?</section>', page, re.DOTALL)
    assert "Residues by family." in asked[0]  # not shown as a text
    for family in FAMILIES:
        residues = "".join(residues_in(path for path in files if family in path.name))
        assert f"{residues[0]} {residues.count(residues[0])}" in section


@pytest.mark.parametrize("fitted", [False, True])
def test_its_files_become_tokens_and_files_again(folder, capsys, tmp_path, fitted):
    tokens = tmp_path / "tokens.parquet"
    out = tmp_path / "out"
    own = ["--recipe", str(RECIPE)]
    if fitted:
        own += ["--tokenizer", str(folder / "tokenizers" / "protein")]
    places = [folder.parent / "all.fasta", tmp_path / "few.fa"]
    places[1].write_text(">a helix\nAEL\nKM\n>b sheet\nVIY\n")
    words = ["tokenize", "protein", *map(str, places), "-o", str(tokens), "--check", *own]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "202 rows" in said and "exact_share 1" in said
    assert main(["detokenize", str(tokens), "-o", str(out), *own]) == 0
    assert "2 files" in capsys.readouterr().out
    assert residues_in([out / "all.fasta"]) == residues_in(places[:1])
    assert residues_in([out / "few.fasta"]) == ["AELKM", "VIY"]


def test_its_files_are_prompts_and_can_be_scored(folder, capsys, tmp_path):
    (tmp_path / "two.fa").write_text(">a\nAELKM\n>b\nVIYFT\n")
    own = ["--recipe", str(RECIPE)]
    words = ["score", str(folder), f"{tmp_path}/", "--condition", "helix", *own]
    assert main(words) == 0
    assert capsys.readouterr().out.count("5 frames") >= 2
    with pytest.warns(UserWarning, match="two.fa holds 2 protein: the first is taken"):
        prompt = first_segment(open_run(folder, RECIPE), str(tmp_path / "two.fa"))
    assert len(prompt) == 5


def test_its_folder_is_shown_and_without_its_recipe_the_recipe_is_asked_for(
    folder, capsys, tmp_path
):
    fitted = str(folder / "tokenizers" / "protein")
    assert main(["show", fitted, "--recipe", str(RECIPE)]) == 0
    assert "Protein tokenizer of protein" in capsys.readouterr().out
    for own in ([], ["--tokenizer", fitted]):
        words = ["tokenize", "protein", str(folder.parent / "all.fasta"), *own]
        assert main([*words, "-o", str(tmp_path / "t.parquet")]) == 2
        assert "--recipe FILE" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_no_protein_is_refused(folder):
    with pytest.raises(UserError, match="'BZ' are no residues"):
        open_run(folder, RECIPE).tokenizers["protein"].encode("ABZ")
