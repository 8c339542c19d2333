"""Laws of the report: it needs nothing but itself, shows what the run has, says what is missing,
and escapes what others wrote.
"""

import base64
import html
import io
import json
import re
import sys
import time
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmtok.data.image_preparation import read_image
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.epistemic import BayesianLastLayer
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.quantiles import Quantiles, SquaredError
from mmtok.heads.regression import Regression
from mmtok.model.lm import DecoderConfig
from mmtok.nn.audio import MelSpec
from mmtok.nn.transformer import TransformerConfig
from mmtok.report import curves, images, plots
from mmtok.report.html import one_line, thumbnail
from mmtok.report.report import sample_section, write_report
from mmtok.report.samples import find_samples
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run
from mmtok.sources.base import Source
from mmtok.sources.images import ImageFolder, write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.sound_files import write_sound
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.tokenizers.vocoders import GriffinLimConfig

EVIL = "<b>7 & 8"  # a caption, so part of file names too
DMEL = DMelConfig(
    mel=MelSpec(hop_samples=400), vocoder=GriffinLimConfig(n_iterations=2, inversion_iterations=2)
)


@dataclass(frozen=True)
class Spoken(Source):
    """Two tones with words, and bunches of particles with names."""

    rate_hz: int = 16_000

    @property
    def fields(self):
        return {"caption": "text", "speech": "speech", "jets": "jets"}

    def examples(self, split, cache):
        rng = np.random.default_rng(0)
        for i in range(20):
            time_s = np.arange(8000) / self.rate_hz
            tone = 0.1 * np.sin(2 * np.pi * (300, 3000)[i % 2] * time_s)
            yield {
                "caption": ("low", "high")[i % 2],
                "speech": tone.astype(np.float32),
                "jets": particles(rng),
            }


def particles(rng, n=12):
    return np.column_stack((-np.sort(-rng.exponential(50, n)), rng.normal(0, 0.2, (n, 2)))).astype(
        np.float32
    )


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def pictures(folder):
    """A folder of 2 x 6 random pictures of 8 x 8 pixels, of two names."""
    rng = np.random.default_rng(0)
    for name in (EVIL, "nine"):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            write_image(folder / name / f"{i}.png", rng.integers(0, 256, (8, 8), np.uint8))
    return ImageFolder(str(folder))


def fresh_run(folder):
    """A run of which only the recipe stands."""
    tasks = (Task(("caption",), ("image",)), Task(("image",), ("caption",)))
    recipe = Recipe(
        "<i>tiny",
        {"text": BytesConfig(), "image": PixelsConfig(8, 8)},
        (pictures(folder / "pictures"),),
        tasks,
    )
    return made_run(folder / "run", recipe)


def made_run(folder, recipe):
    folder.mkdir()
    (folder / "recipe.json").write_text(recipe.to_json())
    return Run(folder, recipe)


def finished_run(folder):
    """The same run with a log, figures, samples (each a training image itself) and readings, none
    of them by a model.
    """
    fresh = fresh_run(folder)
    train = list(fresh.examples("train"))
    log = [
        {
            "step": s,
            "loss": 9 / s,
            "nats": {"text": 2 / s, "image": 5.0, "jets": None},
            "positions_per_s": 10.0,
        }
        for s in (1, 2, 3)
    ]
    (fresh.folder / "log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in log) + '{"step": 4, "lo'
    )
    score = {
        "image": {
            "bits_per_code": 3.25,
            "bits_per_code_untrained": 8.0,
            "bits_per_code_unigram": 7.5,
        }
    }
    figures = {
        "image_from_text": {"judge_accuracy": 0.125, "odd_<key>": float("nan")},
        "score": score,
        "by_class": {"a": {"accuracy": 1}, "b": {"n": 12345}},
        "zero_shot": {},
    }
    write_json(fresh.folder / "evaluation.json", figures)
    samples = fresh.folder / "samples" / "image_from_text"
    names = [f"{e['caption'].replace(' ', '_')}-{i:03d}.png" for i, e in enumerate(train[:4])]
    write_json(
        samples / "index.json", [{"file": name, "frames": 64, "stop": "end"} for name in names]
    )
    for name, example in zip(names, train, strict=False):
        write_image(samples / name, example["image"])
    write_json(
        samples.with_name("text_from_image.json"),
        [{"truth": "nine", "read": "nine"}, {"truth": "nine", "read": "<u>\f" + "z" * 40}],
    )
    (fresh.folder / "tokenizers").mkdir()
    write_json(fresh.folder / "tokenizers" / "image" / "fidelity.json", {"psnr_db": 31.4})
    return fresh


