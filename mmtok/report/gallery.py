"""A run's samples as sections of its report: pictures, players, histograms and readings, each
beside what is real.

Everything is found by the names that `evaluate` and `sample` give:
samples/MADE_from_GIVEN/PROMPT-NUMBER.SUFFIX with an index.json, samples/MADE_from_GIVEN.json for
readings. Letters: T frames, C channels, P particles, F features.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from mmtok.commands.prompts import modality_of
from mmtok.commands.sample import INDEX, NOTHING, read_index
from mmtok.commands.strips import N_FRAMES, RANGE, named_prompt, strip_of
from mmtok.data.image_preparation import read_image
from mmtok.data.subset import random_subset
from mmtok.errors import UserError
from mmtok.evaluation.evaluate import evaluated_tasks
from mmtok.evaluation.jets import N_JETS
from mmtok.io.filenames import inside
from mmtok.io.messages import counted
from mmtok.io.serialize import read_json_as
from mmtok.metrics.images import nearest
from mmtok.metrics.jets import OBSERVABLES, jet_image
from mmtok.model.trajectory import N_STATES
from mmtok.report import html as page
from mmtok.report import plots
from mmtok.report.html import Markup, table, tag, thumbnail
from mmtok.run.run import Run
from mmtok.sources.jets import read_jets
from mmtok.tokenizers.base import counting

N_PROMPTS, N_IMAGES, N_SOUNDS, N_CLASSES, N_READINGS = (
    24,
    12,
    2,
    8,
    40,
)  # shown at most: prompts, samples of each, jet classes, readings
SOUND_BYTES = 2_700_000  # of all players together, so that the page stays below 6 MB
TRAINING_VALUES = 50_000_000  # pixel values of training images that the nearest one is sought among
AXES, HALF_WIDTH = (
    (
        "pt_gev",
        "eta_rel",
        "phi_rel",
    ),
    0.8,
)  # of jets; half the width of their images, in eta and phi


def missing(run: Run, what: str) -> list[Markup]:
    return [tag("p", f"{what}: run ", tag("code", f"mmtok evaluate {run.folder}"), cls="soft")]


def title_of(name: str) -> str:
    return "Asked for with mmtok sample" if name == "asked" else name.replace("_", " ").capitalize()


@dataclass(frozen=True)
class _Sample:
    """A file of samples/NAME, what it was asked for, and how the drawing of each sample in it
    stopped (none, where that is not noted).
    """

    path: Path
    prompt: str
    stops: tuple[str, ...] = ()


def sample_names(run: Run) -> list[str]:
    """What the tasks promise, each followed by its variants, then whatever else lies in samples/."""
    folder = run.folder / "samples"
    there = (
        sorted(
            {
                p.name.removesuffix(".json")
                for p in folder.iterdir()
                if p.is_dir() or p.suffix == ".json"
            }
        )
        if folder.is_dir()
        else []
    )
    names: list[str] = []
    for task, _ in evaluated_tasks(run):
        names += [task.name, *(x for x in there if x.startswith(f"{task.name}_"))]
    return list(dict.fromkeys([*names, *there]))


def sample_section(run: Run, name: str) -> Sequence[object]:
    """What is shown of samples/NAME or samples/NAME.json.

    Raises UserError for what cannot be read.
    """
    folder, readings = (inside(run.folder / "samples", file) for file in (name, f"{name}.json"))
    if readings.exists():
        return _readings(run, name, read_json_as(readings, tuple[Reading, ...]))
    groups: dict[str, dict[str, list[_Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in _kept(folder):
        groups[modality_of(sample.path)][sample.prompt].append(sample)
    if not groups:
        return missing(run, "no samples yet")
    shown_by = {"image": _images, "speech": _sounds, "jets": _jets, "text": _texts}
    with ExitStack() as stack:
        if groups.keys() & {"speech", "jets"}:  # real ones are encoded beside them
            stack.enter_context(counting(run.tokenizers.values(), quiet=True))
        return [part for m, prompts in groups.items() for part in shown_by[m](run, prompts)]


def _kept(folder: Path) -> list[_Sample]:
    """The files that index.json lists, in its order; without one, all there are.

    Raises UserError for one that is none of the folder.
    """
    found: dict[str, _Sample] = {}
    for row in read_index(folder) or [
        {"file": p.name} for p in sorted(folder.glob("[!.]*.*")) if p.name != INDEX
    ]:
        path = inside(folder, row["file"])
        before = found.get(path.name) or _Sample(path, str(row.get("prompt", named_prompt(path))))
        found[path.name] = (
            replace(before, stops=(*before.stops, row["stop"])) if "stop" in row else before
        )
    return [sample for sample in found.values() if sample.path.is_file()]


def _made(run: Run, modality: str) -> tuple[str | None, str]:
    """The fields (given text or None, made) of the task that makes a modality, from text if there
    is such a task.
    """
    fields = run.recipe.fields
    tasks = [t for t in run.recipe.tasks if fields[t.targets[0]] == modality]
    if not tasks:
        raise UserError(f"no task of this run makes {modality}")
    from_text = [t for t in tasks if t.modalities(fields)[0] == ("text",)]
    return (
        (from_text[0].inputs[0], from_text[0].targets[0])
        if from_text
        else (None, tasks[0].targets[0])
    )


def _left_out(prompts: Mapping, n: int) -> list[Markup]:
    return (
        [tag("p", f"{len(prompts) - n} more prompts are in the run's samples folder.", cls="soft")]
        if len(prompts) > n
        else []
    )


def _images(run: Run, prompts: Mapping[str, list[_Sample]]) -> list[Markup]:
    """Samples by prompt, each above the training image nearest to it."""
    from mmtok.data.image_preparation import read_image

    shown = {
        p: [read_image(s.path) for s in samples[:N_IMAGES]]
        for p, samples in islice(prompts.items(), N_PROMPTS)
    }
    images = sum(shown.values(), [])
    try:
        near, remark = _nearest(run, images)
    except UserError as error:
        near, remark = [None] * len(images), str(error)
    following = iter(near)
    blocks = []
    for prompt, some in shown.items():
        pairs = [(page.thumbnail(x, prompt), "" if y is None else page.thumbnail(y, "nearest training image", "near"))
                 for x, y in zip(some, following)]  # fmt: skip
        blocks.append(
            tag(
                "div",
                tag("h3", prompt),
                tag("div", *(tag("figure", *pair) for pair in pairs), cls="strip"),
                cls="prompt",
            )
        )
    large = " large" if max(max(x.shape[:2]) for x in images) > page.PNG_SIDE else ""
    walks = trajectories([s.path for prompt in shown for s in prompts[prompt]])
    return [
        tag("p", remark),
        tag("div", *blocks, cls="prompts" + large),
        *_left_out(prompts, len(shown)),
        *walks,
    ]


def _nearest(run: Run, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """The training image nearest to each, sought among undistorted ones where the source distorts
    them; and a remark that says so.
    """
    _, made = _made(run, "image")
    sources = [x.clean() for x in run.recipe.sources if made in x.fields]
    rows = (e[made] for x in sources for e in run.examples_of(x, "train") if made in e)
    training = list(islice(rows, max(1, TRAINING_VALUES // images[0].size)))
    if len({x.shape for x in (*images, *training)}) != 1:
        raise UserError("Training images and samples differ in size, so no nearest ones are shown.")
    remark = (
        f"Large: samples. Small, below each: the nearest of {len(training):,} training images, by"
        " the distance of the pixels."
    )
    return [training[i] for i in nearest(images, training)], remark


def _heldout_images(run: Run, n: int) -> list[np.ndarray]:
    """The held-out images that were read, in their order; [] when they are not there any more, or
    are not n.
    """
    fields = run.recipe.fields
    task = next(
        (t for t in run.recipe.tasks if t.modalities(fields) == (("image",), ("text",))),
        None,
    )
    try:
        images = [e[task.inputs[0]] for e in run.examples("heldout", *task.fields)] if task else []
    except UserError:
        return []
    return images if len(images) == n else []


def _texts(run: Run, prompts: Mapping[str, list[_Sample]]) -> list[Markup]:
    rows = [
        (p, page.visible(s.path.read_text(encoding="utf-8", errors="replace")))
        for p, some in prompts.items()
        for s in some
    ]
    return [tag("div", table(("prompt", "text"), rows[:N_READINGS], "words"), cls="readings")]


@dataclass(frozen=True)
class Reading:
    """What samples/NAME.json says of a held-out signal: the true words, and those that were read of
    it.
    """

    truth: str
    read: str


def _readings(run: Run, name: str, rows: Sequence[Reading]) -> list[Markup]:
    """What was read of held-out signals, in their order, mistakes marked; images beside, as they
    come in the same order.
    """
    if not rows:
        return missing(run, "no readings yet")
    right = sum(r.read == r.truth for r in rows)
    pictures = _heldout_images(run, len(rows)) if name == "text_from_image" else []
    shown = [i for i in range(len(rows)) if i < N_READINGS // 2 or rows[i].read != rows[i].truth][
        :N_READINGS
    ]
    read = [
        tag("span", page.visible(r.read), cls="right" if r.read == r.truth else "wrong")
        for r in rows
    ]
    lines = [
        (*[page.thumbnail(x, "") for x in pictures[i : i + 1]], rows[i].truth, read[i])
        for i in shown
    ]
    head = ("", "truth", "read")[-len(lines[0]) :]
    column = max(10, -(-len(lines) // 4))
    words = (
        f"{right:,} of {len(rows):,} held-out signals are read exactly. Shown: the first"
        f" {N_READINGS // 2}, then further mistakes."
    )
    tables = (table(head, lines[i : i + column], "words") for i in range(0, len(lines), column))
    return [tag("p", words), tag("div", *tables, cls="readings")]


# ---- sounds


@dataclass(frozen=True)
class _Clip:
    """A sound to show: its heading, samples (N,) float32, and its log10 mel magnitudes (T, C)."""

    heading: str
    samples: np.ndarray
    log_mel: np.ndarray


def _sounds(run: Run, prompts: Mapping[str, list[_Sample]]) -> list[Markup]:
    """Samples by prompt with spectrogram and player; beside them a real held-out clip of the same
    words, and its round trip.
    """
    spec = run.tokenizers["speech"].config.mel
    budget = SOUND_BYTES // max(
        1, sum(any(d.glob("*.wav")) for d in (run.folder / "samples").iterdir())
    )
    chosen = dict(islice(prompts.items(), N_PROMPTS))
    real = _real_clips(run, set(chosen))
    shown: dict[str, list[_Clip]] = {}
    for prompt, samples in chosen.items():
        clips = _clips(run, samples[:N_SOUNDS], real.get(prompt))
        budget -= sum(2 * len(c.samples) for c in clips)
        if budget < 0:
            break
        shown[prompt] = clips
    longest = max((len(c.samples) for clips in shown.values() for c in clips), default=1)
    top = max((float(c.log_mel.max()) for clips in shown.values() for c in clips), default=0.0)
    blocks = []
    for prompt, clips in shown.items():
        figures = (
            tag("figure", tag("figcaption", c.heading),
                plots.spectrogram(c.log_mel, top, len(c.samples) / longest, len(c.samples) / spec.rate_hz, (spec.fmin_hz, spec.fmax_hz)),
                tag("audio", controls=True, preload="none", src=page.data_uri("audio/wav", _wav(c.samples, spec.rate_hz))))
            for c in clips
        )  # fmt: skip
        blocks.append(
            tag("div", tag("h3", prompt), tag("div", *figures, cls="sounds"), cls="prompt full")
        )
    words = (
        "Mel spectrograms on one scale of time and colour, 80 dB from black to the loudest. Real:"
        " held-out clips of the same words."
    )
    walks = trajectories([s.path for prompt in shown for s in prompts[prompt]], OF_SOUND)
    return [
        tag("p", words),
        tag("div", *blocks, cls="prompts"),
        *_left_out(prompts, len(shown)),
        *walks,
    ]


def _clips(run: Run, samples: Sequence[_Sample], real: np.ndarray | None) -> list[_Clip]:
    """What is shown of one prompt; a sample without sound is left out."""
    import torch

    from mmtok.data.speech_preparation import read_sound
    from mmtok.nn.audio import log_mel

    tokenizer = run.tokenizers["speech"]
    found: list[tuple[str, np.ndarray]] = []
    for i, sample in enumerate(samples, 1):
        heading = f"sample {i}" + (", cut at the cap" if "cap" in sample.stops else "")
        try:
            found.append((heading, read_sound(sample.path, tokenizer.config.mel.rate_hz)))
        except UserError:  # a sample of no frames is a file of no sound
            continue
    if real is not None:
        found += [
            ("real", real),
            ("real, through the tokenizer", tokenizer.decode(tokenizer.encode(real))),
        ]
    return [
        _Clip(heading, x, log_mel([torch.from_numpy(x)], tokenizer.config.mel)[0].numpy())
        for heading, x in found
        if len(x)
    ]


def _real_clips(run: Run, captions: set[str]) -> dict[str, np.ndarray]:
    """A held-out clip of each caption that has one."""
    given, made = _made(run, "speech")
    found: dict[str, np.ndarray] = {}
    for example in run.examples("heldout", given, made) if given else ():
        if example[given] in captions:
            found.setdefault(example[given], example[made])
            if len(found) == len(captions):
                break
    return found


def _wav(samples: np.ndarray, rate_hz: int) -> bytes:
    """A 16-bit wav file."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate_hz, format="WAV", subtype="PCM_16")
    return file.getvalue()


