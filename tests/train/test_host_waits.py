"""A step on a GPU asks the device for no answer: no operation whose result the host must read."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmtok.core.batch import pack, with_index
from mmtok.core.grammar import to_stream
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model.captured import CapturedSampler
from mmtok.model.lm import LM, DecoderConfig, evaluating
from mmtok.model.position_nll import loss_sums
from mmtok.nn.device import Reading
from mmtok.train.config import TrainConfig
from mmtok.train.trainer import make_optimizer
from tests.conftest import HEADS, TRUNK
from tests.model.test_captured import VOCABULARY, prompts

# operations whose result or its size the host must know
WAITS = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
}


class Waits(TorchDispatchMode):
    """Collects the names of operations that would wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITS or self._has_mask(name, args):
            self.found.append(name)
        if name == "repeat_interleave" and not (kwargs or {}).get("output_size"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))

    def _has_mask(self, name, args):
        """Whether it is an index by booleans, which must be counted."""
        if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return False
        return any(x is not None and x.dtype == torch.bool for x in args[1])


def batch_of(vocabulary, corpus):
    streams = [to_stream(vocabulary, d) for d in corpus]
    return pack(vocabulary, [streams[:3], streams[3:6], streams[6:]])


def test_the_detector_sees_waits():
    x = torch.arange(4.0)
    with Waits() as waits:
        x.sum().item()
        x[x > 2]
        bool((x > 9).any())
        x.nonzero()
    assert len(waits.found) >= 4


def without_diffusion(corpus):
    """Documents without latents, whose head checks its numbers on the host."""
    return [d for d in corpus if all(s is None or s.modality != "voice" for s in d.segments)]


def test_a_training_step_never_waits(vocabulary, corpus):
    torch.manual_seed(0)
    lm = LM(DecoderConfig(TRUNK, HEADS, totals={"jets": 2}), vocabulary)
    optimizer = make_optimizer(lm, TrainConfig())
    batch = with_index(batch_of(vocabulary, without_diffusion(corpus)), vocabulary)

    def step():
        total, parts = loss_sums(lm(batch), batch, vocabulary, {})
        (total / 10).backward()
        norm = torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return Reading(torch.stack([norm, total.detach(), *(x for x, _ in parts.values())]))

    step()  # constants are copied once
    with Waits() as waits:
        figures = step()
    assert waits.found == []
    assert np.isfinite(figures.numbers()).all()


@pytest.mark.parametrize("modality", ["text", "speech", "jets"])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_step_of_drawing_never_waits(modality, guidance):
    torch.manual_seed(0)
    heads = {"speech": Parallel(), "jets": Chained(hidden=8)}
    lm = LM(DecoderConfig(TRUNK, heads, totals={"jets": 2}), VOCABULARY)
    sampling = Sampling(max_frames=9, guidance=guidance, top_k=3, top_p=0.9, precision="float32")
    with evaluating(lm), torch.inference_mode():
        sampler = CapturedSampler(lm, prompts(modality, [0, 3]), sampling, torch.Generator())
        step = sampler._draw_step
        step()
        with Waits() as waits:
            step()
            step()
    assert waits.found == [] and int(step.slot) == 3
