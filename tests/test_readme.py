"""What the README shows is run: its commands and its Python, in order, on a tiny run; its floor
plan is the house's.
"""

import re
import shlex
from pathlib import Path

import pytest

from mmtok.cli import VERBS, main
from mmtok.commands.arguments import parse
from mmtok.run.recipe import Recipe, load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SLOW = (
    "train",
    "evaluate",
    "report",
)  # only parsed here: they run in test_recipes.py, test_evaluate.py and test_report.py


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()] + re.findall(
        r"`(mmtok [^`]+)`", README
    )
    words = [shlex.split(line, comments=True) for line in lines if line.strip()]
    return [
        w[w.index("mmtok") :] if w[0] == "torchrun" else w for w in words
    ]  # torchrun OPTIONS -m mmtok VERB ...


@pytest.fixture
def home(tiny_copy, tmp_path, monkeypatch):
    """A folder where runs/digits is a tiny run, beside the project's recipes."""
    (tmp_path / "home" / "runs").mkdir(parents=True)
    tiny_copy.rename(tmp_path / "home" / "runs" / "digits")
    (tmp_path / "home" / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_there_is_something_to_test():
    assert len(blocks("bash")) == 4 and len(blocks("python")) == 6
    assert {words[1] for words in commands() if words[0] == "mmtok"} == set(VERBS) - {"fit"}
    assert len(blocks("bash")[1].splitlines()) == 10


def test_scripts_exist():
    scripts = {Path(words[1]) for words in commands() if words[0] == "bash"}
    assert scripts and all((ROOT / script).is_file() for script in scripts)
    assert all(
        (ROOT / path).exists()
        for path in re.findall(r"`((?:scripts|tests|recipes)/[\w./]*)`", README)
    )


def test_every_command_parses_and_its_fields_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands():
        if words[0] == "mmtok":
            given = parse(VERBS[words[1]], words[2:])
            if given.get("overrides"):
                assert isinstance(load_recipe(given["recipe"], given["overrides"]), Recipe)


def test_torchrun_knows_its_options():
    from torch.distributed.run import parse_args

    given = [
        parse_args(shlex.split(line, comments=True)[1:])
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("torchrun")
    ]
    assert given and all(
        args.module and args.training_script == "mmtok" and int(args.nproc_per_node) > 1
        for args in given
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_shell_tour_runs(home, capsys):
    for line in blocks("bash")[1].splitlines():
        words = shlex.split(line, comments=True)[1:]
        words = [
            name
            for word in words
            for name in (sorted(map(str, home.glob(word))) if "*" in word else [word])
        ]
        if words[0] not in SLOW:
            assert main(words) == 0, (line, capsys.readouterr().err)
    assert len(list((home / "again").iterdir())) == 16


def test_the_python_blocks_run(home):
    shell = shlex.split(blocks("bash")[1].splitlines()[7], comments=True)
    assert shell[:3] == ["mmtok", "tokenize", "image"]  # makes the token file that a block reads
    for block in blocks("python"):
        if "tokens.parquet" in block:
            assert (
                main(
                    [
                        "tokenize",
                        "image",
                        *map(str, sorted((home / "drawn").glob("*.png"))),
                        "-o",
                        "tokens.parquet",
                    ]
                )
                == 0
            )
        exec(compile(block, "README.md", "exec"), {})


def test_the_variants_are_recipes(home):
    for block in blocks("python"):
        if "recipe = replace(" in block:
            (home / "variant.py").write_text(block)
            recipe = load_recipe("variant.py")
            assert Recipe.from_json(recipe.to_json()) == recipe


def test_the_floor_plan_has_every_file_with_a_clause():
    plan = next(block for block in blocks("") if block.startswith("mmtok/\n"))
    named, folder = set(), ""
    for line in plan.partition("recipes/")[0].splitlines()[1:]:
        indent, name, clause = re.fullmatch(r"( +)(\S+) *(.*)", line).groups()
        if name.endswith("/"):
            folder = name
            continue
        named.add(name if len(indent) == 2 else folder + name)
        assert clause or name == "__init__.py", f"{name} has no clause"
    assert named == {
        path.relative_to(ROOT / "mmtok").as_posix() for path in (ROOT / "mmtok").rglob("*.py")
    }
    scripts = next(line for line in plan.splitlines() if line.startswith("scripts/"))
    assert set(re.findall(r"\w+\.(?:py|sh)\b", scripts)) == {
        path.name for path in (ROOT / "scripts").glob("*.*")
    }
