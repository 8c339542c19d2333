"""Puts a run's vocoder and de-quantiser into the package: float16, each with a card.

    python scripts/ship_weights.py runs/vocoder dmel-80hz --card card.md --hops 400

writes mmtok/weights/dmel-80hz-source_filter (-vocoder, -dequantiser). The card says what they were
trained on and under which licence that is, and what they reach: it needs the headings Data, Licence
and Figures. A vocoder is shipped where it beats Griffin-Lim by 0.5 of DistillMOS on voices and
languages that it never heard; --hops are those of the spectrograms at which it does.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmtok.errors import UserError
from mmtok.tokenizers import dequantiser, harmonic, istft
from mmtok.tokenizers.vocoder_base import SHIPPED, NetworkDescription, WeightsKind

MOST_BYTES = 5_000_000
HEADINGS = ("Data", "Licence", "Figures")


def missing_headings(card: str) -> list[str]:
    """The headings that a card lacks."""
    return [name for name in HEADINGS if not re.search(rf"^#+ {name}\b", card, re.MULTILINE)]


def ship(kind: WeightsKind, run: Path, target: Path, card: str, hops: Sequence[int] = ()) -> Path:
    """Write one folder of weights. Raises UserError where there are none, or they are too large.

    hops: of the spectrograms that a vocoder is the default of; (): all that it takes.
    """
    found = kind.find(run)
    description = kind.describe(found)
    if isinstance(description, NetworkDescription):
        description = replace(description, default_hops=tuple(hops))
    kind.write(target, description, kind.read(found, description.make), half=True)
    size = (target / "weights.safetensors").stat().st_size
    if size > MOST_BYTES:
        raise UserError(f"{target}: {size:,} bytes, at most {MOST_BYTES:,} are shipped")
    (target / "CARD.md").write_text(card)
    return target


def main(words: Sequence[str] | None = None) -> int:
    """As the command line says."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="instead of mmtok/weights")
    parser.add_argument("--hops", type=int, nargs="+", default=[], help="default: all")
    options = parser.parse_args(words)
    card = options.card.read_text()
    if missing := missing_headings(card):
        raise UserError(f"{options.card} lacks the headings {', '.join(missing)}")
    shipped = 0
    for kind in (harmonic.WEIGHTS, istft.WEIGHTS, dequantiser.WEIGHTS):
        try:
            kind.find(options.run)
        except UserError:
            continue
        print(
            ship(kind, options.run, options.out / f"{options.name}-{kind.name}", card, options.hops)
        )
        shipped += 1
    if not shipped:
        raise UserError(f"{options.run} holds neither a vocoder nor a de-quantiser")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
