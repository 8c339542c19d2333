"""Perceiver: equal to transformers' on shared weights; sets stay sets; the cost is linear."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmtok.errors import UserError
from mmtok.nn.perceiver import Perceiver, PerceiverConfig, PerceiverDecoder, sinusoids

CONFIG = PerceiverConfig(n_latents=6, depth=3, n_heads=4, widening=2, positions=False)


def made(config=CONFIG):
    torch.manual_seed(0)
    return Perceiver(config, 16, 12).double().eval()


def published():
    """Settings of `transformers` for the same sizes."""
    from transformers import PerceiverConfig as Published

    return Published(
        num_latents=6,
        d_latents=16,
        d_model=12,
        num_blocks=1,
        num_self_attends_per_block=3,
        num_self_attention_heads=4,
        num_cross_attention_heads=4,
        qk_channels=16,
        v_channels=16,
        self_attention_widening_factor=2,
        cross_attention_widening_factor=2,
        attention_probs_dropout_prob=0.0,
    )


def test_latents_are_those_of_transformers():
    from transformers import PerceiverModel

    ours = made()
    theirs = PerceiverModel(published()).double().eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    with torch.no_grad():
        wanted = theirs(x, attention_mask=mask.double()).last_hidden_state
        assert torch.allclose(ours(x, mask), wanted, atol=1e-10)


def test_outputs_of_queries_are_those_of_transformers():
    from transformers.models.perceiver.modeling_perceiver import PerceiverBasicDecoder

    theirs = PerceiverBasicDecoder(
        published(),
        5,
        "none",
        num_channels=8,
        num_heads=2,
        widening_factor=2,
        qk_channels=8,
        v_channels=8,
    ).double()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours = PerceiverDecoder(8, 2, 2, 16, 5).double()
    ours.load_state_dict(theirs.state_dict())
    queries = torch.randn(2, 7, 8, dtype=torch.float64)
    latents = torch.randn(2, 6, 16, dtype=torch.float64)
    wanted = theirs(queries, latents).logits
    found = ours(queries, latents)
    assert torch.allclose(found, wanted, atol=1e-10)
    order = torch.randperm(7)
    assert torch.allclose(ours(queries[:, order], latents), found[:, order], atol=1e-12)


def test_latents_do_not_depend_on_the_order_of_a_set_but_on_that_of_a_sequence():
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    of_sets = made()
    assert torch.allclose(of_sets(x), of_sets(x[:, order]), atol=1e-12)
    ordered = made(PerceiverConfig(6, 3, 4, 2, positions=True))
    assert not torch.allclose(ordered(x), ordered(x[:, order]))


def test_padding_is_not_read():
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    mask = torch.arange(9)[None] < 5
    assert torch.allclose(made()(x, mask), made()(x[:, :5]), atol=1e-12)


def test_products_grow_linearly_with_the_inputs():
    counts = []
    for n in (1000, 2000, 4000):
        with FlopCounterMode(display=False) as counter:
            made()(torch.randn(1, n, 12, dtype=torch.float64))
        counts.append(counter.get_total_flops())
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])


def test_sines_are_of_any_width_and_bad_sizes_are_one_line():
    assert sinusoids(4, 7).shape == (4, 7)
    with pytest.raises(UserError, match="n_latents is 0"):
        PerceiverConfig(n_latents=0)
    with pytest.raises(UserError, match="5 heads must divide its width, 16"):
        Perceiver(PerceiverConfig(n_heads=5), 16, 12)
