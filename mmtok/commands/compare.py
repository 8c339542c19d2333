"""What `mmtok compare` does: two sets of signals as points, and two-sample tests of them."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtok.commands.compare_points import STDIN, Read, kind_of, read_points, unit_of
from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.terminal import lines_text
from mmtok.metrics.deformations import Deformation
from mmtok.metrics.jets import w1
from mmtok.metrics.statistics import (
    LEAST_POINTS,
    TESTS,
    TestResult,
    TwoSample,
    of_classifier,
    two_sample,
)

DECLARED = Deformation("shift", 0.1)  # the alternative of power, in standard deviations
PARTICLES = "particles"  # a test of jets that sees all of them, and takes the longest


@dataclass(frozen=True)
class Side:
    """One of the two sets.

    Attributes:
        name: The path.
        points: (n, d).
        n_all: Signals that there are; n is smaller where they were cut at `most`.
    """

    name: str
    points: np.ndarray
    n_all: int

    def describe(self, kind: str) -> str:
        """How many signals were compared."""
        n = len(self.points)
        unit = unit_of(kind)
        if n < self.n_all:
            return f"{self.name}: {n:,} of {self.n_all:,} {unit}, chosen at random"
        return f"{self.name}: {n:,} {unit}"


@dataclass(frozen=True)
class Compared:
    """What `compare` found.

    Attributes:
        kind: One of KINDS.
        a: The first set, of standardised points.
        b: The second.
        features: Names of the coordinates.
        constant: Names of those that are the same in all signals, and left out.
        found: The tests.
        means: Means of both sets (2, d), in the features' own units.
        spread: Standard deviations (d,) of both sets together.
        apart: Wasserstein-1 distances (d,) of each feature alone, in `spread`.
    """

    kind: str
    a: Side
    b: Side
    features: tuple[str, ...]
    constant: tuple[str, ...]
    found: TwoSample
    means: np.ndarray
    spread: np.ndarray
    apart: np.ndarray


def compare(
    a: str,
    b: str,
    kind: str | None = None,
    columns: Sequence[str] = (),
    tests: Sequence[str] = (),
    most: int = 2_000,
    n_null: int = 500,
    n_power: int = 20,
    classifier: str = "boosted",
    reading: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Compared:
    """Compare the signals of two files or folders.

    Args:
        a: A path, or - for lines of text on stdin.
        b: Another.
        kind: One of KINDS; None finds it by the files' suffixes.
        columns: Of tables: those that are compared.
        tests: Of `mmtok.metrics.statistics.TESTS`; none for all. Of jets also PARTICLES.
        most: Signals of each set, at random; more are left out, and said.
        n_null: Permutations.
        n_power: Pairs of sets that power is of; 0 for none.
        classifier: Of the classifier test.
        reading: How files of jets are read (`SignalFiles.options`).
        seed: Of all that is random.

    Raises UserError for what cannot be read or compared.
    """
    for name, value, least in (("-n", most, LEAST_POINTS), ("--permutations", n_null, 1)):
        if value < least:
            raise UserError(f"compare: {name} is {value}; it must be at least {least}")
    kind = _kind_of_both(a, b, kind)
    _check_tests(tests, kind)
    read = [read_points(place, kind, columns, most, reading or {}, seed) for place in (a, b)]
    names = [side.names for side in read]
    points = [side.points for side in read]
    if names[0] != names[1]:
        raise UserError(
            f"compare: {a} has the columns {listed(names[0])}, and {b} {listed(names[1])}; name"
            " some that both have: --columns NAME,..."
        )
    pooled = np.concatenate(points)
    spread = pooled.std(0)
    varied = spread > 1e-12 * np.abs(pooled).max(0)
    if not varied.any():
        raise UserError(f"compare: all {unit_of(kind)} of {a} and {b} have the same features")
    x, y = ((p[:, varied] - pooled[:, varied].mean(0)) / spread[varied] for p in points)
    alternative = None
    if n_power > 0:
        alternative = DECLARED
    found = two_sample(
        x,
        y,
        [name for name in tests or TESTS if name != PARTICLES],
        n_null=n_null,
        alternative=alternative,
        n_power=n_power,
        classifier=classifier,
        seed=seed,
    )
    if PARTICLES in tests:
        by_particles = {PARTICLES: _by_particles(read, n_null, seed)}
        found = dataclasses.replace(found, tests=found.tests | by_particles)
    return Compared(
        kind,
        Side(a, x, read[0].n_all),
        Side(b, y, read[1].n_all),
        tuple(np.array(names[0], object)[varied]),
        tuple(np.array(names[0], object)[~varied]),
        found,
        np.stack([p[:, varied].mean(0) for p in points]),
        spread[varied],
        _apart(x, y),
    )


def _check_tests(tests: Sequence[str], kind: str) -> None:
    """Raise UserError for a test that there is not, before anything is read."""
    known: tuple[str, ...] = TESTS
    if kind == "jets":
        known = (*TESTS, PARTICLES)
    for name in tests:
        if name == PARTICLES and name not in known:
            raise UserError(f"compare: the test {PARTICLES} is of jets, not of {unit_of(kind)}")
        if name not in known:
            raise UserError(f"compare: test {name!r} is unknown; one of {', '.join(known)}")


def _by_particles(read: Sequence[Read], n_null: int, seed: int) -> TestResult:
    """The AUC of a set transformer on the jets themselves; its power is not measured."""
    from mmtok.metrics.particle_test import particle_test  # brings torch

    start = time.process_time()
    a, b = (side.signals for side in read)
    test = particle_test(a, b, seed, n_null)
    return of_classifier(PARTICLES, test, time.process_time() - start)


def _kind_of_both(a: str, b: str, kind: str | None) -> str:
    """What both sides hold; `kind`, where it is given. Raises UserError where they differ."""
    if a == b == STDIN:
        raise UserError("compare: - is stdin, which only one side can read")
    kinds = [kind or kind_of(place) for place in (a, b)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"compare: {a} holds {kinds[0]} and {b} {kinds[1]}; --modality says what both are"
        )
    return kinds[0]


def _apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distances (d,) of each coordinate alone."""
    return np.array([w1(p, q) for p, q in zip(x.T, y.T, strict=True)])


