"""A large training on paper, without a run or a GPU.

    python scripts/scale.py [1B] [7B] [--devices 16 --seq-len 8192 ...]

Prints a Markdown table: parameters, tokens, FLOP, days, memory per device under FSDP2, token files,
checkpoints, traffic. Every line says where it comes from: exact (counted by the package's own
classes), measured, cited or chosen; `calculated` is arithmetic on those.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import nn

from mmtok.core.segment import Signature
from mmtok.core.vocabulary import N_CONTROLS, Vocabulary
from mmtok.data.mapped import ROW_BYTES, number_of, width_of
from mmtok.heads.categorical import Chained, Parallel
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn import cross_entropy
from mmtok.nn.transformer import TransformerConfig
from mmtok.train.log import Gauge

DAY_S = 86_400
GB = 1e9

# measured on one core by scripts/scale_measured.py; docs/scale.md says on what
TEXT_POSITIONS_PER_S = 8.8e6
SPEECH_FRAMES_PER_S = 2_110 * 80  # dMel: 2,110 times real time, at 80 Hz
PARTICLES_PER_S = 16e6
# per frame, in our token files
DISK_BYTES = {"text": 1.7, "speech": 20.2, "image": 0.7, "jets": 2.1}
LOADED_POSITIONS_PER_S = 12e6
UNPACKED_POSITIONS_PER_S = 75e6  # of text, by the processor's time
# Per example and task, in every process: file, row, length, place in the order. Exact: the types
# in data/loader.py.
LOADER_BYTES = 16
MAY_BE_ZERO = ("activation_checkpointing", "ema_decay", "untied", "precision")


@dataclass(frozen=True)
class Plan:
    """A training; the trunk's sizes come first.

    Attributes:
        activation_checkpointing: How many blocks compute their activations again.
        batch_size: Rows of one device at once; a step takes grad_accum_steps times as many.
        document_length: Positions of a document, on average.
        matrix_rate: FLOP per second of one device.
        replicas: Copies of the weights; the devices of one hold shares of it.
        over: Positions per parameter of the over-trained variant.
        seq_len: Positions of a row.
        utilisation: Share of the matrix rate over all products, recomputed ones included.
    """

    depth: int
    width: int
    n_heads: int
    n_kv_heads: int
    feed_forward: int
    untied: bool = False
    text_pieces: int = 32_000
    image_codes: int = 8_192
    devices: int = 8
    per_node: int = 8
    replicas: int = 1
    batch_size: int = 4
    grad_accum_steps: int = 4
    seq_len: int = 4_096
    document_length: int = 1_000
    activation_checkpointing: int = 0
    precision: str = "bf16"
    ema_decay: float = 0.99
    tokens_per_parameter: float = 20.0
    over: float = 200.0
    matrix_rate: float = 989e12
    utilisation: float = 0.4
    node_bytes_per_s: float = 450e9
    network_bytes_per_s: float = 50e9
    disk_bytes_per_s: float = 2e9

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in MAY_BE_ZERO and value <= 0:
                raise ValueError(f"{field.name} is {value}; it must be above 0")
        if self.devices < 2:
            raise ValueError("weights are shared out over two devices or more")
        if self.devices % self.replicas:
            raise ValueError(f"{self.devices} devices do not form {self.replicas} groups")

    @property
    def shares(self) -> int:
        """How many devices hold one copy of the weights."""
        return self.devices // self.replicas

    @property
    def size(self) -> int:
        """Bytes of a factor of matrix products."""
        return 2 if self.precision == "bf16" else 4


PLANS = {
    # the trunk of Llama 3.2 1B (its model card), with a smaller vocabulary
    "1B": Plan(depth=16, width=2048, n_heads=32, n_kv_heads=8, feed_forward=8192),
    # the trunk of Llama 2 7B (Touvron et al. 2023)
    "7B": Plan(
        depth=32,
        width=4096,
        n_heads=32,
        n_kv_heads=32,
        feed_forward=11_008,
        untied=True,
        devices=64,
        replicas=8,
        grad_accum_steps=2,
        activation_checkpointing=32,
    ),
}


# ---- the model


def decoder(plan: Plan) -> LM:
    """The decoder over text, speech (80 mel bins), images and jets.

    On the meta device: it has all shapes, but no numbers.
    """
    vocabulary = Vocabulary(
        [
            Signature("text", (plan.text_pieces,)),
            Signature("speech", (16,) * 80),
            Signature("image", (plan.image_codes,), frames=256),
            Signature("jets", (41, 31, 31), descending=True),
        ]
    )
    trunk = TransformerConfig(
        plan.depth, plan.width, plan.n_heads, plan.n_kv_heads, plan.feed_forward
    )
    heads = {"speech": Parallel(), "jets": Chained()}
    config = DecoderConfig(trunk, heads, totals={"jets": 64}, untied=plan.untied)
    with torch.device("meta"):
        return LM(config, vocabulary)


def n_parameters(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in module.parameters())


# ---- activations that the backward pass needs


def block_bytes(plan: Plan) -> int:
    """Bytes per position that one block keeps for the backward pass.

    With width M, width of the keys K, feed-forward F, heads H, sequence length L, and e bytes per
    factor of a product:

        norms      2 (4 M + 4): the float32 stream and its inverse norm; 2 e M: the normed stream
                   as products read it
        attention  e (2 M + 2 K): queries, output, keys, values; e L: the mask, a number for each
                   pair; 4 H: log-sum-exp
        rotary     4 e M / H: cosines and sines in a narrower type, for queries and keys
        SwiGLU     4 e F: gate, its SiLU, up, their product
    """
    m = plan.width
    e = plan.size
    keys = m // plan.n_heads * plan.n_kv_heads
    norms = 8 * m + 8 + 2 * e * m
    attention = e * (2 * m + 2 * keys) + e * plan.seq_len + 4 * plan.n_heads
    rotary = 0
    if e < 4:  # in float32 all blocks share one
        rotary = 4 * e * m // plan.n_heads
    return norms + attention + rotary + 4 * e * plan.feed_forward


def kept_bytes(plan: Plan) -> int:
    """Bytes per position that the whole trunk keeps for the backward pass.

    A checkpointed block keeps only its input. Besides the blocks: the final norm, the states that
    logits are computed from, the mask, the rotary tables.
    """
    n = min(plan.activation_checkpointing, plan.depth)
    blocks = n * 4 * plan.width + (plan.depth - n) * block_bytes(plan)
    return blocks + (4 + plan.size) * plan.width + 4 + plan.seq_len + 8 * plan.width // plan.n_heads


def logits_bytes(plan: Plan) -> int:
    """Bytes of the cross-entropy over ids, in all.

    Logits in a product's type and in float32, and their gradients; the weights of the classes in
    both types, and their gradients.
    """
    n_classes = plan.text_pieces + 1
    n_logits = plan.batch_size * plan.seq_len * n_classes
    if n_logits > cross_entropy.MAX_SAVED_LOGITS["cpu"]:
        n_logits = cross_entropy.CHUNK_LOGITS["cpu"]
    return n_logits * (4 + 2 * plan.size) + n_classes * plan.width * (4 + plan.size + 4)


# ---- the table

Row = tuple[str, str, str]  # what, value, where it comes from


def rows_of(plan: Plan) -> Iterator[Row]:
    """All lines of one training."""
    lm = decoder(plan)
    n = n_parameters(lm)
    blocks = n_parameters(lm.model.layers)
    yield (
        "**shape**: layers, width, heads, key-value heads, feed-forward",
        f"{plan.depth}, {plan.width:,}, {plan.n_heads}, {plan.n_kv_heads}, {plan.feed_forward:,}",
        "chosen [1]",
    )
    spans = [f"{len(lm.vocabulary.span(m)):,}" for m in lm.vocabulary.signatures]
    yield "ids: text, speech, image, jets, marks", f"{', '.join(spans)}, {N_CONTROLS}", "exact"
    yield (
        "embedding table, rows",
        f"{lm.vocabulary.size:,}, {'untied' if plan.untied else 'tied'}",
        "exact",
    )
    yield "parameters", f"{n:,}", "exact"
    yield (
        "of these in blocks; in embeddings, heads and the rest",
        f"{blocks:,}; {n - blocks:,}",
        "exact",
    )
    yield from compute(plan, lm, n)
    yield from memory(plan, n, blocks)
    yield from data(plan, lm, n)
    yield from checkpoints(plan, lm, n)
    yield from traffic(plan, lm, blocks, n - blocks)


def flop_per_position(plan: Plan, lm: LM) -> tuple[float, float]:
    """FLOP per position of text.

    Returns:
        What is needed, as the log counts it (6 N + 12 layers width length); and what is computed,
        recomputed blocks and logits included.
    """
    gauge = Gauge(lm, plan.seq_len, {})
    of_logits = gauge.flop_per_predicted["text"]
    needed = gauge.flop_per_position + of_logits
    again = (
        gauge.flop_per_position / 3 * min(plan.activation_checkpointing, plan.depth) / plan.depth
    )
    if (
        plan.batch_size * plan.seq_len * (plan.text_pieces + 1)
        > cross_entropy.MAX_SAVED_LOGITS["cpu"]
    ):
        again += of_logits / 3
    return needed, needed + again


def positions_per_s(plan: Plan, lm: LM) -> float:
    """Of one device."""
    return plan.matrix_rate * plan.utilisation / flop_per_position(plan, lm)[1]


def compute(plan: Plan, lm: LM, n: int) -> Iterator[Row]:
    """Tokens, FLOP and days."""
    needed, made = flop_per_position(plan, lm)
    pace = positions_per_s(plan, lm)
    yield (
        "**compute**: FLOP per position, of the model; with recomputation",
        f"{needed / 1e9:.2f} G; {made / 1e9:.2f} G",
        "exact [2]",
    )
    yield (
        "devices; peak rate of one",
        f"{plan.devices}; {plan.matrix_rate / 1e12:.0f} TFLOP/s",
        "chosen; cited [3]",
    )
    yield (
        "copies of the weights; devices that share one",
        f"{plan.replicas}; {plan.shares}",
        "chosen",
    )
    yield "utilisation of that rate", f"{plan.utilisation:.0%}", "cited [4]"
    yield "positions/s, one device; all", f"{pace:,.0f}; {pace * plan.devices:,.0f}", "calculated"
    for name, ratio, origin in (
        ("Chinchilla", plan.tokens_per_parameter, "cited [5]"),
        ("over-trained", plan.over, "chosen"),
    ):
        tokens = ratio * n
        days = tokens / pace / DAY_S
        yield (
            f"{name}: positions per parameter; positions; FLOP",
            f"{ratio:g}; {tokens / 1e9:,.0f} G; {tokens * needed:.2g}",
            origin,
        )
        yield f"{name}: device-days; days", f"{days:,.0f}; {days / plan.devices:,.1f}", "calculated"


def memory(plan: Plan, n: int, blocks: int) -> Iterator[Row]:
    """Bytes on one device at the fullest moment, part by part."""
    block = blocks / plan.depth
    rest = n - blocks
    tokens = plan.batch_size * plan.seq_len
    states = 20 if plan.ema_decay else 16
    again = min(plan.activation_checkpointing, plan.depth)
    chosen = f"{plan.batch_size}, {plan.seq_len:,}, {again}"
    yield (
        "**memory per device**: rows per micro-batch, their length, checkpointed blocks",
        chosen,
        "chosen",
    )
    parts = {
        f"weights, moments, EMA, gradients: {states} bytes per parameter, sharded": (
            states * n / plan.shares,
            "exact [6]",
        ),
        "complete gradients, from one micro-batch of a step to the next": (
            kept_gradients(plan, n),
            "exact [7]",
        ),
        "two gathered blocks, gradients of one": ((3 * plan.size + 4) * block, "calculated [7]"),
        "gathered embeddings and heads, their gradients": (8 * rest, "calculated [7]"),
        "saved activations": (kept_bytes(plan) * tokens, "measured [8]"),
        "temporary memory of one block's backward pass": (
            block_bytes(plan) * tokens * (1.35 if again else 0.55),
            "measured [9]",
        ),
        "logits of one chunk": (logits_bytes(plan), "calculated [10]"),
    }
    for name, (n_bytes, origin) in parts.items():
        yield name, f"{n_bytes / GB:.1f} GB", origin
    total = sum(n_bytes for n_bytes, _ in parts.values())
    yield (
        "sum; share of 80 GB, of 141 GB",
        f"{total / GB:.1f} GB; {total / 80e9:.0%}, {total / 141e9:.0%}",
        "calculated; cited [3]",
    )
    for name, other in (
        ("no block", replace(plan, activation_checkpointing=0)),
        ("all blocks", replace(plan, activation_checkpointing=plan.depth)),
    ):
        each = kept_bytes(other)
        yield (
            f"saved activations, {name} checkpointed",
            f"{each / 1e3:,.0f} kB per position, {each * tokens / GB:.1f} GB",
            "measured [8]",
        )


def kept_gradients(plan: Plan, n: int) -> int:
    """Bytes of gradients on one device that are not summed over devices before a step's end.

    Groups of several copies sum theirs at once and keep shares.
    """
    if plan.grad_accum_steps == 1 or plan.replicas > 1:
        return 0
    return 4 * n


def data(plan: Plan, lm: LM, n: int) -> Iterator[Row]:
    """Token files and tokenizers."""
    per_node = min(plan.per_node, plan.devices)
    tokens = plan.tokens_per_parameter * n
    node = positions_per_s(plan, lm) * per_node
    yield (
        "**data**: bytes per frame on disk: text, speech, image, jets",
        ", ".join(f"{x:g}" for x in DISK_BYTES.values()),
        "measured [11]",
    )
    yield (
        "Chinchilla's positions on disk, all as text",
        f"{tokens * DISK_BYTES['text'] / GB:,.0f} GB",
        "calculated",
    )
    flat = {
        m: np.dtype(number_of(s)).itemsize * width_of(s)
        for m, s in lm.vocabulary.signatures.items()
    }
    yield (
        "bytes per frame in the memory-mapped copy; per row",
        f"{', '.join(map(str, flat.values()))}; {ROW_BYTES}",
        "exact [12]",
    )
    documents = tokens / plan.document_length
    copy = tokens * flat["text"] + documents * ROW_BYTES
    own = documents * LOADER_BYTES
    yield (
        "the same positions in that copy, once for all processes",
        f"{copy / GB:,.0f} GB",
        "exact [12]",
    )
    yield (
        "time to make the copy, by the first process",
        f"{tokens / UNPACKED_POSITIONS_PER_S / 60:,.0f} min",
        "measured [13]",
    )
    yield (
        f"main memory of a process, documents of {plan.document_length:,}; of a node",
        f"{own / GB:.1f} GB; {own * per_node / GB:.1f} GB",
        "exact [12]",
    )
    yield "positions/s that a node trains on", f"{node:,.0f}", "calculated"
    rates = (TEXT_POSITIONS_PER_S, SPEECH_FRAMES_PER_S, PARTICLES_PER_S)
    yield (
        "positions/s that a core tokenises: text, speech, jets",
        ", ".join(f"{x / 1e6:.2f} M" for x in rates),
        "measured [13]",
    )
    yield (
        "cores that keep up with a node: all text, all speech, all jets",
        ", ".join(f"{node / x:.2f}" for x in rates),
        "calculated",
    )
    yield (
        "share of a step's time spent on packing its batch",
        f"{positions_per_s(plan, lm) / LOADED_POSITIONS_PER_S:.1%}",
        "measured [14]",
    )


def checkpoints(plan: Plan, lm: LM, n: int) -> Iterator[Row]:
    """Their size, how long they take, and what main memory they and the start need."""
    size = (16 if plan.ema_decay else 12) * n
    yield "**checkpoint**", f"{size / GB:.0f} GB", "exact [15]"
    yield (
        "main memory of a process while it is written",
        f"{(size + 8 * n) / plan.devices / GB:.1f} GB",
        "exact [15]",
    )
    yield (
        "on disk while one is written beside the last two",
        f"{3 * size / GB:.0f} GB",
        "exact [15]",
    )
    minutes = 2 * size / plan.disk_bytes_per_s / 60
    yield (
        "time to write it, beside the training, and to read it for its digest; rate of the disk",
        f"{minutes:.1f} min; {plan.disk_bytes_per_s / GB:g} GB/s",
        "chosen",
    )
    largest = max(p.numel() for p in lm.parameters())
    yield (
        "main memory of a process for first values; for the finished model's file",
        f"{4 * largest / GB:.1f} GB; {4 * largest / GB:.1f} GB",
        "exact [16]",
    )


def traffic(plan: Plan, lm: LM, blocks: int, rest: int) -> Iterator[Row]:
    """What a device receives in a step, beside the time that it computes."""
    of_others = (plan.shares - 1) / plan.shares
    n_sums = plan.grad_accum_steps
    if plan.replicas == 1:  # once per step
        n_sums = 1
    gathered = plan.grad_accum_steps * (2 * plan.size * blocks + 4 * rest)
    within = of_others * (gathered + n_sums * 4 * (blocks + rest))
    copies = 2 * (plan.replicas - 1) / plan.replicas * 4 * (blocks + rest) / plan.shares
    rate = plan.network_bytes_per_s
    where = "between nodes"
    if plan.shares <= plan.per_node:
        rate = plan.node_bytes_per_s
        where = "within a node"
    yield (
        "**traffic** per device and step: of shares; between copies",
        f"{within / GB:.1f} GB; {copies / GB:.1f} GB",
        "calculated [17]",
    )
    yield (
        "rate of the link of shares; between nodes",
        f"{rate / GB:g} GB/s, {where}; {plan.network_bytes_per_s / GB:g} GB/s",
        "cited [18]",
    )
    positions = plan.batch_size * plan.seq_len * plan.grad_accum_steps
    yield (
        "seconds per step: traffic of shares; between copies; computation",
        f"{within / rate:.2f}; {copies / plan.network_bytes_per_s:.2f};"
        f" {positions / positions_per_s(plan, lm):.2f}",
        "calculated",
    )
    yield (
        "micro-batches per step; positions per step",
        f"{plan.grad_accum_steps}; {plan.devices * positions:,}",
        "chosen",
    )


def table(plans: dict[str, Plan]) -> str:
    """All plans side by side, in Markdown."""
    lines = [f"| | {' | '.join(plans)} | from |", "|---|" + "---|" * (len(plans) + 1)]
    for rows in zip(*(rows_of(plan) for plan in plans.values()), strict=True):
        lines.append(f"| {rows[0][0]} | {' | '.join(row[1] for row in rows)} | {rows[0][2]} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table of the plans that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "plans", nargs="*", metavar="PLAN", help=f"{', '.join(PLANS)} (default: all)"
    )
    kinds = {"int": int, "float": float, "str": str, "bool": is_true}
    for field in fields(Plan):
        choices = ("bf16", "float32") if field.name == "precision" else None
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=kinds[field.type], choices=choices)
    options = vars(parser.parse_args())
    names = options.pop("plans") or list(PLANS)
    if set(names) - set(PLANS):
        parser.error(f"plans are {', '.join(PLANS)}")
    changes = {name: value for name, value in options.items() if value is not None}
    try:
        print(table({name: replace(PLANS[name], **changes) for name in names}))
    except (ValueError, ZeroDivisionError) as error:
        parser.error(str(error))


def is_true(word: str) -> bool:
    """Whether a word of the command line says yes; others than these words are refused."""
    said = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if word.lower() not in said:
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return said[word.lower()]


if __name__ == "__main__":
    main()
