"""Energy flow of jets: energy flow polynomials, and the energy mover's distance.

A jet is (P, F) with the columns pt_gev, eta, phi first. Distances are in eta and phi, of massless
constituents. Letters: P particles, n jets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement, permutations

import numpy as np

from mmtok.errors import UserError, missing_extra
from mmtok.metrics.substructure import shares_and_distances
from mmtok.nn.angles import wrap

MOST_DEGREE = 4
LETTERS = "abcdefgh"

# pairs of vertices, in order; a pair may come several times
Graph = tuple[tuple[int, int], ...]


# ---- energy flow polynomials


@cache
def multigraphs(degree: int) -> tuple[Graph, ...]:
    """All connected multigraphs of `degree` edges without loops, each once: 1, 2, 5, 12 of 1 to 4.

    Source: Komiske, Metodiev and Thaler 2018 (arXiv 1712.07124), table 1.
    """
    found: set[Graph] = set()
    for n in range(2, degree + 2):
        pairs = [(i, j) for j in range(n) for i in range(j)]
        for edges in combinations_with_replacement(pairs, degree):
            if _is_connected(edges, n):
                found.add(_canonical(edges, n))
    return tuple(sorted(found, key=_vertices_first))


def _vertices_first(edges: Graph) -> tuple[int, Graph]:
    return max(map(max, edges)), edges


def _is_connected(edges: Sequence[tuple[int, int]], n: int) -> bool:
    """Whether all of n vertices hang together."""
    reached = {0}
    for _ in range(n):
        reached |= {k for edge in edges if reached & set(edge) for k in edge}
    return len(reached) == n


def _canonical(edges: Sequence[tuple[int, int]], n: int) -> Graph:
    """The smallest of a graph's lists of edges, over all names of its vertices."""
    return min(
        tuple(sorted((min(p[i], p[j]), max(p[i], p[j])) for i, j in edges))
        for p in permutations(range(n))
    )


def polynomials(degree: int = MOST_DEGREE) -> tuple[tuple[Graph, ...], ...]:
    """The factors of all energy flow polynomials up to a degree, connected ones first.

    Without the constant there are 35 up to degree 4: 20 of one graph, 15 products.
    """
    prime = [graph for k in range(1, degree + 1) for graph in multigraphs(k)]
    found: list[tuple[Graph, ...]] = []
    for n_factors in range(1, degree + 1):
        for factors in combinations_with_replacement(prime, n_factors):
            if sum(map(len, factors)) <= degree:
                found.append(factors)
    return tuple(found)


def polynomial_name(factors: Sequence[Graph]) -> str:
    """A polynomial's edges: "ab ab" is sum z_a z_b theta_ab^2, " x " stands between factors."""
    return " x ".join(" ".join(LETTERS[i] + LETTERS[j] for i, j in graph) for graph in factors)


