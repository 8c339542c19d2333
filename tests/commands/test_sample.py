"""Asking a run: prompts and scores from words and files, orders that were never trained, seeds,
infilling, stop reasons.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmtok.commands import prompts as words
from mmtok.commands import sample as sampling
from mmtok.commands import score as scoring
from mmtok.core.segment import Document, segment_of
from mmtok.data.image_preparation import read_image
from mmtok.data.speech_preparation import read_sound
from mmtok.errors import UserError
from mmtok.model import likelihood
from mmtok.model.sampling import Sampled
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.run.run import open_run
from mmtok.sources.images import write_image
from mmtok.sources.jets import read_jets
from mmtok.sources.text import TextFile
from mmtok.tokenizers import harmonic
from mmtok.tokenizers.harmonic import HarmonicDescription


@pytest.fixture(scope="module")
def run(tiny_run):
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def signals(tiny_data, tmp_path_factory):
    """One file of each modality."""
    word = tmp_path_factory.mktemp("words") / "word.txt"
    word.write_text("dark")
    images = sorted((tiny_data / "images" / "dark").iterdir())
    return {
        "text": word,
        "speech": tiny_data / "sounds" / "00.wav",
        "image": images[0],
        "jets": tiny_data / "jets.npz",
    }


def contents(paths):
    return [path.read_bytes() for path in paths]


def index(folder):
    return json.loads((folder / "index.json").read_text())


# ---- sampling


def test_speech_is_heard_with_the_vocoder_that_is_named(run, tiny_run, tmp_path):
    other = open_run(tiny_run)
    described = HarmonicDescription(run.tokenizers["speech"].vocoder.spec, ConvNeXtConfig(8, 1))
    harmonic.WEIGHTS.write(tmp_path / "voc", described, described.make())
    other.take_vocoder(tmp_path / "voc")
    codes = np.zeros((9, len(run.tokenizers["speech"].signature.levels)), int)
    segment = segment_of(run.tokenizers["speech"].signature, codes)
    sounds = [r.tokenizers["speech"].decode(segment) for r in (run, other)]
    assert len(sounds[0]) == len(sounds[1])
    assert isinstance(other.tokenizers["speech"].vocoder, harmonic.Harmonic)
    assert other.vocabulary.fingerprint == run.vocabulary.fingerprint


def test_every_modality_is_written_in_its_customary_file(run, signals, tmp_path):
    image = sampling.sample(run, ["dark"], "image", 2, tmp_path / "image")
    assert [p.name for p in image] == ["dark-000.png", "dark-001.png"] and read_image(
        image[0]
    ).shape == (4, 4)
    for path in sampling.sample(run, ["low"], "speech", 4, tmp_path / "speech"):
        n_frames = {row["file"]: row["frames"] for row in index(tmp_path / "speech")}[path.name]
        assert path.suffix == ".wav" and (
            n_frames == 0 or len(read_sound(path, 16_000)) > 0
        )  # it may end before it began
    jets = sampling.sample(run, ["thin jet"], "jets", 3, tmp_path / "jets")
    assert [p.name for p in jets] == ["thin jet.npz"] and len(np.load(jets[0])["offsets"]) == 3 + 1
    text = sampling.sample(run, [str(signals["image"])], "text", 1, tmp_path / "text")
    assert text[0].name == "0-000.txt" and text[0].exists()


def test_a_whole_picture_is_no_beginning(run, signals, tmp_path):
    with pytest.raises(UserError, match="nothing is left to draw"):
        sampling.sample(run, ["dark", str(signals["image"])], "image", 1, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_samples_of_rounded_weights_are_asked_for_by_name(run, tmp_path, precision):
    exact = sampling.sample(run, ["dark"], "image", 4, tmp_path / "float32", precision="float32")
    paths = sampling.sample(run, ["dark"], "image", 4, tmp_path / "rounded", precision=precision)
    assert len(paths) == 4 and all(read_image(p).shape == (4, 4) for p in [*exact, *paths])
    with pytest.raises(UserError, match="precision"):
        sampling.sample(run, ["dark"], "image", 1, tmp_path, precision="int3")


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_drawn(run, tmp_path):
    def draw(*_):
        raise AssertionError("drawn")

    (tmp_path / "file").write_text("stays")
    with pytest.raises(UserError, match="is a file, and no folder can be made there"):
        sampling.sample(run, ["dark"], "image", 1, tmp_path / "file", draw=draw)


@pytest.mark.filterwarnings("ignore:.*have no constituents")
def test_drawn_jets_share_a_file_that_says_how_each_stopped(run, tmp_path):
    (path,) = sampling.sample(run, ["fat jet"], "jets", 6, tmp_path, max_frames=4)
    rows = index(tmp_path)
    assert {row["file"] for row in rows} == {"fat jet.npz"} and len(rows) == 6
    assert np.diff(np.load(path)["offsets"]).tolist() == [row["frames"] for row in rows]
    assert all((row["stop"] == "cap") == (row["frames"] == 4) for row in rows) and {
        row["stop"] for row in rows
    } == {"cap", "end"}
    assert [len(jet) for jet in read_jets(path)] == [row["frames"] for row in rows]


def test_words_and_files_with_the_same_content_are_the_same_prompt(run, signals, tmp_path):
    by_word = sampling.sample(run, ["dark"], "image", 3, tmp_path / "a")
    by_file = sampling.sample(run, [str(signals["text"])], "image", 3, tmp_path / "b")
    assert contents(by_word) == contents(by_file) and by_file[0].name == "word-000.png"


def test_fields_may_be_asked_for_by_name(run, signals, tmp_path):
    assert (
        sampling.target_modality(run, "caption") == sampling.target_modality(run, "text") == "text"
    )
    with pytest.raises(UserError, match="--to video: this run makes text, speech, image, jets"):
        sampling.sample(run, ["dark"], "video", 1, tmp_path)


def test_seeds_repeat_and_differ(run, tmp_path):
    def draw(seed, name):
        return contents(sampling.sample(run, ["dark"], "image", 4, tmp_path / name, seed))

    first = draw(1, "a")
    assert first == draw(1, "b") and first != draw(2, "c") and len(set(first)) > 1


def test_greedy_draws_are_all_the_same(run, tmp_path):
    assert (
        len(set(contents(sampling.sample(run, ["dark"], "image", 4, tmp_path, temperature=0.0))))
        == 1
    )


def test_the_index_says_how_each_stopped(run, tmp_path):
    paths = sampling.sample(run, ["low"], "speech", 3, tmp_path / "a", max_frames=2)
    assert [row["file"] for row in index(tmp_path / "a")] == [p.name for p in paths]
    stops = {(row["frames"], row["stop"]) for row in index(tmp_path / "a")}
    assert (2, "cap") in stops and all((stop == "cap") == (n == 2) for n, stop in stops)
    sampling.sample(run, ["dark"], "image", 2, tmp_path / "b")
    assert [(row["frames"], row["stop"]) for row in index(tmp_path / "b")] == [
        (16, "end"),
        (16, "end"),
    ]


def test_the_index_keeps_what_was_asked_before(run, tmp_path):
    first = sampling.sample(run, ["dark"], "image", 3, tmp_path) + sampling.sample(
        run, ["fat jet"], "jets", 2, tmp_path
    )
    before = index(tmp_path)
    then = sampling.sample(run, ["low"], "speech", 2, tmp_path, max_frames=2)
    assert index(tmp_path)[:5] == before and [row["file"] for row in index(tmp_path)[5:]] == [
        p.name for p in then
    ]
    first[1].unlink()
    again = sampling.sample(run, ["dark"], "image", 1, tmp_path, seed=1)
    assert again == first[:1]  # replaced, and the third, of the larger call, stays
    names = [
        "dark-000.png",
        "dark-002.png",
        "fat jet.npz",
        "fat jet.npz",
        "low-000.wav",
        "low-001.wav",
    ]
    assert [row["file"] for row in index(tmp_path)] == names
    sampling.sample(run, ["fat jet"], "jets", 1, tmp_path)
    assert [row["file"] for row in index(tmp_path)] == names[:3] + names[4:]
    assert {p.name for p in tmp_path.iterdir()} == {*names, "index.json"}


@pytest.mark.parametrize("content", ["[{", "{}", '[{"frames": 3}]', "[3]"])
def test_a_damaged_index_costs_no_samples(run, tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match="index.json is"):
        sampling.read_index(tmp_path)
    with pytest.warns(UserWarning, match="index.json is .*; it is begun anew"):
        sampling.sample(run, ["dark"], "image", 1, tmp_path)
    (row,) = sampling.read_index(tmp_path)
    assert row["file"] == "dark-000.png" and row["modality"] == "image"


def test_without_a_prompt_only_what_was_trained_so(run, tmp_path):
    assert [p.name for p in sampling.sample(run, [], "image", 1, tmp_path)] == ["nothing-000.png"]
    with pytest.raises(
        UserError, match="never trained on nothing -> speech; it was on: .*nothing -> image"
    ):
        sampling.sample(run, [], "speech", 1, tmp_path)


def test_orders_never_trained_are_refused_with_those_that_were(run, signals, tmp_path):
    were = (
        "text -> image, image -> text, text -> speech, speech -> text, text -> jets, nothing ->"
        " image, nothing -> jets"
    )
    for prompt, to in (
        ([str(signals["image"])], "speech"),
        ([str(signals["jets"])], "text"),
        (["dark", "light"], "image"),
    ):
        with pytest.raises(UserError, match=f"never trained on .*; it was on: {were}"):
            sampling.sample(run, prompt, to, 1, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_guidance_where_it_was_trained_and_where_not(run, tmp_path):
    plain, strong = (
        contents(sampling.sample(run, ["dark"], "image", 6, tmp_path / str(g), guidance=g))
        for g in (1.0, 4.0)
    )
    assert plain != strong
    with pytest.raises(
        UserError,
        match="guidance 3.0 needs a run trained with cond_dropout > 0 on a task text -> speech",
    ):
        sampling.sample(run, ["low"], "speech", 1, tmp_path, guidance=3.0)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(top_p=0.0),
        dict(top_k=-1),
        dict(max_frames=0),
    ],
)
def test_nonsense_is_refused(run, tmp_path, wrong):
    with pytest.raises(UserError, match=f"sampling: {next(iter(wrong))} is "):
        sampling.sample(run, ["dark"], "image", 1, tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("to", ["image", "jets"])
@pytest.mark.parametrize("prompt", ["x" * 5000, "a/b", ".", "..", "été ▁", "two\nlines", ""])
def test_any_words_are_a_prompt_and_a_name(run, tmp_path, prompt, to):
    (path,) = sampling.sample(run, [prompt], to, 1, tmp_path / "out")
    assert path.parent == tmp_path / "out" and sorted(tmp_path.rglob("*.*")) == sorted(
        [path, tmp_path / "out" / "index.json"]
    )


# ---- the beginning, and infilling


def test_a_beginning_of_what_is_asked_for_is_kept(run, signals, tmp_path):
    """Text that goes on: the run makes text from images or speech only, so words alone are no task;
    two of them neither.
    """
    with pytest.raises(UserError, match="never trained"):
        sampling.sample(run, ["da"], "text", 1, tmp_path)
    (path,) = sampling.sample(run, [str(signals["image"]), "da"], "text", 1, tmp_path)
    assert path.read_bytes().startswith(b"da")


def test_infilled_spans_are_drawn_anew_and_the_rest_stays(run, signals, tmp_path):
    paths = sampling.sample(
        run, ["dark"], "image", 5, tmp_path, infill=f"{signals['image']}:4:8", temperature=2.0
    )
    encode = run.tokenizers["image"].encode
    known = encode(read_image(signals["image"])).codes[:, 0]
    drawn = np.stack([encode(read_image(path)).codes[:, 0] for path in paths])
    assert (
        (drawn[:, :4] == known[:4]).all()
        and (drawn[:, 8:] == known[8:]).all()
        and len(np.unique(drawn[:, 4:8], axis=0)) > 1
    )


@pytest.mark.parametrize(
    "infill, said",
    [
        ("{image}", "FILE:START:STOP"),
        ("{image}:4", "FILE:START:STOP"),
        ("{image}:a:b", "FILE:START:STOP"),
        ("{image}:8:4", "of 16 frames"),
        ("{image}:0:17", "of 16 frames"),
        ("{image}:-1:2", "of 16 frames"),
        ("{speech}:0:2", "is speech of"),
        ("none.png:0:1", "no file at none.png"),
    ],
)
def test_wrong_spans_to_infill_are_refused(run, signals, tmp_path, infill, said):
    with pytest.raises(UserError) as error:
        sampling.sample(run, ["dark"], "image", 1, tmp_path, infill=infill.format(**signals))
    assert said in str(error.value)


def test_infilling_needs_to_be_trained(run, signals, tmp_path):
    with pytest.raises(UserError, match="speech needs a run trained with infill > 0"):
        sampling.sample(run, ["low"], "speech", 1, tmp_path, infill=f"{signals['speech']}:0:2")


# ---- scoring


def test_scores_are_the_models_own(run, signals):
    rows = scoring.score(run, [str(signals["image"])], ["dark"])
    text = run.tokenizers["text"].encode("dark")
    image = run.tokenizers["image"].encode(read_image(signals["image"]))
    (expected,) = likelihood.score(run.lm, [Document((text, image), (False, True))])
    assert (
        len(rows) == 1
        and rows[0].nats == expected.nats[1]
        and rows[0].kind == "exact"
        and rows[0].frames == 16
    )
    assert (
        rows[0].value == pytest.approx(expected.nats[1] / math.log(2) / 16)
        and rows[0].unit == "bits/code"
    )


def test_what_has_no_units_is_divided_by_none():
    row = scoring.Scored("a", "jets", 3.0, 0, 0, "exact", 3.0, "nats/particle")
    assert str(row) == "a: 3.0000 nats over 0 frames, no particles (exact)"


def test_a_score_says_what_was_divided_by_and_what_was_cut_off():
    row = scoring.Scored("a", "jets", 90.0, 47, 45, "exact", 2.0, "nats/particle", headers=2, cut=1)
    assert (
        str(row)
        == "a: 90.0000 nats over 47 frames (2 of them totals), 2.0000 nats/particle over 45"
        " particles "
        "(exact, 1 cut at the cap: scored as what begins so)"
    )
    (total,) = scoring.totals([row, replace(row, cut=0)])
    assert (total.headers, total.cut, total.frames, total.units, total.value) == (4, 1, 94, 90, 2.0)


def test_a_jet_with_more_particles_than_the_cap_is_scored_as_cut(run, tmp_path):
    n = run.tokenizers["jets"].config.max_constituents + 22
    pt = np.linspace(20, 1, n, dtype=np.float32)
    np.save(tmp_path / "long.npy", np.stack((pt, pt / 100, -pt / 100), 1))
    (row,) = scoring.score(run, [str(tmp_path / "long.npy")], ["thin jet"])
    assert row.cut == 1 and row.frames == n - 22 and "1 cut at the cap" in str(row)


def test_a_file_of_jets_gives_a_line_per_jet_and_their_sum(run, signals):
    rows = scoring.score(run, [str(signals["jets"])], ["thin jet"])
    jets = read_jets(signals["jets"])
    assert [row.name for row in rows] == [f"{signals['jets']}[{i}]" for i in range(24)]
    assert [row.frames for row in rows] == list(map(len, jets))
    assert all(
        row.value == pytest.approx(row.nats / row.frames) and row.unit == "nats/particle"
        for row in rows
    )
    (total,) = scoring.totals(rows)
    assert total.nats == pytest.approx(sum(row.nats for row in rows))
    assert (
        total.value == pytest.approx(total.nats / sum(map(len, jets))) and total.kind == "exact"
    )  # jets are documents of their own


def test_a_sum_over_chunks_is_not_the_texts(run, signals, tmp_path):
    """Each chunk is scored without those before it, so nothing exact, nor a bound, is known of
    the text as a whole.
    """
    few = open_run(run.folder)
    few.recipe = replace(run.recipe, sources=(*run.recipe.sources, TextFile("x", chunk_chars=4)))
    (tmp_path / "long.txt").write_text("dark light")
    rows = scoring.score(few, [str(tmp_path / "long.txt")], [str(signals["image"])])
    (total,) = scoring.totals(rows)
    assert (
        len(rows) == 3
        and {row.kind for row in rows} == {"exact"}
        and total.nats == pytest.approx(sum(row.nats for row in rows))
    )
    assert total.kind == "exact for each chunk by itself, not for the text" and str(total).endswith(
        f"({total.kind})"
    )
    files = scoring.score(few, [str(signals["text"]), "low"], [str(signals["image"])])
    assert [line.kind for line in scoring.totals(files)] == ["exact"]
    assert scoring.totals([*rows, *files])[0].kind == total.kind
    for weakest in ("bound", "estimate"):  # a sum is what the weakest of its terms is
        assert (
            scoring.totals([*files, replace(rows[0], kind=weakest)])[0].kind
            == f"{weakest} for each chunk by itself, not for the text"
        )


def test_units(run, signals):
    (speech,) = scoring.score(run, [str(signals["speech"])], ["low"])
    assert speech.unit == "nats/frame" and speech.value == pytest.approx(
        speech.nats / speech.frames
    )
    (word,) = scoring.score(run, ["été"], [str(signals["image"])])
    assert (
        word.unit == "bits/byte"
        and word.frames == 5
        and word.value == pytest.approx(word.nats / math.log(2) / 5)
    )
    assert (
        str(word) == f"été: {word.nats:.4f} nats over 5 frames, {word.value:.4f} bits/byte (exact)"
    )


def test_given_and_unconditional_differ_and_the_latter_needs_the_null_condition(run, signals):
    image = str(signals["image"])
    values = [scoring.score(run, [image], given)[0].nats for given in (["dark"], ["light"], [])]
    assert len(set(values)) == 3
    (expected,) = likelihood.score(
        run.lm, [Document((None, run.tokenizers["image"].encode(read_image(image))), (False, True))]
    )
    assert values[2] == expected.nats[1]
    with pytest.raises(UserError, match="never trained on nothing -> speech"):
        scoring.score(run, [str(signals["speech"])])
    with pytest.raises(UserError, match="never trained on nothing -> text"):
        scoring.score(run, ["dark"])


def test_files_scored_together_score_as_alone(run, signals, tmp_path):
    write_image(tmp_path / "other.png", np.full((4, 4), 200, np.uint8))
    files = [str(signals["image"]), str(tmp_path / "other.png")]
    together = scoring.score(run, files, ["dark"])
    for name, row in zip(files, together):
        assert scoring.score(run, [name], ["dark"])[0].nats == pytest.approx(row.nats, rel=1e-5)


# ---- files that are none


def test_wrong_words_are_refused(run, signals, tiny_data, tmp_path):
    (tmp_path / "song.xyz").write_text("la")
    cases = {
        "none.wav": "no file at none.wav",
        str(tmp_path / "song.xyz"): "the suffix '.xyz' belongs to no modality",
        "sounds/": "is a folder",
    }
    for word, said in cases.items():
        with pytest.raises(UserError) as error:
            sampling.sample(run, [word], "text", 1, tmp_path / "none")
        assert said in str(error.value)
        with pytest.raises(UserError):
            scoring.score(run, [word], ["dark"])
    with pytest.raises(UserError, match="is a folder"):
        sampling.sample(run, [f"{tiny_data}/images"], "text", 1, tmp_path / "none")


def test_a_picture_of_another_size_is_prepared_as_the_training_pictures_were(run, tmp_path):
    write_image(tmp_path / "big.png", np.full((5, 4, 3), 90, np.uint8))
    with pytest.warns(
        UserWarning,
        match=(
            r"big.png was turned grey, resized to 4 x 4 \(height x width\), its proportions changed"
        ),
    ):
        (row,) = scoring.score(run, [str(tmp_path / "big.png")], ["dark"])
    assert row.frames == 16


def test_samples_of_no_frames_are_said_once(run):
    """A file without sound is a sample too; that it is empty is said."""
    speech = run.vocabulary.signatures["speech"]
    drawn = [
        Sampled(segment_of(speech, np.zeros((n, len(speech.levels)))), "end") for n in (0, 3, 0)
    ]
    with pytest.warns(
        UserWarning,
        match="2 of 3 samples were drawn without a frame: nothing is in it \\(first: low-000",
    ) as caught:
        sampling.note_empty([f"low-{i:03d}" for i in range(3)], drawn)
    assert len(caught) == 1


def test_a_run_without_the_modality_says_which_it_has(run, signals):
    few = open_run(run.folder)
    few.__dict__["tokenizers"] = {"text": run.tokenizers["text"]}
    with pytest.raises(UserError, match="this run knows no image, only text"):
        words.read_segments(few, str(signals["image"]))


@pytest.mark.parametrize(
    "name, modality",
    [("a.WAV", "speech"), ("b.JPeg", "image"), ("c.h5", "jets"), ("d.txt", "text")],
)
def test_suffixes_tell_the_modality(name, modality):
    assert words.modality_of(Path(name)) == modality
