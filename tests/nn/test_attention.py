"""Packed rows: both ways of attending agree with each other, and with every document alone,
gradients too.
"""

import shutil

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from mmtok.nn import attention
from mmtok.nn.attention import attend, document_mask, rotary, rotate
from mmtok.nn.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(depth=2, width=32, n_heads=4, n_kv_heads=2, feed_forward=48)
LENGTHS = (12, 1, 7)

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def trunk(generator):
    trunk = Transformer(CONFIG, 7)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return trunk


@pytest.fixture(params=[False, True], ids=["dense", "fused"])
def fused(request, monkeypatch):
    """Either way on a CPU, where FlexAttention refuses gradients, though its uncompiled form has
    them.
    """
    monkeypatch.setattr(attention, "USE_FLEX_ATTENTION", request.param)
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    return request.param


def documents(n_padding=4):
    """The numbers of one row's documents and their positions, padding at the end: two (1, L)."""
    lengths = [*LENGTHS, n_padding]
    number = torch.cat([torch.full((n,), i) for i, n in zip((0, 1, 2, -1), lengths)])
    return number[None], torch.cat([torch.arange(n) for n in lengths])[None]


def heads(n, length, generator):
    return torch.randn(2, n, length, 16, generator=generator, requires_grad=True)


@pytest.mark.parametrize("n_kv", [4, 2, 1])
def test_both_ways_attend_alike_and_have_equal_gradients(n_kv, generator, monkeypatch):
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    document = torch.cat([documents()[0], torch.zeros(1, 24, dtype=torch.long)])
    q = heads(4, 24, generator)
    k = heads(n_kv, 24, generator)
    v = heads(n_kv, 24, generator)
    away = torch.randn(q.shape, generator=generator)
    made = {}
    for way in (False, True):
        monkeypatch.setattr(attention, "USE_FLEX_ATTENTION", way)
        seen = document_mask(document, 16)
        assert isinstance(seen, flex.BlockMask) == way
        y = attend(q, k, v, seen)
        made[way] = [y, *torch.autograd.grad(y, (q, k, v), away)]
    for dense, fused in zip(made[False], made[True]):
        assert torch.allclose(dense, fused, rtol=0, atol=1e-5)


def test_packed_documents_have_the_gradients_of_each_alone(trunk, fused, generator):
    document, position = documents()
    x, away = torch.randn(2, 1, document.shape[1], CONFIG.width, generator=generator)
    away = away * (document >= 0)[..., None]  # padding is not predicted
    parameters = [p for name, p in trunk.named_parameters() if not name.startswith("embed")]
    packed = torch.autograd.grad((trunk(x, position, document) * away).sum(), parameters)
    alone = [torch.zeros_like(p) for p in parameters]
    for i in range(len(LENGTHS)):
        here = document[0] == i
        y = trunk(x[:, here], position[:, here], torch.zeros_like(position[:, here]))
        for total, part in zip(alone, torch.autograd.grad((y * away[:, here]).sum(), parameters)):
            total += part
    for a, b in zip(packed, alone):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5) and a.abs().max() > 1e-2


def test_a_row_that_is_one_document_attends_as_under_its_mask(generator, monkeypatch):
    document = torch.tensor([[0] * 24, [0] * 20 + [-1] * 4])
    q = heads(4, 24, generator)
    k = heads(2, 24, generator)
    v = heads(2, 24, generator)
    assert document_mask(document, 16) is None
    apart = torch.cat(
        [document, torch.arange(24)[None]]
    )  # a third row that needs a mask, so that all three get one
    mask = document_mask(apart, 16)[:2]
    away = torch.randn(q.shape, generator=generator) * (document >= 0)[:, None, :, None]
    made = []
    for seen in (None, mask):
        y = attend(q, k, v, seen)
        made.append(
            [y * (document >= 0)[:, None, :, None], *torch.autograd.grad(y, (q, k, v), away)]
        )
    for causal, masked in zip(*made):
        assert torch.allclose(causal, masked, rtol=0, atol=1e-5)


def test_what_is_chosen_where(monkeypatch):
    document = documents()[0]
    assert document_mask(document, 64).dtype == torch.bool
    monkeypatch.setattr(attention, "USE_FLEX_ATTENTION", True)
    assert document_mask(document, 64).shape == (1, 1, 24, 24)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_as_on_a_gpu_no_pack_compiles_anew(generator):
    """Forward only: what a CPU can compile of it."""
    compiled = [
        attention._compiled(function) for function in (flex.create_block_mask, flex.flex_attention)
    ]
    q, k, v = (heads(n, 256, generator).detach() for n in (4, 2, 2))
    for i, lengths in enumerate([(100, 150, 6), (256,), (1, 2, 3, 50, 200)]):
        document = (
            torch.cat([torch.full((n,), j) for j, n in enumerate(lengths)])
            .expand(2, 256)
            .contiguous()
        )
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            seen = compiled[0](
                lambda b, h, x, y: (x >= y) & (document[b, x] == document[b, y]),
                2,
                None,
                256,
                256,
                device="cpu",
            )
            y = compiled[1](q, k, v, block_mask=seen, enable_gqa=True)
        assert torch.allclose(y, attend(q, k, v, document_mask(document, 16)), rtol=0, atol=1e-5)


def test_rotation_is_a_product_of_complex_numbers_and_so_is_its_gradient():
    torch.manual_seed(3)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = (t.double() for t in rotary(torch.arange(5)[None], 8, 100.0))

    def half(t):
        return t.chunk(2, -1)

    turned = torch.complex(*half(x)) * torch.complex(half(cos)[0], half(sin)[0])
    torch.testing.assert_close(rotate(x, cos, sin), torch.cat([turned.real, turned.imag], -1))
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))