def energy_flow(
    jets: Sequence[np.ndarray], degree: int = MOST_DEGREE, beta: float = 1.0
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and values (n, 35) of the energy flow polynomials of jets.

    EFP_G = sum over i_1 ... i_N of z_i1 ... z_iN, times theta_ij^beta for each edge of G, with z
    the share of the summed pt and theta the distance in eta and phi. 0 of a jet without particles.
    Source: Komiske, Metodiev and Thaler 2018 (arXiv 1712.07124), equation 1.

    degree: From 1 to 4.
    """
    if not 1 <= degree <= MOST_DEGREE:
        raise UserError(f"energy_flow: degree is {degree}; it is from 1 to {MOST_DEGREE}")
    factors = polynomials(degree)
    prime = [graphs[0] for graphs in factors if len(graphs) == 1]
    column = {graph: k for k, graph in enumerate(prime)}
    found = np.zeros((len(jets), len(prime)))
    for row, jet in zip(found, jets, strict=True):
        if len(jet):
            z, theta = shares_and_distances(jet)
            row[:] = [_value(graph, z, theta**beta) for graph in prime]
    values = [found[:, [column[g] for g in graphs]].prod(1) for graphs in factors]
    return tuple(map(polynomial_name, factors)), np.stack(values, 1)


def _value(graph: Graph, z: np.ndarray, theta: np.ndarray) -> float:
    """One connected polynomial, contracted along the cheapest path."""
    script, factors, path = _contraction(graph)
    operands = []
    for power, first, second in factors:
        operand = theta**power
        if first:
            operand = operand * z[:, None]
        if second:
            operand = operand * z
        operands.append(operand)
    return float(np.einsum(script, *operands, optimize=path))


@cache
def _contraction(graph: Graph) -> tuple[str, tuple[tuple[int, bool, bool], ...], list]:
    """The sum as einsum writes it: the script, its factors, and the path.

    A factor is the power of a pair's distance, as equal edges are one, and whether the weights of
    its first and second vertex are in it: a vertex's weight is in the first pair that has it.
    """
    pairs = sorted(set(graph))
    factors = []
    weighted: set[int] = set()
    for i, j in pairs:
        factors.append((graph.count((i, j)), i not in weighted, j not in weighted))
        weighted |= {i, j}
    script = ",".join(LETTERS[i] + LETTERS[j] for i, j in pairs) + "->"
    shapes = [np.empty((64, 64))] * len(pairs)
    path = np.einsum_path(script, *shapes, optimize="optimal")[0]
    return script, tuple(factors), list(path)


# ---- energy mover's distance


def emd(
    a: np.ndarray,
    b: np.ndarray,
    radius: float = 1.0,
    beta: float = 1.0,
    normalised: bool = False,
) -> float:
    """Energy mover's distance of two jets, in GeV; without a unit where `normalised`.

    The least sum of f_ij (theta_ij / R)^beta over transports f of pt, plus |sum pt_a - sum pt_b|.
    Exact: by the network simplex of POT. A metric for beta <= 1 and 2 R at least the largest
    distance of particles. Source: Komiske, Metodiev and Thaler 2019 (arXiv 1902.02346), equation 1.

    Args:
        a: A jet (P, F).
        b: Another (Q, F).
        radius: R.
        beta: Power of the distances.
        normalised: Take shares of the summed pt in the place of pt.

    Raises UserError without POT, and for a negative pt.
    """
    try:
        from ot import emd2
    except ModuleNotFoundError:
        raise missing_extra("the energy mover's distance", "eval") from None
    pt_a, eta_a, phi_a = np.asarray(a, np.float64)[:, :3].T
    pt_b, eta_b, phi_b = np.asarray(b, np.float64)[:, :3].T
    if (pt_a < 0).any() or (pt_b < 0).any():
        raise UserError("emd: a particle's pt is negative")
    sum_a = pt_a.sum()
    sum_b = pt_b.sum()
    if normalised:
        if not sum_a or not sum_b:
            raise UserError("emd: a jet without pt has no shares of it")
        pt_a = pt_a / sum_a
        pt_b = pt_b / sum_b
        sum_a = sum_b = 1.0
    if not sum_a or not sum_b:
        return float(sum_a + sum_b)
    theta = np.hypot(eta_a[:, None] - eta_b, wrap(phi_a[:, None] - phi_b))
    # what one jet has more is carried to a particle that is R away from all
    costs = np.ones((len(pt_a) + 1, len(pt_b) + 1))
    costs[:-1, :-1] = (theta / radius) ** beta
    costs[-1, -1] = 0.0
    from_a = np.append(pt_a, max(sum_b - sum_a, 0.0))
    to_b = np.append(pt_b, max(sum_a - sum_b, 0.0))
    scale = max(sum_a, sum_b)
    # rounding must not leave one side with more than the other
    to_b *= from_a.sum() / to_b.sum()
    return float(emd2(from_a / scale, to_b / scale, costs) * scale)


def emds(
    jets_a: Sequence[np.ndarray],
    jets_b: Sequence[np.ndarray],
    radius: float = 1.0,
    beta: float = 1.0,
    normalised: bool = False,
) -> np.ndarray:
    """Energy mover's distances (n, m) of all pairs of two sets of jets, as `emd`."""
    rows = [[emd(a, b, radius, beta, normalised) for b in jets_b] for a in jets_a]
    return np.array(rows, np.float64).reshape(len(jets_a), len(jets_b))
