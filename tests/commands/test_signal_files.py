"""Files of any modality: the table of the package's own, and what a config may bring."""

import inspect
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import pytest

from mmtok import cli
from mmtok.commands.options import JetFiles
from mmtok.commands.signal_files import (
    all_files,
    check_headers,
    files_for,
    files_of,
    signals_of,
    write_signal,
)
from mmtok.data.preparation import Preparer
from mmtok.errors import UserError
from mmtok.io.signal_files import SignalFiles
from mmtok.sources.signal_files import ARRAYS, SIGNAL_FILES
from mmtok.tokenizers import MODALITIES
from mmtok.tokenizers.base import TokenizerConfig
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig

JETS = [np.float32([[3, 0, 0.1], [1, 0.2, 0]]), np.float32([[2, 0, 0]])]
SIGNALS = {
    "text": (BytesConfig(), "a low sun"),
    "speech": (DMelConfig(), np.float32([0, 0.5, -0.5, 0.25])),
    "image": (PixelsConfig(), np.arange(24, dtype=np.uint8).reshape(4, 6)),
    "jets": (JetGridConfig(), JETS),
}


@dataclass(frozen=True)
class TideConfig(TokenizerConfig):
    """Water levels, one series per file."""

    modality: ClassVar[str] = "tide"
    files: SignalFiles | None = None

    def load(self, folder):
        raise NotImplementedError

    def signal_files(self):
        return self.files


def read_levels(path, takes):
    return [float(line) for line in path.read_text().split()]


def write_levels(path, signal, takes):
    path.write_text("\n".join(map(str, signal)))


TIDES = SignalFiles((".tide",), ".tide", read_levels, write_levels, unit="series")


@pytest.mark.parametrize("modality", MODALITIES)
def test_what_is_written_is_read_again(modality, tmp_path):
    config, signal = SIGNALS[modality]
    files = files_of(config)
    path = write_signal(tmp_path / "a.b", files, signal, config)
    assert path == tmp_path / f"a.b{files.written}" and files.written in files.suffixes
    read = [x for _, x in signals_of(files, [path], Preparer(modality, takes=config.takes))]
    if not files.many:
        (read,) = read
    read = getattr(read, "samples", getattr(read, "pixels", read))
    for one, other in zip(read, signal, strict=True):
        assert one == other if modality == "text" else np.allclose(one, other, atol=1e-4)


def test_files_that_a_config_brings_are_used_in_order(tmp_path):
    config = TideConfig(TIDES)
    stems = [tmp_path / name for name in "abc"]
    paths = [write_signal(s, files_of(config), [i, 0.5], config) for i, s in enumerate(stems)]
    check_headers(TIDES, paths)
    every_second = signals_of(TIDES, paths, Preparer("tide"), index=0, count=2)
    assert list(every_second) == [(paths[0], [0, 0.5]), (paths[2], [2, 0.5])]
    assert list(all_files([config])) == ["tide", *SIGNAL_FILES]


def test_headers_of_files_without_a_known_one_tell_whether_they_are_there(tmp_path):
    (tmp_path / "empty.tide").touch()
    for name, fault in (("empty", "the file is empty"), ("none", "no such file")):
        with pytest.raises(UserError, match=f"{name}.tide: {fault}"):
            check_headers(TIDES, [tmp_path / f"{name}.tide"])


def test_files_of_many_signals_are_counted_by_signal():
    def read_three(path, takes):
        return [f"{path}{i}" for i in range(3)]

    many = SignalFiles((".m",), ".m", read_three, write_levels, many=True)
    found = [s for _, s in signals_of(many, ["a", "b"], Preparer("tide"), index=1, count=2)]
    assert found == ["a1", "b0", "b2"]


def test_samples_of_a_modality_without_files_are_texts_or_arrays(tmp_path):
    config = TideConfig()
    assert files_for(config, "low").written == ".txt"
    assert files_for(config, np.zeros(3)) is ARRAYS
    path = write_signal(tmp_path / "a", ARRAYS, np.arange(3), config)
    assert ARRAYS.read(path, {}).tolist() == [0, 1, 2]
    for ask in (lambda: files_of(config), lambda: files_for(config, [0.5])):
        with pytest.raises(UserError, match="tide has no files: give its TideConfig the method"):
            ask()


def test_options_of_reading_reach_the_reader_or_are_refused():
    seen = []

    def read(path, takes):
        seen.append(dict(takes))
        return []

    files = SignalFiles((".x",), ".x", read, write_levels, options=("layout",))
    files.reading({"layout": "wide"}).read("a.x", {"rate_hz": 5})
    files.reading({}).read("a.x", {"rate_hz": 5})
    assert seen == [{"rate_hz": 5, "layout": "wide"}, {"rate_hz": 5}]
    with pytest.raises(UserError, match="--columns is no option of reading signals; there are lay"):
        files.reading({"columns": {"a": "b"}})


@pytest.mark.parametrize("verb", ["score", "tokenize", "compare"])
def test_every_choice_of_reading_is_an_option(verb):
    """Those of the files of jets: an option for each, and no other is passed on."""
    options = set(SIGNAL_FILES["jets"].options)
    assert {field.name for field in fields(JetFiles)} | {"columns"} == options
    takes = set(inspect.signature(getattr(cli, verb)).parameters)
    assert {"columns", "jet_files"} <= takes
