"""Reading what people have: how fast corpora are listed and read, and in how much memory.

    python scripts/bench_data.py [--only SECTION ...] [--quick | --full] [--json FILE]

    speech   an LJSpeech-like corpus of 13,100 clips is listed, and its broken file named; the
             memory that a manifest of 100,000 rows takes (--full: of a million)
    jets     a million jets in 100 files (--full: ten million) are looked at and read, and 50,000
             of them tokenised, beside the same from memory
    tokenise  two worker processes over one, for each modality: by the clock, which needs two quiet
             cores, and by the processors' seconds that both take (--full: 13,100 clips)
    tars     10,000 pictures in webdataset tars against the same in folders: pictures read a second,
             with their listing; the memory that a caption table of 100,000 rows takes
    text     100 MB of text (--full: 1 GB) in files of every kind, looked at and read; the memory
             that 100 GB would take, by what the index of a table takes

Files are made in a temporary folder first. Memory is that of a process of its own, beyond what its
imports take. On a shared machine only memory and ratios mean much.
"""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from side_by_side import (
    Line,
    called,
    machine,
    median_seconds,
    parsed,
    parser,
    report,
    seconds,
)

from mmtok.commands.tokenize import How, tokenize_files
from mmtok.core.segment import Segment
from mmtok.data.tokens import write_tokens
from mmtok.errors import UserError
from mmtok.sources.base import Chunk, Made, batched_lists
from mmtok.sources.images import ImageFolder, write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import SpeechFolder
from mmtok.sources.text import TextFile
from mmtok.sources.text_corpus import RowReader
from mmtok.sources.text_pieces import Chunking
from mmtok.tokenizers.jets import JetGridConfig

GIB_MB = 1024.0
PACKAGES = ("numpy", "pyarrow", "soundfile")


@dataclass(frozen=True)
class Options:
    """What the command line asks for: a quick look, or the sizes that take long."""

    quick: bool = False
    full: bool = False
    repeats: int = 3


def peak_mb(work: Callable[[], object]) -> float:
    """The memory that a call takes at most, in a new process, beyond that of its imports.

    Args:
        work: picklable; what it imports should be imported by its module.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mb, (work,))


def _peak_mb(work: Callable[[], object]) -> float:
    warnings.simplefilter("ignore")
    before = _status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    work()
    return _status_mb("VmHWM") - before


def _status_mb(name: str) -> float:
    """A size of this process, as Linux counts it: VmRSS is what it takes, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return int(sizes[name].split()[0]) / 1024


# ---- speech


def speech(options: Options) -> Iterator[Line]:
    """Listing 13,100 clips of 0.3 s, a broken one among them, and a large manifest."""
    n_clips = 1_000 if options.quick else 13_100
    n_rows = 10_000 if options.quick else 100_000
    if options.full:
        n_rows = 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        broken = make_ljspeech(place / "lj", n_clips)
        took = seconds(SpeechFolder(str(place / "lj")).check)
        what = f"{n_clips:,} clips listed by their headers"
        yield Line(what, "s", took, "", None, "seconds", took, 20.0, least=False)
        broken.write_bytes(b"RIFF, and no sound")
        took, wrong = first_problem(place / "lj", broken)
        what = f"the broken one of {n_clips:,} clips named"
        yield Line(what, "s", took, "", None, "seconds", took, 20.0, least=False, wrong=wrong)
        manifest = make_manifest(place / "nemo", n_rows)
        start = time.perf_counter()
        peak = peak_mb(partial(list_all, manifest))
        took = time.perf_counter() - start
        what = f"a manifest of {n_rows:,} rows listed"
        yield Line(what, "MB at most", peak, "time", took, "MB", peak, GIB_MB, least=False)


def make_ljspeech(folder: Path, n_clips: int) -> Path:
    """A corpus as LJSpeech is published, of clips of 0.3 s. Returns the path of its last one."""
    generator = np.random.default_rng(0)
    (folder / "wavs").mkdir(parents=True)
    rows = []
    for i in range(n_clips):
        name = f"LJ{1 + i // 200:03}-{i % 200:04}"
        path = folder / "wavs" / f"{name}.wav"
        write_sound(path, generator.normal(0, 0.1, 6_615).astype(np.float32), 22_050)
        rows.append(f"{name}|Text number {i}, as it is written.|Text number {i}, spelled out.\n")
    (folder / "metadata.csv").write_text("".join(rows))
    return path


