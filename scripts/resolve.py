"""Which Python versions can install mmtok and each of its extras from wheels alone.

    python scripts/resolve.py [--python 3.14] [--extra jets]

A dry run of pip's resolver for each, with the versions of constraints.txt. It needs a network, pip
24 or newer and `packaging`, and installs nothing. Conditions that a dependency sets by Python
version are evaluated on this Python. Exits with 1 where a promised extra does not install.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

HOUSE = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CORE = "core"
UNPROMISED = {"harness", "judges"}  # some of what they bring has no wheels on any Python


def main() -> int:
    """Prints a line for each Python version and part. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", choices=PYTHONS)
    parser.add_argument("--extra", action="append")
    words = parser.parse_args()
    parts = {
        name: lines
        for name, lines in parts_of(HOUSE / "pyproject.toml").items()
        if not words.extra or name in words.extra
    }
    failed = False
    for python in words.python or PYTHONS:
        for name, requirements in parts.items():
            wrong = refusal(python, requirements)
            print(f"{python} {name}: {wrong or 'installs'}", flush=True)
            failed |= bool(wrong) and name not in UNPROMISED
    return int(failed)


def parts_of(pyproject: Path) -> dict[str, list[str]]:
    """The requirements of the package alone, and of the package with each extra."""
    project = tomllib.loads(pyproject.read_text())["project"]
    core = project["dependencies"]
    return {CORE: core} | {
        name: [*core, *more] for name, more in project["optional-dependencies"].items()
    }


def for_python(lines: list[str], python: str) -> list[str]:
    """The requirements that hold on a version of Python, without their conditions."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    found = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            found.append(str(requirement))
    return found


def pins(path: Path) -> list[str]:
    """The lines of a constraints file, without comments."""
    lines = path.read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def refusal(python: str, requirements: list[str]) -> str:
    """Why pip cannot install these on a version of Python, in one line; "" where it can."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(for_python(pins(HOUSE / "constraints.txt"), python)))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
        command += ["--disable-pip-version-check", "--target", folder]
        command += ["--python-version", python, "--only-binary=:all:", "-c", str(constraints)]
        command += for_python(requirements, python)
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    for line in done.stderr.splitlines():
        if line.startswith("ERROR: "):
            return line.removeprefix("ERROR: ")[:200]
    return done.stderr.strip()[-200:]


if __name__ == "__main__":
    sys.exit(main())
