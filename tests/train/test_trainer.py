"""Training: a run cut anywhere and resumed is the run that was not, bit for bit; and it learns."""

import math
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.data.loader import Loader
from mmtok.data.tasks import InputMasking, Task
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained, Parallel
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn import precision
from mmtok.nn.precision import MatmulRates
from mmtok.nn.transformer import TransformerConfig
from mmtok.train import trainer as fit_lm
from mmtok.train.config import TrainConfig
from mmtok.train.log import MEASURED
from mmtok.train.schedule import learning_rate
from mmtok.train.trainer import Interrupted, Trainer, make_optimizer, split_rows

CONFIG = TrainConfig(
    steps=12,
    batch_size=3,
    seq_len=64,
    learning_rate=5e-3,
    warmup=3,
    precision="float32",
    checkpoint_every=5,
    log_every=4,
)
TASKS = (
    Task(("caption",), ("speech",), cond_dropout=0.3),
    Task(("caption",), ("jets",), weight=2.0),
    Task(("speech",), ("caption",), infill=0.5),
)
TRUNK = TransformerConfig(depth=2, width=16, n_heads=2, n_kv_heads=2, feed_forward=24, dropout=0.1)


@pytest.fixture
def file(tmp_path, vocabulary, segment, rng):
    """40 examples of caption and speech, 40 of caption and jets; nothing of the vocabulary's other
    modalities.
    """
    fields = {"caption": "text", "speech": "speech", "jets": "jets"}
    others = ["speech"] * 40 + ["jets"] * 40
    rows = [
        {"caption": segment("text", rng.integers(1, 5)), other: segment(other, rng.integers(1, 9))}
        for other in others
    ]
    write_tokens(
        tmp_path / "toy.parquet", {f: vocabulary.signatures[m] for f, m in fields.items()}, rows
    )
    return read_tokens(tmp_path / "toy.parquet")


@pytest.fixture
def trainer(tmp_path, vocabulary, file):
    """trainer(config, name) -> a fresh Trainer over the same data, with checkpoints in the folder
    `name`, and its log.
    """

    def make(config=CONFIG, name="a", tasks=TASKS, trunk=TRUNK):
        torch.manual_seed(0)
        lm = LM(
            DecoderConfig(trunk, {"speech": Parallel(), "jets": Chained(8)}, channel_size=4),
            vocabulary,
        )
        corrupt = {"speech": InputMasking(span_prob=0.5, n_freq_masks=1, freq_mask_width=3)}
        loader = Loader(
            [file], tasks, vocabulary, corrupt, config.batch_size, config.seq_len, config.seed
        )
        log = []
        return Trainer(lm, loader, config, tmp_path / name, log.append), log

    return make


def losses(log):
    """Lines of the log, but for the speed."""
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in log]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[k]) for k, x in a.items())


# ---- precision


def choosing(monkeypatch, best):
    """A machine that multiplies `best` faster."""
    rates = MatmulRates(1e9, 9e9) if best == "bf16" else MatmulRates(9e9, 1e9)
    for module in (fit_lm, precision):
        monkeypatch.setattr(module, "matmul_rates", lambda device: rates)


@pytest.mark.parametrize("best", ["float32", "bf16"])
def test_auto_trains_as_the_faster_precision_does_by_name(trainer, monkeypatch, best):
    choosing(monkeypatch, best)
    by_name, named = trainer(replace(CONFIG, precision=best), "named")
    by_name.run()
    auto, log = trainer(replace(CONFIG, precision="auto"), "auto")
    auto.run()
    assert auto.header()["precision"] == best and auto.header()["asked"] == "auto"
    assert losses(log) == losses(named) and equal(auto.weights(), by_name.weights())


