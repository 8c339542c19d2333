"""Which Python versions can install mmtok and each of its extras, from wheels alone: a dry run of
pip's resolver for each.

    python scripts/resolve.py [--python 3.14] [--extra jets]     needs a network, pip 24 or newer,
    and `packaging`; installs nothing

Versions are those of constraints.txt. What a package asks of its own dependencies by Python version
is read as on this Python. Exits with 1 where something of what README promises does not install.
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
UNPROMISED = {"harness"}  # some of what it brings has no wheels on any Python


def main() -> int:
    """Print a line for each Python version and part. Returns the exit code."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--python", action="append", choices=PYTHONS)
    asked.add_argument("--extra", action="append")
    words = asked.parse_args()
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
    """The requirements among these lines that hold on a version of Python, without their
    conditions.
    """
    held = []
    for line in lines:
        requirement = Requirement(line)
        marker, requirement.marker = requirement.marker, None
        if marker is None or marker.evaluate(
            {"python_version": python, "python_full_version": f"{python}.0"}
        ):
            held.append(str(requirement))
    return held


def pins(path: Path) -> list[str]:
    """The lines of a constraints file that are no remarks."""
    return [
        line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")
    ]


def refusal(python: str, requirements: list[str]) -> str:
    """Why pip cannot install these on a version of Python, in one line; "" where it can."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(for_python(pins(HOUSE / "constraints.txt"), python)))
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            folder,
            "--python-version",
            python,
            "--only-binary=:all:",
            "-c",
            str(constraints),
            *for_python(requirements, python),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    errors = [
        line.removeprefix("ERROR: ")
        for line in done.stderr.splitlines()
        if line.startswith("ERROR: ")
    ]
    return "" if done.returncode == 0 else (errors or [done.stderr.strip()[-200:]])[0][:200]


if __name__ == "__main__":
    sys.exit(main())
