"""Draw docs/stream.svg, the picture of the README: `python docs/draw_stream.py`.

A text, a spoken word, a handwritten digit and a jet, each as its tokens, and all of them as one
stream of ids. Needs the extras `demo`, `digits` and `jets`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from xml.sax.saxutils import escape

import numpy as np

from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.core.vocabulary import Vocabulary
from mmtok.nn.resample import resample
from mmtok.sources.handwritten import HandwrittenDigits
from mmtok.sources.pythia import PythiaJets
from mmtok.sources.speech import SpokenDigits
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig

TARGET = Path(__file__).with_name("stream.svg")
WIDTH = 960
HEIGHT = 330
BOX = 200  # width of a modality's panel
SIDE = 14  # of the picture, in pixels
COLOURS = {"text": "#4c6ef5", "speech": "#e8590c", "image": "#2f9e44", "jets": "#9c36b5"}
MARK = "#868e96"


def signals() -> dict[str, object]:
    """One signal of each modality, those of "seven" but for the jet."""
    with TemporaryDirectory() as folder:
        cache = Path(folder)
        digits = HandwrittenDigits(copies=1).examples("heldout", cache)
        image = next(x["image"] for x in digits if x["caption"] == "seven")
        clips = SpokenDigits(n_utterances=60).examples("train", cache)
        sound = next(x["speech"] for x in clips if x["caption"] == "seven")
        jets = PythiaJets(n_per_class=4, n_heldout=1, processes=1).examples("train", cache)
        jet = next(x["jets"] for x in jets if x["caption"] == "top jet")
    return {
        "text": "seven",
        "speech": resample(sound.samples, sound.rate_hz, 16_000),
        "image": halved(image),
        "jets": jet,
    }


def halved(image: np.ndarray) -> np.ndarray:
    """The means of 2 x 2 pixels: bars of all pixels would be too thin to be seen."""
    height, width = image.shape
    blocks = image.reshape(height // 2, 2, width // 2, 2)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def rect(x: float, y: float, w: float, h: float, fill: str, opacity: float = 1.0) -> str:
    """A filled rectangle."""
    size = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"'
    return f'<rect {size} fill="{fill}" fill-opacity="{opacity:.2f}"/>'


def label(x: float, y: float, text: str, size: int = 13, fill: str = "#495057") -> str:
    """Centred text."""
    style = f'font-size="{size}" fill="{fill}" text-anchor="middle"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def grid(values: np.ndarray, x: float, y: float, w: float, h: float, fill: str) -> list[str]:
    """Values (rows, columns) in 0..1 as shaded cells."""
    rows, columns = values.shape
    cell_w = w / columns
    cell_h = h / rows
    return [
        rect(x + j * cell_w, y + i * cell_h, cell_w * 0.96, cell_h * 0.96, fill, values[i, j])
        for i in range(rows)
        for j in range(columns)
        if values[i, j] > 0.02
    ]


def panel(modality: str, segment: Segment, x: float) -> list[str]:
    """A modality's tokens, as they are: bytes, mel bands over frames, pixels, particles."""
    fill = COLOURS[modality]
    y = 50.0
    w = BOX - 30.0
    h = 130.0
    codes = segment.codes
    if modality == "text":
        cell = w / len(codes)
        parts = [rect(x + i * cell, y + 45, cell * 0.9, 40, fill, 0.25) for i in range(len(codes))]
        for i, code in enumerate(codes[:, 0]):
            parts.append(label(x + (i + 0.45) * cell, y + 36, chr(code), 15, fill))
            parts.append(label(x + (i + 0.45) * cell, y + 70, str(code), 13, "#212529"))
        return parts
    if modality == "speech":
        return grid(codes.T[::-4] / 15, x, y, w, h, fill)
    if modality == "image":
        return grid(codes.reshape(SIDE, SIDE) / max(1, codes.max()), x + 20, y, h, h, fill)
    pt, eta, phi = codes.T
    middle_x = x + w / 2
    middle_y = y + h / 2
    centre = [np.median(eta), np.median(phi)]
    scale = 0.45 * h / max(np.abs(eta - centre[0]).max(), np.abs(phi - centre[1]).max())
    return [
        f'<circle cx="{middle_x + (e - centre[0]) * scale:.1f}" '
        f'cy="{middle_y - (f - centre[1]) * scale:.1f}" r="{1 + 7 * p / pt.max():.1f}" '
        f'fill="{fill}" fill-opacity="0.5"/>'
        for p, e, f in zip(pt, eta, phi, strict=True)
    ]


def stream_row(vocabulary: Vocabulary, document: Document) -> list[str]:
    """The ids of the document, one bar each: marks in grey, frames in their modality's colour."""
    stream = to_stream(vocabulary, document)
    names = list(vocabulary.signatures)
    step = (WIDTH - 60) / len(stream)
    parts = []
    for i, (id, modality) in enumerate(zip(stream.ids, stream.modality, strict=True)):
        name = names[modality] if modality >= 0 else None
        is_frame = name is not None and id in vocabulary.span(name)
        fill = COLOURS[name] if is_frame else MARK
        top = 250 if is_frame else 242
        parts.append(rect(30 + i * step, top, step * 0.85, 282 - top, fill, 0.85))
    text = f"one stream of {len(stream)} ids; marks in grey; p(document) is the product over it"
    return [*parts, label(WIDTH / 2, 308, text)]


def main() -> None:
    """Write the picture."""
    tokenizers = {
        "text": BytesConfig().build(),
        "speech": DMelConfig.dmel_40hz().build(),
        "image": PixelsConfig(SIDE, SIDE, 1, n_levels=16).build(),
        "jets": JetGridConfig(max_constituents=40).build(),
    }
    segments = {m: tokenizers[m].encode(signal) for m, signal in signals().items()}
    vocabulary = Vocabulary([tokenizer.signature for tokenizer in tokenizers.values()])
    document = Document(tuple(segments.values()), (True,) * len(segments))
    notes = {
        "text": "{T} bytes",
        "speech": "{T} frames of 80 bands",
        "image": "{T} pixels",
        "jets": "{T} particles: pt, eta, phi",
    }
    parts = [rect(0, 0, WIDTH, HEIGHT, "#ffffff")]
    for i, (m, segment) in enumerate(segments.items()):
        x = 45 + i * (WIDTH - 60) / 4
        parts += [label(x + BOX / 2 - 15, 32, m, 16, COLOURS[m]), *panel(m, segment, x)]
        parts.append(label(x + BOX / 2 - 15, 202, notes[m].format(T=len(segment)), 12))
    parts += stream_row(vocabulary, document)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    lines = [f'{head} font-family="sans-serif">', *parts, "</svg>"]
    TARGET.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