def test_a_resumed_training_keeps_its_precision_and_says_so_where_this_machine_would_not(
    trainer, monkeypatch
):
    choosing(monkeypatch, "bf16")
    begun, _ = trainer(replace(CONFIG, precision="auto"))
    begun.update()
    begun.save()
    choosing(monkeypatch, "float32")
    with pytest.warns(
        UserWarning, match="began in bf16 and stays with it; this machine would choose float32"
    ):
        resumed, _ = trainer(replace(CONFIG, precision="auto"))
    assert resumed.precision == "bf16" and resumed.resume()
    fresh, _ = trainer(replace(CONFIG, precision="auto"), "fresh")
    assert fresh.precision == "float32"


# ---- resuming


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("stop", [1, 5, 7, 11])
def test_resumed_equals_uninterrupted_bit_for_bit(trainer, stop, precision):
    config = replace(CONFIG, precision=precision)
    whole, log = trainer(config, "whole")
    whole.run()
    cut, first = trainer(config, "cut")
    for _ in range(stop):
        cut.window.append(cut.update() | {"seconds": 1.0})
        if cut.step % config.log_every == 0:
            first.append(cut.gauge.line(cut.step, cut.window, 1.0))
            cut.window = []
    cut.save()
    again, second = trainer(config, "cut")
    torch.manual_seed(99)  # whatever state the generator is in
    assert again.resume() and again.step == stop
    again.run()
    assert losses(first + second) == losses(log) and len(log) == 3
    assert equal(again.lm.state_dict(), whole.lm.state_dict()) and equal(again.ema, whole.ema)
    assert equal(again.weights(), whole.weights()) and not equal(
        whole.weights(), whole.lm.state_dict()
    )


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_resumed(trainer, which):
    whole, log = trainer(name="whole")
    whole.run()
    cut, first = trainer(name="cut")
    at = random.Random(which).randint(1, 11)
    before = signal.getsignal(which)
    with pytest.raises(
        Interrupted, match=f"stopped at step {at}; the same command goes on from there"
    ):
        cut.run(lambda step: os.kill(os.getpid(), which) if step == at else None)
    assert signal.getsignal(which) is before
    again, second = trainer(name="cut")
    assert again.resume() and again.step == at
    again.run()
    assert losses(first + second) == losses(log) and equal(again.weights(), whole.weights())


def test_a_run_that_is_through_does_nothing_more(trainer):
    done, _ = trainer()
    done.run()
    again, log = trainer()
    assert again.resume()
    again.run()
    assert log == [] and equal(again.weights(), done.weights())


def test_nothing_to_resume(trainer):
    fresh, _ = trainer()
    assert fresh.resume() is False and fresh.step == 0


def test_a_checkpoint_of_another_vocabulary_is_refused_naming_both(trainer):
    old, _ = trainer()
    old.save()
    new, _ = trainer()
    new.loader.vocabulary = type(new.loader.vocabulary)(
        list(new.loader.vocabulary.signatures.values())[:-1]
    )
    with pytest.raises(
        UserError, match=f"{old.loader.vocabulary.fingerprint}.*{new.loader.vocabulary.fingerprint}"
    ):
        new.resume()


# ---- one step


