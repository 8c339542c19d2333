"""The house's own rules: which room may import which, what is imported late, what is imported once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "mmtok"

# room -> the rooms it may import (its own files always). A new room gets a line here.
VALUES = {"errors", "io", "core", "nn"}  # what parts are made of
PARTS = VALUES | {"diffusion", "tokenizers", "heads", "metrics"}
STAGES = PARTS | {"model", "sources", "data", "train", "run"}
MAY_IMPORT = {
    "errors": set(),
    "io": {"errors"},
    "diffusion": set(),
    "core": {"errors"},
    "nn": {"errors"},
    "tokenizers": VALUES,
    "heads": VALUES | {"diffusion"},
    "metrics": VALUES | {"diffusion"},
    "model": VALUES | {"heads"},  # never tokenizers, never sources
    "sources": {"errors", "io", "nn"},  # nn: which rates can be resampled
    "data": VALUES | {"tokenizers", "sources"},
    "train": PARTS | {"model", "data", "sources"},
    "run": PARTS | {"model", "data", "sources", "train"},
    "commands": STAGES,
    "evaluation": STAGES | {"commands"},
    "report": STAGES | {"commands", "evaluation"},
    "cli": STAGES | {"commands", "evaluation", "report"},
    "__main__": {"cli"},
    "__init__": set(),
}
LATE = {
    "soxr",
    "sklearn",
    "pythia8mc",
    "fastjet",
    "espeakng_loader",
    "matplotlib",
    "vector_quantize_pytorch",
    "datasets",
    "transformers",
    "pystoi",
    "jiwer",
    "ot",
    "awkward",
    "vector",
    "uproot",
    "h5py",
}


def files():
    return sorted(HOUSE.rglob("*.py"))


def room_of(path):
    inside = path.relative_to(HOUSE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def module_of(path):
    parts = ("mmtok", *path.relative_to(HOUSE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree, modules=frozenset()):
    """Full names that a tree imports, inside functions too; `from mmtok import run` counts as
    mmtok.run.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else node.module


def packages(tree):
    return {name.split(".")[0] for name in imports(tree)}


def at_import(tree):
    """The nodes that run when the module is imported: not functions' bodies, not `if
    TYPE_CHECKING:`.
    """
    kept = [
        n
        for n in tree.body
        if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    ]
    kept = [n for n in kept if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return ast.Module(kept, [])


def parsed():
    trees = {path: ast.parse(path.read_text(), str(path)) for path in files()}
    modules = {module_of(path) for path in trees}
    return trees, modules | {"mmtok." + room_of(path) for path in trees}


def test_rooms_import_downwards_only():
    trees, modules = parsed()
    wrong = []
    for path, tree in trees.items():
        room = room_of(path)
        assert room in MAY_IMPORT, f"{path}: a room without a line in the import table"
        for name in imports(tree, modules):
            parts = name.split(".")
            if (
                parts[0] == "mmtok"
                and len(parts) > 1
                and parts[1] != room
                and parts[1] not in MAY_IMPORT[room]
            ):
                wrong.append(f"{path.relative_to(HOUSE)} imports {name}")
    assert not wrong


def test_no_knots():
    """No module reaches itself through its imports, wherever in the file they stand."""
    trees, modules = parsed()
    reach = {
        module_of(p): {
            n for n in imports(t, modules) if n in modules and n not in ("mmtok", module_of(p))
        }
        for p, t in trees.items()
    }
    # a package's front page finds its own drawers late, and they never import it back
    while True:
        wider = {
            m: names.union(*(reach.get(n, set()) for n in names)) for m, names in reach.items()
        }
        if wider == reach:
            break
        reach = wider
    assert not [m for m, names in reach.items() if m in names]


def test_soxr_is_imported_in_one_file():
    users = {
        path.relative_to(HOUSE).as_posix()
        for path, tree in parsed()[0].items()
        if "soxr" in packages(tree)
    }
    assert users == {"nn/resample.py"}


def test_heavy_and_optional_packages_are_imported_late():
    wrong = [
        f"{path.relative_to(HOUSE)}: {name}"
        for path, tree in parsed()[0].items()
        for name in packages(at_import(tree)) & LATE
    ]
    assert not wrong


def test_files_can_be_read_in_one_sitting():
    longest = {
        path.relative_to(HOUSE.parent).as_posix(): len(path.read_text().splitlines())
        for room in ("mmtok", "scripts", "recipes", "tests")
        for path in (HOUSE.parent / room).rglob("*.py")
    }
    assert not {name: n for name, n in longest.items() if n > 600}


def test_no_message_prints_a_whole_dataclass():
    assert not [str(path) for path in files() if "got {self}" in path.read_text()]


def test_one_place_prints():
    """All else goes through it, so that no escape sequence of a file's words reaches a terminal."""
    prints = lambda tree: any(
        isinstance(n, ast.Call)
        and ast.unparse(n.func) in ("print", "sys.stdout.write", "sys.stderr.write")
        for n in ast.walk(tree)
    )
    assert {path.name for path, tree in parsed()[0].items() if prints(tree)} == {"terminal.py"}


def test_no_pickles():
    assert not [
        str(path)
        for path, tree in parsed()[0].items()
        if {"pickle", "dill", "joblib", "cloudpickle"} & packages(tree)
    ]


@pytest.mark.parametrize(
    "first",
    [
        "import mmtok",
        "import mmtok.cli",
        "import mmtok.data.tokens",
        "import mmtok.tokenizers",
        (
            "from mmtok.cli import main; main(['--help']); main(['train', '--help']);"
            " main(['tokenize', '--help'])"
        ),
    ],
)
def test_no_torch_until_it_is_needed(first):
    code = f"import sys; {first}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
