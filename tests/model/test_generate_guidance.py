"""Guidance: two streams with their own caches and positions draw what reading both anew draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Segment
from mmtok.heads.sampling import Sampling, mix_guidance
from mmtok.model.generate import generate

MADE = ["text", "speech", "image", "jets", "tiles", "absent"]


def reference(lm, document, way):
    """Greedy guided decoding with no cache: every step reads both documents anew."""
    null = replace(
        document, segments=(None,) * (len(document.segments) - 1) + document.segments[-1:]
    )
    m = document.target.modality
    codes = document.target.codes
    n_codes = len(lm.vocabulary.span(m))
    while True:
        hs = []
        for d in (document, null):
            d = replace(d, segments=(*d.segments[:-1], Segment(m, codes=codes)))
            hs.append(lm.hidden(pack(lm.vocabulary, [[to_stream(lm.vocabulary, d)]]))[:, -1])
        logits = mix_guidance([lm.id_logits(h, m) for h in hs], way.guidance)
        signature = lm.vocabulary.signatures[m]
        if signature.frames is not None:
            if len(codes) == signature.frames:
                return codes
            logits = logits[:, :-1]
        choice = int(logits.argmax())
        if choice == n_codes or (signature.frames is None and len(codes) == way.max_frames):
            return codes
        frame = torch.tensor([[choice]])
        if not signature.one_channel:
            ceiling = None
            if signature.descending:
                ceiling = torch.from_numpy(signature.ceilings(codes)[-1:])
            frame = lm.heads[m].sample(hs, way, torch.Generator(), ceiling=ceiling)
        codes = np.concatenate([codes, frame.numpy()])


@pytest.mark.parametrize("modality", MADE)
def test_cached_guided_sampling_equals_reading_both_streams_anew(
    lm, vocabulary, segment, modality, nothing, prompt
):
    """Each stream has its own positions: prompts of different lengths, whose null streams are
    shorter than themselves.
    """
    documents = [
        prompt(segment("text", n), segment("speech", 2), to=nothing(vocabulary, modality))
        for n in (1, 6, 3)
    ]
    for g in (1.0, 1.7):
        way = Sampling(temperature=0, guidance=g, max_frames=6)
        for document, drawn in zip(documents, generate(lm, documents, way, torch.Generator())):
            assert np.array_equal(drawn.segment.codes, reference(lm, document, way))


@pytest.mark.parametrize("modality", MADE)
def test_guidance_of_almost_one_draws_what_no_guidance_draws(
    lm, vocabulary, segment, modality, nothing, prompt
):
    prompts = [prompt(segment("text", n % 4), to=nothing(vocabulary, modality)) for n in range(30)]

    def draw(g):
        return generate(
            lm, prompts, Sampling(guidance=g, max_frames=8), torch.Generator().manual_seed(3)
        )

    a = draw(1.0)
    b = draw(1.0 + 1e-12)
    c = draw(3.0)
    assert all(
        np.array_equal(x.segment.codes, y.segment.codes) and x.stop == y.stop for x, y in zip(a, b)
    )
    assert not all(np.array_equal(x.segment.codes, y.segment.codes) for x, y in zip(a, c))