# ---- jets


def _jets(run: Run, prompts: Mapping[str, list[_Sample]]) -> list[Markup]:
    """Per prompt: mean images and distributions of generated jets, beside real held-out ones, raw
    and through the tokenizer.
    """
    tokenizer = run.tokenizers["jets"]
    if not set(AXES) <= set(tokenizer.config.features):
        raise UserError(
            f"Jets are shown by {', '.join(AXES)}; this run's have"
            f" {', '.join(tokenizer.config.features)}."
        )
    order = [tokenizer.config.features.index(name) for name in AXES]
    pictures, charts = [], []
    shown = dict(islice(prompts.items(), N_CLASSES))
    real = _real_jets(run, set(shown))
    for prompt, samples in shown.items():
        ours = [jet for s in samples for jet in read_jets(s.path, tokenizer.config.features)]
        theirs = real.get(prompt, [])
        if not (ours and theirs):
            pictures.append(
                tag(
                    "p",
                    f"{prompt}: {counted(len(ours), 'jet')}, and {len(theirs)} real held-out ones"
                    " to compare with.",
                    cls="soft",
                )
            )
            continue
        tokenised = tokenizer.decode_batch(tokenizer.encode_batch(theirs))
        ours, theirs, tokenised = (
            [jet[:, order] for jet in jets] for jets in (ours, theirs, tokenised)
        )
        images = {
            f"{name} ({len(x):,})": jet_image(x, half_width=HALF_WIDTH)
            for name, x in (("generated", ours), ("real", theirs))
        }
        n_cut = sum(stop == "cap" for s in samples for stop in s.stops)
        pictures.append(
            plots.jet_pictures(
                prompt + f", {n_cut:,} cut at the cap" * bool(n_cut), images, HALF_WIDTH
            )
        )
        for key, (label, unit) in plots.OBSERVED.items():
            charts.append(
                plots.histogram(
                    prompt, label, unit, *map(OBSERVABLES[key], (ours, theirs, tokenised))
                )
            )
    words = (
        "Mean images about the axis, and distributions over jets; below each, generated over"
        " tokenised real with its counting error."
    )
    return [
        tag("p", words),
        tag("div", *pictures, cls="charts"),
        tag("div", *charts, cls="charts"),
        *_left_out(prompts, len(shown)),
    ]


