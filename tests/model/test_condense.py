"""Long conditions in few positions: states, scores and samples are those of the latents."""

from dataclasses import replace

import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained
from mmtok.heads.sampling import Sampling
from mmtok.model.autoregressive import AutoregressiveSampler
from mmtok.model.likelihood import score
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.perceiver import PerceiverConfig
from mmtok.nn.transformer import TransformerConfig

TRUNK = TransformerConfig(depth=2, width=16, n_heads=4, n_kv_heads=2, feed_forward=24)
ENCODERS = {
    "speech": PerceiverConfig(n_latents=3, depth=1),
    "voice": PerceiverConfig(n_latents=2, depth=1, positions=False),
}


@pytest.fixture
def reader(vocabulary):
    torch.manual_seed(0)
    config = DecoderConfig(TRUNK, {"jets": Chained(8)}, 4, encoders=ENCODERS)
    lm = LM(config, vocabulary).double().eval()
    for p in lm.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return lm


def documents(segment):
    found = [Document((segment("speech", n), segment("text", 4)), (False, True)) for n in (9, 2, 5)]
    mixed = (segment("text", 2), segment("voice", 6), segment("jets", 3))
    return [*found, Document(mixed, (True, False, True)), Document((segment("text", 5),), (True,))]


def test_scores_do_not_depend_on_the_packing(reader, segment):
    some = documents(segment)
    together = score(reader, some)
    for document, scored in zip(some, together, strict=True):
        [alone] = score(reader, [document])
        assert [x is None for x in alone.nats] == [x is None for x in scored.nats]
        pairs = zip(alone.nats, scored.nats, strict=True)
        assert all(a is None or abs(a - b) < 1e-9 for a, b in pairs)


def test_the_trunk_reads_no_more_than_the_latents(reader, segment, vocabulary):
    batch = pack(vocabulary, [[to_stream(vocabulary, d) for d in documents(segment)]])
    condensed = reader.condensed(batch)
    # of 9, 2, 5 and 6 frames 3, 2, 3 and 2 are left
    assert batch.ids.shape[1] - condensed.x.shape[1] == 6 + 0 + 2 + 4
    document = condensed.document[0]
    for d in range(5):
        positions = condensed.position[0][document == d]
        assert positions.tolist() == list(range(len(positions)))


def test_every_frame_counts_and_of_a_set_not_their_order(reader, segment):
    text = segment("text", 4)
    for m, is_set in (("speech", False), ("voice", True)):
        frames = segment(m, 9)
        field = "latents" if m == "voice" else "codes"
        turned = replace(frames, **{field: frames.values[::-1].copy()})
        cut = replace(frames, **{field: frames.values[:-1]})
        asked = [Document((x, text), (False, True)) for x in (frames, turned, cut)]
        nats = [scored.nats[1] for scored in score(reader, asked)]
        assert (abs(nats[0] - nats[1]) < 1e-9) == is_set
        assert abs(nats[0] - nats[2]) > 1e-9


def test_prompts_are_read_as_scores_read_them(reader, segment):
    """The state behind a prompt, also of prompts of several lengths at once."""
    lengths = (9, 2, 5)
    known = segment("text", 3)
    prompts = [
        Document((segment("speech", n), known), (False, True), open_end=True) for n in lengths
    ]
    sampling = Sampling(max_frames=4, precision="float32")
    made = AutoregressiveSampler(reader, prompts, sampling, torch.Generator().manual_seed(0))
    for i, prompt in enumerate(prompts):
        batch = pack(reader.vocabulary, [[to_stream(reader.vocabulary, prompt)]])
        with torch.no_grad():
            assert torch.allclose(made.h[i], reader.hidden(batch)[0, -1], atol=1e-9)


def test_every_parameter_of_the_encoders_learns(reader, segment, vocabulary):
    reader.train()
    batch = pack(vocabulary, [[to_stream(vocabulary, d) for d in documents(segment)]])
    reader(batch).total.sum().backward()
    for name, p in reader.encoders.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    reader.zero_grad(set_to_none=True)
    text = pack(vocabulary, [[to_stream(vocabulary, Document((segment("text", 5),), (True,)))]])
    reader(text).total.sum().backward()
    assert all(p.grad is not None for p in reader.encoders.parameters())


def test_modalities_that_cannot_have_one_are_named(vocabulary):
    for m in ("text", "jets", "nothing"):
        config = DecoderConfig(TRUNK, {"jets": Chained(8)}, encoders={m: PerceiverConfig()})
        with pytest.raises(UserError, match=f"encoders are given for \\['{m}'\\]"):
            LM(config, vocabulary)
