"""What test_processes.py looks at: small trainings by one, two and three processes, forked so that
torch is imported once.

python many.py FOLDER             writes FOLDER/NAME.json: what process 0 saw of the training NAME,
                                  and what the others did
python many.py FOLDER compiled    then those whose blocks are compiled, which takes half a minute
"""

import errno
import json
import os
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.fsdp  # noqa: F401  before the forks: a second each

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import TOY, segment_maker  # noqa: E402
from forked import fork  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch.distributed.checkpoint.filesystem import FileSystem  # noqa: E402

from mmtok.core.segment import Signature  # noqa: E402
from mmtok.core.vocabulary import Vocabulary  # noqa: E402
from mmtok.data.loader import Loader  # noqa: E402
from mmtok.data.tasks import InputMasking, Task  # noqa: E402
from mmtok.data.tokens import read_tokens, write_tokens  # noqa: E402
from mmtok.heads.categorical import Chained, Parallel  # noqa: E402
from mmtok.io.files import write_tensors  # noqa: E402
from mmtok.model.llama import load_llama, to_llama  # noqa: E402
from mmtok.model.lm import LM, DecoderConfig  # noqa: E402
from mmtok.nn.deferred import record  # noqa: E402
from mmtok.nn.sharded import full_tensor  # noqa: E402
from mmtok.nn.transformer import TransformerConfig  # noqa: E402
from mmtok.train.config import TrainConfig  # noqa: E402
from mmtok.train.distributed import init_distributed, shard_model  # noqa: E402
from mmtok.train.trainer import Trainer  # noqa: E402

# the threshold of clipping lies among the gradients' norms, so that some steps are clipped
CONFIG = TrainConfig(
    steps=8,
    batch_size=4,
    seq_len=64,
    learning_rate=5e-3,
    warmup=3,
    precision="float32",
    grad_clip=0.7,
    log_every=1,
)
TASKS = (Task(("caption",), ("speech",), cond_dropout=0.3), Task(("caption",), ("jets",)))
COMPILED = {
    "two-compiled": {},
    "two-sharded-compiled": {"fsdp": True},
    "two-sharded-compiled-recomputed": {"fsdp": True, "activation_checkpointing": 1},
}
JETS = 1  # the number of their task
CUT = 4


