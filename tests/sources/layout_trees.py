"""Small corpora of every layout, as they are published, for the tests of what is wrong in them."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from mmtok.sources.hub import HubTable
from mmtok.sources.images import ImageFolder
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.sources.speech import SpeechFolder
from mmtok.sources.text import TextFile

RATE_HZ = 8_000


@dataclass
class Tree:
    """A layout, and how a corpus of it is written.

    Attributes:
        source: the class that reads it.
        layout: its name.
        write: a function (folder, numbers of the examples, name of their split).
        column: a field that has a column in its table; "" where there is no table.
        signals: pattern of the files that its table, or its text, goes with.
        table: pattern of its tables; "" where there are none.
        per_file: whether an example is a file, which may be copied to another one's place.
        settings: of the source.
        place: the folder below that of the corpus which the user names.
    """

    source: type
    layout: str
    write: Callable[[Path, range, str], None]
    column: str = ""
    signals: str = ""
    table: str = ""
    per_file: bool = False
    settings: dict = field(default_factory=dict)
    place: str = ""

    def __str__(self):
        return f"{self.source.__name__}-{self.layout}"

    def open(self, folder, **settings):
        """The source of a corpus in a folder."""
        return self.source(str(folder / self.place), **{**self.settings, **settings})


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(rows):
    return "".join(f"{row}\n" for row in rows)


def sentence(i):
    return f"the sentence number {i} of a corpus of many"


def put_sound(path, i, rate_hz=RATE_HZ):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(400 + i, i / 2**10), rate_hz)


def put_picture(path, i):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(path)


def content(put_file, suffix, i):
    """The bytes of a file that `put_sound` or `put_picture` writes."""
    file = io.BytesIO()
    if put_file is put_sound:
        soundfile.write(file, np.full(400 + i, i / 2**10), RATE_HZ, format=suffix[1:].upper())
    else:
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(file, suffix[1:].upper())
    return file.getvalue()


def put_tar(path, put_file, suffix, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            members = {suffix: content(put_file, suffix, i), ".txt": sentence(i).encode()}
            for end, data in members.items():
                member = tarfile.TarInfo(f"{i:05}{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


# ---- speech


def plain_speech(folder, numbers, split):
    for i in numbers:
        put_sound(folder / split / f"{i:03}.wav", i)
        put(folder / split / f"{i:03}.txt", sentence(i))


def audiofolder(folder, numbers, split):
    for i in numbers:
        put_sound(folder / split / f"{i:03}.wav", i)
    rows = [f"{i:03}.wav,{sentence(i)}" for i in numbers]
    put(folder / split / "metadata.csv", lines(["file_name,transcription", *rows]))


def ljspeech(folder, numbers, split):
    for i in numbers:
        put_sound(folder / "wavs" / f"LJ{i:03}.wav", i)
    rows = [f"LJ{i:03}|{sentence(i)}|{sentence(i)}" for i in numbers]
    put(folder / f"metadata_{split}.csv", lines(rows))


def librispeech(folder, numbers, split):
    for i in numbers:
        put_sound(folder / split / "19" / "198" / f"19-198-{i:04}.flac", i)
    rows = [f"19-198-{i:04} {sentence(i).upper()}" for i in numbers]
    put(folder / split / "19" / "198" / "19-198.trans.txt", lines(rows))


def libritts(folder, numbers, split):
    for i in numbers:
        name = folder / split / "19" / "198" / f"19_198_{i:06}_000000"
        put_sound(name.with_suffix(".wav"), i)
        put(name.with_suffix(".normalized.txt"), sentence(i))
        put(name.with_suffix(".original.txt"), sentence(i))


def vctk(folder, numbers, split):
    for i in numbers:
        speaker = f"p{225 + i % 3}"
        put_sound(folder / "wav48" / speaker / f"{speaker}_{i:03}.wav", i)
        put(folder / "txt" / speaker / f"{speaker}_{i:03}.txt", sentence(i))


def commonvoice(folder, numbers, split):
    for i in numbers:
        put_sound(folder / "clips" / f"common_voice_{i}.wav", i)
    rows = [f"{i % 3}\tcommon_voice_{i}.wav\t{sentence(i)}\t2\t0" for i in numbers]
    put(folder / f"{split}.tsv", lines(["client_id\tpath\tsentence\tup_votes\tdown_votes", *rows]))


def kaldi(folder, numbers, split):
    for i in numbers:
        put_sound(folder / "wav" / f"{i:03}.wav", i)
    data = folder / "data" / split
    put(data / "wav.scp", lines(f"u{i:03} {folder}/wav/{i:03}.wav" for i in numbers))
    put(data / "text", lines(f"u{i:03} {sentence(i)}" for i in numbers))


def nemo(folder, numbers, split):
    for i in numbers:
        put_sound(folder / "audio" / f"{i:03}.wav", i)
    rows = [{"audio_filepath": f"audio/{i:03}.wav", "text": sentence(i)} for i in numbers]
    put(folder / f"{split}_manifest.json", lines(map(json.dumps, rows)))


def speech_tars(folder, numbers, split):
    put_tar(folder / f"{split}-000.tar", put_sound, ".wav", numbers)


def speech_table(folder, numbers, split):
    for i in numbers:
        put_sound(folder / "sounds" / f"{i:03}.wav", i)
    rows = [f"sounds/{i:03}.wav;{sentence(i)}" for i in numbers]
    put(folder / f"{split}.csv", lines(["path;sentence", *rows]))


# ---- pictures


def folder_pictures(folder, numbers, split):
    for i in numbers:
        put_picture(folder / split / ("cat", "dog")[i % 2] / f"{i:03}.png", i)


def imagefolder(folder, numbers, split):
    for i in numbers:
        put_picture(folder / split / f"{i:03}.png", i)
    rows = [f"{i:03}.png,{sentence(i)}" for i in numbers]
    put(folder / split / "metadata.csv", lines(["file_name,text", *rows]))


def image_table(folder, numbers, split):
    for i in numbers:
        put_picture(folder / "images" / f"{i:03}.png", i)
    rows = [f"{i:03}.png\t{sentence(i)}" for i in numbers]
    put(folder / f"{split}.tsv", lines(["image\tcaption", *rows]))


def coco(folder, numbers, split):
    for i in numbers:
        put_picture(folder / f"{split}2017" / f"{i:012}.png", i)
    images = [{"id": i, "file_name": f"{i:012}.png", "height": 4, "width": 6} for i in numbers]
    captions = [{"id": i, "image_id": i, "caption": sentence(i)} for i in numbers]
    found = {"info": {}, "licenses": [], "images": images, "annotations": captions}
    put(folder / "annotations" / f"captions_{split}2017.json", json.dumps(found))


def image_tars(folder, numbers, split):
    put_tar(folder / f"{split}-000.tar", put_picture, ".png", numbers)


def image_parquet(folder, numbers, split):
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": content(put_picture, ".png", i), "path": f"{i}.png"} for i in numbers]
    table = pa.table({"image": pictures, "text": [sentence(i) for i in numbers]})
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def idx(folder, numbers, split):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.stack([np.full((4, 6), i, np.uint8) for i in numbers])
    labels = np.array([i % 10 for i in numbers], np.uint8)
    name = {"train": "train", "test": "t10k"}[split]
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


# ---- text


def plain_text(folder, numbers, split):
    for i in numbers:
        put(folder / split / f"{i:03}.txt", lines([sentence(i)] * 3))


def text_table(folder, numbers, split):
    rows = [{"id": str(i), "text": sentence(i)} for i in numbers]
    put(folder / f"{split}.jsonl", lines(map(json.dumps, rows)))


def chat(folder, numbers, split):
    rows = [
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": sentence(i)},
            ]
        }
        for i in numbers
    ]
    put(folder / f"{split}.jsonl", lines(map(json.dumps, rows)))


# ---- jets


def jets_of(numbers):
    """Jets (3, 3): pt, eta and phi about the axis."""
    return [np.array([[90 + i, 0.1, 0], [9, -0.1, 0.1], [1, 0, -0.1]], "f4") for i in numbers]


def plain_jets(folder, numbers, split):
    folder.mkdir(parents=True, exist_ok=True)
    write_jets(folder / f"{split}.npz", jets_of(numbers))


def jetnet(folder, numbers, split):
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    values = np.stack(jets_of(numbers))
    pt = values[..., 0].sum(1, keepdims=True)
    parts = [values[..., 1], values[..., 2], values[..., 0] / pt, np.ones_like(values[..., 0])]
    with h5py.File(folder / f"{split}.hdf5", "w") as file:
        file["particle_features"] = np.stack(parts, 2)
        file["jet_features"] = np.concatenate([pt, 0 * pt, 0 * pt + 9, 0 * pt + 3], 1)


def quarkgluon(folder, numbers, split):
    folder.mkdir(parents=True, exist_ok=True)
    values = np.stack(jets_of(numbers))
    x = np.concatenate([values, np.full_like(values[..., :1], 211)], 2)
    y = np.array([i % 2 for i in numbers], float)
    np.savez(folder / f"QG_jets_{split}.npz", X=x.astype(float), y=y)


def jet_columns(folder, numbers, split):
    names = ("pt", "eta", "phi")
    rows = [
        {"parts": [dict(zip(names, map(float, row), strict=True)) for row in jet], "kind": "qcd"}
        for jet in jets_of(numbers)
    ]
    put(folder / f"{split}.jsonl", lines(map(json.dumps, rows)))


JET_NAMES = {"pt": "parts.pt", "eta": "parts.eta", "phi": "parts.phi", "caption": "kind"}


# ---- any table


def hub_csv(folder, numbers, split):
    rows = [f"{i},{sentence(i)}" for i in numbers]
    put(folder / f"{split}.csv", lines(["id,text", *rows]))


HUB = {"columns": {"caption": "text"}, "modalities": {"caption": "text"}}

TREES = [
    Tree(SpeechFolder, "plain", plain_speech, "", "**/*.wav", per_file=True),
    Tree(SpeechFolder, "audiofolder", audiofolder, "caption", "**/*.wav", "**/*.csv", True),
    Tree(SpeechFolder, "ljspeech", ljspeech, "", "**/*.wav", "*.csv", True),
    Tree(SpeechFolder, "librispeech", librispeech, "", "**/*.flac", "**/*.trans.txt", True),
    Tree(SpeechFolder, "libritts", libritts, "", "**/*.wav", per_file=True),
    Tree(SpeechFolder, "vctk", vctk, "", "**/*.wav", per_file=True),
    Tree(SpeechFolder, "commonvoice", commonvoice, "caption", "**/*.wav", "*.tsv", True),
    Tree(SpeechFolder, "kaldi", kaldi, "", "**/*.wav", "data/*/text", True, place="data"),
    Tree(SpeechFolder, "nemo", nemo, "caption", "**/*.wav", "*.json", True),
    Tree(SpeechFolder, "webdataset", speech_tars, "caption"),
    Tree(SpeechFolder, "table", speech_table, "caption", "**/*.wav", "*.csv", True),
    Tree(ImageFolder, "folder", folder_pictures, per_file=True, signals="**/*.png"),
    Tree(ImageFolder, "imagefolder", imagefolder, "caption", "**/*.png", "**/*.csv", True),
    Tree(ImageFolder, "table", image_table, "caption", "**/*.png", "*.tsv", True),
    Tree(ImageFolder, "coco", coco, "", "**/*.png", "annotations/*.json", True),
    Tree(ImageFolder, "webdataset", image_tars, "caption"),
    Tree(ImageFolder, "parquet", image_parquet, "caption"),
    Tree(ImageFolder, "idx", idx),
    Tree(TextFile, "plain", plain_text, per_file=True, signals="**/*.txt"),
    Tree(TextFile, "table", text_table, "text", "", "*.jsonl"),
    Tree(TextFile, "chat", chat, "messages", "", "*.jsonl"),
    Tree(JetFile, "plain", plain_jets, "pt"),
    Tree(JetFile, "jetnet", jetnet, "pt"),
    Tree(JetFile, "quarkgluon", quarkgluon),
    Tree(JetFile, "columns", jet_columns, "pt", settings={"columns": JET_NAMES}),
    Tree(HubTable, "csv", hub_csv, "caption", "", "*.csv", settings=HUB),
]
