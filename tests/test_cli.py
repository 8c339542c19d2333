"""The command line: one line for what is wrong, exit code 2, nothing half-written; and quick."""

import errno
import os
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from mmtok import cli
from mmtok.cli import VERBS, main
from mmtok.data.tokens import read_tokens


def refused(capsys, words, *parts):
    """Run `words`; they must fail with one line on stderr that holds all `parts`."""
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("mmtok: ")]
    assert len(lines) == 1 and lines[0] == err.splitlines()[-1] and "Traceback" not in err
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def letters(tmp_path):
    paths = [tmp_path / f"{name}.txt" for name in "abcde"]
    for path, text in zip(paths, ["\n", "seven", "été ▁ \u2028", "line\r\nline\n", "x" * 5000]):
        path.write_bytes(text.encode())
    return paths


# ---- help and misspelling


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)
    assert main([]) == 0 and main(["--version"]) == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys, verb):
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: mmtok {verb} ")


@pytest.mark.parametrize("verb", ["fit", "train"])
def test_help_says_where_a_recipes_fields_are_listed(capsys, verb):
    assert main([verb, "--help"]) == 0
    assert "mmtok show RECIPE lists them" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "words, parts",
    [
        (["trian"], ["'trian'", "did you mean train"]),
        (["xyz"], ["'xyz'", "one of fit, train"]),
        (
            ["tokenize", "text", "a", "-o", "b", "--tokeniser", "c"],
            ["--tokeniser", "did you mean --tokenizer"],
        ),
        (
            ["sample", "run", "--to", "image", "--tempreature", "1"],
            ["--tempreature", "--temperature"],
        ),
        (["sample", "run", "--to", "image", "-n", "many"], ["-n", "'many'"]),
        (["sample", "run", "--to", "image", "-n", "0"], ["at least 1"]),
        (["sample", "run"], ["--to"]),
        (["tokenize", "text", "-o", "b"], ["FILE"]),
        (["show"], ["PATH"]),
        (["show", "a", "b"], ["'b'"]),
        (["train", "recipe.py", "stray"], ["'stray'", "--field value"]),
        (["show", "nowhere"], ["nowhere", "does not exist"]),
        (["show", ".", "--trunk.width", "64"], ["--trunk.width", "for recipes"]),
    ],
)
def test_wrong_words_are_answered_in_one_line_and_make_no_files(
    capsys, tmp_path, monkeypatch, words, parts
):
    monkeypatch.chdir(tmp_path)
    refused(capsys, words, *parts)
    assert list(tmp_path.iterdir()) == []


def test_leftover_options_of_a_recipe_keep_their_order():
    from mmtok.commands.arguments import parse

    words = [
        "r.py",
        "--train.steps",
        "-1",
        "--out",
        "x",
        "--data.names",
        "a",
        "b",
        "--flag",
        "--seed=3",
    ]
    given = parse(VERBS["train"], words)
    assert given["overrides"] == [
        "--train.steps",
        "-1",
        "--data.names",
        "a",
        "b",
        "--flag",
        "--seed=3",
    ]
    assert (str(given["recipe"]), str(given["out"])) == ("r.py", "x")


def test_a_dash_and_an_underscore_are_the_same_in_an_option():
    from mmtok.commands.arguments import parse

    for words in ("--max-frames 5 --top-k=3", "--max_frames 5 --top_k=3"):
        given = parse(
            VERBS["sample"],
            ["run", "--to", "image", *words.split(), "--prompt", "__seed", "a_b=c-d"],
        )
        assert (given["max_frames"], given["top_k"], given["seed"], given["prompt"]) == (
            5,
            3,
            0,
            ["__seed", "a_b=c-d"],
        )
    assert parse(VERBS["score"], ["run", "--", "--condition", "--re_cipe"])["files"] == [
        "--condition",
        "--re_cipe",
    ]
    assert parse(VERBS["train"], ["r.py", "--max_frames", "3"])["overrides"] == [
        "--max_frames",
        "3",
    ]


def test_a_prompt_may_have_several_parts():
    from mmtok.commands.arguments import parse

    for words in (
        "run --prompt seven a.wav --to image",
        "--to image run --prompt seven --prompt a.wav",
    ):
        assert parse(VERBS["sample"], words.split())["prompt"] == ["seven", "a.wav"]


