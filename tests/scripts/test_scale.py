"""Large trainings on paper: what small models do, and the page that the script prints."""

import importlib.util
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import Loader
from mmtok.data.tasks import Task
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn import cross_entropy as crossentropy
from mmtok.nn.transformer import TransformerConfig
from mmtok.train.config import TrainConfig
from mmtok.train.network_fit import products_in
from mmtok.train.trainer import make_optimizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "scripts" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(params=[("bf16", 4), ("bf16", 2), ("float32", 2)], ids=lambda p: f"{p[0]}-{p[1]}")
def small(request, scale):
    precision, n_kv_heads = request.param
    return scale.Plan(
        2,
        128,
        4,
        n_kv_heads,
        352,
        text_pieces=600,
        image_codes=40,
        batch_size=2,
        seq_len=64,
        precision=precision,
    )


def real(plan):
    """A decoder of the plan's trunk over text, which makes the activations."""
    trunk = TransformerConfig(
        plan.depth, plan.width, plan.n_heads, plan.n_kv_heads, plan.feed_forward
    )
    lm = LM(DecoderConfig(trunk), Vocabulary([Signature("text", (plan.text_pieces,))]))
    lm.model.checkpoint_activations(plan.activation_checkpointing)
    return lm


def saved_bytes(plan, n_rows):
    """What autograd keeps of a forward pass over full rows of two documents each, each storage
    once.
    """
    torch.manual_seed(0)
    lm = real(plan)
    kept = {}
    codes = np.random.default_rng(0).integers(
        0, plan.text_pieces, (n_rows, 2, plan.seq_len // 2 - 3, 1)
    )
    rows = [
        [to_stream(lm.vocabulary, Document((Segment("text", codes=x),), (True,))) for x in row]
        for row in codes
    ]
    batch = pack(lm.vocabulary, rows, plan.seq_len)

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x  # held, so that no two share an address
        return x

    narrow = torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), narrow:
        nats = lm(batch).total.sum()
    assert nats.requires_grad
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def per_position(plan):
    """Bytes that one more row keeps per position: weights fall out of the difference."""
    return (saved_bytes(plan, 4) - saved_bytes(plan, 2)) / (2 * plan.seq_len)


def test_a_block_keeps_exactly_as_much_as_the_formula_says(scale, small):
    measured = per_position(replace(small, depth=3)) - per_position(replace(small, depth=2))
    assert measured == scale.block_bytes(small)
    measured = per_position(replace(small, depth=3, activation_checkpointing=3)) - per_position(
        replace(small, depth=2, activation_checkpointing=2)
    )
    assert measured == 4 * small.width


@pytest.mark.parametrize("activation_checkpointing", [0, 1, 2])
def test_the_whole_decoder_keeps_as_much_but_for_some_integers(
    scale, small, activation_checkpointing, monkeypatch
):
    monkeypatch.setattr(
        crossentropy, "MAX_SAVED_LOGITS", {"cpu": 0}
    )  # the ids' logits chunk by chunk, as in a large model
    plan = replace(small, activation_checkpointing=activation_checkpointing)
    # alive, but not always among what autograd keeps: the mask, the cosines and sines in float32
    alive = plan.seq_len * (activation_checkpointing == 0) + 8 * plan.width // plan.n_heads * (
        plan.size < 4 or activation_checkpointing == plan.depth
    )
    assert 0 <= per_position(plan) - (scale.kept_bytes(plan) - alive) <= 32


def test_parameters_are_counted_exactly(scale, small):
    on_meta = scale.decoder(small)
    made = LM(on_meta.config, on_meta.vocabulary)
    assert (
        scale.n_parameters(on_meta) == sum(p.numel() for p in made.parameters())
        and next(on_meta.parameters()).is_meta
    )
    k = small.width // small.n_heads * small.n_kv_heads
    block = (
        2 * small.width**2
        + 2 * small.width * k
        + 3 * small.width * small.feed_forward
        + 2 * small.width
    )
    assert scale.n_parameters(on_meta.model.layers) == small.depth * block


