"""The log's lines: means over windows, the customary unit, what has no nats, and the speeds beside
the machine's own.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.heads.categorical import Parallel
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.train.log import MEASURED, Gauge, matrix_rate, read_log

TRUNK = TransformerConfig(depth=2, width=16, n_heads=2, n_kv_heads=1, feed_forward=24)
SIGNATURES = (
    Signature("text", (300,)),
    Signature("image", (20,)),
    Signature("speech", (4, 4)),
    Signature("voice", latent_size=3),
)


@pytest.fixture
def lm():
    torch.manual_seed(0)
    return LM(
        DecoderConfig(TRUNK, {"speech": Parallel(), "voice": FrameDiffusion()}),
        Vocabulary(SIGNATURES),
    )


def step(nats, n, frames, voice=(0.0, 0), **more):
    """A step that predicted n texts' frames and ends."""
    parts = {"text": (nats, n), "image": (0.0, 0), "speech": (6.0, 3), "voice": voice}
    counts = {"text": frames, "image": 0, "speech": 2, "voice": voice[1]}
    return {
        "loss": nats,
        "parts": parts,
        "norm": 1.0,
        "rate": 0.1,
        "positions": 100,
        "frames": counts,
        "seconds": 0.5,
        **more,
    }


def test_a_line_holds_means_over_the_window_in_nats_and_in_the_customary_unit(lm):
    line = Gauge(lm, 64, {"text": 2.5}).line(
        7, [step(10.0, 5, 4), step(20.0, 7, 6, rate=0.05)], 1e9
    )
    assert (line["step"], line["loss"], line["gradient_norm"], line["learning_rate"]) == (
        7,
        15.0,
        1.0,
        0.05,
    )
    assert line["nats"] == {"text": 30 / 12, "image": None, "speech": 2.0}
    # 10 frames are 25 bytes; nats of the ends are counted, ends are not
    assert line["customary"] == {
        "text": {"bits/byte": pytest.approx(30 / math.log(2) / 25)},
        "speech": {"nats/frame": 12 / 4},
    }
    assert line["positions_per_s"] == 200.0 and set(MEASURED) < line.keys()
    assert json.loads(json.dumps(line)) == line


def test_what_a_head_without_a_likelihood_lowers_is_not_called_nats(lm):
    line = Gauge(lm, 64, {}).line(1, [step(10.0, 5, 4, voice=(3.0, 4))], 1e9)
    assert (
        line["training_loss"] == {"voice": 0.75}
        and "voice" not in line["nats"]
        and "voice" not in line["customary"]
    )
    one = step(10.0, 5, 4)
    del one["parts"]["voice"], one["frames"]["voice"]
    exact = LM(DecoderConfig(TRUNK, {"speech": Parallel()}), Vocabulary(SIGNATURES[:3]))
    assert "training_loss" not in Gauge(exact, 64, {}).line(1, [one], 1e9)


def test_a_window_begun_before_frames_were_counted_has_no_customary_unit(lm):
    old = {k: v for k, v in step(10.0, 5, 4).items() if k != "frames"}
    assert Gauge(lm, 64, {}).line(2, [old, step(10.0, 5, 4)], 1e9)["customary"] == {}


def test_model_flop_are_the_products_that_torch_counts():
    """One document of 40 codes: 43 positions, 41 predicted.

    Attention itself has a formula, not counted by torch.
    """
    lm = LM(DecoderConfig(TRUNK), Vocabulary([Signature("image", (50,))]))
    codes = np.random.default_rng(0).integers(0, 50, (40, 1))
    batch = pack(
        lm.vocabulary,
        [[to_stream(lm.vocabulary, Document((Segment("image", codes=codes),), (True,)))]],
    )
    assert batch.ids.shape == (1, 43) and batch.predict.sum() == 41
    with FlopCounterMode(display=False) as counter:
        lm(batch).total.sum().backward()
    products = sum(
        n
        for op, n in counter.get_flop_counts()["Global"].items()
        if str(op) in ("aten.mm", "aten.addmm", "aten.bmm")
    )
    done = {"positions": 43, "parts": {"image": (1.0, 41)}}
    assert Gauge(lm, 43, {}).flop(done) == products + 43 * 12 * TRUNK.depth * TRUNK.width * 43


def test_the_share_is_of_the_machines_rate(lm):
    window = [step(10.0, 5, 4), step(10.0, 5, 4)]
    a, b = (Gauge(lm, 64, {}).line(1, window, rate) for rate in (1e9, 4e9))
    assert a["matrix_share"] == 4 * b["matrix_share"] == pytest.approx(a["model_gflop_per_s"])
    again = {**step(10.0, 5, 4), "seconds": 1.0}
    assert Gauge(lm, 64, {}).line(1, [again, again], 1e9)["model_gflop_per_s"] == pytest.approx(
        a["model_gflop_per_s"] / 2
    )


def test_the_machines_rate_is_measured_once_and_leaves_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    rates = [matrix_rate(torch.device("cpu")) for _ in range(2)]
    assert 1e8 < rates[0] < 1e14 and rates[0] == rates[1]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_log_is_read_but_for_lines_that_are_none_which_are_counted(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []

    def line(step, loss="NaN"):
        return (
            f'{{"step": {step}, "loss": {loss}, "nats": {{"text": null}}, "positions_per_s":'
            " 9.5}\n".encode()
        )

    path.write_bytes(
        line(1) + line(2) + line(-3) + line(4, '"low"') + b'\xff\n7\n{"step": 5}\n{"ste'
    )
    with pytest.warns(
        UserWarning,
        match="left out 5 damaged lines, the first: line 3.step is -3; it must be at least 0",
    ):
        assert [line["step"] for line in read_log(path)] == [1, 2, 5]


def test_behind_mixture_of_depths_no_training_loss_is_a_likelihood():
    """Blocks look ahead in training: neither nats nor bits/byte, but a training loss."""
    torch.manual_seed(0)
    routed = LM(
        DecoderConfig(
            replace(TRUNK, mod_capacity=0.25), {"speech": Parallel(), "voice": FrameDiffusion()}
        ),
        Vocabulary(SIGNATURES),
    )
    assert {routed.loss_kind(m) for m in routed.vocabulary.signatures} == {"estimate"}
    assert {routed.kind(m) for m in ("text", "image", "speech")} == {"exact"}  # by the predictor
    line = Gauge(routed, 64, {}).line(1, [step(10.0, 5, 4)], 1e9)
    assert line["nats"] == {} and line["customary"] == {}
    assert line["training_loss"] == {"text": 2.0, "image": None, "speech": 2.0, "voice": None}