@pytest.mark.parametrize("n, mod_capacity", [(2, 0.0), (3, 0.0), (3, 0.25)])
def test_accumulated_gradients_are_those_of_one_batch(trainer, n, mod_capacity):
    still = replace(TRUNK, dropout=0.0, mod_capacity=mod_capacity)
    grads = []
    for config in (CONFIG, replace(CONFIG, grad_accum_steps=n)):
        one, _ = trainer(config, trunk=still)
        one.lm.double()
        batch = one.loader.batch(0)
        sums, counts = one._accumulate(one.feed.work(0).parts, int(batch.predict.sum()))
        grads.append({name: p.grad.clone() for p, name in one.names.items()})
        grads[-1]["sums"] = sums
        assert sum(counts.values()) == int(batch.predict.sum())
    assert grads[0].keys() == grads[1].keys()
    for name, x in grads[0].items():
        torch.testing.assert_close(grads[1][name], x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_blocks_computed_again_make_the_same_training_bit_for_bit_also_from_some_step_on(
    trainer, precision
):
    config = replace(CONFIG, precision=precision, grad_accum_steps=2)
    plain, log = trainer(config, "plain")
    plain.run()
    again, first = trainer(replace(config, activation_checkpointing=99), "again")
    with pytest.raises(Interrupted):
        again.run(lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 4 else None)
    fewer, second = trainer(replace(config, activation_checkpointing=1), "again")
    assert fewer.resume() and [
        block.activation_checkpointing for block in fewer.lm.model.layers
    ] == [True, False]
    fewer.run()
    assert losses(first + second) == losses(log) and equal(fewer.weights(), plain.weights())


def test_micro_batches_share_the_rows_out(trainer):
    one, _ = trainer()
    batch = one.loader.batch(0)
    parts = split_rows(batch, one.loader.vocabulary, 2)
    assert sum(len(p.ids) for p in parts) == len(batch.ids)
    assert all(sum(len(p.channels[m]) for p in parts) == len(x) for m, x in batch.channels.items())


def test_the_rate_warms_up_and_decays_to_nothing():
    config = TrainConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[4] == pytest.approx(0.5 * 0.96)
    assert all(a < b for a, b in zip(rates[:9], rates[1:10])) and all(
        a > b for a, b in zip(rates[9:], rates[10:])
    )
    assert (
        rates[9:] == pytest.approx([1 - step / 100 for step in range(9, 100)])
        and learning_rate(config, 100) == 0
    )


def test_only_matrices_decay(trainer):
    one, _ = trainer()
    decays = {
        one.names[p]: group["weight_decay"]
        for group in make_optimizer(one.lm, CONFIG).param_groups
        for p in group["params"]
    }
    assert decays.keys() == dict(one.lm.named_parameters()).keys()
    assert (
        decays["model.layers.0.mlp.up_proj.weight"]
        == decays["frame_in.speech.project.weight"]
        == CONFIG.weight_decay
    )
    assert not any(
        decays[name]
        for name in decays
        if "norm" in name or "embed" in name or "bias" in name or "table" in name
    )


def test_muon_resumed_equals_uninterrupted_bit_for_bit(trainer):
    config = replace(CONFIG, optimizer="muon")
    whole, log = trainer(config, "whole")
    whole.run()
    cut, _ = trainer(config, "cut")
    for _ in range(7):
        cut.update()
    cut.save()
    again, _ = trainer(config, "cut")
    assert again.resume()
    again.run()
    assert equal(again.weights(), whole.weights()) and equal(
        again.lm.state_dict(), whole.lm.state_dict()
    )


def test_the_average_follows_the_weights(trainer):
    one, _ = trainer(replace(CONFIG, ema_decay=0.5))
    expected = {name: p.detach().clone() for p, name in one.names.items()}
    for step in range(1, 4):
        one.update()
        decay = min(0.5, step / (step + 10))
        expected = {
            name: decay * expected[name] + (1 - decay) * p.detach() for p, name in one.names.items()
        }
    for name, x in expected.items():
        torch.testing.assert_close(one.ema[name], x)
    off, _ = trainer(replace(CONFIG, ema_decay=0.0))
    off.update()
    assert off.ema == {} and equal(off.weights(), off.lm.state_dict())


def test_a_power_of_the_step_weighs_the_weights(trainer):
    """Karras et al. 2024, eq. 1: step t counts by t^gamma, here in its exact discrete form,
    t^(gamma + 1) - (t - 1)^(gamma + 1).
    """
    one, _ = trainer(replace(CONFIG, ema_power=2.0))
    seen = []
    for _ in range(3):
        one.update()
        seen.append({name: p.detach().clone() for p, name in one.names.items()})
    for name, x in one.ema.items():
        torch.testing.assert_close(x, (seen[0][name] + 7 * seen[1][name] + 19 * seen[2][name]) / 27)
    for wrong in ({"ema_power": -1.0}, {"ema_power": 6.94, "ema_decay": 0.0}):
        with pytest.raises(UserError, match="ema_power"):
            replace(CONFIG, **wrong)


def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(trainer):
    one, _ = trainer()
    one.update()
    with torch.no_grad():
        one.lm.model.norm.weight.fill_(float("inf"))
    before = {k: v.clone() for k, v in one.lm.state_dict().items()}
    with pytest.raises(
        UserError, match="gradient of step 1 is not finite .* lower --train.learning_rate"
    ):
        one.update()
    assert one.step == 1 and equal(one.lm.state_dict(), before)


def test_an_absent_modality_costs_nothing_and_is_logged_as_absent(trainer):
    """The vocabulary has tiles, voices, images; the data has none of them, and one task alone never
    sees a jet.
    """
    one, log = trainer(replace(CONFIG, steps=4), tasks=TASKS[:1])
    one.run()
    assert (
        log[0]["nats"]["jets"] is None
        and log[0]["nats"]["image"] is None
        and log[0]["nats"]["speech"] > 0
    )
    assert math.isfinite(log[0]["loss"]) and all(
        torch.isfinite(p).all() for p in one.lm.parameters()
    )
    assert all(
        p in one.optimizer.state for p in one.lm.parameters()
    )  # on every rank, every weight has its gradient


def test_no_examples_of_a_task_is_refused(trainer):
    with pytest.raises(UserError, match="no example has all fields of task speech -> jets"):
        trainer(tasks=(Task(("speech",), ("jets",)),))


# ---- learning


def test_it_starts_at_the_uniform_loss_and_learns_by_heart(tmp_path, vocabulary, segment):
    """Eight captions, each with its own jets: in the end p of each is almost 1."""
    rows = [
        {
            "caption": Segment("text", codes=np.array([[1 + i % 3], [5 + i // 3]])),
            "jets": segment("jets", 2 + i % 3),
        }
        for i in range(8)
    ]
    write_tokens(
        tmp_path / "t.parquet",
        {"caption": vocabulary.signatures["text"], "jets": vocabulary.signatures["jets"]},
        rows,
    )
    config = replace(
        CONFIG, steps=150, batch_size=4, learning_rate=2e-2, log_every=1, ema_decay=0.9
    )
    torch.manual_seed(0)
    trunk = TransformerConfig(depth=2, width=32, n_heads=2, n_kv_heads=2, feed_forward=48)
    lm = LM(DecoderConfig(trunk, {"jets": Chained(16)}, channel_size=4), vocabulary)
    log = []
    loader = Loader(
        [read_tokens(tmp_path / "t.parquet")],
        [Task(("caption",), ("jets",))],
        vocabulary,
        {},
        4,
        64,
        0,
    )
    Trainer(lm, loader, config, tmp_path, log.append).run()
    nats = [line["nats"]["jets"] for line in log]
    # of four positions on average three are frames: frame or end, then 6 (fewer below the ceiling)
    # x 4 x 3 levels
    assert 0.5 * math.log(2 * 72) < nats[0] < math.log(2 * 72)
    assert np.mean(nats[-10:]) < 0.05 * nats[0] and log[-1]["loss"] < 0.05 * log[0]["loss"]


# ---- the config


@pytest.mark.parametrize(
    "wrong",
    [
        dict(steps=0),
        dict(batch_size=-1),
        dict(seq_len=0),
        dict(learning_rate=float("nan")),
        dict(learning_rate=0.0),
        dict(grad_clip=0.0),
        dict(ema_decay=1.0),
        dict(precision="fp8"),
        dict(grad_accum_steps=0),
        dict(grad_accum_steps=17),
        dict(checkpoint_every=0),
        dict(log_every=0),
        dict(seed=-1),
        dict(warmup=-1),
        dict(weight_decay=-0.1),
        dict(activation_checkpointing=-1),
        dict(loss_weights={"image": -3.0}),
        dict(loss_weights={"image": math.nan}),
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(UserError) as error:
        TrainConfig(**wrong)
    assert list(wrong)[0] in str(error.value)
