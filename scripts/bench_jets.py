"""How much substructure tokenizers of jets keep: one table over held-out jets.

    python scripts/bench_jets.py CACHE                   20,000 jets of all classes; made in CACHE
    python scripts/bench_jets.py CACHE --jets 1200 --only grid-41-31-31 equal-41-61-61 --by-class

A line is a tokenizer: the worst AUC of a class, and means over classes of all else.

AUC: boosted trees on mass, pt, multiplicity, tau21, tau32 and D2 tell jets after a round trip from
jets as they are. Each jet is among both; trees are tested on jets that they were not trained on.
`+-` is half of a 95 % interval (Hanley and McNeil 1982); the row `none` compares jets with other
jets. Widths are half of the central 68 % of what the round trip changes. Live: distinct frames, of
the vocabulary. Rates are of one thread, by its processor's time. Rows are kept in CACHE/rows.jsonl,
and one that is there is not measured again.

Bars: an AUC of at most 0.55 for each class; with as many codes, per-particle VQ keeps the mass of
every class better than the grid, and whole-jet VQ better than per-particle VQ.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import called

from mmtok.errors import UserError, missing_extra
from mmtok.io.serialize import to_plain
from mmtok.io.terminal import print_status
from mmtok.metrics.jets import masses, multiplicities, summed_pts
from mmtok.metrics.substructure import substructure
from mmtok.sources.pythia import PythiaJets
from mmtok.sources.pythia_events import CLASSES
from mmtok.tokenizers.base import Tokenizer
from mmtok.tokenizers.jet_codes import JetCodesConfig
from mmtok.tokenizers.jet_latents import JetLatentsConfig
from mmtok.tokenizers.jet_networks import PerParticle, WholeJet
from mmtok.tokenizers.jet_vq import JetVQConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.train.tokenizer_fit import fit_tokenizer

NAMES = ("mass", "pt", "multiplicity", "tau21", "tau32", "d2")
BAR = 0.55
FOLDS = 5
N_FITTED = 13_500  # jets that a tokenizer learns from
MOST_PARTICLES = 128
BOTH = ("pt_gev", "mass_gev")
EQUAL = (0.0, 0.0, 0.0)  # core: equal bins
COARSE = (41, 31, 31)  # bins of the recipes
ROWS = {
    "equal-41-31-31": JetGridConfig(core=EQUAL, bins=COARSE),
    "equal-41-61-61": JetGridConfig(core=EQUAL, bins=(41, 61, 61)),
    "equal-totals": JetGridConfig(core=EQUAL, bins=COARSE, totals=BOTH),
    "grid-31-31-31": JetGridConfig(bins=(31, 31, 31)),
    "grid-41-25-25": JetGridConfig(bins=(41, 25, 25)),
    "grid-41-31-31": JetGridConfig(bins=COARSE),
    "grid-47-31-31": JetGridConfig(bins=(47, 31, 31)),
    "grid-41-41-41": JetGridConfig(bins=(41, 41, 41)),
    "grid-31-51-51": JetGridConfig(bins=(31, 51, 51)),
    "grid-25-61-61": JetGridConfig(bins=(25, 61, 61)),
    "grid-41-51-51": JetGridConfig(bins=(41, 51, 51)),
    "grid-31-61-61": JetGridConfig(bins=(31, 61, 61)),
    "grid-41-61-61": JetGridConfig(),  # the default
    "grid-41-81-81": JetGridConfig(bins=(41, 81, 81)),
    "grid-totals": JetGridConfig(bins=COARSE, totals=BOTH),
    "continuous": JetLatentsConfig(),
    "residual-2x512": JetCodesConfig(n_codes=512, n_books=2),
    "residual-3x256": JetCodesConfig(n_codes=256, n_books=3),
    # about as many codes each
    "grid-1000": JetGridConfig(bins=(10, 10, 10)),
    "k-means-1000": JetCodesConfig(n_codes=1000),
    "residual-1024": JetCodesConfig(n_codes=32, n_books=2),
    "vq-1000": JetVQConfig(VQ(1000, 4), PerParticle(), steps=600),
    "jet-vq-1000": JetVQConfig(VQ(1000, 4), WholeJet(), steps=600),
    "grid-8000": JetGridConfig(bins=(20, 20, 20)),
    "k-means-8000": JetCodesConfig(n_codes=8000),
    "residual-8000": JetCodesConfig(n_codes=20, n_books=3),
    "vq-8000": JetVQConfig(VQ(8000, 4), PerParticle(), steps=300),
    "jet-vq-8000": JetVQConfig(VQ(8000, 4), WholeJet(), steps=300),
}
EQUAL_SIZES = (1000, 8000)  # in the names of rows


def auc_of_classifier(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The AUC of boosted trees that tell rows a (N, F) from rows b (N, F), and half its interval.

    Row i of both is of one jet, and in one fold.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    n = len(a)
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    rows = np.concatenate([a, b])
    is_b = np.repeat([0, 1], n)
    fold = np.concatenate([fold, fold])
    found = []
    for k in range(FOLDS):
        trees = HistGradientBoostingClassifier(
            max_leaf_nodes=15, min_samples_leaf=40, early_stopping=False, random_state=seed
        )
        is_test = fold == k
        trees.fit(rows[~is_test], is_b[~is_test])
        found.append(roc_auc_score(is_b[is_test], trees.decision_function(rows[is_test])))
    auc = float(np.mean(found))
    return auc, 1.96 * _auc_error(auc, n)


def _auc_error(auc: float, n: int) -> float:
    """The standard error of an AUC of n against n (Hanley and McNeil 1982, equation 1)."""
    q1 = auc / (2 - auc)
    q2 = 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)
    return math.sqrt(max(spread, 0.0)) / n


def half_width(x: np.ndarray) -> float:
    """Half the width of the central 68.27 %."""
    low, high = np.quantile(x, (0.15865, 0.84135))
    return float(0.5 * (high - low))


# ---- jets


def made_jets(cache: Path, n: int) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Jets to learn from, and class -> held-out jets; about `n` of these in all."""
    n_heldout = round(n / len(CLASSES))
    source = PythiaJets(
        n_per_class=n_heldout + math.ceil(N_FITTED / len(CLASSES)),
        n_heldout=n_heldout,
        classes=CLASSES,
    )
    to_fit = [cut(example["jets"]) for example in source.examples("train", cache)]
    held_out: dict[str, list[np.ndarray]] = {}
    for example in source.examples("heldout", cache):
        held_out.setdefault(example["caption"], []).append(cut(example["jets"]))
    return to_fit, held_out


