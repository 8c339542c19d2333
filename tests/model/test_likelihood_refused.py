"""What cannot be scored is refused, and never printed as a number: nats that are none, and parts of
what is drawn as a whole.
"""

import math

import numpy as np
import pytest
import torch

from mmtok.core.segment import Document, Segment, Signature, segment_of
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.cascade import Cascade, Stage
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.model.likelihood import score
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.denoisers import DiTConfig, TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.unet import UNetConfig

DIT = DiTConfig(1, 8, 1)
CODES = Signature("x", (5,), frames=4)
LATENTS = Signature("x", latent_size=3, frames=4)
CELLS = Signature("x", latent_size=3, frames=4, cells=5)
HEADS = {
    "plain": (Signature("x", (3,)), None),
    "plain, a fixed count": (CODES, None),
    "parallel": (Signature("x", (2, 3)), Parallel()),
    "chained": (Signature("x", (2, 3)), Chained(6)),
    "frames": (LATENTS, FrameDiffusion(network=TokenMLPConfig(1, 8), ode_steps=4)),
    "grid": (LATENTS, GridDiffusion(network=DIT, ode_steps=4)),
    "decoder": (CELLS, GridDiffusion(network=DIT, ode_steps=4, likelihood="decoder")),
    "cascade": (
        LATENTS,
        Cascade(tuple(Stage(network=UNetConfig((4,), 1, 1), ode_steps=4) for _ in range(2))),
    ),
    "codes": (CODES, MaskedDiffusion(DIT, bound_draws=4)),
}
WHOLE = [name for name in HEADS if name in ("grid", "codes")]


def lm_of(name):
    signature, head = HEADS[name]
    torch.manual_seed(0)
    lm = LM(
        DecoderConfig(TransformerConfig(1, 16, 2, 2, 24), {"x": head} if head else {}),
        Vocabulary([Signature("text", (4,)), signature]),
    )
    return lm.eval(), signature


def asked(signature, n=4, **more):
    given = Segment("text", codes=np.array([[1]]))
    return Document(
        (
            given,
            segment_of(
                signature, np.zeros((n, len(signature.levels) or signature.latent_size)), **more
            ),
        ),
        (False, True),
    )


@pytest.mark.parametrize("name", HEADS)
def test_nats_that_are_no_number_are_refused_by_the_name_of_their_modality(name):
    lm, signature = lm_of(name)
    assert math.isfinite(score(lm, [asked(signature)])[0].total)
    with torch.no_grad():
        for p in (lm.heads if len(lm.heads) else lm).parameters():
            p.fill_(math.nan)
    with pytest.raises(
        UserError, match="x cannot be scored: its nats are nan|not finite after step"
    ) as refusal:
        score(lm, [asked(signature)])
    assert "\n" not in str(refusal.value)


def test_what_the_model_rules_out_has_infinite_nats():
    """Logits of minus infinity are numbers, and so is what they cost."""
    lm, signature = lm_of("codes")
    with torch.no_grad():
        lm.heads["x"].network.final.out.bias[0] = -math.inf
    assert score(lm, [asked(signature)])[0].total == math.inf


# ---- parts of what is drawn as a whole


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    "spans",
    [((1, 3),), ((0, 2),), ((0, 1), (2, 3)), ((0, 4),), ((0, 2), (2, 3)), ((0, 1), (1, 3), (3, 4))],
)
def test_infilling_is_refused_also_where_their_frames_add_up_to_whole_segments(name, spans):
    lm, signature = lm_of(name)
    for n_documents in (1, 2, 4):
        with pytest.raises(
            UserError,
            match="whole segments of 4 frames: it can be neither cut short nor infilled",
        ):
            score(lm, [asked(signature, infill_spans=spans)] * n_documents)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("counts", [(2,), (2, 2), (1, 3), (4, 2, 2), (1, 1, 1, 1)])
def test_segments_cut_short_are_refused_also_where_they_add_up_to_whole_ones(name, counts):
    lm, signature = lm_of(name)
    with pytest.raises(UserError, match="cut short"):
        score(lm, [asked(signature, n, truncated=n < 4) for n in counts])
    parts = [asked(signature, n, truncated=n < 4).segments[1] for n in counts]
    with pytest.raises(UserError, match="cut short"):  # within one document too
        score(lm, [Document(tuple(parts), (True,) * len(parts))])


@pytest.mark.parametrize("name", WHOLE)
def test_whole_segments_beside_given_parts_are_scored(name):
    """What is only a condition may be cut."""
    lm, signature = lm_of(name)
    whole = asked(signature).segments[1]
    cut = asked(signature, 3, truncated=True).segments[1]
    scores = score(lm, [Document((cut, whole, whole), (False, True, True)), asked(signature)])
    assert all(math.isfinite(s.total) for s in scores) and scores[0].nats[0] is None
