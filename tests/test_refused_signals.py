"""A signal that its tokenizer refuses while a run tokenises is named by the file or row that it
came from.
"""

import numpy as np
import pytest

from mmtok.data.encoder import Encoder, Job
from mmtok.data.preparation import preparer
from mmtok.errors import UserError
from mmtok.sources.base import Made
from mmtok.sources.hub import HubTable
from mmtok.sources.images import ImageFolder, write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import SpeechFolder
from mmtok.sources.text import TextFile
from mmtok.tokenizers.text import Bytes, BytesConfig


class NoZ(Bytes):
    """A tokenizer that refuses texts with a z, as one of pieces refuses what it cannot spell."""

    def encode(self, signal):
        if "z" in signal:
            raise UserError("text: no piece for 'z'")
        return super().encode(signal)


class Unnamed:
    """A source that knows no files."""

    fields = {"text": "text"}

    def examples(self, split, cache):
        yield from ({"text": "z" if i == 300 else "a"} for i in range(301))


def words(i):
    return "z" if i == 5 else f"word {i}"


def texts(home):
    for i in range(9):
        (home / f"{i}.txt").write_text(words(i))
    return TextFile(str(home)), f"text of {home / '5.txt'}"


def clips(home):
    for i in range(9):
        write_sound(home / f"{i}.wav", np.full(900, 0.1, np.float32))
        (home / f"{i}.txt").write_text(words(i))
    return SpeechFolder(str(home)), f"caption of {home / '5.wav'}"


def pictures(home):
    for i in range(9):
        write_image(home / f"{words(i)}.png", np.zeros((2, 2), np.uint8))
    return ImageFolder(str(home)), f"caption of {home / 'z.png'}"


def jets(home):
    write_jets(home / "jets.npz", [np.ones((1, 3), np.float32)] * 9)
    (home / "labels.txt").write_text("".join(f"{words(i)}\n" for i in range(9)))
    return (
        JetFile(str(home / "jets.npz"), str(home / "labels.txt")),
        f"caption of {home / 'jets.npz'}: jet 5",
    )


def table(home):
    (home / "t.csv").write_text("w\n" + "".join(f"{words(i)}\n" for i in range(9)))
    return (
        HubTable(str(home / "t.csv"), {"text": "w"}, {"text": "text"}),
        f"text of {home / 't.csv'}: line 7",
    )


def nothing(home):
    return Unnamed(), "text of example 300"


@pytest.mark.parametrize(
    "made", [texts, clips, pictures, jets, table, nothing], ids=lambda made: made.__name__
)
def test_a_refused_signal_is_named(made, tmp_path):
    source, name = made(tmp_path)
    (field,) = (f for f, modality in source.fields.items() if modality == "text")
    encoder = Encoder({field: NoZ()}, {field: preparer("text", BytesConfig())})
    chunk = Made(list(source.examples("train", tmp_path)))
    with pytest.raises(UserError) as refusal:
        encoder(Job(0, 0, chunk))
    assert str(refusal.value) == f"{name}: text: no piece for 'z'"