class Apart(Loader):
    """Rows of jets and rows without in turn: of two processes, the second never sees a jet."""

    def items(self, step):
        documents = [item for row in super().items(step) for item in row]
        jets, others = (
            [x for x in documents if (x.task == JETS) is wanted] for wanted in (True, False)
        )
        starts = range(0, 3 * self.batch_size // 2, 3)
        rows = [some[i : i + 3] for i in starts for some in (jets, others)]
        return rows[: self.batch_size]


def trainer(home, name, processes, config=CONFIG):
    torch.manual_seed(0)
    vocabulary = Vocabulary(TOY)
    trunk = TransformerConfig(depth=2, width=16, n_heads=2, n_kv_heads=2, feed_forward=24)
    lm = LM(
        DecoderConfig(
            trunk, {"speech": Parallel(), "jets": Chained(8)}, channel_size=4, totals={"jets": 3}
        ),
        vocabulary,
    )
    corrupt = {"speech": InputMasking(span_prob=0.5, n_freq_masks=1, freq_mask_width=3)}
    loader = Apart(
        [read_tokens(home / "toy.parquet")],
        TASKS,
        vocabulary,
        corrupt,
        config.batch_size,
        config.seq_len,
        config.seed,
    )
    return Trainer(lm, loader, config, home / name, lambda line: None, processes)


def write_data(home):
    rng = np.random.default_rng(0)
    signatures = Vocabulary(TOY).signatures
    segment = segment_maker(Vocabulary(TOY), rng)
    rows = [
        {"caption": segment("text", rng.integers(1, 5)), m: segment(m, rng.integers(1, 9))}
        for m in ["speech"] * 30 + ["jets"] * 30
    ]
    write_tokens(
        home / "toy.parquet",
        {"caption": signatures["text"], "speech": signatures["speech"], "jets": signatures["jets"]},
        rows,
    )


def train(home, name, processes, until=CONFIG.steps, resume=None, **changes):
    """Steps up to `until`, from the checkpoints of the training `resume` where one is named;
    FOLDER/NAME.json tells of them.
    """
    if resume:
        processes.on_rank0(lambda: shutil.copytree(home / resume, home / name))
    it = trainer(home, name, processes, replace(CONFIG, **changes))
    told = {
        "resumed": it.resume(),
        "steps": [],
        "sharded": it.sharded,
        "weights": sum(p.numel() for p in it.lm.parameters()),
        "held": sum(getattr(p, "to_local", lambda: p)().numel() for p in it.lm.parameters()),
    }
    while it.step < until:
        batch = it.loader.batch(it.step, processes.rank, processes.world_size)
        counts = (
            processes.all_gather(len(batch.channels.get("jets", ()))),
            processes.all_gather(len(batch.ids)),
        )
        told["steps"].append(
            {"step": it.step} | it.update() | {"jets": counts[0], "rows": counts[1]}
        )
    touched = sum(p in it.optimizer.state for p in it.names)
    told["untouched"] = sum(processes.all_gather(len(it.names) - touched))
    it.save()
    weights = {k: full_tensor(x) for k, x in it.lm.state_dict().items()}
    if processes.is_rank0:
        told["sum"] = {k: float(x.double().abs().sum()) for k, x in weights.items()}
        (home / f"{name}.json").write_text(json.dumps(told))


# ---- by one, by two, by three


def by_one(home, processes):
    train(home, "one", processes)
    train(home, f"one-{CUT}", processes, CUT)
    train(home, "one-long", processes, 3, batch_size=8)
    train(home, "one-short", processes, 3, batch_size=2)
    train(home, "one-bf16", processes, 3, precision="bf16")
    train(home, "one-muon", processes, 3, optimizer="muon")


def by_two(home, processes):
    train(home, "two", processes, CUT)
    train(home, "two-sharded", processes, CUT, fsdp=True)
    train(home, "two-sharded-bf16", processes, 3, fsdp=True, precision="bf16")
    train(home, "two-muon", processes, 3, optimizer="muon")
    train(home, "two-sharded-muon", processes, 3, fsdp=True, optimizer="muon")
    train(home, "two-sharded-recomputed", processes, 3, fsdp=True, activation_checkpointing=2)
    train(
        home,
        "two-sharded-bf16-recomputed",
        processes,
        3,
        fsdp=True,
        precision="bf16",
        activation_checkpointing=1,
    )


def by_two_compiled(home, processes):
    for name, changes in COMPILED.items():
        torch._dynamo.reset()
        counters.clear()
        train(home, name, processes, 3, compile=True, **changes)
        note(home, f"{name}-graphs", processes, str(dict(counters["stats"])))


def by_four(home, processes):
    train(home, "four-hybrid", processes, CUT, fsdp=True, replicas=2)
    for name, replicas in (("four-hybrid-accumulated", 2), ("four-sharded-accumulated", 1)):
        with reductions() as counts:
            train(
                home,
                name,
                processes,
                3,
                fsdp=True,
                replicas=replicas,
                batch_size=8,
                grad_accum_steps=2,
            )
        note(home, name, processes, json.dumps(counts))


@contextmanager
def reductions():
    """How many numbers each collective of gradients was given."""
    counts = {}
    names = ("all_reduce", "reduce_scatter_tensor")
    kept = {name: getattr(dist, name) for name in names}

    def counting(name):
        def call(*args, **kwargs):
            x = kwargs.get("input", args[0] if args else kwargs.get("tensor"))
            counts[name] = counts.get(name, 0) + (x.numel() if x.dtype == torch.float32 else 0)
            return kept[name](*args, **kwargs)

        return call

    for name in names:
        setattr(dist, name, counting(name))
    yield counts
    for name in names:
        setattr(dist, name, kept[name])


def by_three(home, processes):
    train(home, "three", processes, resume="two")
    train(home, "three-sharded", processes, resume="two-sharded", fsdp=True)
    train(home, "three-crossed", processes, resume="two", fsdp=True)
    train(home, "three-short", processes, 3, batch_size=2)
    train(home, "three-short-sharded", processes, 3, batch_size=2, grad_accum_steps=2, fsdp=True)


def start_sharded(home, processes):
    """A pretrained start read into shards that never were complete, and into a complete decoder."""
    signature = Signature("text", (40,))
    pixels = Signature("image", (5,), frames=4)
    vocabulary = Vocabulary([signature, pixels])
    trunk = TransformerConfig(depth=2, width=16, n_heads=2, n_kv_heads=2, feed_forward=24)
    config = DecoderConfig(trunk, untied=True)
    folders = {"all": home / "start-all", "text": home / "start-text"}
    processes.on_rank0(lambda: write_starts(LM(config, vocabulary), folders))
    equal = {}
    for name, folder in folders.items():
        torch.manual_seed(5)
        complete = LM(config, vocabulary)
        lm, made = record(lambda: LM(config, vocabulary))
        shard_model(lm, list(lm.model.layers), processes, "float32")
        lm.to_empty(device="cpu")
        torch.manual_seed(5)
        made.fill(lm)
        first = {k: full_tensor(x) for k, x in lm.state_dict().items()}
        equal[f"{name} before"] = same_tensors(first, complete.state_dict())
        load_llama(complete, folder)
        load_llama(lm, folder)
        started = {k: full_tensor(x) for k, x in lm.state_dict().items()}
        equal[name] = same_tensors(started, complete.state_dict())
        equal[f"{name} differs"] = not same_tensors(first, started)
    note(home, "start", processes, json.dumps(equal))


def write_starts(lm, folders):
    """A checkpoint with a row for each id, and one with those of text alone, in bfloat16."""
    to_llama(lm, folders["all"])
    to_llama(lm, folders["text"])
    path = folders["text"] / "model.safetensors"
    n = len(lm.vocabulary.span("text"))
    cut = {
        k: (x[:n] if "embed" in k or "lm_head" in k else x).bfloat16()
        for k, x in load_file(path).items()
    }
    write_tensors(path, cut, {"format": "pt"})
    config = json.loads((folders["text"] / "config.json").read_text())
    config = {k: v for k, v in config.items() if "mmtok" not in k and "fingerprint" not in k}
    config |= {"vocab_size": n, "bos_token_id": 3, "eos_token_id": 4, "pad_token_id": None}
    (folders["text"] / "config.json").write_text(json.dumps(config))


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[k]) for k, x in a.items())


