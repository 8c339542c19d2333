"""Jets through a fixed number of latents, beside a code of each constituent: what is lost.

    python scripts/bench_jet_sets.py CACHE              all rows, one after another
    python scripts/bench_jet_sets.py CACHE --only matched vq

The jets are those of `PythiaJets()`, kept in CACHE: 13,500 gluon, quark and top jets to learn from,
and --jets held-out ones. They have 72 constituents on average, so that per-particle codes are about
as many numbers as the 64 of the autoencoder. Widths are half of the central 68 % of what the round
trip changes, with a 95 % bootstrap interval over jets. `matched-10` are the latents of `matched` in
10 bits each, 640 a jet: about those of the codes. EMD: the median energy mover's distance to the
jet itself, in GeV, R = 0.8.

Bar: the mass is kept better than by the codes, with an interval of the difference that excludes 0.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import called
from timed import verdict

from mmtok.io.files import write_text
from mmtok.metrics.energy_flow import emd
from mmtok.metrics.jets import girths, masses, pt_dispersions, summed_pts
from mmtok.sources.pythia import PythiaJets
from mmtok.tokenizers.jet_autoencoder import JetAutoencoderConfig
from mmtok.tokenizers.jet_networks import PerParticle
from mmtok.tokenizers.jet_totals import half_width
from mmtok.tokenizers.jet_vq import JetVQConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.train.tokenizer_fit import fit_tokenizer

LOSSES = ("matched", "sorted", "chamfer", "sinkhorn")
OBSERVABLES = {
    "mass": masses,
    "pt": summed_pts,
    "girth": girths,
    "pt_dispersion": pt_dispersions,
}
MOST_PARTICLES = 128
N_BOOTSTRAP = 1000
N_EMD = 200
RADIUS = 0.8
STEP = 1 / 64  # of latents in 10 bits: 1,023 of these are 16 standard deviations
MOST_LEVEL = 511


def rows(steps: int) -> dict[str, Any]:
    """Name -> config."""
    sets = {loss: JetAutoencoderConfig(loss=loss, steps=steps) for loss in LOSSES}
    return {"vq": JetVQConfig(VQ(1000, 4), PerParticle(), steps=600), **sets}


def measured(back: Sequence[np.ndarray], jets: Sequence[np.ndarray]) -> dict[str, Any]:
    """What the round trip changes of each observable (N,), and the EMD of some jets."""
    found: dict[str, Any] = {
        name: (observe(back) - observe(jets)).tolist() for name, observe in OBSERVABLES.items()
    }
    pairs = zip(back[:N_EMD], jets[:N_EMD], strict=True)
    found["emd"] = [emd(a, b, radius=RADIUS) for a, b in pairs]
    return found


def interval(
    statistic: Callable[[np.ndarray], float], values: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """A 95 % bootstrap interval of a statistic of values (N, ...)."""
    rng = np.random.default_rng(seed)
    draws = [
        statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(N_BOOTSTRAP)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def row_of(
    name: str, config: Any, to_fit: Sequence[np.ndarray], jets: Sequence[np.ndarray]
) -> dict[str, Any]:
    """The figures of one tokenizer."""
    begun = time.process_time()
    tokenizer = fit_tokenizer(config, to_fit, precision="float32")
    row: dict[str, Any] = {"fit_s": time.process_time() - begun}
    segments = tokenizer.encode_batch(jets)
    row[name] = measured(tokenizer.decode_batch(segments), jets)
    if name == "matched":
        for segment in segments:
            levels = np.round(segment.latents / STEP).clip(-MOST_LEVEL, MOST_LEVEL)
            segment.latents[:] = levels * STEP
        row["matched-10"] = measured(tokenizer.decode_batch(segments), jets)
    return row


def line_of(name: str, fit_s: float, found: dict[str, Any]) -> str:
    """A row of the table."""
    mass = np.array(found["mass"])
    low, high = interval(half_width, mass)
    cells = [name, f"{fit_s:.0f}", f"{half_width(mass):.2f} ({low:.2f} to {high:.2f})"]
    cells += [f"{np.median(mass):+.2f}", f"{half_width(np.array(found['pt'])):.1f}"]
    cells += [f"{half_width(np.array(found[key])):.4f}" for key in ("girth", "pt_dispersion")]
    low, high = interval(lambda x: float(np.median(x)), np.array(found["emd"]))
    cells += [f"{np.median(found['emd']):.1f} ({low:.1f} to {high:.1f})"]
    return f"| {' | '.join(cells)} |"


def compared(name: str, ours: dict[str, Any], codes: dict[str, Any]) -> str:
    """The bar: the ratio of both mass widths, jet by jet, with its interval."""
    pairs = np.stack([ours["mass"], codes["mass"]], 1)

    def ratio(rows: np.ndarray) -> float:
        return half_width(rows[:, 0]) / half_width(rows[:, 1])

    low, high = interval(ratio, pairs)
    is_met = high < 1
    return f"{name} / vq, mass: {ratio(pairs):.3f} ({low:.3f} to {high:.3f}): {verdict(is_met)}"


def main() -> None:
    """Measure the rows asked for, and print them as they come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="a folder for the jets and the rows")
    parser.add_argument("--jets", type=int, default=1500, help="held-out jets")
    parser.add_argument("--steps", type=int, default=400, help="of the autoencoders")
    parser.add_argument("--only", nargs="*", default=["vq", *LOSSES])
    args = parser.parse_args()
    source = PythiaJets()
    to_fit = [one["jets"] for one in source.examples("train", args.cache)]
    heldout = [one["jets"][:MOST_PARTICLES] for one in source.examples("heldout", args.cache)]
    chosen = np.random.default_rng(0).permutation(len(heldout))[: args.jets]
    jets = [heldout[i] for i in chosen]
    print("| row | fit, s | mass, GeV | shift | pt, GeV | girth | pt dispersion | EMD, GeV |")
    print("|---|---|---|---|---|---|---|---|")
    found = {}
    for name in args.only:
        path = args.cache / f"{name}-{args.jets}-{args.steps}.json"
        if not path.exists():
            row = row_of(name, rows(args.steps)[name], to_fit, jets)
            write_text(path, json.dumps(row))
        row = json.loads(path.read_text())
        for key in [key for key in row if key != "fit_s"]:
            found[key] = row[key]
            print(line_of(key, row["fit_s"], row[key]), flush=True)
    for name in [name for name in found if name != "vq" and "vq" in found]:
        print(compared(name, found[name], found["vq"]))


if __name__ == "__main__":
    called(main)
