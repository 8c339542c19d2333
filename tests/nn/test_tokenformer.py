"""Parameter tokens: attention to them, and growth that changes no bit."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.tokenformer import Pattention, gelu_square
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


@pytest.mark.parametrize("n_tokens", [(4096,), (1024, 3072), (2048, 1024, 1024)])
def test_first_outputs_are_of_the_std_whatever_the_generations(n_tokens):
    torch.manual_seed(0)
    y = Pattention(64, 512, n_tokens)(torch.randn(400, 64))
    assert y.std().item() == pytest.approx(0.02 * 64**0.5, rel=0.05)


@pytest.mark.parametrize("std", [0.3, 0.7, 1.0])
def test_the_mean_square_of_gelu(std):
    z = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    wanted = torch.trapezoid(F.gelu(std * z).square() * density, z)
    assert gelu_square(std) == pytest.approx(float(wanted), rel=1e-9)


def test_all_residual_branches_start_small():
    """Outputs of the branches' last maps have the std of linear maps of 0.02 / sqrt(2 depth)."""
    torch.manual_seed(0)
    trunk = Transformer(replace(CONFIG, depth=8, attn_tokens=(256,), ffn_tokens=(256,)), 40)
    x = torch.randn(400, 32)
    for last in ("self_attn.o_proj", "mlp"):
        spreads = torch.stack([block.get_submodule(last)(x).std() for block in trunk.layers])
        wanted = 0.02 / (2 * 8) ** 0.5 * 32**0.5
        assert spreads.mean().item() == pytest.approx(wanted, rel=0.1), last
    q = torch.stack([block.self_attn.q_proj(x).std() for block in trunk.layers])
    assert q.mean().item() == pytest.approx(0.02 * 32**0.5, rel=0.1)


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


@torch.no_grad()
@pytest.mark.parametrize("precision, size, error", [("bf16", 2, 0.03), ("int8", 1, 0.05)])
def test_sampling_in_few_bytes_rounds_the_tokens(precision, size, error):
    torch.manual_seed(0)
    trunk = Transformer(replace(CONFIG, attn_tokens=(16, 8)), 40).eval()
    for p in trunk.parameters():
        p.mul_(3)  # so that the branches weigh beside the stream
    x = torch.randn(2, 6, 32)
    exact = KVCacheDecoder(trunk, batch_size=2).forward(x)
    decoder = KVCacheDecoder(trunk, precision, batch_size=2)
    found = decoder.forward(x)
    assert 0 < (found - exact).norm() / exact.norm() < error
    grown = Transformer(replace(CONFIG, attn_tokens=(16, 8, 24), ffn_tokens=(64, 5)), 40).eval()
    grown.load_state_dict(trunk.state_dict(), strict=False)
    for one in grown.modules():
        if isinstance(one, Pattention):
            one.silence(len(one.n_tokens) - 1)
    assert torch.equal(KVCacheDecoder(grown, precision, batch_size=2).forward(x), found)
    tokens = decoder.layers[0].qkv
    assert {w.element_size() for w in tokens.weights} == {size}
    assert len(tokens.weights) == 3 * 2 * 2  # of q, k, v two generations' keys and values


@torch.no_grad()
def test_a_decoder_holds_copies():
    torch.manual_seed(0)
    trunk = Transformer(CONFIG, 40).eval()
    x = torch.randn(1, 4, 32)
    decoder = KVCacheDecoder(trunk)
    before = decoder.emptied(torch.zeros(1, dtype=torch.long)).forward(x)
    for p in trunk.parameters():
        p.normal_()
    assert torch.equal(decoder.forward(x), before)


def test_tokens_decay_as_matrices_do():
    block = Transformer(CONFIG, 40).layers[0]
    assert len(matrices(block)) == 2 * 5  # keys and values of q, k, v, o and the feed-forward


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="attn_tokens"):
        replace(CONFIG, attn_tokens=(16, 0))
    assert not CONFIG.is_llama and "parameter tokens" in CONFIG.odd_blocks