def comma_names(text: str | None) -> list[str]:
    """Names that a command line gives with commas between them."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def columns_of(text: str | None) -> tuple[list[str], str | None]:
    """What --columns says of tables, a list of names, and what of files of jets, pt=part_pt,..."""
    if text and "=" in text:
        return [], text
    return comma_names(text), None


# ---- what is printed


def as_text(compared: Compared) -> str:
    """The comparison as lines of text."""
    found = compared.found
    lines = [
        f"A  {compared.a.describe(compared.kind)}",
        f"B  {compared.b.describe(compared.kind)}",
        "",
        f"{'feature':<32} {'mean of A':>12} {'mean of B':>12} {'sd':>12} {'W1 / sd':>8}",
    ]
    for i, name in enumerate(compared.features):
        a, b = compared.means[:, i]
        lines.append(
            f"{name:<32} {a:>12.5g} {b:>12.5g} {compared.spread[i]:>12.5g}"
            f" {compared.apart[i]:>8.3f}"
        )
    if compared.constant:
        lines.append(f"the same in all, so not compared: {', '.join(compared.constant)}")
    lines += ["", f"{'test':<9} {'statistic':>10} {'null 95 %':>10} {'p-value':>17} {'power':>12}"]
    for name, test in found.tests.items():
        power = "-"
        if math.isfinite(test.power):
            power = f"{test.power:.2f} ± {test.power_error:.2f}"
        p = f"{test.p_value:.4f} ± {test.p_error:.4f}"
        lines.append(
            f"{name:<9} {test.statistic:>10.4g} {test.quantiles[0.95]:>10.4g} {p:>17} {power:>12}"
        )
    n_null = next(iter(found.tests.values())).n_null
    lines.append(
        f"features are divided by their sd; null: {n_null:,} permutations, seed {found.seed}"
    )
    if any(math.isfinite(test.power) for test in found.tests.values()):
        lines.append(f"power: how often p < 0.05 of {found.alternative} sd of every feature")
    return lines_text(lines)


def as_json(compared: Compared) -> str:
    """The comparison as one JSON object."""
    found = compared.found
    features = {
        name: {
            "mean_a": float(compared.means[0, i]),
            "mean_b": float(compared.means[1, i]),
            "sd": float(compared.spread[i]),
            "w1_per_sd": float(compared.apart[i]),
        }
        for i, name in enumerate(compared.features)
    }
    plain = {
        "modality": compared.kind,
        "a": _side(compared.a),
        "b": _side(compared.b),
        "features": features,
        "constant": list(compared.constant),
        "null": found.null,
        "alternative": found.alternative,
        "seed": found.seed,
        "tests": {name: _finite(dataclasses.asdict(test)) for name, test in found.tests.items()},
    }
    return json.dumps(plain, indent=1)


def _side(side: Side) -> dict[str, Any]:
    return {"path": side.name, "n": len(side.points), "n_all": side.n_all}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """None in the place of NaN, which JSON does not have."""
    found = dict(values)
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            found[key] = None
    return found