def test_a_parameter_has_twenty_bytes_of_state(scale, small):
    lm = real(small)
    optimizer = make_optimizer(lm, TrainConfig())
    lm.model(
        torch.randn(1, 4, small.width), torch.arange(4)[None], torch.zeros(1, 4, dtype=torch.long)
    ).sum().backward()
    lm.model.embed_tokens.weight.grad = torch.zeros_like(lm.model.embed_tokens.weight)
    optimizer.step()
    moments = [x for state in optimizer.state.values() for x in state.values() if x.numel() > 1]
    weights = list(lm.parameters())
    held = sum(
        x.numel() * x.element_size() for x in [*weights, *moments, *(p.grad for p in weights)]
    )
    assert held + 4 * scale.n_parameters(lm) == 20 * scale.n_parameters(
        lm
    )  # the moving average is one more copy
    total = {row[0]: row[1] for row in scale.rows_of(small)}
    assert any(name.startswith("weights, moments, EMA, gradients: 20 bytes") for name in total)


def test_flop_are_the_logs(scale):
    plan = scale.PLANS["1B"]
    lm = scale.decoder(plan)
    needed, made = scale.flop_per_position(plan, lm)
    matrices = sum(p.numel() for p in lm.model.layers.parameters() if p.ndim == 2) + plan.width * (
        plan.text_pieces + 1
    )
    assert needed == 6 * matrices + 12 * plan.depth * plan.width * plan.seq_len
    again = replace(plan, activation_checkpointing=plan.depth)
    assert (
        scale.flop_per_position(again, lm)[1] == pytest.approx(needed * 4 / 3)
        and needed < made < needed * 4 / 3
    )


def test_what_is_kept_of_rows_and_examples_is_counted_exactly(scale, tmp_path):
    signatures = {
        m: s
        for m, s in scale.decoder(scale.PLANS["1B"]).vocabulary.signatures.items()
        if m in ("text", "speech", "jets")
    }
    rows = [
        {m: Segment(m, codes=np.zeros((7, len(s.levels)), int)) for m, s in signatures.items()}
        for _ in range(50)
    ]
    write_tokens(tmp_path / "t.parquet", signatures, rows)
    file = read_tokens(tmp_path / "t.parquet", map_from=0)
    stated = {row[0]: row[1] for row in scale.rows_of(scale.PLANS["1B"])}[
        "bytes per frame in the memory-mapped copy; per row"
    ]
    for column, n_bytes in zip(file._columns.values(), (2, 80, 3)):
        assert column.values.nbytes == 50 * 7 * n_bytes
        per_row = [
            column.offsets[1:],
            column.starts,
            column.sizes,
            column.present,
            column.truncated,
        ]
        assert sum(x.nbytes for x in per_row) == 50 * scale.ROW_BYTES
    assert stated == "2, 80, 2, 3; 22"
    loader = Loader(
        [file],
        [Task((), ("text",)), Task(("text",), ("jets",))],
        Vocabulary(list(signatures.values())),
        {},
        2,
        64,
        0,
    )
    loader.batch(0)
    held = [array for pool in loader.pools for array in (pool.rows, pool.lengths)]
    held += [*(order for _, order in loader._orders.values())]
    assert sum(x.nbytes for x in held) == 2 * 50 * scale.LOADER_BYTES


def test_the_page_is_what_the_script_prints():
    """Anew, when this fails: the table of docs/scale.md is what scripts/scale.py prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "scale.py"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert done.stdout.strip() in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_backward_pass_is_measured_in_the_precision_of_a_training_here(precision, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    measured = pytest.importorskip("scale_measured")
    monkeypatch.setattr(measured, "TRUNKS", (TransformerConfig(1, 64, 2, 2, 128),))
    monkeypatch.setattr(
        measured, "resolve_precision", lambda asked, device: {"auto": precision}[asked]
    )
    seen = []
    monkeypatch.setattr(measured, "products_in", lambda p: seen.append(p) or products_in(p))
    (line,) = measured.backward()
    assert (
        line.startswith(f"a block's backward pass in {precision}, width 64: ")
        and seen == [precision] * 2
    )


def test_any_dial_may_be_turned_and_nonsense_is_refused(scale, capsys, monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "scale.py",
            "7B",
            "--depth",
            "2",
            "--precision",
            "float32",
            "--devices",
            "16",
            "--ema-decay",
            "0",
        ],
    )
    scale.main()
    printed = capsys.readouterr().out
    assert (
        "| devices; peak rate of one | 16; 989 TFLOP/s |" in printed
        and "16 bytes per parameter" in printed
    )
    for words in (["--devices", "1"], ["--width", "100"], ["3B"]):
        monkeypatch.setattr(sys, "argv", ["scale.py", "1B", *words])
        with pytest.raises(SystemExit):
            scale.main()
