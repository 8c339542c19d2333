"""What each Python version is asked to install: conditions are read for that version, and no pin is
left without a wheel for it.
"""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("packaging")
HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def resolve():
    spec = importlib.util.spec_from_file_location("resolve", HOUSE / "scripts" / "resolve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_python_gets_one_pythia_and_the_pins_agree(resolve):
    parts = resolve.parts_of(HOUSE / "pyproject.toml")
    for python, pythia in (
        ("3.11", "8.317.2"),
        ("3.12", "8.317.2"),
        ("3.13", "8.317.2"),
        ("3.14", "8.318.2"),
    ):
        for lines in (parts["jets"], resolve.pins(HOUSE / "constraints.txt")):
            assert [
                line for line in resolve.for_python(lines, python) if line.startswith("pythia8mc")
            ] == [f"pythia8mc=={pythia}"]


def test_a_part_is_the_core_and_the_extra(resolve):
    parts = resolve.parts_of(HOUSE / "pyproject.toml")
    assert all(set(parts["core"]) < set(lines) for name, lines in parts.items() if name != "core")


def test_an_answer_is_one_line(resolve, monkeypatch):
    answers = iter(
        [(0, ""), (1, "WARNING: x\nERROR: no wheel of a\nERROR: more"), (1, "pip is broken")]
    )

    def run(command, **_):
        return (lambda code, said: type("Done", (), {"returncode": code, "stderr": said}))(
            *next(answers)
        )

    monkeypatch.setattr(resolve.subprocess, "run", run)
    assert [resolve.refusal("3.14", ["a"]) for _ in range(3)] == [
        "",
        "no wheel of a",
        "pip is broken",
    ]