@pytest.fixture(scope="module")
def finished_page(tmp_path_factory):
    return written(finished_run(tmp_path_factory.mktemp("finished")))


def written(run):
    path = write_report(run)
    assert path == run.folder / "report.html" and not list(run.folder.glob(".*"))
    return path.read_text()


def uris(text):
    found = re.findall(r'(?:src|srcset)="data:([\w/+]+);base64,([^"]*)"', text)
    return [(kind, base64.b64decode(data, validate=True)) for kind, data in found]


def test_the_page_needs_nothing_but_itself(finished_page):
    places = re.findall(r'(?:src|srcset|href|action|data|poster)="([^"]*)"', finished_page)
    assert places and all(place.startswith(("data:", "#")) for place in places)
    assert not re.search(r"url\(|@import|<script|<link|<iframe", finished_page)
    anchors = {place[1:] for place in places if place.startswith("#")}
    assert anchors == set(re.findall(r'<section id="([^"]+)"', finished_page))
    for kind, data in uris(finished_page):
        Image.open(io.BytesIO(data)).load()
        assert kind in ("image/png", "image/jpeg")


def test_every_part_of_a_finished_run_is_shown(finished_page):
    for title in (
        "Training",
        "Figures",
        "Tokenizers",
        "Image from text",
        "Text from image",
        "Recipe",
    ):
        assert f"<h2>{title}</h2>" in finished_page
    assert (
        finished_page.count('class="chart"') == 3
    )  # loss, text, image; jets have no figures in this log
    for words in (
        "0.125",
        "bits/code",
        "3.25",
        "7.5",
        "12,345",
        "psnr db 31.4",
        "1 of 2 held-out signals",
        "z × 40",
        "&lt;u&gt;\\x0c",
    ):
        assert words in finished_page, words
    assert finished_page.count('class="wrong"') == 1
    assert "mmtok evaluate" not in finished_page


def test_a_training_loss_behind_mixture_of_depths_is_not_called_a_likelihood():
    trunk = TransformerConfig(mod_capacity=0.125)
    run = SimpleNamespace(
        recipe=SimpleNamespace(model=DecoderConfig(trunk, {"image": MaskedDiffusion()}))
    )
    for m in ("text", "image"):
        curve = curves._other_loss(run, m, [2.0], {"model": 1.0})
        assert (curve.unit, curve.values, curve.held_out) == ("training loss", [2.0], {})


@pytest.mark.parametrize(
    "head, unit, levels",
    [
        (Regression(SquaredError()), "squared error", []),
        (Regression(Quantiles()), "pinball loss", []),
        (FrameDiffusion(), "denoising loss", []),
        (Regression(weights=BayesianLastLayer(n_examples=9)), "bound, nats/frame", ["model"]),
    ],
)
def test_a_training_loss_has_the_name_of_what_the_head_minimises(head, unit, levels):
    model = DecoderConfig(TransformerConfig(), {"vector": head})
    run = SimpleNamespace(recipe=SimpleNamespace(model=model))
    curve = curves._other_loss(run, "vector", [2.0], {"model": 1.0})
    assert (curve.unit, list(curve.held_out)) == (unit, levels)


