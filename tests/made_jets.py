"""Jets that tests learn from: random ones, and ones of two kinds that a caption tells apart."""

import numpy as np

from mmtok.sources.jet_formats import write_jets


def make_jets(n=60, seed=0, most=30):
    """n jets of 1 to most - 1 constituents, not sorted."""
    rng = np.random.default_rng(seed)
    jets = []
    for _ in range(n):
        pt = np.exp(rng.normal(1.0, 1.2, rng.integers(1, most)))
        jets.append(np.stack((pt, *rng.normal(0, 0.2, (2, len(pt)))), 1).astype(np.float32))
    return jets


def write_two_kinds(folder):
    """Small jets of two particles, and large ones of five to eight; a caption each."""
    rng = np.random.default_rng(0)
    made = []
    labels = []
    for i in range(160):
        n = (2, rng.integers(5, 9))[i % 2]
        angles = rng.normal(0, 0.2, (2, n))
        made.append(np.stack([rng.uniform(1, 90, n), *angles], 1).astype(np.float32))
        labels.append(("small", "large")[i % 2])
    write_jets(folder / "jets.npz", made)
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    return folder