def _real_jets(run: Run, captions: set[str]) -> dict[str, list[np.ndarray]]:
    """Held-out jets of each caption; of what nothing or no caption was given for, a fair part of
    all.
    """
    given, made = _made(run, "jets")
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for example in run.examples("heldout", given, made) if given else ():
        if (caption := example[given]) in captions and len(found[caption]) < N_JETS:
            found[caption].append(example[made])
    for caption in captions & {NOTHING} if given else captions:
        found[caption] = random_subset(
            (example[made] for example in run.examples("heldout", made)), N_JETS
        )
    return found


OF_SOUND = (
    f"Of sound: the first {N_FRAMES} frames of the spectrogram, low bands at the bottom, each from"
    f" {-RANGE:g} (black) to {RANGE:g} (white) of its standard deviations from the mean."
)


def trajectories(samples: Sequence[Path], more: str = "") -> list[Markup]:
    """The strips that were written beside these samples, under a heading; [] where there are none.

    more: is said of them too.
    """
    there = [p for p in samples if strip_of(p).is_file()]
    strip = lambda p: thumbnail(read_image(strip_of(p)), f"{p.stem} on the way", "walk", N_STATES)
    figures = [tag("figure", strip(p), tag("figcaption", named_prompt(p))) for p in there]
    words = (
        "After evenly spaced steps, from the first on the left to the sample on the right. Codes"
        " that are not drawn yet are white; frames that were drawn one after another are all shown"
        " after as many steps of their own. " + more
    )
    return (
        [tag("h3", "On the way"), tag("p", words), tag("div", *figures, cls="walks")]
        if figures
        else []
    )
