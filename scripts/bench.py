"""How fast the package starts, tokenizes and samples, each beside a peer.

    .venv/bin/python scripts/bench.py [ROW ...] [--json FILE]

Both sides alternate in one run; figures are medians of the repeats. On a shared machine only ratios
mean much.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from side_by_side import (
    Line,
    called,
    check_peers,
    machine,
    median_seconds,
    parsed,
    parser,
    report,
)

# ---- starting


def start(repeats: int) -> Iterator[Line]:
    """The package's import and its help, beside a bare interpreter; neither may import torch."""
    commands = {
        "import mmtok": "import mmtok",
        "mmtok --help": "from mmtok.cli import main; main(['--help'])",
        "mmtok train --help": "from mmtok.cli import main; main(['train', '--help'])",
    }
    for what, code in commands.items():
        ours, bare = median_seconds([partial(_python, code), partial(_python, "pass")], repeats)
        imports_torch = _python(f"{code}; import sys; sys.exit('torch' in sys.modules)") != 0
        wrong = "imports torch" if imports_torch else ""
        yield Line(what, "s", ours, "python alone", bare, "s", ours, 0.5, least=False, wrong=wrong)


def _python(code: str) -> int:
    """Runs code in a new interpreter and returns its exit status."""
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode


# ---- tokenizers


def speech(repeats: int) -> Iterator[Line]:
    """DMel at 80 Hz beside the authors' package, on clips of equal length (no padding)."""
    import dmel
    import numpy as np
    import torch

    from mmtok.tokenizers.speech import DMelConfig

    tokenizer = DMelConfig.dmel_80hz().build()
    peer = dmel.DiscretizedLogMelFbank(dmel.LogMelFbank(frame_stride_ms=12.5), n_bits=4)
    for n_clips, duration_s in ((1, 10), (16, 4)):
        n_samples = 16_000 * duration_s
        clips = [
            np.random.default_rng(i).uniform(-0.5, 0.5, n_samples).astype(np.float32)
            for i in range(n_clips)
        ]
        batch = torch.from_numpy(np.stack(clips))
        lengths = torch.full((n_clips,), n_samples)
        with torch.no_grad():
            first = peer(batch, lengths)[0][0, 1:-1].numpy()  # without their begin and end
            same = np.array_equal(tokenizer.encode(clips[0]).codes, first)
            sides = [partial(tokenizer.encode_batch, clips), partial(peer, batch, lengths)]
            ours, theirs = median_seconds(sides, repeats)
        total_s = n_clips * duration_s
        yield Line.ratio(
            f"dMel, {n_clips} x {duration_s} s",
            "x real time",
            total_s / ours,
            "dmel",
            total_s / theirs,
            bar=1.0,
            wrong="" if same else "codes differ",
        )


def jets(repeats: int) -> Iterator[Line]:
    """The jet tokenizer, in particles per second."""
    import numpy as np

    from mmtok.tokenizers.jets import JetGridConfig

    rng = np.random.default_rng(0)
    tokenizer = JetGridConfig().build()
    made = []
    for n in rng.integers(20, 120, 4000):
        pt = np.sort(rng.exponential(12.0, n))[::-1] + 0.2
        made.append(np.stack([pt, *rng.normal(0, 0.2, (2, n))], 1).astype(np.float32))
    n_particles = sum(map(len, made))
    segments = tokenizer.encode_batch(made)
    sides = [partial(tokenizer.encode_batch, made), partial(tokenizer.decode_batch, segments)]
    for name, s in zip(("encode", "decode"), median_seconds(sides, repeats), strict=True):
        rate = n_particles / s
        yield Line(f"jets, {name}", "particles/s", rate, "", None, "particles/s", rate, 1e6)


def text(repeats: int) -> Iterator[Line]:
    """Batches of texts beside sentencepiece's own batch call, with equal pieces and threads."""
    import numpy as np
    import sentencepiece

    from mmtok.tokenizers.text import SentencePieceConfig

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(4000)]
    zipf = 1 / np.arange(1, len(words) + 1)
    texts = [" ".join(rng.choice(words, 80, p=zipf / zipf.sum())) for _ in range(4000)]
    tokenizer = SentencePieceConfig(n_pieces=2000).fit(texts[:500])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        peer = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "pieces.model"))
    ours, theirs = median_seconds(
        [partial(tokenizer.encode_batch, texts), partial(peer.encode, texts)], repeats
    )
    our_codes = [s.codes[:, 0].tolist() for s in tokenizer.encode_batch(texts[:50])]
    megabytes = sum(map(len, texts)) / 1e6
    yield Line.ratio(
        "text, batches of 4000 texts",
        "MB/s",
        megabytes / ours,
        "sentencepiece",
        megabytes / theirs,
        bar=0.9,
        wrong="" if our_codes == peer.encode(texts[:50]) else "codes differ",
    )


# ---- sampling


def sampling(repeats: int) -> Iterator[Line]:
    """16 streams of 256 frames from a decoder of the quickstart's size, with and without cache."""
    import numpy as np
    import torch

    from mmtok.core.batch import pack
    from mmtok.core.grammar import to_stream
    from mmtok.core.segment import Document, Segment, Signature
    from mmtok.core.vocabulary import Vocabulary
    from mmtok.heads.sampling import Sampling, pick
    from mmtok.model.generate import generate
    from mmtok.model.lm import LM, DecoderConfig
    from mmtok.nn.transformer import TransformerConfig

    n_streams = 16
    n_frames = 256
    settings = Sampling()
    torch.manual_seed(0)
    vocabulary = Vocabulary([Signature("image", (512,), frames=n_frames)])
    lm = LM(DecoderConfig(TransformerConfig()), vocabulary).eval()

    def prompt(codes: np.ndarray) -> Document:
        return Document((Segment("image", codes=codes),), (True,), open_end=True)

    def cached() -> np.ndarray:
        prompts = [prompt(np.zeros((0, 1), np.int64))] * n_streams
        drawn = generate(lm, prompts, settings, torch.Generator().manual_seed(0))
        return np.stack([d.segment.codes[:, 0] for d in drawn])

    @torch.no_grad()
    def uncached() -> np.ndarray:
        codes = np.zeros((n_streams, 0), np.int64)
        generator = torch.Generator().manual_seed(0)
        for _ in range(n_frames):
            streams = [to_stream(lm.vocabulary, prompt(row[:, None])) for row in codes]
            batch = pack(lm.vocabulary, [[stream] for stream in streams])
            # Without the end's logit: the count of frames is fixed, so there is none to choose.
            logits = lm.id_logits(lm.hidden(batch)[:, -1], "image")[:, :-1]
            codes = np.concatenate([codes, pick(logits, settings, generator)[:, None].numpy()], 1)
        return codes

    ours, theirs = median_seconds([cached, uncached], max(1, repeats // 3))
    n = n_streams * n_frames
    yield Line.ratio(
        "sampling, 16 x 256 frames", "frames/s", n / ours, "without cache", n / theirs, bar=5.0
    )


ROWS = {row.__name__: row for row in (start, speech, jets, text, sampling)}
PEERS = {"speech": ("dmel", "test")}  # row -> package, extra


def main() -> None:
    """Runs the rows that the command line names."""
    options = parsed(parser(__doc__.splitlines()[0], ROWS, threads=1), ROWS)
    check_peers(options.rows, PEERS)
    lines = (line for name in options.rows for line in ROWS[name](options.repeats))
    about = machine(("torch", "soxr", "numpy", "sentencepiece", "dmel"))
    report(lines, options.json, machine=about)


if __name__ == "__main__":
    called(main)
