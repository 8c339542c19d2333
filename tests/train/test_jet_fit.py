"""A training of networks of jets is a function of its seed, goes on bit by bit, and says how its
codebook does.
"""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers.jet_networks import PerParticle, WholeJet
from mmtok.tokenizers.jet_totals import of_jets
from mmtok.tokenizers.jet_vq import JetVQConfig
from mmtok.tokenizers.quantizers import FSQ, LFQ, VQ, ResidualVQ
from mmtok.train.jet_fit import JetFit, Jets
from mmtok.train.tokenizer_fit import fit_tokenizer
from mmtok.train.trainer import Interrupted
from tests.made_jets import make_jets

SMALL = {"batch_size": 8, "steps": 20}
CODES = JetVQConfig(VQ(16, 4), WholeJet(8, 1, 2), **SMALL)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path):
    whole = fit_tokenizer(CODES, make_jets(), folder=tmp_path / "whole")

    def interrupt(done, total, note):
        if done == 11:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="jet tokenizer is trained to step 11"):
        fit_tokenizer(CODES, make_jets(), progress=interrupt, folder=tmp_path / "cut")
    with pytest.raises(UserError, match=r"with weight 0\.5, not 1\.0"):
        fit_tokenizer(replace(CODES, weight=1.0), make_jets(), folder=tmp_path / "cut")
    again = fit_tokenizer(CODES, make_jets(), folder=tmp_path / "cut")
    assert again.signature.fingerprint == whole.signature.fingerprint
    assert fit_tokenizer(CODES, make_jets(), seed=1).signature != whole.signature


def test_the_log_tells_of_held_out_codes_and_dead_ones_are_said(tmp_path, capsys):
    heldout = make_jets(9, seed=1)
    tokenizer = fit_tokenizer(CODES, make_jets(), folder=tmp_path, heldout=heldout)
    lines = (tmp_path / "constituents" / "log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 20 and {"particles", "quantizer", "mass_off", "codes_revived"} < {*last}
    codes = np.concatenate([s.codes for s in tokenizer.encode_batch(heldout)])
    assert last["codebook_use"] == len(np.unique(codes)) / 16
    few = JetVQConfig(LFQ(8), PerParticle(8, 1), **SMALL)
    with pytest.warns(UserWarning, match="jets: only .* of the 256 codes are used"):
        fit_tokenizer(few, make_jets(), heldout=make_jets(300, seed=1))
    assert "codes are dead" in capsys.readouterr().err


@pytest.mark.parametrize("network", [PerParticle(16, 2), WholeJet(8, 1, 2)])
@pytest.mark.parametrize("quantizer", [VQ(64, 4), ResidualVQ(2, 16, 4), FSQ((8, 5, 5))])
def test_every_quantizer_and_network_learns(quantizer, network):
    jets = make_jets()
    config = JetVQConfig(quantizer, network, **SMALL)
    share = 0.5
    if isinstance(quantizer, FSQ):  # it has no start by k-means
        config = replace(config, steps=150)
        share = 1.0
    found = fit_tokenizer(config, jets).fidelity(jets)
    assert found["mass_width_gev"] < share * np.median(of_jets(jets)[1])
    assert 0.7 < found["pt_ratio_median"] < 1.3


def test_codes_of_one_codebook_are_numbered_by_rising_pt():
    tokenizer = fit_tokenizer(JetVQConfig(VQ(16, 4), PerParticle(8, 1), **SMALL), make_jets())
    pt = tokenizer.decode(Segment("jets", codes=np.arange(16)[:, None]))[:, 0]
    assert np.corrcoef(np.log(pt), np.arange(16))[0, 1] > 0.9


def test_totals_of_a_step_are_those_of_the_jets():
    for measure in ("asinh", "omnijet"):
        config = JetVQConfig(measure=measure)
        jets = [jet for jet in make_jets() if len(jet) > 2]
        held = Jets(config, jets)
        fit = JetFit(config, held, held, 0, None, None, "float32")
        found = fit._totals(held.numbers, held.lengths).exp().T
        expected = torch.tensor(np.stack(of_jets(jets)))
        torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=0)


def test_what_cannot_be_learned_from_is_refused():
    with pytest.raises(UserError, match="no constituents to learn from"):
        fit_tokenizer(CODES, [np.zeros((0, 3))])
    with pytest.raises(UserError, match="are fewer than the 1,024 codes"):
        fit_tokenizer(JetVQConfig(), make_jets(5))
    with pytest.raises(UserError, match="jet 1: expected numbers"):
        fit_tokenizer(CODES, [*make_jets(1), np.zeros((3, 2))])
