"""A training of jets' autoencoder is a function of its seed, goes on bit by bit, and learns by each
of its losses; decoded jets are as good as their loss says.
"""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.tokenizers.jet_autoencoder import JetAutoencoderConfig
from mmtok.tokenizers.jet_totals import of_jets
from mmtok.train.jet_set_fit import JetSetFit, JetSets, decoded_totals
from mmtok.train.tokenizer_fit import fit_tokenizer
from mmtok.train.trainer import Interrupted
from tests.made_jets import make_jets

SMALL = JetAutoencoderConfig(
    2, 4, 16, 1, 2, max_constituents=30, batch_size=8, steps=20, kl_weight=1e-4
)
LOSSES = ("matched", "sinkhorn", "chamfer", "sorted")


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path):
    whole = fit_tokenizer(SMALL, make_jets(), folder=tmp_path / "whole")

    def interrupt(done, total, note):
        if done == 11:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="jet autoencoder is trained to step 11"):
        fit_tokenizer(SMALL, make_jets(), progress=interrupt, folder=tmp_path / "cut")
    again = fit_tokenizer(SMALL, make_jets(), folder=tmp_path / "cut")
    assert again.signature.fingerprint == whole.signature.fingerprint
    assert fit_tokenizer(SMALL, make_jets(), seed=1).signature != whole.signature


def test_the_log_tells_of_held_out_jets_and_latents_have_variance_1(tmp_path):
    jets = make_jets()
    tokenizer = fit_tokenizer(SMALL, jets, folder=tmp_path, heldout=make_jets(9, seed=1))
    last = json.loads((tmp_path / "jets" / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 20
    assert {"particles", "totals", "kl", "error", "pt_off", "mass_off"} < {*last}
    latents = np.stack([segment.latents for segment in tokenizer.encode_batch(jets)])
    assert latents.shape == (60, 2, 4)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std(0), 1, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_0_at_the_jet_itself_and_learns(loss):
    jets = make_jets()
    config = replace(SMALL, loss=loss, steps=60, kl_weight=0.0)
    held = JetSets(config, jets)
    fit = JetSetFit(config, held, held, 0, None, None, "float32")
    x, told, mask = held.some(torch.arange(5))
    torch.testing.assert_close(fit.distance(x, x, mask), torch.zeros(5), rtol=0, atol=1e-5)
    assert (fit.distance(x + 0.1, x, mask) > 1e-3).all()
    # the shape of a jet is what is learned, and no order but of "sorted"
    n = mask.sum(1)
    backwards = x.clone()
    for i, k in enumerate(n.tolist()):
        backwards[i, :k] = x[i, :k].flip(0)
    changed = fit.distance(backwards, x, mask)
    assert bool((changed > 1e-3).any()) == (loss == "sorted")
    torch.testing.assert_close(decoded_totals(x, mask), told[:, :2], rtol=1e-4, atol=1e-4)
    found = fit_tokenizer(config, jets).fidelity(jets)
    assert found["mass_width_gev"] < 0.7 * np.median(of_jets(jets)[1])
    assert 0.5 < found["pt_ratio_median"] < 2


def test_what_cannot_be_learned_from_is_refused():
    with pytest.raises(UserError, match="no constituents to learn from"):
        fit_tokenizer(SMALL, [np.zeros((0, 3))])
    with pytest.raises(UserError, match="jet 1: expected numbers"):
        fit_tokenizer(SMALL, [*make_jets(1), np.zeros((3, 2))])
    with pytest.raises(UserError, match="must be a multiple of n_heads"):
        replace(SMALL, n_heads=3)
