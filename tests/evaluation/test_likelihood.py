"""The unigram baseline by hand; held-out scores of a whole run are in test_evaluate.py."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from mmtok.core.segment import Segment
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.evaluation.likelihood import unigram_nll
from mmtok.run.run import open_run


def baseline(tiny_copy, modality, signature, rows, segments):
    """unigram_nll of a run whose training tokens are these rows of one field."""
    run = open_run(tiny_copy)
    run.vocabulary.signatures[modality] = signature
    name = next(
        f for t in run.recipe.tasks for f in t.targets if run.recipe.fields[f] == modality
    )  # what is made is counted
    write_tokens(
        tiny_copy / "toy.parquet",
        {name: signature, "other": signature},
        [{name: row, "other": rows[0]} for row in rows],
    )

    def token_files():
        return [read_tokens(tiny_copy / "toy.parquet")]

    run.token_files = token_files
    return unigram_nll(run, modality, segments)


def test_unigram_of_an_open_ended_modality_by_hand(tiny_copy):
    signature = replace(open_run(tiny_copy).vocabulary.signatures["text"], levels=(3,))

    def text(*codes, **more):
        return Segment("text", codes=np.array(codes).reshape(-1, 1), **more)

    rows = [text(0, 0, 1), text(0, truncated=True), text()]
    # with one more of each: codes 4, 2, 1 of 7; frames 5, ends 3 of 8
    code = np.log(np.array([4, 2, 1]) / 7)
    go = math.log(5 / 8)
    end = math.log(3 / 8)
    assert baseline(
        tiny_copy, "text", signature, rows, [text(0, 2), text(1, truncated=True)]
    ) == pytest.approx(-(code[0] + code[2] + 2 * go + end + code[1] + go))


def test_unigram_of_latents_by_hand(tiny_copy):
    """Continuous ones: the Gaussian of all training frames and a pair at -1 and 1.

    Cells: their counts, and one more of each.
    """

    def latents(*values):
        return Segment("image", latents=np.array(values, np.float32))

    rows = [latents((1.0, -0.5), (3.0, 0.5)), latents((2.0, 0.5), (1.0, 0.5))]
    asked = [latents((1.5, 0.5), (0.0, -0.5))]
    signature = replace(
        open_run(tiny_copy).vocabulary.signatures["image"], levels=(), latent_size=2, frames=2
    )
    seen = np.array([(-1, -1), (1, 1), (1, -0.5), (3, 0.5), (2, 0.5), (1, 0.5)])
    log_p = norm(seen.mean(0), seen.std(0)).logpdf(asked[0].latents)
    assert baseline(tiny_copy, "image", signature, rows, asked) == pytest.approx(-log_p.sum())
    shutil.rmtree(tiny_copy / "toy.parquet", ignore_errors=True)
    rows = [latents((-0.5, 0.5), (0.5, 0.5))]
    asked = [latents((-0.5, -0.5), (0.5, 0.5))]
    p = np.log(np.array([[2, 1], [2, 3]]) / 4)  # of the first latent's cells, of the second's
    assert baseline(tiny_copy, "image", replace(signature, cells=2), rows, asked) == pytest.approx(
        -p.sum()
    )


def test_unigram_of_a_fixed_count_of_channels_by_hand(tiny_copy):
    signature = replace(
        open_run(tiny_copy).vocabulary.signatures["jets"], levels=(2, 3), frames=2, descending=False
    )

    def tile(*codes):
        return Segment("jets", codes=np.array(codes))

    rows = [tile((0, 2), (0, 1)), tile((1, 2), (0, 2))]
    first = np.log(np.array([4, 2]) / 6)
    second = np.log(np.array([1, 2, 4]) / 7)
    expected = -(first[0] + second[0] + first[1] + second[2])  # a certain end costs nothing
    assert baseline(tiny_copy, "jets", signature, rows, [tile((0, 0), (1, 2))]) == pytest.approx(
        expected
    )


def test_unigram_of_a_set_counts_all_orders_of_what_follows_the_headers(tiny_copy):
    signature = replace(
        open_run(tiny_copy).vocabulary.signatures["jets"],
        levels=(2, 3),
        frames=None,
        descending=True,
        headers=1,
    )

    def jet(*codes, **more):
        return Segment("jets", codes=np.array(codes).reshape(-1, 2), **more)

    plain = replace(signature, descending=False, headers=0)
    rows = [jet((1, 0), (1, 2), (0, 1))]
    asked = jet((0, 0), (1, 2), (1, 2), (0, 1), (0, 0))
    nats = {s.descending: baseline(tiny_copy, "jets", s, rows, [asked]) for s in (plain, signature)}
    assert nats[True] == pytest.approx(
        nats[False] - math.log(12)
    )  # of four particles, two of them equal
    cut = replace(asked, truncated=True)
    assert baseline(tiny_copy, "jets", signature, rows, [cut]) == pytest.approx(
        baseline(tiny_copy, "jets", plain, rows, [cut])
    )
