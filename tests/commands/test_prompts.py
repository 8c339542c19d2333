"""Words of a command line as segments, and what samples are named after."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands import prompts as words
from mmtok.commands import sample as sampling
from mmtok.commands import score as scoring
from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.io.filenames import file_names
from mmtok.model.sampling import Sampled
from mmtok.run.run import open_run
from mmtok.sources.images import SUFFIXES as PICTURES
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.media import SOUNDS
from mmtok.sources.signal_files import SIGNAL_FILES


@pytest.mark.parametrize("suffix", (*SOUNDS, *PICTURES, ".npz", ".txt"))
def test_a_missing_file_of_any_kind_that_is_read_is_missing(tiny_run, suffix):
    with pytest.raises(UserError, match="no file at clips/missing"):
        words.first_segment(open_run(tiny_run), f"clips/missing{suffix}")


def test_a_file_that_happens_to_be_named_like_a_word_does_not_take_its_place(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "low").write_text("something else")
    run = open_run(tiny_run)
    assert run.tokenizers["text"].decode(words.first_segment(run, "low")) == "low"


@pytest.mark.parametrize("content", ["low\n", "\ufefflow\r\n", " low \n\n"])
def test_a_file_of_a_caption_is_read_as_the_transcripts_of_the_training(
    tiny_run, tmp_path, content
):
    run = open_run(tiny_run)
    path = tmp_path / "low.txt"
    path.write_bytes(content.encode())
    with pytest.warns(UserWarning, match="low.txt was taken without the white space around it"):
        (segment,) = words.read_segments(run, str(path))
    assert run.tokenizers["text"].decode(segment) == "low"
    path.write_text("low")
    assert words.first_segment(run, str(path)).codes.tolist() == segment.codes.tolist()
    path.write_text(" \n")
    with pytest.raises(UserError, match="low.txt: holds nothing but white space"):
        words.first_segment(run, str(path))


def test_a_folder_stands_for_the_files_in_it(tiny_run, tmp_path):
    for name in ("b.txt", "a.TXT", ".hidden.txt", "deep/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("low")
    with pytest.warns(UserWarning, match="left out 1 hidden"):
        spread = words.expand_folders(open_run(tiny_run), [f"{tmp_path}/", "low"])
    assert spread == [str(tmp_path / name) for name in ("a.TXT", "b.txt", "deep/c.txt")] + ["low"]


def test_a_text_of_several_chunks_is_not_cut_in_silence(tiny_run, tmp_path, monkeypatch):
    run = open_run(tiny_run)
    monkeypatch.setattr(
        words,
        "read_segments",
        lambda run, word: [run.tokenizers["text"].encode(x) for x in ("one", "two")],
    )
    with pytest.raises(UserError, match="makes 2 chunks"):
        words.first_segment(run, "story.txt")


def test_samples_never_take_the_place_of_their_prompt(tiny_run, tmp_path):
    run = open_run(tiny_run)
    (jets,) = sampling.sample(run, ["low"], "jets", 2, tmp_path)
    before = jets.read_bytes()
    with pytest.raises(UserError, match="might be replaced"):
        sampling.sample(run, [str(jets)], "jets", 1, tmp_path)
    assert jets.read_bytes() == before


def test_prompts_that_differ_have_names_that_differ():
    long = "the cat sat on the mat and then the dog ran over a hill"
    prompts = ([], [""], ["a/b"], ["a_b"], [f"{long} A"], [f"{long} B"], ["seven"], [".."])
    names = [file_names([sampling._prompt_text(prompt)])[0] for prompt in prompts]
    assert len(set(names)) == len(prompts)
    assert names[0] == "nothing" and names[-2] == "seven"
    assert not any("/" in name or set(name) <= {"."} for name in names)


def test_suffixes_name_one_modality_each():
    """But for animations, which are pictures too; of a run's own two, the first in it counts."""
    rest = {m: files for m, files in SIGNAL_FILES.items() if m != "video"}
    assert set(SIGNAL_FILES["video"].suffixes) < set(rest["image"].suffixes)
    assert words.modality_of(Path("a.gif")) == "image"
    listed = [s for files in rest.values() for s in files.suffixes]
    assert len(set(listed)) == len(listed) and np.all([s.startswith(".") for s in listed])


def test_a_drawn_jet_without_constituents_leaves_its_file_readable(tiny_run, tmp_path):
    run = open_run(tiny_run)
    drawn = [
        Sampled(Segment("jets", codes=np.array(codes, int).reshape(-1, 3)), "end")
        for codes in ([], [[5, 1, 1]], [])
    ]
    (path,) = sampling.write_samples(run, tmp_path, ["fat jet"] * 3, drawn)
    with pytest.warns(UserWarning, match="2 of 3 jets have no constituents"):
        rows = scoring.score(run, [str(path)], ["fat jet"])
    assert [row.frames for row in rows] == [0, 1, 0] and all(row.nats > 0 for row in rows)


def test_files_of_jets_are_scored_as_the_options_say(tiny_run, tmp_path, capsys):
    """As `mmtok tokenize` reads them: MeV and names of their own give what GeV and ours do."""
    jets = [np.array([[300, 0.1, 0.2], [90, -0.1, 0]], np.float32) for _ in range(2)]
    jets[1][:, 0] /= 3
    write_jets(tmp_path / "ours.npz", jets)
    lines = []
    for jet in jets:
        parts = [{"p": 1000 * float(p), "e": float(e), "f": float(f)} for p, e, f in jet]
        lines.append(json.dumps({"cl": parts}) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(lines))
    score = ["score", str(tiny_run), "--condition", "fat jet", "--"]
    assert main([*score, str(tmp_path / "ours.npz")]) == 0
    ours = capsys.readouterr().out.replace(f"{tmp_path}/ours.npz", "FILE")
    named = ["--columns", "pt=cl.p,deta=cl.e,dphi=cl.f", "--pt_unit", "MeV", "--layout", "columns"]
    assert main([*score[:-1], *named, "--", str(tmp_path / "a.jsonl")]) == 0
    told = capsys.readouterr()
    assert (
        told.out.replace(f"{tmp_path}/a.jsonl", "FILE") == ours and "in MeV (as named)" in told.err
    )
    # the same in one list: a run of jets and texts takes it for no conversation
    (tmp_path / "b.json").write_text(f"[{', '.join(lines)}]")
    assert main([*score[:-1], *named, "--", str(tmp_path / "b.json")]) == 0
    assert capsys.readouterr().out.replace(f"{tmp_path}/b.json", "FILE") == ours
    for word in ("low", str(tmp_path / "low.txt")):
        (tmp_path / "low.txt").write_text("low")
        assert main(["score", str(tiny_run), *named, "--", word]) == 2
        assert "--columns is no option of reading texts" in capsys.readouterr().err