def first_problem(folder: Path, broken: Path) -> tuple[float, str]:
    """How long it takes until a broken file is named, and what went wrong with that."""
    source = SpeechFolder(str(folder), on_error="raise")
    start = time.perf_counter()
    try:
        source.check()
    except UserError as error:
        wrong = "" if str(broken) in str(error) else f"another error: {error}"
        return time.perf_counter() - start, wrong
    return time.perf_counter() - start, "the broken file was not found"


def make_manifest(folder: Path, n_rows: int) -> Path:
    """A NeMo manifest of as many files, all links to one sound."""
    folder.mkdir(parents=True)
    write_sound(folder / "one.wav", np.zeros(4_800, np.float32))
    with (folder / "manifest.jsonl").open("w") as file:
        for i in range(n_rows):
            path = folder / "wavs" / f"{i // 1000:04}" / f"clip_{i:07}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(folder / "one.wav", path)
            row = {
                "audio_filepath": str(path.relative_to(folder)),
                "duration": 0.3,
                "text": f"the transcript of clip {i} of a long list of clips, as long as most are",
                "speaker": f"speaker {i % 5_000}",
            }
            file.write(json.dumps(row) + "\n")
    return folder / "manifest.jsonl"


def list_all(manifest: Path) -> None:
    """List the training clips of a manifest, and read the first 256."""
    listing = SpeechFolder(str(manifest)).listing("train")
    list(next(iter(listing.chunks)).read())


# ---- jets

JET_FILES = 100


