"""Files that are no signal, as a new user meets it at the command line: one clear line, exit code
2, nothing half-written.
"""

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmtok.cli import main
from mmtok.tokenizers.text import SentencePieceConfig

NOISE = np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes()
SINE = (0.3 * np.sin(np.arange(8000) / 9)).astype(np.float32)
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def flat(path, jets):
    jets = [np.asarray(jet, np.float32).reshape(-1, 3) for jet in jets]
    np.savez(
        path,
        values=np.concatenate([np.zeros((0, 3), np.float32), *jets]),
        offsets=np.cumsum([0, *map(len, jets)]),
    )


def cut(path, make, *args, **settings):
    make(path, *args, **settings)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def sound(path, samples, rate_hz=16000, subtype=None):
    return soundfile.write(path, samples, rate_hz, subtype=subtype)


JET = [(9.0, 0.1, 0.1), (5.0, 0.0, -0.1), (2.0, 0.2, 0.0)]


def with_value(value, at):
    return [
        JET,
        [tuple(value if (r, c) == at else x for c, x in enumerate(p)) for r, p in enumerate(JET)],
    ]


BAD = {
    "text": {
        "empty.txt": (lambda p: p.write_bytes(b""), "the file is empty"),
        "latin1.txt": (
            lambda p: p.write_bytes("café".encode("latin1")),
            "not UTF-8 text: byte 0xE9 at offset 3",
        ),
        "utf16.txt": (lambda p: p.write_bytes("hi".encode("utf-16")), "not UTF-8"),
        "folder.txt": (lambda p: p.mkdir(), "is a folder without"),
        "none.txt": (lambda p: None, "no such file"),
    },
    "speech": {
        "empty.wav": (lambda p: p.write_bytes(b""), "the file is empty"),
        "noise.wav": (lambda p: p.write_bytes(NOISE), "not a sound file"),
        "zero.wav": (lambda p: sound(p, SINE[:0]), "holds no samples"),
        "nan.wav": (lambda p: sound(p, np.r_[SINE, np.nan], subtype="FLOAT"), "NaN or infinite"),
        "inf.wav": (lambda p: sound(p, np.r_[SINE, np.inf], subtype="FLOAT"), "NaN or infinite"),
        "cut.wav": (lambda p: cut(p, sound, SINE), "truncated"),
        "cut.flac": (lambda p: cut(p, sound, SINE), "libsndfile"),
        "words.wav": (lambda p: p.write_text("hello"), "not a sound file"),
        "folder.wav": (lambda p: p.mkdir(), "is a folder"),
        "none.wav": (lambda p: None, "no such file"),
    },
    "image": {
        "empty.png": (lambda p: p.write_bytes(b""), "the file is empty"),
        "noise.png": (lambda p: p.write_bytes(NOISE), "not an image"),
        "cut.png": (lambda p: cut(p, lambda q: Image.fromarray(COLOURS).save(q)), "truncated"),
        "no-pixels.gif": (lambda p: p.write_bytes(b"GIF89a" + bytes(6) + b";"), "no-pixels.gif"),
        "float.tif": (
            lambda p: Image.fromarray(COLOURS[..., 0] / np.float32(9)).save(p),
            "float pixels have no stated range",
        ),
        "sound.png": (
            lambda p: sound(p.with_suffix(".wav"), SINE) or p.with_suffix(".wav").rename(p),
            "not an image",
        ),
        "folder.png": (lambda p: p.mkdir(), "folder.png"),
        "none.png": (lambda p: None, "no such file"),
    },
    "jets": {
        "empty.npz": (lambda p: p.write_bytes(b""), "the file is empty"),
        "noise.npz": (lambda p: p.write_bytes(NOISE), "not a numpy file"),
        "noise.parquet": (lambda p: p.write_bytes(NOISE), "cannot be read as jets"),
        "cut.npz": (lambda p: cut(p, flat, [JET]), "cannot be read as jets"),
        "nan.npz": (lambda p: flat(p, with_value(np.nan, (1, 2))), "jet 1 has a NaN"),
        "infinite.npz": (
            lambda p: flat(p, with_value(np.inf, (1, 0))),
            "jet 1 has a NaN or infinite",
        ),
        "negative.npz": (lambda p: flat(p, with_value(-1.0, (2, 0))), "jet 1 has a negative pt"),
        "no-jets.npz": (lambda p: flat(p, []), "holds no jets"),
        "objects.npy": (lambda p: np.save(p, np.array([{}])), "not a numpy file of numbers"),
        "pairs.npy": (lambda p: np.save(p, np.ones((3, 2))), "3 features"),
        "jets.pkl": (lambda p: p.write_bytes(NOISE), "known are .npz"),
        "none.npz": (lambda p: None, "no such file"),
    },
}


