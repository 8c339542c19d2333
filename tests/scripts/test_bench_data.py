"""The benchmark of corpora makes what it says, and times what it should find."""

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

from mmtok.data.tokens import read_tokens

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("bench_data", SCRIPTS / "bench_data.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPTS))
    del sys.modules[spec.name], sys.modules["side_by_side"]


def test_the_broken_clip_of_a_corpus_is_the_problem_that_is_timed(bench, tmp_path):
    last = bench.make_ljspeech(tmp_path / "lj", 3)
    assert last.name == "LJ001-0002.wav"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert bench.first_problem(tmp_path / "lj", last)[1] == "the broken file was not found"
        last.write_bytes(b"RIFF, and no sound")
        took, wrong = bench.first_problem(tmp_path / "lj", last)
        assert took < 20 and not wrong
        bench.list_all(bench.make_manifest(tmp_path / "nemo", 5))


def test_tars_hold_what_the_folders_hold(bench, tmp_path):
    bench.make_pictures(tmp_path, 12)
    found = []
    for name in ("tars", "folder"):
        source = bench.ImageFolder(str(tmp_path / name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            examples = [e for split in source.splits for e in source.examples(split)]
        found.append(sorted((e["caption"], e["image"].pixels.tobytes()) for e in examples))
    assert found[0] == found[1] and len(found[0]) == 12
    bench.read_pictures(tmp_path / "tars")
    bench.list_pictures(bench.make_captions(tmp_path / "table", 5))


def test_a_text_is_the_same_in_files_of_every_kind(bench, tmp_path):
    read = []
    for name in bench.TEXT_FILES:
        path = tmp_path / f"a{name}"
        bench.make_text(path, 5_000)
        source = bench.TextFile(str(path), chunk_chars=9_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bench.read_texts(path)
            texts = [e["text"] for split in source.splits for e in source.examples(split)]
        read.append("".join(texts).replace("\n", ""))
    assert set(read) == {read[0]} and len(read[0]) == 6_000


@pytest.mark.parametrize("modality", ["text", "jets"])
def test_files_of_a_modality_are_tokenised_and_timed(bench, tmp_path, monkeypatch, modality):
    monkeypatch.setattr(bench, "JET_FILES", 2)
    n, _ = bench.make_files(tmp_path / "in", modality, bench.Options(quick=True))
    clock, computed = bench.tokenise_files(tmp_path, modality, 1)
    assert 0 < clock < 60 and 0 < computed < 60
    assert len(read_tokens(tmp_path / "1.parquet")) == n
