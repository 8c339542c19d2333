"""How fast the package starts, tokenises and samples, and beside whom: .venv/bin/python
scripts/bench.py [ROW ...] [--json FILE]

Each line is ours against a peer in one run, turn and turn about, medians of the repeats. On a
shared machine only ratios mean much.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from side_by_side import Line, machine, parsed, parser, report, turn_about

# ---- starting


def start(repeats: int) -> Iterator[Line]:
    """The package's import and its help, beside an interpreter that does nothing; neither may
    import torch.
    """
    run = lambda code: subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL
    )
    for what, code in [("import mmtok", "import mmtok"), ("mmtok --help", "from mmtok.cli import main; main(['--help'])"),
                       ("mmtok train --help", "from mmtok.cli import main; main(['train', '--help'])")]:  # fmt: skip
        ours, bare = turn_about([lambda code=code: run(code), lambda: run("pass")], repeats)
        heavy = subprocess.run(
            [sys.executable, "-c", f"{code}; import sys; sys.exit('torch' in sys.modules)"],
            stdout=subprocess.DEVNULL,
        ).returncode
        yield Line(
            what,
            "s",
            ours,
            "python alone",
            bare,
            "s",
            ours,
            0.5,
            least=False,
            wrong="imports torch" if heavy else "",
        )


# ---- tokenizers


def speech(repeats: int) -> Iterator[Line]:
    """DMel tokenising at 80 Hz beside the authors' package, of clips of equal length, so that
    theirs needs no padding.
    """
    import dmel
    import numpy as np
    import torch

    from mmtok.tokenizers.speech import DMelConfig

    tokenizer = DMelConfig.apple_80hz().build()
    peer = dmel.DiscretizedLogMelFbank(dmel.LogMelFbank(frame_stride_ms=12.5), n_bits=4)
    for n_clips, duration_s in ((1, 10), (16, 4)):
        clips = [
            np.random.default_rng(i).uniform(-0.5, 0.5, 16_000 * duration_s).astype(np.float32)
            for i in range(n_clips)
        ]
        stacked, lengths = torch.from_numpy(np.stack(clips)), torch.full((n_clips,), len(clips[0]))
        with torch.no_grad():
            same = np.array_equal(
                tokenizer.encode(clips[0]).codes, peer(stacked, lengths)[0][0, 1:-1].numpy()
            )
            ours, theirs = turn_about(
                [lambda: tokenizer.encode_batch(clips), lambda: peer(stacked, lengths)], repeats
            )
        total_s = n_clips * duration_s
        yield Line(f"dMel, {n_clips} x {duration_s} s", "x real time", total_s / ours, "dmel", total_s / theirs, "ratio", theirs / ours, 1.0,
                   wrong="" if same else "codes differ")  # fmt: skip


def jets(repeats: int) -> Iterator[Line]:
    """The grid of jets, particles a second."""
    import numpy as np

    from mmtok.tokenizers.jets import JetGridConfig

    rng, tokenizer = np.random.default_rng(0), JetGridConfig().build()
    made = []
    for n in rng.integers(20, 120, 4000):
        pt = np.sort(rng.exponential(12.0, n))[::-1] + 0.2
        made.append(np.stack([pt, *rng.normal(0, 0.2, (2, n))], 1).astype(np.float32))
    n_particles, segments = sum(map(len, made)), tokenizer.encode_batch(made)
    sides = {
        "encode": lambda: tokenizer.encode_batch(made),
        "decode": lambda: tokenizer.decode_batch(segments),
    }
    for name, s in zip(sides, turn_about(list(sides.values()), repeats)):
        yield Line(
            f"jets, {name}",
            "particles/s",
            n_particles / s,
            "",
            None,
            "particles/s",
            n_particles / s,
            1e6,
        )


def text(repeats: int) -> Iterator[Line]:
    """Batches of passages beside sentencepiece's own batch call, with the same pieces and the same
    threads.
    """
    import numpy as np
    import sentencepiece

    from mmtok.tokenizers.text import SentencePieceConfig

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(4000)]
    share = 1 / np.arange(1, len(words) + 1)
    passages = [" ".join(rng.choice(words, 80, p=share / share.sum())) for _ in range(4000)]
    tokenizer = SentencePieceConfig(n_pieces=2000).fit(passages[:500])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        peer = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "pieces.model"))
    ours, theirs = turn_about(
        [lambda: tokenizer.encode_batch(passages), lambda: peer.encode(passages)], repeats
    )
    same = all(
        a.codes[:, 0].tolist() == b
        for a, b in zip(tokenizer.encode_batch(passages[:50]), peer.encode(passages[:50]))
    )
    megabytes = sum(map(len, passages)) / 1e6
    yield Line("text, batches of 4000 passages", "MB/s", megabytes / ours, "sentencepiece", megabytes / theirs, "ratio", theirs / ours, 0.9,
               wrong="" if same else "codes differ")  # fmt: skip


# ---- sampling


def sampling(repeats: int) -> Iterator[Line]:
    """Drawing 16 streams of 256 frames by a decoder of the quickstart's size, with the cache and by
    reading all anew for every frame.
    """
    import numpy as np
    import torch

    from mmtok.core.batch import pack
    from mmtok.core.grammar import to_stream
    from mmtok.core.segment import Document, Segment, Signature
    from mmtok.core.vocabulary import Vocabulary
    from mmtok.model.generate import generate
    from mmtok.model.lm import LM, DecoderConfig
    from mmtok.model.sampling import Sampling, pick
    from mmtok.nn.transformer import TransformerConfig

    n_streams, n_frames, way = 16, 256, Sampling()
    torch.manual_seed(0)
    lm = LM(
        DecoderConfig(TransformerConfig()),
        Vocabulary([Signature("image", (512,), frames=n_frames)]),
    ).eval()
    prompt = lambda codes: Document((Segment("image", codes=codes),), (True,), open_end=True)
    empty = np.zeros((0, 1), np.int64)

    def cached() -> np.ndarray:
        drawn = generate(lm, [prompt(empty)] * n_streams, way, torch.Generator().manual_seed(0))
        return np.stack([d.segment.codes[:, 0] for d in drawn])

    @torch.no_grad()
    def uncached() -> np.ndarray:
        codes, generator = np.zeros((n_streams, 0), np.int64), torch.Generator().manual_seed(0)
        for _ in range(n_frames):
            batch = pack(
                lm.vocabulary, [[to_stream(lm.vocabulary, prompt(row[:, None]))] for row in codes]
            )
            logits = lm.id_logits(lm.hidden(batch)[:, -1], "image")[
                :, :-1
            ]  # without the end: a fixed count has none to choose
            codes = np.concatenate([codes, pick(logits, way, generator)[:, None].numpy()], 1)
        return codes

    ours, theirs = turn_about([cached, uncached], max(1, repeats // 3))
    frames_per_s = [n_streams * n_frames / s for s in (ours, theirs)]
    yield Line(
        "sampling, 16 x 256 frames",
        "frames/s",
        frames_per_s[0],
        "without cache",
        frames_per_s[1],
        "ratio",
        theirs / ours,
        5.0,
    )


ROWS = {row.__name__: row for row in (start, speech, jets, text, sampling)}


def main() -> None:
    words = parsed(parser(__doc__.splitlines()[0], ROWS, threads=1), ROWS)
    about = machine(("torch", "soxr", "numpy", "sentencepiece", "dmel"))
    report(
        (line for name in words.rows for line in ROWS[name](words.repeats)),
        words.json,
        machine=about,
    )


if __name__ == "__main__":
    main()
