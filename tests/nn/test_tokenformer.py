"""Parameter tokens: attention to them, and growth that changes no bit."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.tokenformer import Pattention
from mmtok.nn.transformer import Transformer, TransformerConfig
from mmtok.nn.weight_decay import matrices

CONFIG = TransformerConfig(
    depth=2, width=32, n_heads=4, n_kv_heads=2, feed_forward=48, attn_tokens=(16,), ffn_tokens=(64,)
)


def test_it_is_the_papers_formula():
    torch.manual_seed(0)
    one = Pattention(8, 6, (10,)).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    a = x @ one.key_0.T
    wanted = F.gelu(a / a.norm(dim=-1, keepdim=True) * 10**0.5) @ one.value_0
    assert torch.allclose(one(x), wanted, atol=1e-9)


def test_first_outputs_are_as_large_as_those_of_the_linear_map():
    torch.manual_seed(0)
    x = torch.randn(500, 64)
    one = Pattention(64, 64, (96,))
    linear = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.normal_(linear.weight, std=0.02)
    assert 0.7 < one(x).std() / linear(x).std() < 1.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_growth_by_silent_keys_changes_no_bit_and_learns(dtype):
    torch.manual_seed(0)
    small = Pattention(33, 17, (21,)).to(dtype)
    large = Pattention(33, 17, (21, 40)).to(dtype)
    large.load_state_dict(small.state_dict(), strict=False)
    large.silence(1)
    x = torch.randn(50, 33, dtype=dtype)
    assert torch.equal(small(x), large(x))
    large(x).square().sum().backward()
    assert large.key_1.grad.abs().sum() > 0
    assert large(torch.zeros(1, 33, dtype=dtype)).isfinite().all()


def test_a_trunk_of_tokens_decodes_as_it_reads():
    torch.manual_seed(0)
    trunk = Transformer(CONFIG, 40).double().eval()
    for norm in (trunk.layers[0].input_layernorm, trunk.layers[1].post_attention_layernorm):
        torch.nn.init.normal_(norm.weight, mean=1.0, std=0.3)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    position = torch.arange(9).expand(2, -1)
    whole = trunk(x, position, torch.zeros_like(position))
    decoder = KVCacheDecoder(trunk, batch_size=2)
    pieces = [decoder.forward(x[:, :5])]
    pieces += [decoder.forward(x[:, i : i + 1]) for i in range(5, 9)]
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-10)


def test_tokens_decay_as_matrices_do():
    block = Transformer(CONFIG, 40).layers[0]
    assert len(matrices(block)) == 2 * 5  # keys and values of q, k, v, o and the feed-forward


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="attn_tokens"):
        replace(CONFIG, attn_tokens=(16, 0))
    assert not CONFIG.is_llama and "parameter tokens" in CONFIG.odd_blocks