def jets(options: Options) -> Iterator[Line]:
    """Memory of reading all of many files, and the rate of tokenising beside that from memory."""
    n_jets = 20_000 if options.quick else 1_000_000
    n_encoded = 5_000 if options.quick else 50_000
    if options.full:
        n_jets = 10_000_000
    for suffix in (".npz", ".parquet"):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            make_jets(place, suffix, n_jets // JET_FILES)
            start = time.perf_counter()
            peak = peak_mb(partial(read_all, place))
            took = time.perf_counter() - start
            what = f"{n_jets:,} jets in {JET_FILES} files {suffix}, looked at and read"
            yield Line(what, "MB at most", peak, "time", took, "MB", peak, GIB_MB, least=False)
            listing = JetFile(str(place)).listing("train")
            from_files = list(islice(listing.chunks, -(-n_encoded // 900)))
            from_memory = [Made(list(chunk.read())) for chunk in from_files]
            n = sum(len(chunk.made) for chunk in from_memory)
            sides = [partial(tokenise, of, place / "tokens") for of in (from_files, from_memory)]
            ours, theirs = (n / took for took in cpu_seconds(sides, options.repeats))
            what = f"{n:,} jets tokenised from files {suffix}"
            yield Line.ratio(what, "jets/CPU s", ours, "from memory", theirs, 0.8)


def cpu_seconds(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each side that this process computes, whatever else the machine does."""
    took: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for times, side in zip(took, sides, strict=True):
            start = time.process_time()
            side()
            times.append(time.process_time() - start)
    return [statistics.median(times) for times in took]


def make_jets(folder: Path, suffix: str, n: int) -> None:
    """A hundred files of n jets each, with some 40 constituents, all with the same content."""
    generator = np.random.default_rng(0)
    sizes = generator.poisson(40, n) + 1
    values = generator.normal(0, 0.2, (int(sizes.sum()), 3)).astype(np.float32)
    values[:, 0] = generator.exponential(12, len(values)) + 0.2
    made = np.split(values, np.cumsum(sizes)[:-1])
    made = [jet[np.argsort(-jet[:, 0])] for jet in made]
    first = folder / f"part-000{suffix}"
    write_jets(first, made)
    for i in range(1, JET_FILES):
        shutil.copyfile(first, folder / f"part-{i:03}{suffix}")


def read_all(folder: Path) -> None:
    """Look at all jets of a folder, and read those to train on."""
    for chunk in JetFile(str(folder)).listing("train").chunks:
        for _ in chunk.read():
            pass


def tokenise(chunks: Sequence[Chunk], out: Path) -> None:
    """Read chunks, and write a token file of their jets."""
    tokenizer = JetGridConfig().build()

    def rows() -> Iterator[dict[str, Segment]]:
        for chunk in chunks:
            made = [example["jets"] for example in chunk.read()]
            yield from ({"jets": segment} for segment in tokenizer.encode_batch(made))

    write_tokens(out, {"jets": tokenizer.signature}, rows())


# ---- pictures in tars


def tars(options: Options) -> Iterator[Line]:
    """The same pictures in folders of classes and in tars, and a large table of captions."""
    n_pictures = 500 if options.quick else 10_000
    n_rows = 10_000 if options.quick else 100_000
    if options.full:
        n_rows = 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_pictures(place, n_pictures)
        sides = [partial(read_pictures, place / name) for name in ("tars", "folder")]
        afresh = [partial(in_new_process, side) for side in sides]
        in_tars, in_folder = (n_pictures / took for took in median_seconds(afresh, options.repeats))
        what = f"{n_pictures:,} pictures in tars, listed and read"
        yield Line.ratio(what, "pictures/s", in_tars, "folder", in_folder, 0.9)
        table = make_captions(place / "table", n_rows)
        took = seconds(partial(list_pictures, table))
        peak = peak_mb(partial(list_pictures, table))
        what = f"a caption table of {n_rows:,} rows listed"
        yield Line(what, "MB at most", peak, "time", took, "MB", peak, GIB_MB, least=False)


def make_pictures(place: Path, n: int) -> None:
    """JPEG pictures of 64 x 64 pixels, in ten folders of classes and in tars of a thousand."""
    generator = np.random.default_rng(0)
    (place / "tars").mkdir()
    for start in range(0, n, 1_000):
        with tarfile.open(place / "tars" / f"{start // 1_000:05}.tar", "w") as tar:
            for i in range(start, min(start + 1_000, n)):
                caption = f"class {i % 10}"
                path = place / "folder" / caption / f"{i:06}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, generator.integers(0, 256, (64, 64, 3), np.uint8))
                members = {f"{i:06}.jpg": path.read_bytes(), f"{i:06}.txt": caption.encode()}
                for name, content in members.items():
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))


def in_new_process(work: Callable[[], object]) -> None:
    """Work where no file was looked at before, as headers are looked at once in a process."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(work)


def read_pictures(folder: Path) -> None:
    """List and read all pictures."""
    warnings.simplefilter("ignore")
    for split in ("train", "heldout"):
        for _ in ImageFolder(str(folder)).examples(split):
            pass


def make_captions(folder: Path, n_rows: int) -> Path:
    """A table of as many pictures, of one pixel each."""
    folder.mkdir()
    with (folder / "captions.csv").open("w") as file:
        file.write("file,caption\n")
        for i in range(n_rows):
            path = folder / "images" / f"{i // 1000:04}" / f"picture_{i:07}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P5 1 1 255\n\0")
            file.write(f"{path.relative_to(folder)},a caption of picture {i} as long as most\n")
    return folder / "captions.csv"


def list_pictures(table: Path) -> None:
    """List the training pictures of a table, and read the first 256."""
    listing = ImageFolder(str(table)).listing("train")
    list(next(iter(listing.chunks)).read())


# ---- text


def text(options: Options) -> Iterator[Line]:
    """Memory and time of looking at a text and reading all its chunks, and the index of a table."""
    n_bytes = 4 * 10**6 if options.quick else 10**8
    if options.full:
        n_bytes = 10**9
    with tempfile.TemporaryDirectory() as folder:
        for name in TEXT_FILES:
            path = Path(folder) / f"a{name}"
            make_text(path, n_bytes)
            start = time.perf_counter()
            peak = peak_mb(partial(read_texts, path))
            took = time.perf_counter() - start
            what = f"{n_bytes // 10**6:,} MB of text in {name}, looked at and read"
            yield Line(what, "MB at most", peak, "time", took, "MB", peak, GIB_MB, least=False)
            if name == ".jsonl":
                index = RowReader(Chunking(256)).faults(path)
                peak += index.groups.nbytes * 10**11 / n_bytes / 2**20
                what = "100 GB of text in jsonl, by the index of the former"
                yield Line(what, "MB at most", peak, "", None, "MB", peak, GIB_MB, least=False)
            path.unlink()


TEXT_FILES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.zst", ".csv", ".parquet")


def make_text(path: Path, n_bytes: int) -> None:
    """Documents of 2,000 characters of about n bytes together, in the format of the suffix."""
    generator = np.random.default_rng(0)
    letters = generator.choice(list("etaoinshr dlu "), 200_000)
    text = "".join(letters)
    starts = generator.integers(0, len(text) - 2_000, -(-n_bytes // 2_000))
    documents = (text[start : start + 2_000] for start in starts.tolist())
    if path.suffix == ".parquet":
        schema = pa.schema([("text", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            for group in batched_lists(documents, 5_000):
                writer.write_table(pa.table({"text": group}, schema))
        return
    with _packed(path) as file:
        if ".csv" in path.name:
            file.write(b"id,text\n")
        for i, document in enumerate(documents):
            row = document
            if ".jsonl" in path.name:
                row = json.dumps({"id": i, "text": document})
            elif ".csv" in path.name:
                row = f"{i},{document}"
            file.write(f"{row}\n".encode())


def _packed(path: Path) -> Any:
    """A file to write to, packed as its suffix says."""
    if path.suffix == ".gz":
        return gzip.open(path, "wb", compresslevel=1)
    if path.suffix == ".zst":
        return pa.CompressedOutputStream(str(path), "zstd")
    return path.open("wb")


def read_texts(path: Path) -> None:
    """List the training split of a text, and read all its chunks."""
    for chunk in TextFile(str(path)).listing("train").chunks:
        for _ in chunk.read():
            pass


# ---- tokenising by worker processes

CLIP_S = 6.5  # of LJSpeech's clips, on average
MODALITIES = ("speech", "image", "text", "jets")
SIGNALS = {"speech": 4_000, "image": 12_000, "text": 30_000}
MOST_SIGNALS = {"speech": 13_100, "image": 48_000, "text": 120_000}  # of --full


def tokenise_by_workers(options: Options) -> Iterator[Line]:
    """Two workers over one: files of each modality become one token file."""
    for modality in MODALITIES:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            n, unit = make_files(place / "in", modality, options)
            measured: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            for _ in range(options.repeats):
                for workers, found in measured.items():
                    found.append(afresh(partial(tokenise_files, place, modality, workers)))
            one, two = (np.median(found, axis=0).tolist() for found in measured.values())
            what = f"{n:,} {unit} tokenised by two workers"
            yield Line.ratio(what, f"{unit}/s", n / two[0], "one", n / one[0], 1.7)
            what = f"{n:,} {unit}: processors' seconds of one process over those of two workers"
            value = one[1] / two[1]
            yield Line(what, "s", two[1], "one", one[1], "ratio", value, 0.85)
            peak = peak_mb(partial(tokenise_files, place, modality, 1))
            what = f"{n:,} {unit} tokenised by one process"
            yield Line(what, "MB at most", peak, "", None, "MB", peak, GIB_MB, least=False)


def afresh(work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """What work returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work)


def tokenise_files(place: Path, modality: str, workers: int) -> tuple[float, float]:
    """Tokenise all files; returns the seconds of the clock, and of all processes together."""
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    computed = computed_s()
    how = How(workers=workers)
    out = place / f"{workers}.parquet"
    with redirect_stderr(io.StringIO()):
        tokenize_files(modality, [place / "in"], out, how=how)
    return time.perf_counter() - start, computed_s() - computed


def computed_s() -> float:
    """Seconds that this process and its ended children have computed, to the microsecond.

    `os.times` counts whole hundredths, which quick work takes none of.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def make_files(folder: Path, modality: str, options: Options) -> tuple[int, str]:
    """Files of a modality. Returns how many signals they hold, and what these are called.

    Enough for some 20 s of one process, of --full for a minute and more: starting two more takes
    them two.
    """
    generator = np.random.default_rng(0)
    folder.mkdir()
    if modality == "jets":
        n = 10 if options.quick else 6_000
        make_jets(folder, ".npz", n)
        return n * JET_FILES, "jets"
    n = (MOST_SIGNALS if options.full else SIGNALS)[modality]
    if options.quick:
        n = 40
    if modality == "speech":
        samples = generator.normal(0, 0.1, int(22_050 * 2 * CLIP_S)).astype(np.float32)
        for i in range(n):
            write_sound(folder / f"{i:05}.wav", samples[i : i + int(22_050 * CLIP_S)], 22_050)
        return n, "clips"
    for i in range(n):
        if modality == "image":
            pixels = generator.integers(0, 256, (128, 128, 3), np.uint8)
            write_image(folder / f"{i:05}.png", pixels)
        else:
            words = generator.integers(0, 10_000, 4_000)
            (folder / f"{i:05}.txt").write_text(" ".join(map(str, words)))
    return n, {"image": "pictures", "text": "texts"}[modality]


# ---- the command line

SECTIONS: dict[str, Callable[[Options], Iterator[Line]]] = {
    "speech": speech,
    "jets": jets,
    "tokenise": tokenise_by_workers,
    "tars": tars,
    "text": text,
}


def main() -> None:
    """Measures the sections that the command line names, and prints their figures."""
    made = parser(__doc__.splitlines()[0], SECTIONS, 1)
    made.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    made.add_argument("--full", action="store_true", help="the largest sizes, which take long")
    asked = parsed(made, SECTIONS)
    options = Options(asked.quick, asked.full, asked.repeats)
    lines = (line for name in asked.rows for line in SECTIONS[name](options))
    report(lines, asked.json, machine=machine(PACKAGES))


if __name__ == "__main__":
    called(main)