def test_options_of_a_group_come_as_its_value():
    from mmtok.commands.arguments import parse
    from mmtok.commands.options import JetFiles

    words = ["--pt_unit", "MeV", "--min-pt-gev=7.5", "--puppi", "off", "--columns", "pt=x"]
    given = parse(VERBS["score"], ["run", "a.npz", *words])
    assert given["jet_files"] == JetFiles(pt_unit="MeV", min_pt_gev=7.5, puppi="off")
    read = {"columns": {"pt": "x"}, "pt_unit": "MeV", "min_pt_gev": 7.5, "puppi": "off"}
    assert given["jet_files"].with_columns(given["columns"]) == read
    assert "pt_unit" not in given and given["device"] is None
    assert parse(VERBS["compare"], ["a", "b"])["jet_files"] == JetFiles()
    assert JetFiles().with_columns(None) == {}


# ---- tokenize, detokenize, show


def test_text_files_go_and_come_back(capsys, tmp_path, letters):
    tokens = tmp_path / "t.parquet"
    out = tmp_path / "out"
    assert main(["tokenize", "text", *map(str, letters), "-o", str(tokens), "--check"]) == 0
    assert "5 rows" in capsys.readouterr().out
    assert main(["detokenize", str(tokens), "-o", str(out)]) == 0
    back = sorted(out.iterdir())
    assert [path.read_bytes() for path in back] == [path.read_bytes() for path in letters]
    assert [path.name for path in back] == [path.name for path in letters]


def test_images_go_and_come_back(tmp_path):
    from PIL import Image

    scan = (np.random.default_rng(0).integers(0, 17, (8, 8)) * 255 / 16).round().astype(np.uint8)
    Image.fromarray(scan).save(tmp_path / "scan.png")
    tokens = tmp_path / "t.parquet"
    out = tmp_path / "out"
    assert (
        main(["tokenize", "image", str(tmp_path / "scan.png"), "-o", str(tokens), "--check"]) == 0
    )
    assert main(["detokenize", str(tokens), "-o", str(out)]) == 0
    assert np.array_equal(np.array(Image.open(out / "scan.png").convert("L")), scan)


def test_speech_comes_back_with_its_length(tmp_path):
    from mmtok.data.speech_preparation import read_sound
    from mmtok.sources.sound_files import write_sound

    clip = (0.3 * np.sin(np.arange(9001) / 5)).astype(np.float32)
    write_sound(tmp_path / "clip.wav", clip, 16_000)
    tokens = tmp_path / "t.parquet"
    out = tmp_path / "out"
    assert main(["tokenize", "speech", str(tmp_path / "clip.wav"), "-o", str(tokens)]) == 0
    assert main(["detokenize", str(tokens), "-o", str(out)]) == 0
    assert len(read_sound(out / "clip.wav", 16_000)) == len(clip)


def test_speech_is_heard_with_another_vocoder(capsys, tmp_path, letters):
    from mmtok.data.speech_preparation import read_sound
    from mmtok.nn.audio import MelSpec
    from mmtok.nn.convnext import ConvNeXtConfig
    from mmtok.sources.sound_files import write_sound
    from mmtok.tokenizers import harmonic

    described = harmonic.HarmonicDescription(MelSpec(), ConvNeXtConfig(width=8, depth=1))
    harmonic.WEIGHTS.write(tmp_path / "voc", described, described.make())
    write_sound(tmp_path / "clip.wav", (0.3 * np.sin(np.arange(3001) / 5)), 16_000)
    tokens = tmp_path / "t.parquet"
    assert main(["tokenize", "speech", str(tmp_path / "clip.wav"), "-o", str(tokens)]) == 0
    sounds = []
    for name, words in (("own", []), ("other", ["--vocoder", str(tmp_path / "voc")])):
        assert main(["detokenize", str(tokens), "-o", str(tmp_path / name), *words]) == 0
        sounds.append(read_sound(tmp_path / name / "clip.wav", 16_000))
    assert len(sounds[0]) == len(sounds[1]) == 3001 and not np.array_equal(*sounds)
    none = ["detokenize", tokens, "-o", tmp_path / "none", "--vocoder", tmp_path / "nothing"]
    refused(capsys, none, "nothing: no vocoder is there")
    assert not (tmp_path / "none").exists()
    text = tmp_path / "text.parquet"
    assert main(["tokenize", "text", *map(str, letters), "-o", str(text)]) == 0
    refused(
        capsys,
        ["detokenize", text, "-o", tmp_path / "none", "--vocoder", tmp_path / "voc"],
        "holds no speech",
    )