def test_curves_are_in_the_units_that_the_log_names(tmp_path, monkeypatch):
    run = finished_run(tmp_path)
    drawn = {}
    monkeypatch.setattr(
        "mmtok.report.plots.curve",
        lambda title, unit, steps, values, held_out: drawn.update(
            {title: (unit, values, list(held_out))}
        ),
    )
    line = {
        "loss": 1,
        "nats": {"text": 0.7, "speech": None},
        "customary": {"text": {"bits/byte": 2}},
        "training_loss": {"image": 5},
    }
    (run.folder / "log.jsonl").write_text(
        "".join(json.dumps({"step": s, **line, "positions_per_s": 9.0}) + "\n" for s in (1, 2))
    )
    written(run)
    assert drawn == {
        "loss": ("weighted", [1, 1], []),
        "text": ("bits/byte", [2, 2], []),
        "image": ("training loss", [5, 5], []),
    }


def test_below_a_sample_lies_its_nearest_training_image(finished_page):
    strips = re.findall(r"<figure>(.*?)</figure>", finished_page)
    assert len(strips) == 4
    for strip in strips:
        sample, near = (np.array(Image.open(io.BytesIO(data))) for _, data in uris(strip))
        np.testing.assert_array_equal(sample, near)
        assert "<figcaption>0</figcaption>" in strip


def test_held_out_images_say_how_far_is_far(finished_page, tmp_path):
    run = fresh_run(tmp_path)
    train, heldout = ([e["image"] for e in run.examples(part)] for part in ("train", "heldout"))
    differences = np.stack(heldout)[:, None].astype(float) - np.stack(train)
    nearest = np.sqrt(np.square(differences).mean((2, 3))).min(1)
    assert f"For held-out images it is {np.median(nearest):.0f}" in finished_page


def test_copies_by_the_tokenizer_lie_below_held_out_images(tmp_path):
    run = fresh_run(tmp_path)
    rough = PixelsConfig(8, 8, n_levels=3).build()
    run.__dict__["tokenizers"] = {"image": rough}
    title, _, pairs = images._round_trips(run)
    heldout = [example["image"] for example in run.examples("heldout")]
    shown = [np.array(Image.open(io.BytesIO(data))) for _, data in uris(pairs)]
    assert "Copies by the tokenizer" in title and len(shown) == 2 * len(heldout)
    for image, copy in zip(shown[::2], shown[1::2]):
        assert any(np.array_equal(image, one) for one in heldout)
        assert np.array_equal(copy, rough.decode(rough.encode(image)))
    run.__dict__["tokenizers"] = {"image": PixelsConfig(8, 8, n_levels=256).build()}
    assert images._round_trips(run) == []


def test_what_others_wrote_is_escaped(finished_page):
    for evil in ("<i>", "<b>", "<u>", "<key>"):
        assert evil not in finished_page and html.escape(evil) in finished_page


def test_what_is_missing_is_said(tmp_path):
    fresh = fresh_run(tmp_path)
    text = written(fresh)
    for words in (
        "not trained to the end yet",
        "not trained yet",
        "not evaluated yet",
        "not fitted yet",
    ):
        assert words in text
    assert text.count("no samples yet") == 2 and text.count(f"mmtok evaluate {fresh.folder}") == 3


def test_training_data_that_is_gone_costs_only_the_nearest_images(tmp_path):
    run = finished_run(tmp_path)
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    text = written(run)
    assert (
        text.count("<figure>") == 4
        and "no such folder" in text
        and "1 of 2 held-out signals" in text
    )


def test_a_damaged_file_costs_its_section(tmp_path):
    run = finished_run(tmp_path)
    (run.folder / "evaluation.json").write_text('{"image')
    text = written(run)
    assert (
        text.count("evaluation.json is not valid JSON") == 1
        and text.count("<figure>") == 4
        and text.count('class="chart"') == 3
    )


