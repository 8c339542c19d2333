import copy
import functools
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mmtok.nn.attention import Llama3Scaling
from mmtok.nn.inference_linear import prepare_linear, with_prepared_linears
from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.transformer import Transformer, TransformerConfig
from mmtok.train.config import TrainConfig
from mmtok.train.trainer import make_optimizer

SIZES = dict(depth=3, width=32, n_heads=4, feed_forward=48)
CONFIGS = [
    TransformerConfig(**SIZES, n_kv_heads=2),
    TransformerConfig(**SIZES, n_kv_heads=4, rope_scaling=Llama3Scaling(original_positions=64)),
]


@pytest.fixture(params=CONFIGS, ids=["grouped", "scaled"])
def trunk(request):
    torch.manual_seed(0)
    made = Transformer(request.param, 7).double().eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def states(*shape):
    return torch.randn(*shape, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def whole(trunk, x):
    position = torch.arange(x.shape[1]).expand(x.shape[:2])
    return trunk(x, position, torch.zeros_like(position))


def test_read_in_parts_equals_read_at_once_and_the_cache_grows(trunk):
    x = states(2, 150)
    decoder = KVCacheDecoder(trunk)
    parts = []
    start = 0
    for n in (60, 1, 1, 10, 1, 70, 7):
        parts.append(decoder.forward(x[:, start : start + n]))
        start += n
    assert start == 150 and decoder.capacity == 256
    assert torch.allclose(torch.cat(parts, 1), whole(trunk, x), rtol=0, atol=1e-10)


def test_rows_of_different_lengths_some_dropped(trunk):
    """Rows end together: what stands before the shorter ones is never seen; dropped rows leave the
    others alone.
    """
    lengths = [3, 9, 6, 1]
    total = 80
    x = states(4, total)
    expected = whole(trunk, x)
    start = 9 - torch.tensor(lengths)
    prompt = torch.full((4, 9, 32), 100.0, dtype=torch.float64)
    for row, n in enumerate(lengths):
        prompt[row, 9 - n :] = x[row, :n]
    decoder = KVCacheDecoder(trunk, left_padding=start)
    rows = torch.arange(4)
    at = torch.tensor(lengths)
    first = decoder.forward(prompt[:, :7])
    second = decoder.forward(prompt[:, 7:])
    for row, n in enumerate(lengths):
        read = torch.cat([first, second], 1)[row, 9 - n :]
        assert torch.allclose(read, expected[row, :n], rtol=0, atol=1e-10)
    for step in range(70):
        if step in (1, 3):  # first the longest row, then another, with the order changed
            keep = torch.tensor([0, 2, 3] if step == 1 else [2, 0])
            decoder.select(keep)
            rows = rows[keep]
            at = at[keep]
        hidden = decoder.forward(x[rows, at][:, None])[:, 0]
        assert torch.allclose(hidden, expected[rows, at], rtol=0, atol=1e-10), step
        at = at + 1


@pytest.mark.parametrize("precision, error", [("float32", 1e-5), ("bf16", 0.02), ("int8", 0.03)])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_rounded_trunk_reads_nearly_the_same(precision, error, rows):
    torch.manual_seed(0)
    trunk = Transformer(TransformerConfig(3, 64, 4, 2, 96), 7).eval().requires_grad_(False)
    x = torch.randn(rows, 20, 64)
    expected = whole(trunk, x)
    decoder = KVCacheDecoder(trunk, precision, batch_size=rows)
    read = torch.cat(
        [decoder.forward(x[:, :12]), *(decoder.forward(x[:, t : t + 1]) for t in range(12, 20))], 1
    )
    assert read.dtype == torch.float32 and (read - expected).norm() < error * expected.norm()


@pytest.mark.parametrize("precision, error", [("float32", 1e-6), ("bf16", 0.01), ("int8", 0.015)])
@pytest.mark.parametrize("n_inputs, n_outputs", [(64, 37), (24, 5), (7, 128), (1, 1)])
def test_products_in_every_layout(precision, error, n_inputs, n_outputs):
    torch.manual_seed(0)
    linear = torch.nn.Linear(n_inputs, n_outputs).requires_grad_(False)
    other = torch.randn(3, 2, n_outputs)
    with torch.no_grad():
        made = prepare_linear(linear.weight, linear.bias, precision, 6)
        x = torch.randn(3, 2, n_inputs)
        y = linear(x)

        def close(a, b):
            return a.shape == b.shape and (a - b).norm() < error * b.norm()

        assert close(made(x), y) and close(made.silu(x), torch.nn.functional.silu(y))
        assert close(made.times(x, other.to(made.dtype)), y * other)
        assert close(made(x[0, :1]), y[0, :1])


def test_a_module_with_its_linears_laid_out_stays_as_it_was():
    module = torch.nn.ModuleDict(
        {"a": torch.nn.ModuleList([torch.nn.Linear(4, 4)]), "b": torch.nn.Embedding(3, 4)}
    )
    made = with_prepared_linears(module, "bf16", 1)
    assert made["a"][0](torch.ones(1, 4)).dtype == torch.bfloat16 and made["b"] is not None
    assert (
        isinstance(module["a"][0], torch.nn.Linear)
        and with_prepared_linears(module, "float32", 1) is module
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("start", [None, torch.tensor([0, 3])])
def test_a_compiled_step_reads_the_same(trunk, start):
    x = states(2, 60).float()
    trunk.float()
    plain = KVCacheDecoder(trunk, left_padding=start, batch_size=2)
    compiled = KVCacheDecoder(trunk, left_padding=start, batch_size=2, compile_length=60)
    with torch.inference_mode():
        for here in (slice(0, 6), *(slice(t, t + 1) for t in range(6, 60))):
            a = plain.forward(x[:, here])
            b = compiled.forward(x[:, here])
            assert torch.allclose(a[:, -1], b[:, -1], atol=1e-4), here
    assert (
        KVCacheDecoder(trunk, batch_size=2, compile_length=50).compiled is compiled.compiled
    )  # compiled once


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiling_says_nothing(tmp_path):
    """In a process and a cache of its own: what is compiled already or was said once is not said
    again.
    """
    code = """
import sys, torch, warnings
from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.transformer import Transformer, TransformerConfig
warnings.simplefilter("default", UserWarning)
def show(message, category, *_):
    if issubclass(category, UserWarning):
        print(message, file=sys.stderr)
warnings.showwarning = show
trunk = Transformer(TransformerConfig(1, 64, 2, 2, 96), 7).eval().requires_grad_(False)
decoder = KVCacheDecoder(trunk, compile_length=20)
with torch.inference_mode():
    decoder.forward(torch.ones(1, 1, 64))
print(any(sys.argv[1] in line for line in open("/proc/self/maps")))
"""
    how = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=how,
        check=True,
    )
    assert done.stderr == "" and done.stdout == "True\n"


def learn(trunk):
    """A step of the optimiser that training takes: what torch counts of a weight's changes may not
    tell of it.
    """
    trunk.requires_grad_(True)
    optimizer = make_optimizer(trunk, TrainConfig(learning_rate=0.05))
    for parameter in trunk.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    trunk.requires_grad_(False)


@pytest.fixture
def uncompiled(monkeypatch):
    """The steps that would be compiled run as they are."""
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    monkeypatch.setattr("mmtok.nn.compiled.missing_for_compile", lambda device: "")


def reads_as_it_is(trunk, x, **how):
    """Whether a decoder of the trunk as it is now reads as the trunk itself does; returns its step
    too.
    """
    decoder = KVCacheDecoder(trunk, batch_size=len(x), **how)
    with torch.inference_mode():
        read = torch.cat([decoder.forward(x[:, t : t + 1]) for t in range(x.shape[1])], 1)
    return (
        torch.allclose(
            read, whole(trunk, x), rtol=0, atol=1e-4 if x.dtype == torch.float32 else 1e-10
        ),
        decoder.compiled,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_trunk_that_learned_is_compiled_anew(trunk):
    trunk.float()
    for _ in range(2):
        assert reads_as_it_is(trunk, states(2, 5).float(), compile_length=50)[0]
        learn(trunk)


def test_a_step_is_kept_while_sizes_and_weights_stay(trunk, uncompiled):
    x = states(2, 5)
    right, first = reads_as_it_is(trunk, x, compile_length=50)
    assert (
        right and KVCacheDecoder(trunk, batch_size=2, compile_length=60).compiled is first
    )  # a cache of as many positions
    assert KVCacheDecoder(trunk, batch_size=2, compile_length=70).compiled is not first
    for change in (
        lambda: learn(trunk),
        lambda: trunk.layers[1].mlp.down_proj.weight.data[3, 4].mul_(1 + 1e-9),
    ):
        before = KVCacheDecoder(trunk, batch_size=2, compile_length=50).compiled
        change()
        right, after = reads_as_it_is(trunk, x, compile_length=50)
        assert (
            right
            and after is not before
            and KVCacheDecoder(trunk, batch_size=2, compile_length=50).compiled is after
        )


def test_each_weight_that_a_step_holds_is_looked_at(trunk, uncompiled):
    for name, parameter in trunk.named_parameters():
        before = KVCacheDecoder(trunk, batch_size=1, compile_length=50).compiled
        parameter.data.view(-1)[-1] += 1e-6
        assert (KVCacheDecoder(trunk, batch_size=1, compile_length=50).compiled is before) == (
            name == "embed_tokens.weight"
        ), name


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
def test_a_decoder_made_after_learning_has_what_was_learned(trunk, precision):
    trunk.float()
    KVCacheDecoder(trunk, precision).forward(states(1, 3).float())
    learn(trunk)
    read, fresh = (
        KVCacheDecoder(t, precision).forward(states(1, 3).float())
        for t in (trunk, copy.deepcopy(trunk))
    )
    assert (
        torch.equal(read, fresh)
        and (read - whole(trunk, states(1, 3).float())).norm() < 0.1 * read.norm()
    )


def test_steps_are_compiled_any_number_of_times(trunk, monkeypatch):
    """torch refuses the ninth of what shares one code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr("mmtok.nn.compiled.missing_for_compile", lambda device: "")
    for _ in range(10):
        assert reads_as_it_is(trunk, states(1, 2), compile_length=50)[0]
        learn(trunk)


def test_without_a_compiler_sampling_goes_on_and_says_so(trunk, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="needs a C.. compiler"):
        decoder = KVCacheDecoder(trunk, batch_size=1, compile_length=50)
    assert decoder.compiled is None and torch.allclose(
        decoder.forward(states(1, 5)), whole(trunk, states(1, 5)), atol=1e-10
    )
