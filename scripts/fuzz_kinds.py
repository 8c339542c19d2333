"""The kinds of input of scripts/fuzz.py: how a sound one is made, damaged and opened."""

from __future__ import annotations

import gzip
import lzma
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import fuzz_files as ways
import fuzz_folders as folders
import numpy as np
from fuzz_files import ANY, JETS, SINE, Change, choice, written

SEED = 0


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        make: Writes a sound input into a folder, and returns its path.
        load: Opens an input as the package does.
        own: Changes that know the format, by suffix or name of the file that they are for. Half
            of the inputs get one of them.
        among: Of an input that is a folder: patterns of the files that are damaged.
    """

    make: Callable[[Path], Path]
    load: Callable[[Path], object]
    own: Mapping[str, Change] = field(default_factory=dict)
    among: tuple[str, ...] = ()


def damage(kind: str, seed: list[int], home: Path, folder: Path) -> Path:
    """Writes a damaged input into `folder`; the same for the same seed.

    home: The folder that `make_sound` filled.
    """
    generator = np.random.default_rng([*seed, list(KINDS).index(kind)])
    about = KINDS[kind]
    place = home / "sound" / kind
    shutil.copytree(place, folder)
    path = folder / (place / ".path").read_text()
    (folder / ".path").unlink()
    target = path
    if path.is_dir():
        files = sorted(p for pattern in about.among for p in path.glob(pattern))
        target = choice(files, generator)
    sound = target.read_bytes()
    own = about.own.get(target.name) or about.own.get(target.suffix)
    if generator.random() < 0.03:
        changed = _another(home, generator)
    elif own is not None and generator.random() < 0.6:
        changed = own(sound, generator)
    else:
        changed = choice(ANY, generator)(sound, generator) if sound else b"\0"
        while generator.random() < 0.3 and changed:
            changed = choice(ANY, generator)(changed, generator)
    target.write_bytes(changed)
    return path


def _another(home: Path, generator: np.random.Generator) -> bytes:
    """A sound file of any kind in the place of this one; or an empty one."""
    if generator.random() < 0.1:
        return b""
    paths = (home / "sound").rglob("*")
    files = sorted(p for p in paths if p.is_file() and p.stat().st_size < 10**6)
    return choice(files, generator).read_bytes()


def make_sound(home: Path, kinds: Iterable[str] | None = None) -> None:
    """Writes sound inputs (of all kinds by default) into HOME/sound/KIND; `.path` names them."""
    for name in KINDS if kinds is None else kinds:
        kind = KINDS[name]
        folder = home / "sound" / name
        folder.mkdir(parents=True)
        path = kind.make(folder)
        (folder / ".path").write_text(path.relative_to(folder).as_posix())


def warm_up(home: Path) -> None:
    """Opens every sound input once: memory of imports and caches must not count later."""
    for name, kind in KINDS.items():
        copy = home / "warm" / name
        if copy.exists():
            shutil.rmtree(copy)
        shutil.copytree(home / "sound" / name, copy)
        kind.load(copy / (copy / ".path").read_text())


# ---- signals


def _text(folder: Path) -> Path:
    return written(folder / "a.txt", "Once upon a time, caf\u00e9 \U0001f600.\n".encode())


def _load_text(path: Path) -> None:
    from mmtok.sources.text import read_text
    from mmtok.tokenizers import default

    text = read_text(path)
    tokenizer = default("text")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def _sound(suffix: str, **settings: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import soundfile

        soundfile.write(folder / f"a{suffix}", SINE, 16_000, **settings)
        return folder / f"a{suffix}"

    return make


def _load_sound(path: Path) -> None:
    from mmtok.data.speech_preparation import read_sound
    from mmtok.tokenizers import default

    samples = read_sound(path)
    if np.abs(samples).max(initial=0) <= 100:
        default("speech").encode(samples)


def _image(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        colours = np.random.default_rng(SEED).integers(0, 256, (9, 7, 3), np.uint8)
        Image.fromarray(colours).save(folder / f"a{suffix}")
        return folder / f"a{suffix}"

    return make


def _load_image(path: Path) -> None:
    from mmtok.data.image_preparation import read_image
    from mmtok.tokenizers import default

    default("image").encode(read_image(path))


def _jets(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from mmtok.sources.jet_formats import write_jets

        write_jets(folder / f"a{suffix}", JETS)
        return folder / f"a{suffix}"

    return make


def _jetnet(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file["particle_features"] = np.full((2, 3, 4), [0.1, 0.1, 0.3, 1.0], np.float32)
        file["jet_features"] = np.ones((2, 4), np.float32)
    return folder / "a.h5"


def _load_jets(path: Path) -> None:
    from mmtok.sources.jets import read_jets
    from mmtok.tokenizers.jets import JetGridConfig

    JetGridConfig(allow_clipping=True).build().encode_batch(read_jets(path))


def _idx(suffix: str, pack: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 3])

    def make(folder: Path) -> Path:
        return written(folder / f"a{suffix}", pack(header + bytes(range(18))))

    return make


def _load_idx(path: Path) -> None:
    from mmtok.sources.idx import read_idx

    read_idx(path)


# ---- tables


def _transcripts(
    suffix: str, separator: str, packed: Callable[[bytes], bytes] = bytes
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _sound(".wav")(folder)
        rows = [("file", "text"), ("a.wav", '"seven, eight"')]
        text = "".join(separator.join(row) + "\n" for row in rows)
        return written(folder / f"transcripts{suffix}", packed(text.encode()))

    return make


def _load_transcripts(path: Path) -> None:
    from mmtok.sources.speech import SpeechFolder

    SpeechFolder(str(path.parent)).transcripts()


def _json_table(folder: Path) -> Path:
    _sound(".wav")(folder)
    return written(folder / "transcripts.jsonl", b'{"file": "a.wav", "text": "seven"}\n')


# ---- tokens


def _tokens(folder: Path) -> Path:
    from mmtok.data.tokens import write_tokens
    from mmtok.tokenizers import default

    signals = {
        "text": "seven",
        "speech": SINE,
        "image": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "jets": JETS[0],
    }
    tokenizers = {m: default(m) for m in signals}
    rows = [{m: tokenizers[m].encode(x) for m, x in signals.items()}] * 2
    write_tokens(folder / "a.parquet", {m: t.signature for m, t in tokenizers.items()}, rows)
    return folder / "a.parquet"


def _load_tokens(path: Path) -> None:
    from mmtok.commands.detokenize import detokenize_file
    from mmtok.commands.show import describe_tokens

    describe_tokens(path)
    detokenize_file(path, path.parent / "out")


JSONS = {
    ".json": ways.json_changed,
    ".jsonl": ways.lines_changed,
    ".safetensors": ways.safetensors_changed,
    ".parquet": ways.parquet_changed,
}
RUN_FILES = (
    "*.json",
    "*.json*",
    "model.safetensors",
    "samples/*.json",
    "samples/*/*.json",
    "checkpoints/*/*",
    "tokens/*/*.parquet",
    "tokenizers/*/*.json",
)
SIGNALS = {
    "text": Kind(_text, _load_text),
    "wav": Kind(_sound(".wav"), _load_sound, {".wav": ways.wav_changed}),
    "flac": Kind(_sound(".flac"), _load_sound, {".flac": ways.flac_changed}),
    "ogg": Kind(_sound(".ogg"), _load_sound),
    "mp3": Kind(_sound(".mp3"), _load_sound),
    "png": Kind(_image(".png"), _load_image, {".png": ways.png_changed}),
    "npy": Kind(_jets(".npy"), _load_jets, {".npy": ways.npy_changed}),
    "npz": Kind(_jets(".npz"), _load_jets, {".npz": ways.npz_changed}),
    "h5": Kind(_jetnet, _load_jets, {".h5": ways.h5_changed}),
    "parquet": Kind(_jets(".parquet"), _load_jets, {".parquet": ways.parquet_changed}),
    "idx": Kind(_idx("", bytes), _load_idx, {"a": ways.idx_changed}),
    "idx.gz": Kind(_idx(".gz", gzip.compress), _load_idx, {".gz": ways.packed_idx}),
    "idx.xz": Kind(_idx(".xz", lzma.compress), _load_idx),
}
OTHER_PICTURES = {
    name: Kind(_image(f".{name}"), _load_image)
    for name in ("jpg", "gif", "bmp", "tif", "webp", "ppm")
}
TABLES = {
    "csv": Kind(_transcripts(".csv", ","), _load_transcripts, {".csv": ways.table_changed}),
    "tsv": Kind(_transcripts(".tsv", "\t"), _load_transcripts, {".tsv": ways.table_changed}),
    "csv.gz": Kind(
        _transcripts(".csv.gz", ",", gzip.compress), _load_transcripts, {".gz": ways.packed_table}
    ),
    "jsonl": Kind(_json_table, _load_transcripts, JSONS),
}
TOKENIZERS = {
    f"tokenizer-{name}": Kind(
        folders.tokenizer_maker(name), folders.load_tokenizer, JSONS, among=("*",)
    )
    for name in folders.MAKERS
}
KINDS: dict[str, Kind] = {
    **SIGNALS,
    **OTHER_PICTURES,
    **TABLES,
    "tokens": Kind(_tokens, _load_tokens, {".parquet": ways.parquet_changed}),
    **TOKENIZERS,
    "recipe": Kind(folders.recipe_json, folders.load_recipe_file, JSONS),
    "run": Kind(folders.make_run, folders.load_run, JSONS, RUN_FILES),
    "llama": Kind(folders.make_llama, folders.load_llama_folder, JSONS, among=("*",)),
}