@pytest.fixture(scope="module")
def sounding_page(sounding_run):
    return written(sounding_run)


@pytest.fixture(scope="module")
def sounding_run(tmp_path_factory):
    """A run with speech and jets whose samples no model made: of two words one has a clip, of two
    names one has jets.
    """
    tasks = (Task(("caption",), ("speech",)), Task(("caption",), ("jets",)))
    recipe = Recipe(
        "tones",
        {"text": BytesConfig(), "speech": DMEL, "jets": JetGridConfig()},
        (Spoken(),),
        tasks,
    )
    run = made_run(tmp_path_factory.mktemp("sounding") / "run", recipe)
    for m, config in run.recipe.tokenizers.items():
        config.build().save(run.folder / "tokenizers" / m)
    rng = np.random.default_rng(1)
    sounds = run.folder / "samples" / "speech_from_text"
    jets = run.folder / "samples" / "jets_from_text"
    sounds.mkdir(parents=True)
    jets.mkdir()
    write_json(
        sounds / "index.json",
        [
            {"file": f"low-00{i}.wav", "frames": 9, "stop": s, "vocoder": "other 12"}
            for i, s in enumerate(("cap", "end"))
        ],
    )
    write_sound(sounds / "low-000.wav", rng.normal(0, 0.1, 3000).astype(np.float32))
    soundfile.write(sounds / "low-001.wav", np.zeros(0), 16_000)  # nothing was drawn
    write_jets(jets / "high.npz", [particles(rng), np.zeros((0, 3), np.float32)])
    write_jets(jets / "never_seen.npz", [particles(rng)])
    return run


def test_sounds_have_players_beside_real_ones(sounding_page):
    players = [
        soundfile.read(io.BytesIO(data))
        for kind, data in uris(sounding_page)
        if kind == "audio/wav"
    ]
    assert [(len(x), rate) for x, rate in players] == [
        (3000, 16_000),
        (8000, 16_000),
        (8000, 16_000),
    ]
    for words in (
        "sample 1, other 12, cut at the cap",
        "real, through the tokenizer, griffin-lim",
        "<dt>vocoder</dt><dd>griffin-lim</dd>",
        "0.19 s",
        "0.50 s",
        "7.6 kHz",
        "80 Hz",
    ):
        assert words in sounding_page
    assert "sample 2" not in sounding_page


def test_jets_have_charts_beside_real_ones(sounding_page):
    assert (
        sounding_page.count('class="chart"') == 1 + 4
    )  # one picture and four observables, of the name that has real jets
    assert "never seen: 1 jet, and 0 real held-out ones" in sounding_page


def test_jets_of_one_file_are_shown_together_and_those_cut_counted(sounding_run):
    run = sounding_run
    rng = np.random.default_rng(2)
    asked = run.folder / "samples" / "asked"
    asked.mkdir()
    write_jets(asked / "high.npz", [particles(rng), particles(rng), particles(rng)])
    write_jets(asked / "nothing.npz", [particles(rng)] * 2)
    for i in range(2):  # as an older index has them, one a file
        write_jets(asked / f"low-00{i}.npz", [particles(rng)])
    rows = [
        ("high.npz", "cap"),
        ("high.npz", "end"),
        ("high.npz", "cap"),
        ("nothing.npz", "end"),
        ("nothing.npz", "end"),
    ]
    rows += [("low-000.npz", "end"), ("low-001.npz", "cap"), ("gone.npz", "end")]
    write_json(
        asked / "index.json", [{"file": file, "frames": 12, "stop": stop} for file, stop in rows]
    )
    assert {k: (len(v), v[0].stops) for k, v in grouped(asked).items()} == {
        "high": (1, ("cap", "end", "cap")),
        "nothing": (1, ("end", "end")),
        "low": (2, ("end",)),
    }
    section = re.search(
        r'<section id="asked-for-with-mmtok-sample">.*?</section>', written(run), re.DOTALL
    )[0]
    assert section.count('class="chart"') == 3 * (
        1 + 4
    )  # nothing, too, has real jets beside it: all of them
    assert (
        "high, 2 cut at the cap: mean jet images" in section
        and "low, 1 cut at the cap: mean jet images" in section
    )
    assert "nothing: mean jet images" in section


