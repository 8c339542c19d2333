"""How fast, and beside whom: .venv/bin/python scripts/bench.py [--json FILE] [--repeats 9] [--threads 1]

Each line is ours against a peer in one run, turn and turn about, medians of the repeats. On a shared machine only ratios mean much.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """One figure: ours and the peer's in the same unit (None where there is no peer), their ratio (above 1: ours is better), the aim."""

    what: str
    unit: str
    ours: float
    peer: str
    theirs: float | None
    ratio: float | None
    aim: str
    met: bool

    def __str__(self) -> str:
        theirs = f"{self.peer} {self.theirs:.4g}" if self.theirs is not None else "-"
        ratio = f"{self.ratio:.3g}x" if self.ratio is not None else "-"
        return f"{self.what:<34}{self.ours:>12.4g} {self.unit:<14}{theirs:<34}{ratio:>8}  aim {self.aim:<16}{'met' if self.met else 'MISSED'}"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def side_by_side(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, which take turns; the first turn of each only warms up."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats + 1)][1:]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


# ---- starting

def start(repeats: int) -> list[Line]:
    """The package's import and its help, beside an interpreter that does nothing."""
    lines = []
    for what, code in [("import mmtok", "import mmtok"), ("mmtok --help", "from mmtok.cli import main; main(['--help'])"),
                       ("mmtok train --help", "from mmtok.cli import main; main(['train', '--help'])")]:  # fmt: skip
        run = lambda code: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        ours, bare = side_by_side(lambda: run(code), lambda: run("pass"), repeats)
        torch_free = subprocess.run([sys.executable, "-c", f"{code}; import sys; sys.exit('torch' in sys.modules)"], stdout=subprocess.DEVNULL)
        met = ours < 0.5 and torch_free.returncode == 0
        lines.append(Line(what, "s", ours, "python alone", bare, None, "< 0.5, no torch", met))
    return lines


# ---- tokenizers

def speech(repeats: int) -> list[Line]:
    """dMel tokenising at 80 Hz beside the authors' package, of clips of equal length, so that theirs needs no padding."""
    import dmel
    import numpy as np
    import torch

    from mmtok.tokenizers.speech import DMelConfig

    tokenizer = DMelConfig.apple_80hz().build()
    peer = dmel.DiscretizedLogMelFbank(dmel.LogMelFbank(frame_stride_ms=12.5), n_bits=4)
    lines = []
    for n_clips, duration_s in ((1, 10), (16, 4)):
        clips = [np.random.default_rng(i).uniform(-0.5, 0.5, 16_000 * duration_s).astype(np.float32) for i in range(n_clips)]
        stacked, lengths = torch.from_numpy(np.stack(clips)), torch.full((n_clips,), len(clips[0]))
        with torch.no_grad():
            same = np.array_equal(tokenizer.encode(clips[0]).codes, peer(stacked, lengths)[0][0, 1:-1].numpy())
            ours, theirs = side_by_side(lambda: tokenizer.encode_batch(clips), lambda: peer(stacked, lengths), repeats)
        total_s = n_clips * duration_s
        what = f"dMel, {n_clips} x {duration_s} s" + ("" if same else ", CODES DIFFER")
        lines.append(Line(what, "x real time", total_s / ours, "dmel", total_s / theirs, theirs / ours, ">= dmel", ours <= theirs and same))
    return lines


def jets(repeats: int) -> list[Line]:
    """The grid of jets, particles a second."""
    import numpy as np

    from mmtok.tokenizers.jets import JetGridConfig

    rng, tokenizer = np.random.default_rng(0), JetGridConfig().build()
    made = []
    for n in rng.integers(20, 120, 4000):
        pt = np.sort(rng.exponential(12.0, n))[::-1] + 0.2
        made.append(np.stack([pt, *rng.normal(0, 0.2, (2, n))], 1).astype(np.float32))
    n_particles, segments = sum(map(len, made)), tokenizer.encode_batch(made)
    encoding, decoding = side_by_side(lambda: tokenizer.encode_batch(made), lambda: tokenizer.decode_batch(segments), repeats)
    return [Line("jets, encode", "particles/s", n_particles / encoding, "", None, None, ">= 1e6", n_particles / encoding >= 1e6),
            Line("jets, decode", "particles/s", n_particles / decoding, "", None, None, ">= 1e6", n_particles / decoding >= 1e6)]


def text(repeats: int) -> list[Line]:
    """Batches of passages beside sentencepiece's own batch call, with the same pieces and the same threads."""
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
    ours, theirs = side_by_side(lambda: tokenizer.encode_batch(passages), lambda: peer.encode(passages), repeats)
    same = all(a.codes[:, 0].tolist() == b for a, b in zip(tokenizer.encode_batch(passages[:50]), peer.encode(passages[:50])))
    megabytes = sum(map(len, passages)) / 1e6
    what = "text, batches of 4000 passages" + ("" if same else ", CODES DIFFER")
    return [Line(what, "MB/s", megabytes / ours, "sentencepiece", megabytes / theirs, theirs / ours, ">= 0.9x", theirs / ours >= 0.9 and same)]


# ---- sampling

def sampling(repeats: int) -> list[Line]:
    """Drawing 16 streams of 256 frames by a decoder of the quickstart's size, with the cache and by reading all anew for every frame."""
    import numpy as np
    import torch

    from mmtok.batch import pack
    from mmtok.model.generate import Sampling, generate, pick
    from mmtok.model.lm import LM, DecoderConfig
    from mmtok.nn.transformer import TransformerConfig
    from mmtok.segment import Document, Segment, Signature
    from mmtok.vocabulary import Vocabulary

    n_streams, n_frames, way = 16, 256, Sampling()
    torch.manual_seed(0)
    lm = LM(DecoderConfig(TransformerConfig()), Vocabulary([Signature("image", (512,), frames=n_frames)])).eval()
    prompt = lambda codes: Document((Segment("image", codes=codes),), (True,), open_end=True)
    empty = np.zeros((0, 1), np.int64)

    def cached() -> np.ndarray:
        drawn = generate(lm, [prompt(empty)] * n_streams, way, torch.Generator().manual_seed(0))
        return np.stack([d.segment.codes[:, 0] for d in drawn])

    @torch.no_grad()
    def uncached() -> np.ndarray:
        codes, generator = np.zeros((n_streams, 0), np.int64), torch.Generator().manual_seed(0)
        for _ in range(n_frames):
            batch = pack(lm.vocabulary, [[lm.vocabulary.stream(prompt(row[:, None]))] for row in codes])
            logits = lm.id_logits(lm.hidden(batch)[:, -1], "image")[:, :-1]  # without the end: a fixed count has none to choose
            codes = np.concatenate([codes, pick(logits, way, generator)[:, None].numpy()], 1)
        return codes

    ours, theirs = side_by_side(cached, uncached, max(1, repeats // 3))
    frames_per_s = [n_streams * n_frames / s for s in (ours, theirs)]
    return [Line("sampling, 16 x 256 frames", "frames/s", frames_per_s[0], "without cache", frames_per_s[1], theirs / ours, ">= 5x", theirs / ours >= 5)]


PARTS = {part.__name__: part for part in (start, speech, jets, text, sampling)}


def machine(threads: int) -> dict:
    """What the figures were measured on."""
    model = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    packages = ("torch", "torchaudio", "numpy", "sentencepiece", "dmel")
    return {"processor": model or platform.machine(), "cores": os.cpu_count(), "threads": threads, "load": round(os.getloadavg()[0], 1),
            "python": platform.python_version(), **{name: version(name) for name in packages}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--repeats", type=int, default=9, help="turns that the medians are over; sampling takes a third")
    parser.add_argument("--threads", type=int, default=1, help="of torch; sentencepiece takes its own on both sides")
    words = parser.parse_args()
    unknown = set(words.parts) - set(PARTS)
    if unknown or words.repeats < 1 or words.threads < 1:
        parser.error(f"parts are {', '.join(PARTS)}; repeats and threads at least 1")
    import torch

    torch.set_num_threads(words.threads)
    about, lines = machine(words.threads), []
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for name in words.parts:
        for line in PARTS[name](words.repeats):
            print(line, flush=True)
            lines.append(asdict(line))
    if words.json:
        words.json.write_text(json.dumps({"machine": about, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