def by_one_again(home, processes):
    train(home, "one-again", processes, resume="two")
    train(home, "one-again-sharded", processes, resume="two-sharded", fsdp=True)


def first_fails(home, processes):
    def fail():
        raise OSError("disk full")

    try:
        processes.on_rank0(fail)
    except BaseException as error:
        note(home, "fails", processes, repr(error))


def second_cannot_write(home, processes):
    it = trainer(home, "full", processes)
    it.save()
    it.update()
    if processes.rank == 1:

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        FileSystem.create_stream = full
    it.saver.start(it.checkpoint())
    it.update()  # training goes on meanwhile
    try:
        it.saver.wait()
    except BaseException as error:
        note(home, "full", processes, f"{type(error).__name__}: {error}")


def one_dies(home, processes):
    it = trainer(home, "dies", processes)
    it.update()
    if processes.rank == 1:
        os._exit(9)
    start = time.monotonic()
    while time.monotonic() < start + 60:
        it.update()


def note(home, name, processes, text):
    (home / f"{name}-{processes.rank}.txt").write_text(text)


def by(n, work, home):
    """Run work(home, processes) in n processes; returns their exit codes."""

    def one(rank):
        try:
            with init_distributed() as processes:
                work(home, processes)
        except ConnectionError as error:
            (home / f"lost-{rank}.txt").write_text(str(error))
            return 2
        return 0

    return fork(n, one)


def main(home, compiled=False):
    torch.set_num_threads(1)
    if not compiled:
        write_data(home)
    codes = {}
    plain = [
        (1, by_one),
        (2, by_two),
        (3, by_three),
        (4, by_four),
        (1, by_one_again),
        (3, start_sharded),
        (2, first_fails),
        (2, second_cannot_write),
        (2, one_dies),
    ]
    for n, work in [(2, by_two_compiled)] if compiled else plain:
        start = time.monotonic()
        codes[work.__name__] = by(n, work, home)
        print(work.__name__, codes[work.__name__], f"{time.monotonic() - start:.1f} s", flush=True)
    (home / ("codes-compiled.json" if compiled else "codes.json")).write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["compiled"])