@pytest.mark.parametrize(
    "modality, name", [(modality, name) for modality, kinds in BAD.items() for name in kinds]
)
def test_files_that_are_no_signal(tmp_path, modality, name, said, contents):
    make, reason = BAD[modality][name]
    make(tmp_path / name)
    before = contents(tmp_path)
    line = said(["tokenize", modality, tmp_path / name, "-o", tmp_path / "out.parquet"])
    assert (
        str(tmp_path / name) in line
        and reason in line
        and "allow_pickle" not in line
        and len(line) < 300
    )
    assert contents(tmp_path) == before


def test_what_is_converted_is_said_once_a_file(tmp_path, notes):
    sound(tmp_path / "stereo.wav", np.stack([SINE, SINE], 1), 44_100)
    (line,) = notes(["tokenize", "speech", tmp_path / "stereo.wav", "-o", tmp_path / "s.parquet"])
    assert "mixed down from 2 channels" in line and "resampled from 44,100 to 16,000 Hz" in line
    picture = Image.fromarray(COLOURS)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    picture.convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([COLOURS, COLOURS[..., :1]])).save(tmp_path / "alpha.png")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    expected = {
        "cmyk.jpg": "CMYK",
        "deep.png": "16 bits",
        "palette.png": "palette",
        "alpha.png": "transparency",
        "moving.gif": "first of 2 frames",
    }
    flat(tmp_path / "empty.npz", [JET, []])
    (line,) = notes(["tokenize", "jets", tmp_path / "empty.npz", "-o", tmp_path / "j.parquet"])
    assert "1 of 2 jets have no constituents, the first is jet 1" in line
    lines = notes(
        ["tokenize", "image", *(tmp_path / name for name in expected), "-o", tmp_path / "i.parquet"]
    )
    assert len(lines) == 5 and all(
        name in line and what in line for line, (name, what) in zip(lines, expected.items())
    )
    flat(tmp_path / "unsorted.npz", [JET[::-1], JET])
    (line,) = notes(["tokenize", "jets", tmp_path / "unsorted.npz", "-o", tmp_path / "j.parquet"])
    assert "sorted 1 jet by falling pt" in line


def test_one_bad_file_among_good_ones_leaves_no_token_file(tmp_path, said):
    for i in range(70):
        (tmp_path / f"{i:02d}.txt").write_text("good")
    (tmp_path / "69.txt").write_bytes(b"\xff")
    assert "69.txt" in said(
        ["tokenize", "text", *sorted(tmp_path.glob("*.txt")), "-o", tmp_path / "out.parquet"]
    )
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".txt"]


def test_tokens_of_another_tokenizer_name_both(tmp_path, said):
    (tmp_path / "a.txt").write_text("seven")
    prints = []
    for n_pieces in (290, 300):
        tokenizer = SentencePieceConfig(n_pieces=n_pieces).fit(["seven eight nine"] * 5)
        tokenizer.save(tmp_path / str(n_pieces))
        prints.append(tokenizer.signature.fingerprint)
    assert (
        main(
            [
                "tokenize",
                "text",
                str(tmp_path / "a.txt"),
                "-o",
                str(tmp_path / "t.parquet"),
                "--tokenizer",
                str(tmp_path / "290"),
            ]
        )
        == 0
    )
    line = said(
        [
            "detokenize",
            tmp_path / "t.parquet",
            "-o",
            tmp_path / "out",
            "--tokenizer",
            tmp_path / "300",
        ]
    )
    assert (
        all(name in line for name in prints)
        and "use the tokenizer it was made with" in line
        and not (tmp_path / "out").exists()
    )
