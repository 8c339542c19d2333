"""Coordinates of constituents: there and back, known by hand, unchanged by a boost."""

import numpy as np
import pytest

from mmtok.sources.jet_coordinates import (
    about_axes,
    axes_of_sums,
    four_momenta,
    masses_by_id,
    pt_eta_phi,
    rapidity_of,
)
from mmtok.sources.jet_reader import jet_of_particle, offsets_of, selected


def particles(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 300, n), rng.normal(0, 2, n), rng.uniform(-np.pi, np.pi, n)


def test_momenta_there_and_back():
    pt, eta, phi = particles()
    for mass in (0.0, 0.14):
        px, py, pz, energy = four_momenta(pt, eta, phi, mass)
        np.testing.assert_allclose(pt_eta_phi(px, py, pz), (pt, eta, phi), rtol=1e-9)
        np.testing.assert_allclose(energy**2 - px**2 - py**2 - pz**2, mass**2, atol=1e-6)
        px, py, pz, energy = four_momenta(pt, eta, phi, mass, is_rapidity=True)
        np.testing.assert_allclose(rapidity_of(pz, energy), eta, rtol=1e-9)
        np.testing.assert_allclose(np.hypot(px, py), pt)


def test_two_massless_particles_back_to_back_are_a_mass_at_rest():
    momenta = four_momenta(np.array([50.0, 50.0]), np.zeros(2), np.array([0.0, np.pi]))
    axes = axes_of_sums(*momenta, np.array([0, 2, 2]))
    np.testing.assert_allclose(axes.mass, [100, 0])
    np.testing.assert_allclose(axes.pt, [0, 0], atol=1e-12)


def test_a_boost_along_the_beam_changes_no_difference_from_the_rapidity_of_the_sum():
    pt, eta, phi = particles()
    phi = phi / 8 + 3
    offsets = np.array([0, 30, 30, 120, 200])
    there = []
    for boost in (0.0, 1.3):
        axes = axes_of_sums(*four_momenta(pt, eta + boost, phi), offsets)
        there.append(about_axes(eta + boost, phi, axes.y, axes.phi, offsets))
    np.testing.assert_allclose(there[0], there[1], atol=1e-9)
    eta_rel, phi_rel = there[0]
    jet = jet_of_particle(offsets)
    np.testing.assert_allclose(np.bincount(jet, pt * np.sinh(eta_rel)), 0, atol=1e-6)
    assert np.abs(phi_rel).max() < np.pi


def test_a_particle_along_the_beam_or_without_momentum():
    pt, eta, phi = pt_eta_phi(np.zeros(3), np.zeros(3), np.array([2.0, -2.0, 0.0]))
    assert eta.tolist() == [np.inf, -np.inf, 0]
    assert rapidity_of(np.zeros(1), np.zeros(1)).tolist() == [0]


def test_selected_particles_and_their_offsets():
    values = np.arange(6)[:, None]
    kept, offsets = selected(values, offsets_of(np.array([2, 0, 4])), values[:, 0] % 3 > 0)
    assert kept[:, 0].tolist() == [1, 2, 4, 5]
    assert offsets.tolist() == [0, 1, 1, 4]


def test_masses():
    found = masses_by_id(np.array([22, -211, 211, -11, 999]))
    assert found == pytest.approx([0, 0.13957, 0.13957, 0.000511, 0.13957], rel=1e-4)