def cut(jet: np.ndarray) -> np.ndarray:
    """The hardest particles, which are those that tokenizers keep."""
    return jet[:MOST_PARTICLES, :3]


def observables(jets: Sequence[np.ndarray]) -> np.ndarray:
    """NAMES of jets (P, 3), (N, 6)."""
    found = {
        "mass": masses(jets),
        "pt": summed_pts(jets),
        "multiplicity": multiplicities(jets),
        **substructure(jets),
    }
    return np.stack([found[name] for name in NAMES], 1)


# ---- one row


def measured(
    name: str, config: Any, to_fit: Sequence[np.ndarray], real: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of one tokenizer.

    real: class -> (jets, their observables).
    """
    begun = time.process_time()
    tokenizer = fit_tokenizer(config, to_fit)
    row: dict[str, Any] = {"name": name, "fit_s": time.process_time() - begun, "classes": {}}
    seconds = {"encode": 0.0, "decode": 0.0}
    codes = []
    for label, (jets, found) in real.items():
        begun = time.process_time()
        segments = tokenizer.encode_batch(jets)
        encoded = time.process_time()
        back = tokenizer.decode_batch(segments)
        seconds["encode"] += encoded - begun
        seconds["decode"] += time.process_time() - encoded
        codes += [segment.values for segment in segments]
        row["classes"][label] = of_class(found, observables(back))
    n_jets = len(codes)
    row |= sizes(tokenizer, np.concatenate(codes), n_jets)
    row |= {f"{what}_jets_per_s": n_jets / max(s, 1e-9) for what, s in seconds.items()}
    return row


def of_class(found: np.ndarray, back: np.ndarray) -> dict[str, float]:
    """The AUC and the widths of one class; observables (N, 6) before and after."""
    auc, error = auc_of_classifier(found, back)
    figures = {"auc": auc, "auc_error": error}
    for c, name in enumerate(NAMES):
        figures[f"{name}_width"] = half_width(back[:, c] - found[:, c])
    figures["mass_ratio"] = float(np.median(back[:, 0] / np.maximum(found[:, 0], 1e-9)))
    return figures


def sizes(tokenizer: Tokenizer, frames: np.ndarray, n_jets: int) -> dict[str, Any]:
    """Vocabulary, bits per jet and live frames; frames (all T, C)."""
    signature = tokenizer.signature
    if not signature.levels:
        return {"vocabulary": None, "bits_per_jet": None, "live": None}
    vocabulary = math.prod(signature.levels)
    return {
        "vocabulary": vocabulary,
        "bits_per_jet": len(frames) / n_jets * math.log2(vocabulary),
        "live": len(np.unique(frames, axis=0)),
    }


def null_row(real: Mapping[str, Any]) -> dict[str, Any]:
    """Jets against other jets of their class."""
    classes = {}
    for label, (_, found) in real.items():
        half = len(found) // 2
        auc, error = auc_of_classifier(found[:half], found[half : 2 * half])
        classes[label] = {"auc": auc, "auc_error": error}
    return {"name": "none", "classes": classes}


# ---- the table


HEADINGS = (
    *("tokenizer", "vocabulary", "bits/jet", "live", "class", "AUC", "+-"),
    *("mass GeV", "pt GeV", "tau21", "tau32", "D2", "m/m0", "enc/s", "dec/s"),
)


def line_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a row: of the class with the worst AUC, and means over classes."""
    classes = row["classes"]
    worst = max((found["auc"], label) for label, found in classes.items())[1]
    means = {
        name: float(np.mean([found[name] for found in classes.values()])) for name in classes[worst]
    }
    auc = {name: classes[worst][name] for name in ("auc", "auc_error")}
    return cells_of(row, worst, means | auc)


def cells_of(row: Mapping[str, Any], label: str, found: Mapping[str, float]) -> tuple[str, ...]:
    """The cells of a line that is of a class, or of several."""
    cells = [row["name"], "", "", "", label, f"{found['auc']:.3f}", f"{found['auc_error']:.3f}"]
    if row.get("vocabulary"):
        cells[1:4] = [f"{row['vocabulary']:,}", f"{row['bits_per_jet']:.0f}", f"{row['live']:,}"]
    if "mass_width" in found:
        cells += [f"{found['mass_width']:.2f}", f"{found['pt_width']:.2f}"]
        cells += [f"{found[f'{name}_width']:.3f}" for name in ("tau21", "tau32", "d2")]
        cells += [f"{found['mass_ratio']:.3f}"]
        cells += [f"{row[f'{what}_jets_per_s']:.0f}" for what in ("encode", "decode")]
    return tuple(cells)


def bars(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each bar as a line: met or MISSED, with its figures; rows by name."""
    lines = []
    for name, row in rows.items():
        if name.startswith(("none", "continuous")):
            continue
        worst = max(x["auc"] for x in row["classes"].values())
        lines.append(f"{name}: AUC {worst:.3f} at most, <= {BAR}: {_word(worst <= BAR)}")
    for n in EQUAL_SIZES:
        for better, worse in ((f"vq-{n}", f"grid-{n}"), (f"jet-vq-{n}", f"vq-{n}")):
            if better not in rows or worse not in rows:
                continue
            pairs = [
                (rows[better]["classes"][label]["mass_width"], found["mass_width"])
                for label, found in rows[worse]["classes"].items()
            ]
            is_met = all(a < b for a, b in pairs)
            figures = ", ".join(f"{a:.2f} / {b:.2f}" for a, b in pairs)
            lines.append(f"{better} / {worse}, mass in GeV: {figures}: {_word(is_met)}")
    return lines


def _word(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


class Kept:
    """Rows in a file of JSON lines, by what they are of."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                found = json.loads(line)
                self.rows[found["key"]] = found["row"]

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Write one more row."""
        self.rows[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps({"key": key, "row": row}) + "\n")


def rows_of(names: Sequence[str], cache: Path, n_jets: int) -> Iterator[dict[str, Any]]:
    """The rows of these names, one after another."""
    kept = Kept(cache / "rows.jsonl")
    to_fit: list[np.ndarray] = []
    real: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
    for name in names:
        config = ROWS.get(name)
        key = json.dumps([name, n_jets, to_plain(config)])
        if key not in kept.rows:
            if not real:
                to_fit, held_out = made_jets(cache, n_jets)
                real = {label: (jets, observables(jets)) for label, jets in held_out.items()}
            print_status(f"measuring {name}")
            if config is None:
                kept.add(key, null_row(real))
            else:
                kept.add(key, measured(name, config, to_fit, real))
        yield kept.rows[key]


def main() -> None:
    """Measure the rows asked for, one after another, and print them as they come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="a folder for the jets and the rows")
    parser.add_argument("--jets", type=int, default=20_000, help="held-out jets of all classes")
    parser.add_argument("--only", nargs="+", choices=("none", *ROWS), help="these tokenizers")
    parser.add_argument("--by-class", action="store_true", help="a line for each class")
    parser.add_argument("--json", action="store_true", help="one row a line, as JSON")
    words = parser.parse_args()
    if words.jets < 300:
        raise UserError(f"--jets {words.jets}: too few for trees; give at least 300")
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise missing_extra("bench_jets.py", "demo") from None
    if not words.json:
        print(" | ".join(HEADINGS))
    rows = {}
    for row in rows_of(words.only or ("none", *ROWS), words.cache, words.jets):
        rows[row["name"]] = row
        if words.json:
            print(json.dumps(row), flush=True)
            continue
        lines = [line_of(row)]
        if words.by_class:
            lines = [cells_of(row, label, found) for label, found in row["classes"].items()]
        for cells in lines:
            print(" | ".join(cells), flush=True)
    for line in bars(rows):
        print_status(line)


if __name__ == "__main__":
    called(main)
