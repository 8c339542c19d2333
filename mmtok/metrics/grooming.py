"""Jets without their pile-up, by rules: soft drop, and PUPPI's weights.

A jet is (P, F) with the columns pt_gev, eta, phi first, as in `mmtok.metrics.substructure`.
"""

from __future__ import annotations

import numpy as np

from mmtok.metrics.substructure import CAMBRIDGE, RADIUS, cluster, shares_and_distances

PUPPI_RADIUS = 0.3  # R_0: how far a particle's neighbours reach
PUPPI_LEAST_RADIUS = 0.02  # R_min: nearer ones are taken for the particle itself
PUPPI_LEAST_WEIGHT = 0.1
PUPPI_PT_GEV = 0.1  # that a weighted particle must have, and so much more per collision
PUPPI_PT_PER_COLLISION_GEV = 0.007


def soft_drop(
    jet: np.ndarray, z_cut: float = 0.1, beta: float = 0.0, radius: float = RADIUS
) -> np.ndarray:
    """The particles of a jet (P, F) that soft drop keeps, in their order.

    The Cambridge/Aachen clustering is undone from its last step on; the softer branch is dropped
    until min(pt_1, pt_2) / (pt_1 + pt_2) > z_cut (dR / R_0)^beta. Source: Larkoski, Marzani, Soyez
    and Thaler 2014 (arXiv 1402.2657), equation 1.1.
    """
    steps = cluster(jet, CAMBRIDGE)
    n = len(jet)
    node = n + len(steps) - 1  # of no step: the one particle
    while node >= n:
        step = steps[node - n]
        hard = step.harder[0]
        soft = step.softer[0]
        z = soft / max(hard + soft, 1e-300)
        if z > z_cut * (step.delta_r / radius) ** beta:
            break
        node = step.left[0]
    kept = []
    open_nodes = [node] if n else []
    while open_nodes:
        at = open_nodes.pop()
        if at < n:
            kept.append(at)
        else:
            open_nodes += steps[at - n].left
    return np.asarray(jet)[sorted(kept)]


def puppi(jet: np.ndarray, n_collisions: float = 0.0) -> np.ndarray:
    """A jet (P, F) whose particles have their pt times PUPPI's weight; those near 0 are left out.

    alpha_i = log sum_j pt_j / dR_ij over neighbours with R_min <= dR_ij <= R_0; with the median of
    all particles' alpha and the root mean square of those below it, the weight is the chi-squared
    distribution function of ((alpha_i - median) / rms)^2 above the median, 0 below. Without
    tracking, as for particles of the forward region: which charged particles are of the hard
    collision is not known, so that the median is of all and neighbours are all. That takes most
    particles for pile-up. Source: Bertolini, Harris, Low and Tran 2014 (arXiv 1407.6013, section
    2).

    n_collisions: of pile-up; a weighted particle needs 0.1 + 0.007 n GeV.
    """
    from scipy.stats import chi2

    jet = np.asarray(jet, np.float64)
    if not len(jet):
        return jet
    _, apart = shares_and_distances(jet)
    is_near = (apart >= PUPPI_LEAST_RADIUS) & (apart <= PUPPI_RADIUS)
    sums = np.where(is_near, jet[:, 0] / np.maximum(apart, PUPPI_LEAST_RADIUS), 0).sum(1)
    is_alone = sums <= 0  # has no neighbours, as particles of pile-up may
    alpha = np.log(np.where(is_alone, 1.0, sums))
    if is_alone.all():
        return jet[:0]
    median = np.median(alpha[~is_alone])
    below = alpha[~is_alone & (alpha <= median)]
    rms = max(float(np.sqrt(np.square(below - median).mean())), 1e-12)
    weight = chi2.cdf(np.square((alpha - median) / rms), 1)
    weight = np.where(is_alone | (alpha <= median), 0.0, weight)
    weighted = jet.copy()
    weighted[:, 0] *= weight
    least = PUPPI_PT_GEV + PUPPI_PT_PER_COLLISION_GEV * n_collisions
    return weighted[(weight > PUPPI_LEAST_WEIGHT) & (weighted[:, 0] > least)]
