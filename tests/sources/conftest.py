"""Collider events, made once, and the writers of their files."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def collider():
    """50 events of Pythia, and what writes them; see collider_files.py."""
    for package in ("pythia8mc", "fastjet", "uproot", "awkward", "pyhepmc"):
        pytest.importorskip(package)
    made = runpy.run_path(str(Path(__file__).with_name("collider_files.py")))
    return SimpleNamespace(**made, events=made["make_events"](50))


@pytest.fixture
def rebuilt():
    """rebuilt(reader) -> pt and mass of each jet, summed from what the reader gives."""
    from mmtok.sources.jet_coordinates import axes_of_sums, four_momenta

    def sums(reader, axis_eta):
        features = ("pt_gev", "eta_rel", "phi_rel", "mass_gev")
        values, offsets = reader.read(0, reader.n_jets, features)
        pt, eta, phi, mass = values.astype(float).T
        eta = eta + axis_eta.repeat(offsets[1:] - offsets[:-1])
        axes = axes_of_sums(*four_momenta(pt, eta, phi, mass), offsets)
        return axes.pt, axes.mass

    return sums