def some_jets(n):
    rng = np.random.default_rng(0)
    particles = [
        np.stack([np.sort(rng.uniform(1, 100, p))[::-1], *rng.uniform(-0.5, 0.5, (2, p))], 1)
        for p in rng.integers(1, 30, n)
    ]
    return [jet.astype(np.float32) for jet in particles]


def test_jets_come_back_jet_by_jet(tmp_path):
    from mmtok.sources.jet_formats import write_jets
    from mmtok.sources.jets import read_jets

    jets = some_jets(5)
    write_jets(tmp_path / "jets.npz", jets)
    tokens = tmp_path / "t.parquet"
    out = tmp_path / "out"
    assert main(["tokenize", "jets", str(tmp_path / "jets.npz"), "-o", str(tokens)]) == 0
    assert len(read_tokens(tokens)) == 5
    assert main(["detokenize", str(tokens), "-o", str(out)]) == 0
    assert [len(jet) for jet in read_jets(next(out.iterdir()))] == [len(jet) for jet in jets]


def test_shards_hold_every_row_once(tmp_path, letters):
    whole = tmp_path / "whole.parquet"
    parts = tmp_path / "parts"
    words = ["tokenize", "text", *map(str, letters)]
    assert main([*words, "-o", str(whole)]) == 0
    for i in range(3):
        assert main([*words, "-o", str(parts / "t.parquet"), "--shard", f"{i}/3"]) == 0
    assert sorted(path.name for path in parts.iterdir()) == [
        f"t-{i:05d}-of-00003.parquet" for i in range(3)
    ]
    lengths = read_tokens(whole).lengths("text")
    for i in range(3):
        assert (
            read_tokens(parts / f"t-{i:05d}-of-00003.parquet").lengths("text").tolist()
            == lengths[i::3].tolist()
        )


def test_show_says_what_comes_of_a_changed_field(capsys):
    recipe = str(Path(__file__).parent.parent / "recipes" / "text.py")
    parameters = []
    for fields in ([], ["--trunk.depth", "1"]):
        assert main(["show", recipe, *fields]) == 0
        parameters.append(
            re.search(r"decoder: at most ([\d,]+) parameters", capsys.readouterr().out)[1]
        )
    assert int(parameters[1].replace(",", "")) < int(parameters[0].replace(",", ""))


def test_show_says_what_a_token_file_holds(capsys, tmp_path, letters):
    main(["tokenize", "text", *map(str, letters), "-o", str(tmp_path / "t.parquet")])
    capsys.readouterr()
    assert main(["show", str(tmp_path / "t.parquet")]) == 0
    out = capsys.readouterr().out
    frames = sum(path.stat().st_size for path in letters)
    fingerprint = read_tokens(tmp_path / "t.parquet").signatures["text"].fingerprint
    assert (
        "5 rows" in out
        and f"{frames:,} frames" in out
        and "8 bits a frame" in out
        and fingerprint in out
    )


def test_another_tokenizer_can_be_named_and_is_checked(capsys, tmp_path, letters):
    from mmtok.tokenizers.text import SentencePieceConfig

    SentencePieceConfig(n_pieces=300).fit(["seven eight nine"] * 5).save(tmp_path / "pieces")
    tokens = tmp_path / "t.parquet"
    assert (
        main(
            [
                "tokenize",
                "text",
                str(letters[1]),
                "-o",
                str(tokens),
                "--tokenizer",
                str(tmp_path / "pieces"),
            ]
        )
        == 0
    )
    made = read_tokens(tokens).signatures["text"].fingerprint
    refused(capsys, ["detokenize", tokens, "-o", tmp_path / "out"], made, "--tokenizer")
    assert (
        main(
            [
                "detokenize",
                str(tokens),
                "-o",
                str(tmp_path / "out"),
                "--tokenizer",
                str(tmp_path / "pieces"),
            ]
        )
        == 0
    )
    assert (tmp_path / "out" / "b.txt").read_text() == "seven"
    assert main(["show", str(tmp_path / "pieces")]) == 0 and made in capsys.readouterr().out
    refused(
        capsys,
        ["tokenize", "image", letters[1], "-o", tokens, "--tokenizer", tmp_path / "pieces"],
        "of text, not of image",
    )


