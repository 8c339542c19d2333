"""Ids out of a Llama's reach: on no hidden state do they win, and all else is as it was."""

import math
from dataclasses import replace

import pytest
import torch

from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.model.llama import from_llama, to_llama
from mmtok.model.llama_suppress import (
    MARGIN,
    _largest_logit,
    _largest_state,
    check_kept,
    narrow,
    widen,
)
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig

transformers = pytest.importorskip("transformers")

TRUNK = TransformerConfig(depth=3, width=24, n_heads=4, n_kv_heads=2, feed_forward=40)
VOCABULARY = Vocabulary(
    [Signature("text", (9,), banned=(0, 4)), Signature("image", (7,), frames=9)]
)
FAR = [0, 4, *range(9, 17), *range(18, VOCABULARY.size)]  # all but codes 1 to 8 without 4, and 17
NEAR = [i for i in range(VOCABULARY.size) if i not in FAR]


@pytest.fixture(params=[False, True], ids=["tied", "untied"])
def ours(request):
    """Large random weights, gains among them."""
    torch.manual_seed(0)
    lm = LM(DecoderConfig(TRUNK, untied=request.param), VOCABULARY).eval()
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.4)
    return lm


def opened(folder, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def scaled(lm, scale):
    for parameter in lm.parameters():
        parameter.data *= scale if parameter.ndim > 1 else 1


def contexts(n, length):
    return torch.randint(VOCABULARY.size, (n, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def both(lm, llama, ids):
    """Logits over the ids in reach of our model and of transformers', and over the others."""
    position = torch.arange(ids.shape[1]).expand_as(ids)
    mine = lm.logits(lm.model(lm.model.embed_tokens(ids), position, torch.zeros_like(ids)))
    theirs = llama(ids).logits
    return mine[..., NEAR], theirs[..., NEAR], theirs[..., FAR]


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_logits_in_reach_are_equal_and_all_others_lose(ours, scale, tmp_path):
    """To 1e-6; large weights amplify rounding, that of a plain export too: then, in the mean
    square, to twice what it is there.
    """
    scaled(ours, scale)
    to_llama(ours, tmp_path, FAR)
    to_llama(ours, tmp_path / "plain")
    mine, plain, _ = both(ours, opened(tmp_path / "plain"), contexts(64, 30))
    mine, theirs, far = both(ours, opened(tmp_path), contexts(64, 30))
    if scale == 1:
        assert float((mine - theirs).square().mean()) < 2**2 * float((mine - plain).square().mean())
    else:
        assert float((mine - theirs).abs().max()) < 1e-6 * float(mine.abs().max())
    assert bool((far.amax(-1) < theirs.amin(-1) - MARGIN).all())


def test_in_exact_arithmetic_they_are_the_same(ours, tmp_path, monkeypatch):
    def exact(norm, x):
        return norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()

    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", exact
    )  # theirs is float32's
    to_llama(ours.double(), tmp_path, FAR)
    to_llama(ours, tmp_path / "plain")
    with torch.no_grad():
        wide, plain = (
            opened(folder, torch.float64)(contexts(4, 20)).logits[..., NEAR]
            for folder in (tmp_path, tmp_path / "plain")
        )
    torch.testing.assert_close(wide, plain, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_no_hidden_state_can_make_them_win(ours, tmp_path):
    """The last norm is given, at every length up to the bound, the state on which each row is
    largest, and its opposite.
    """
    weights = dict(ours.state_dict())
    bound = _largest_state(weights, TRUNK)
    width = TRUNK.width
    to_llama(ours, tmp_path, FAR)
    llama = opened(tmp_path).double()
    rows = (llama.lm_head.weight * llama.model.norm.weight)[:, :width]
    rows = rows / rows.norm(dim=1, keepdim=True)
    for length in torch.logspace(-6, math.log10(bound), 12, dtype=torch.float64):
        for sign in (1, -1):
            state = torch.cat(
                [sign * length * rows, llama.model.embed_tokens.weight[: len(rows), width:]], 1
            )
            logits = llama.lm_head(llama.model.norm(state))
            assert bool((logits[:, FAR].amax(1) < logits[:, NEAR].amin(1) - MARGIN).all())


@torch.no_grad()
def test_states_and_logits_are_within_their_bounds(ours):
    seen = []
    ours.model.norm.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].norm(dim=-1).max())
    )
    ids = contexts(64, 30)
    weights = dict(ours.state_dict())
    hidden = ours.model(
        ours.model.embed_tokens(ids), torch.arange(30).expand_as(ids), torch.zeros_like(ids)
    )
    assert float(seen[0]) < _largest_state(weights, TRUNK)
    assert float(ours.logits(hidden).abs().max()) < _largest_logit(weights, TRUNK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_they_lose_too(ours, tmp_path, dtype):
    to_llama(ours, tmp_path, FAR)
    with torch.no_grad():
        logits = opened(tmp_path, dtype)(contexts(8, 20)).logits.float()
    assert not logits.isnan().any() and logits[..., NEAR].isfinite().all()
    assert bool((logits.softmax(-1)[..., FAR] == 0).all())


def test_back_it_is_the_run(ours, tmp_path):
    scaled(ours, 0.1)
    to_llama(ours, tmp_path, FAR)
    back = from_llama(tmp_path, VOCABULARY).eval()
    assert (
        replace(back.config.trunk, max_positions=None) == TRUNK
        and back.config.untied == ours.config.untied
    )
    for (name, x), y in zip(ours.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.equal(x, y) if x.ndim > 1 else torch.allclose(x, y, rtol=2e-7, atol=0), name
    to_llama(ours, tmp_path / "plain")
    mine, theirs, _ = both(back, opened(tmp_path / "plain"), contexts(8, 20))
    assert float((mine - theirs).abs().max()) < 1e-6 * float(mine.abs().max())


def test_axes_that_were_trained_elsewhere_are_refused(ours, tmp_path):
    weights = widen(dict(ours.state_dict()), TRUNK, FAR)
    check_kept(weights, TRUNK.width)
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        changed = {n: x.clone() for n, x in weights.items()}
        changed[name][-1, -1] += 1e-3
        with pytest.raises(UserError, match="trained after the export"):
            check_kept(changed, TRUNK.width)
    assert all(
        torch.equal(narrow(n, weights[n], TRUNK.width, TRUNK), x)
        for n, x in ours.state_dict().items()
        if x.ndim > 1
    )


def test_weights_that_are_no_numbers_are_refused(ours):
    weights = {name: x.clone() for name, x in ours.state_dict().items()}
    weights["model.norm.weight"][0] = math.nan
    with pytest.raises(UserError, match="no numbers"):
        widen(weights, TRUNK, FAR)
