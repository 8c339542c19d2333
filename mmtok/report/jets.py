"""The report's section of jets: mean images and distributions, generated and real."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from mmtok.commands.sample import NOTHING
from mmtok.data.subset import random_subset
from mmtok.errors import UserError
from mmtok.evaluation.jets import N_JETS
from mmtok.io.messages import counted
from mmtok.metrics.jets import OBSERVABLES, jet_image
from mmtok.report import plots
from mmtok.report.html import Markup, tag
from mmtok.report.samples import Sample, more_prompts, task_fields
from mmtok.run.run import Run
from mmtok.sources.jets import read_jets

N_CLASSES = 8  # shown at most
AXES = ("pt_gev", "eta_rel", "phi_rel")  # features of the particles that are shown
HALF_WIDTH = 0.8  # of the mean images, in eta and in phi [rad]

OBSERVED = {  # observable -> its label and unit
    "mass": ("mass", "GeV"),
    "multiplicity": ("number of constituents", ""),
    "pt": ("sum of the constituents' pt", "GeV"),
    "girth": ("girth: mean distance from the centre, weighted by pt", ""),
}
LABELS = {
    "at_cap_real": "real jets cut at the cap",
    **{f"{key}_w1": f"W1 of {label}, to tokenised real" for key, (label, _) in OBSERVED.items()},
    **{f"{key}_w1_raw": f"W1 of {label}, to raw real" for key, (label, _) in OBSERVED.items()},
}
REMARK = (
    "Wasserstein-1 distances of generated to real jets, in units of what two sets of real jets"
    " differ by. Intervals are of 95 %; p is how often two sets that are alike are as far apart;"
    " two random halves of the real jets stay below the third figure in 95 of 100 draws."
)


def jet_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Per prompt: mean images and distributions of generated jets and of real held-out ones.

    Real ones are shown raw and after the tokenizer's round trip.
    """
    tokenizer: Any = run.tokenizers["jets"]
    if not set(AXES) <= set(tokenizer.config.features):
        raise UserError(
            f"Jets are shown by {', '.join(AXES)}; this run's have"
            f" {', '.join(tokenizer.config.features)}."
        )
    images = []
    charts = []
    shown = dict(islice(prompts.items(), N_CLASSES))
    real_of = _real_jets(run, set(shown))
    for prompt, samples in shown.items():
        generated = [jet for s in samples for jet in read_jets(s.path, tokenizer.config.features)]
        real = real_of.get(prompt, [])
        if not generated or not real:
            words = (
                f"{prompt}: {counted(len(generated), 'jet')}, and {len(real)} real held-out ones"
                " to compare with."
            )
            images.append(tag("p", words, cls="soft"))
            continue
        tokenised = tokenizer.decode_batch(tokenizer.encode_batch(real))
        generated, real, tokenised = (
            _along_axes(tokenizer, jets) for jets in (generated, real, tokenised)
        )
        n_cut = sum(stop == "cap" for sample in samples for stop in sample.stops)
        title = f"{prompt}, {n_cut:,} cut at the cap" if n_cut else prompt
        images.append(_mean_images(title, generated, real))
        for key, (label, unit) in OBSERVED.items():
            values = map(OBSERVABLES[key], (generated, real, tokenised))
            charts.append(plots.histogram(prompt, label, unit, *values))
    remark = (
        "Mean images about the axis, and distributions over jets; below each, generated over"
        " tokenised real with its counting error."
    )
    return [
        tag("p", remark),
        tag("div", *images, cls="charts"),
        tag("div", *charts, cls="charts"),
        *more_prompts(prompts, len(shown)),
    ]


def _along_axes(tokenizer: Any, jets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Jets (P, F) with the columns AXES alone, (P, 3)."""
    columns = [tokenizer.config.features.index(name) for name in AXES]
    return [jet[:, columns] for jet in jets]


def _mean_images(title: str, generated: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> Markup:
    named = {"generated": generated, "real": real}
    images = {
        f"{name} ({len(jets):,})": jet_image(jets, half_width=HALF_WIDTH)
        for name, jets in named.items()
    }
    return plots.jet_images(title, images, HALF_WIDTH)


def _real_jets(run: Run, captions: set[str]) -> dict[str, list[np.ndarray]]:
    """At most N_JETS held-out jets (P, F) of each caption.

    Where a run's jets have no captions, and for samples without a prompt, a random part of all.
    """
    input_field, target_field = task_fields(run, "jets")
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    of_any_class = captions
    if input_field is not None:
        of_any_class = captions & {NOTHING}
        for example in run.examples("heldout", input_field, target_field):
            caption = example[input_field]
            if caption in captions and len(found[caption]) < N_JETS:
                found[caption].append(example[target_field])
    for caption in of_any_class:
        jets = (example[target_field] for example in run.examples("heldout", target_field))
        found[caption] = random_subset(jets, N_JETS)
    return found
