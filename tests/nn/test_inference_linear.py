"""Layouts of float32 weights: the same map in each, and the one that this machine reads fastest."""

from functools import partial

import numpy as np
import pytest
import torch

from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn import inference_linear
from mmtok.nn.inference_linear import best_layout, fastest_layout, prepare_linear
from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.transformer import Transformer, TransformerConfig

LAYOUTS = sorted(inference_linear._layouts(1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_outputs", [128, 37])
@pytest.mark.parametrize("n_rows", [1, 3, 70])
@pytest.mark.parametrize("bias", [False, True])
def test_every_layout_of_float32_weights_is_the_same_map(layout, n_outputs, n_rows, bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, n_outputs, bias).requires_grad_(False)
    made = inference_linear._layouts(n_rows)[layout](linear.weight, linear.bias)
    x = torch.randn(n_rows, 2, 48)
    with torch.no_grad():
        y = linear(x)
        close = partial(torch.allclose, rtol=0, atol=1e-5)
        assert made(x).is_contiguous() or n_outputs % inference_linear.BLOCK
        assert close(made(x), y)
        assert close(made.silu(x), torch.nn.functional.silu(y))
        assert close(made.gelu_tanh(x), torch.nn.functional.gelu(y, approximate="tanh"))
        assert close(made.times(x, y), y * y)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_trunk_reads_the_same_in_every_layout(layout, rows, monkeypatch):
    monkeypatch.setattr(inference_linear, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(inference_linear, "fastest_layout", lambda n_rows, n_threads: layout)
    torch.manual_seed(0)
    trunk = Transformer(TransformerConfig(3, 64, 4, 2, 96), 7).eval().requires_grad_(False)
    x = torch.randn(rows, 20, 64)
    position = torch.arange(20).expand(rows, 20)
    expected = trunk(x, position, torch.zeros_like(position))
    decoder = KVCacheDecoder(trunk, batch_size=rows)
    read = [decoder.forward(x[:, :12]), *(decoder.forward(x[:, t : t + 1]) for t in range(12, 20))]
    assert torch.allclose(torch.cat(read, 1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_prompts", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_seed_draws_the_same_in_every_layout(layout, n_prompts, monkeypatch):
    torch.manual_seed(0)
    vocabulary = Vocabulary([Signature("image", (300,), frames=24)])
    lm = LM(DecoderConfig(TransformerConfig(2, 64, 4, 4, 96), {}), vocabulary).eval()
    open_segment = Segment("image", codes=np.zeros((0, 1), np.int64))
    prompts = [Document((open_segment,), (True,), open_end=True)] * n_prompts

    def drawn():
        generator = torch.Generator().manual_seed(0)
        sampled = generate(lm, prompts, Sampling(precision="float32"), generator)
        return np.stack([one.segment.codes for one in sampled])

    expected = drawn()
    monkeypatch.setattr(inference_linear, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(inference_linear, "fastest_layout", lambda n_rows, n_threads: layout)
    assert np.array_equal(drawn(), expected)


def test_another_layout_must_gain_enough():
    assert best_layout({"rows": 3.0, "columns": 1.5, "blocked": 2.0}) == "columns"
    assert best_layout({"rows": 3.0, "columns": 2.7, "blocked": 2.0}) == "blocked"
    assert best_layout({"rows": 3.0, "columns": 1.05, "blocked": 1.0}) == "columns"
    assert best_layout({"rows": 3.0, "columns": 2.7, "blocked": 2.8}) == "rows"


def test_layouts_are_measured_once_and_only_where_weights_are_many_and_rows_few(monkeypatch):
    fastest_layout.cache_clear()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    layout = fastest_layout(4, 1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert layout in LAYOUTS and fastest_layout(4, 1) == layout
    assert fastest_layout.cache_info().misses == 1
    monkeypatch.setattr(inference_linear, "fastest_layout", None)  # nothing more is measured
    many = torch.zeros(512, 512)
    for weight, n_rows in ((many[:8], 1), (many, 65), (many.double(), 1), (many.bfloat16(), 1)):
        made = prepare_linear(weight, None, "float32", n_rows)
        assert type(made) is inference_linear.Linear and made.dtype == weight.dtype