def grouped(folder):
    groups = {}
    for sample in find_samples(folder):
        groups.setdefault(sample.prompt, []).append(sample)
    return groups


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'mmtok\[report\]'"):
        write_report(fresh_run(tmp_path))


def test_a_spectrogram_stands_upright():
    log_mel = np.full((5, 10), -9.0)
    log_mel[:2, 0] = 0.0  # loud at the start, low
    [(_, data)] = uris(plots.spectrogram(log_mel, 0.0, 1.0, 1.0, (80.0, 7600.0)))
    bright = np.array(Image.open(io.BytesIO(data))).sum(-1) > 300
    assert bright.shape == (10, 5) and bright[-1, :2].all() and bright.sum() == 2


def test_small_pictures_are_exact_and_large_ones_small(tmp_path, rng):
    for shape in ((8, 8), (5, 7, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        [(kind, data)] = uris(thumbnail(image, "x"))
        (tmp_path / "x.png").write_bytes(data)
        np.testing.assert_array_equal(read_image(tmp_path / "x.png"), image)
    [(kind, data)] = uris(thumbnail(rng.integers(0, 256, (400, 200, 3), np.uint8), "x"))
    assert kind == "image/jpeg" and Image.open(io.BytesIO(data)).size == (48, 96)


ONE_LINE = [
    ("seven", "seven"),
    ("", "(nothing)"),
    (" " * 64, "space × 64"),
    ("a\nb", "a\\nb"),
    ("ab" * 99, "ab" * 39 + "a…"),
]


@pytest.mark.parametrize("text, line", ONE_LINE)
def test_any_text_fits_on_one_line(text, line):
    assert one_line(text) == line


def test_labels_in_a_script_that_the_font_lacks_are_drawn_without_a_warning():
    name = "\u12a0\u121b\u122d\u129b \u65e5\u672c \u0905\u0915\u094d\u0937 \U00012000"
    with warnings.catch_warnings(action="error"):
        drawn = plots.curve(name, "bits", [1, 2], [3.0, 2.0], {name: 1.0})
    assert f'alt="{name} in bits by training step"' in str(drawn)


def test_a_report_stands_until_something_in_the_run_changes(tmp_path):
    run = finished_run(tmp_path)
    path = write_report(run)

    def made():
        return path.stat().st_mtime_ns

    first = made()
    assert write_report(run) == path and made() == first
    write_report(run, force=True)
    assert (second := made()) > first
    time.sleep(0.05)  # file systems keep time in ticks
    (run.folder / "evaluation.json").unlink()  # gone, not only changed
    write_report(run)
    assert made() > second and "not evaluated yet" in path.read_text().lower()


def test_samples_of_a_modality_without_a_section_are_texts_or_named(tmp_path):
    recipe = Recipe("plain", {"text": BytesConfig()}, (Spoken(),), (Task((), ("caption",)),))
    run = made_run(tmp_path / "run", recipe)
    folder = run.folder / "samples" / "asked"
    folder.mkdir(parents=True)
    (folder / "low-000.txt").write_text("AELKM")
    np.save(folder / "high-000.npy", np.zeros(3))  # a suffix that jets have too
    rows = [
        {"file": "low-000.txt", "modality": "protein"},
        {"file": "high-000.npy", "modality": "tide"},
    ]
    (folder / "index.json").write_text(json.dumps(rows))
    said = "".join(map(str, sample_section(run, "asked")))
    assert "AELKM" in said and "no section of this report shows: high-000.npy" in said
