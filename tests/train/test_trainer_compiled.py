"""Training with compiled blocks: the same losses and checkpoints, by one graph, whatever the packs
hold and however many rows they are.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from mmtok.data.loader import Loader
from mmtok.data.tasks import Task
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.errors import UserError
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.train.config import TrainConfig
from mmtok.train.trainer import Trainer

CONFIG = TrainConfig(
    steps=6,
    batch_size=5,
    seq_len=32,
    learning_rate=5e-3,
    warmup=2,
    precision="float32",
    grad_accum_steps=2,
    activation_checkpointing=1,
)
TRUNK = TransformerConfig(depth=3, width=16, n_heads=2, n_kv_heads=1, feed_forward=24)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture
def trainer(tmp_path, vocabulary, segment, rng):
    """trainer(name, changes of CONFIG) -> a fresh Trainer over texts of many lengths, two to four
    rows in a micro-batch.
    """
    write_tokens(
        tmp_path / "toy.parquet",
        {"text": vocabulary.signatures["text"]},
        [{"text": segment("text", rng.integers(1, 20))} for _ in range(60)],
    )
    file = read_tokens(tmp_path / "toy.parquet")

    def make(name, **changes):
        torch.manual_seed(0)
        config = replace(CONFIG, **changes)
        loader = Loader(
            [file],
            (Task((), ("text",)),),
            vocabulary,
            {},
            config.batch_size,
            config.seq_len,
            config.seed,
        )
        return Trainer(
            LM(DecoderConfig(TRUNK), vocabulary), loader, config, tmp_path / name, lambda line: None
        )

    return make


@needs_compiler
@pytest.mark.slow
def test_compiled_blocks_train_alike_by_one_graph_and_their_checkpoints_serve_both(trainer):
    plain = trainer("plain")
    compiled = trainer("compiled", compile=True)
    assert compiled.lm.state_dict().keys() == plain.lm.state_dict().keys()
    torch._dynamo.reset()
    counters.clear()
    expected = [plain.update()["loss"] for _ in range(CONFIG.steps)]
    assert not counters["stats"]
    made = [compiled.update()["loss"] for _ in range(2)]
    compiled.save()
    with torch.compiler.set_stance("fail_on_recompile"):
        made += [compiled.update()["loss"] for _ in range(2, CONFIG.steps)]
    assert made == pytest.approx(expected, abs=1e-4) and made[-1] < made[0]
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert (
        len({len(compiled.loader.batch(step).ids) for step in range(CONFIG.steps)}) > 1
    )  # the number of rows did vary
    (plain.folder.parent / "compiled").rename(plain.folder.parent / "again")
    again = trainer("again")
    assert again.resume() and [
        again.update()["loss"] for _ in range(2, CONFIG.steps)
    ] == pytest.approx(expected[2:], abs=1e-4)
    again.lm.eval()
    compiled.lm.eval()
    with (
        torch.no_grad(),
        torch.compiler.set_stance("fail_on_recompile"),
    ):  # rows of any length are scored uncompiled
        batch = trainer("other", seq_len=24).loader.batch(0)
        torch.testing.assert_close(
            compiled.lm(batch).total, again.lm(batch).total, rtol=0, atol=1e-3
        )


def test_without_a_compiler_it_is_refused_in_one_line(trainer, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"train.compile true needs a C\+\+ compiler"):
        trainer("refused", compile=True)
