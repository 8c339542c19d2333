"""Proteins, a modality that the package does not know: a tokenizer, a reader and a recipe in
`examples/proteins`, and nothing else.
"""

import gzip
import random
import re
import sys
from functools import cache
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

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "examples" / "proteins" / "protein_recipe.py"
FAMILIES = {"helix": "AELKM", "sheet": "VIYFT"}
SMALL = {
    "trunk.depth": 2,
    "trunk.width": 64,
    "trunk.n_heads": 2,
    "trunk.n_kv_heads": 2,
    "trunk.feed_forward": 128,
    "train.steps": 60,
    "train.batch_size": 4,
    "train.seq_len": 128,
    "train.warmup": 5,
    "train.learning_rate": 5e-3,
    "train.ema_decay": 0.0,
    "train.precision": "float32",
    "n_samples": 8,
    "protein.max_frames": 40,
}


def small_recipe(path):
    """The recipe for a FASTA file, made one of seconds."""
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    return load_recipe(RECIPE, ["--path", str(path), *words])


def read_all(path, text):
    """The records of a FASTA file of this text."""
    path.write_text(text)
    return list(reader().read_fasta(path))


@cache
def reader():
    """The module of the reader, as the recipe imports it."""
    load_recipe(RECIPE)
    return sys.modules["protein_reader"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run trained on two made-up families, each of five residues of its own."""
    rng = random.Random(0)
    home = tmp_path_factory.mktemp("proteins")
    records = []
    for _ in range(200):
        family = rng.choice(list(FAMILIES))
        residues = "".join(rng.choice(FAMILIES[family]) for _ in range(rng.randint(8, 20)))
        records.append(f">{family}\n{residues[:10]}\n{residues[10:]}\n")
    (home / "all.fasta").write_text("".join(records))
    train(small_recipe(home / "all.fasta"), home / "run")
    return home / "run"


def residues_in(paths):
    """The residues of every record of FASTA files."""
    records = [record for path in paths for record in path.read_text().split(">")[1:]]
    return ["".join(record.splitlines()[1:]) for record in records]


def test_its_recipe_survives_json(folder):
    text = (folder / "recipe.json").read_text()
    recipe = small_recipe(folder.parent / "all.fasta")
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
    assert len(proteins) == 2 and set("".join(proteins)) <= set(reader().RESIDUES)
    assert main(["show", str(folder), "--recipe", str(RECIPE)]) == 0
    assert "protein: ProteinConfig, 25 levels" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--recipe", str(RECIPE)]) == 0
    assert "score.protein.nats_per_frame" in capsys.readouterr().out


def test_it_may_bring_figures_and_a_section_of_the_report(folder):
    pytest.importorskip("matplotlib")
    run = open_run(folder, RECIPE)
    figures = evaluate(run, force=True)["protein_from_text"]
    assert 2.3 < figures["bits_per_residue"] < figures["bits_per_residue_unigram"] - 0.3
    assert figures["difference_p"] < 0.001
    assert figures["composition"] < 0.3 and 0 <= figures["stopped"] <= 1
    files = list((folder / "samples" / "protein_from_text").glob("*.fasta"))
    assert len(files) == run.recipe.n_samples == 8
    main(["sample", str(folder), "--recipe", str(RECIPE), "--prompt", "helix", "--to", "protein"])
    page = write_report(run, force=True).read_text()
    assert "<code>bits_per_residue</code>" in page
    section = re.search(r'<section id="protein-from-text">.*?</section>', page, re.DOTALL)[0]
    assert "Residues by header." in section
    asked = re.search(r'<section id="asked-for-with-mmtok-sample">.*?</section>', page, re.DOTALL)
    assert "Residues by header." in asked[0]  # not shown as a text
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
    with pytest.raises(UserError, match="'5J' are no residues"):
        open_run(folder, RECIPE).tokenizers["protein"].encode("ABZ5J")


# ---- the reader


def test_wrapped_compressed_and_written_records_are_the_same(folder, tmp_path):
    plain = list(reader().read_fasta(folder.parent / "all.fasta"))
    content = (folder.parent / "all.fasta").read_bytes().replace(b"\n", b"\r\n\r\n")
    (tmp_path / "all.fa.gz").write_bytes(gzip.compress(content))
    packed = list(reader().read_fasta(tmp_path / "all.fa.gz"))
    assert [r[1:] for r in packed] == [r[1:] for r in plain]
    reader().write_proteins(tmp_path / "again.fasta", [r.residues * 9 for r in plain], {})
    lines = (tmp_path / "again.fasta").read_text().splitlines()
    assert max(map(len, lines)) == 60
    again = reader().read_proteins(tmp_path / "again.fasta", {})
    assert list(again) == [r.residues * 9 for r in plain]


def test_what_is_done_to_residues_is_counted(tmp_path):
    text = ">a 1\nAELkm\n>b\nVIY*\n>c\nA-E\n>d\nA1\n>e\n>f\nXBZUO\n"
    with pytest.warns(UserWarning) as said:
        records = read_all(tmp_path / "some.fasta", text)
    assert [r.residues for r in records] == ["AELKM", "VIY", "XBZUO"]
    assert records[0].header == "a 1"
    said = "\n".join(str(warning.message) for warning in said)
    for part in (
        "1 of 6 proteins was written in small letters",
        "1 of 6 proteins was read without the * at the end",
        "gaps",
        "letters that are no residues",
        "no residues (first",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("AELKM\n", "line 1: not FASTA"),
        ("", "no line begins with '>'"),
        (">\nAELKM\n", "line 1: a header without a name"),
        (">a\nA1\n", "line 1: it has letters that are no residues"),
    ],
)
def test_what_is_no_fasta_is_refused_in_a_line(tmp_path, text, match):
    with pytest.raises(UserError, match=match) as error:
        read_all(tmp_path / "some.fasta", text)
    assert "\n" not in str(error.value)


def test_equal_proteins_are_read_once_and_in_one_split(tmp_path):
    rows = [f">{i}\n{'AELKM'[i % 5] * (1 + i // 5)}\n" for i in range(40)]
    (tmp_path / "some.fasta").write_text("".join(rows + rows))
    source = reader().FastaFile(str(tmp_path / "some.fasta"))
    with pytest.warns(UserWarning, match="40 of 80 proteins were left out: its residues"):
        train_set = [e["protein"] for e in source.examples("train", tmp_path)]
    with pytest.warns(UserWarning, match="40 of 80"):
        heldout = [e["protein"] for e in source.examples("heldout", tmp_path)]
    assert len(train_set) == 36 and len(heldout) == 4 and not set(train_set) & set(heldout)


def test_the_unigram_model_is_a_distribution(folder):
    bits = sys.modules["protein_figures"].unigram_bits
    letters = [*reader().RESIDUES, ""]
    one = [2 ** -bits(["AELKM"], [letter])[0] for letter in letters]
    end = one[-1]
    assert sum(p / end for p in one[:-1]) + end == pytest.approx(1)