# ---- bad input


def test_bad_signals_name_their_file_and_leave_nothing(capsys, tmp_path, letters):
    bad = tmp_path / "bad.bin"
    bad.write_bytes(b"\xff\xfe\x00 not a signal of any kind \x80")
    for modality in ("text", "speech", "image", "jets"):
        refused(capsys, ["tokenize", modality, bad, "-o", tmp_path / "t.parquet"], str(bad))
        refused(
            capsys,
            ["tokenize", modality, tmp_path / "none", "-o", tmp_path / "t.parquet"],
            str(tmp_path / "none"),
        )
    assert sorted(tmp_path.iterdir()) == sorted([bad, *letters])


@pytest.mark.parametrize("shard", ["3/3", "-1/2", "a/b", "1", "1/2/3"])
def test_bad_shards(capsys, tmp_path, letters, shard):
    refused(
        capsys,
        ["tokenize", "text", letters[0], "-o", tmp_path / "t.parquet", f"--shard={shard}"],
        shard,
        "I/N",
    )
    assert not list(tmp_path.glob("*.parquet"))


def test_unknown_modality(capsys, tmp_path, letters):
    refused(capsys, ["tokenize", "txt", letters[0], "-o", tmp_path / "t.parquet"], "'txt'", "text")
    assert not (tmp_path / "t.parquet").exists()


def test_a_folder_that_cannot_be_written(capsys, tmp_path, letters):
    refused(capsys, ["tokenize", "text", letters[1], "-o", letters[0] / "t.parquet"], "a.txt")
    main(["tokenize", "text", str(letters[1]), "-o", str(tmp_path / "t.parquet")])
    refused(capsys, ["detokenize", tmp_path / "t.parquet", "-o", letters[0]], "a.txt")
    assert letters[0].read_bytes() == b"\n"


def test_a_full_disk_is_one_line_and_leaves_nothing(capsys, tmp_path, letters, monkeypatch):
    import pyarrow.parquet as pq

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28]")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    refused(
        capsys,
        ["tokenize", "text", letters[1], "-o", tmp_path / "new" / "t.parquet"],
        "t.parquet",
        "No space left",
    )
    assert list((tmp_path / "new").iterdir()) == []


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(path: str):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.VERBS, "show", broken)
    with pytest.raises(ZeroDivisionError):
        main(["show", "."])


def test_notes_and_interruption(capsys, monkeypatch):
    def stopped(path: str):
        warnings.warn("x.wav: stereo,\n averaged to mono")
        warnings.warn("of no interest here", DeprecationWarning)
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "show", stopped)
    assert main(["show", "."]) == 130
    assert (
        capsys.readouterr().err
        == "mmtok: note: x.wav: stereo, averaged to mono\nmmtok: interrupted\n"
    )


def test_notes_are_said_once(capsys, monkeypatch):
    def repeats(path: str):
        for _ in range(2):
            with warnings.catch_warnings():  # forgets what was shown
                warnings.warn("2 clips were left out")

    monkeypatch.setitem(cli.VERBS, "show", repeats)
    assert main(["show", "."]) == 0
    assert capsys.readouterr().err == "mmtok: note: 2 clips were left out\n"


# ---- as a process


def run(words, **settings):
    return subprocess.run(
        [sys.executable, "-m", "mmtok", *words], capture_output=True, text=True, **settings
    )


def test_help_is_quick():
    """Under 0.5 s of a processor, the best of three: a busy machine does not fail it."""
    seconds = []
    for words in (["--help"], ["train", "--help"], ["--help"]):
        start = children_s()
        assert run(words).returncode == 0
        seconds.append(children_s() - start)
    assert 0 < min(seconds) < 0.5


def children_s():
    """Processor's seconds of the ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_exit_code_and_streams_of_the_process():
    done = run(["trian"])
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "mmtok", "--help"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    assert done.stderr == "" and done.returncode == 141
