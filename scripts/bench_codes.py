"""Fashion-MNIST as 7 x 7 codes: pictures by name, names of pictures, and pictures made whole.

    python scripts/bench_codes.py FOLDER                    both families, into runs/codes
    python scripts/bench_codes.py FOLDER --only decoder

FOLDER holds MNIST's four files. `decoder` predicts one code after another. It draws pictures by
name under several guidances, names held-out pictures, by the text that it writes and by the name
under which a picture is likeliest, and draws the lower half of pictures. `any_order` fills codes in
in any order (masked diffusion): the lower half, and any subset.

The judge of scripts/bench_fashion.py, trained on real pictures, names what is drawn; shares have
bootstrap intervals of 95 %. The Fréchet distance to held-out pictures is on the judge's decision
values. The guidance with the least distance, among those that meet the bar of the judge, is the
one to take. What is made whole by name is drawn by guidance 2. A finished run is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_fashion import NAMES, SIDE, measure_families, write_sheet
from side_by_side import called
from timed import SPENT, timed_train, verdict

from mmtok.core.segment import Document, Segment, segment_of
from mmtok.data.tasks import Task
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.io.files import write_text
from mmtok.metrics.images import frechet, train_pixel_judge
from mmtok.metrics.intervals import Estimate, mean_estimate
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run
from mmtok.sources.idx import IdxImages
from mmtok.tokenizers.autoencoders import StagedConv
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.quantizers import FSQ
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

PATCH = 4
GRID = SIDE // PATCH
N_DRAWN = 500  # pictures for each guidance
N_NAMED = 1000  # held-out pictures that are named
N_COMPLETED = 500  # that are made whole
N_JUDGE = 20_000  # pictures that the judge is trained on
KEPT_ROWS = 3  # of 7, where the lower half is drawn
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
COMPLETING = 2.0  # the guidance of what is made whole by name
# bars
DRAWN = 0.85
NAMED = 0.85
SCORED = 0.87
COMPLETED = 0.80

Figures = dict[str, Any]


# ---- the recipes


def family(folder: Path, tasks: tuple[Task, ...], model: DecoderConfig, **settings: Any) -> Recipe:
    """A recipe for codes of pictures and their names."""
    codes = VQPatchesConfig(
        SIDE, SIDE, 1, PATCH, quantizer=FSQ((8, 6, 5)), autoencoder=StagedConv(), steps=1000
    )
    defaults = {"batch_size": 8, "seq_len": 256, "warmup": 100, "log_every": 100}
    return Recipe(
        name="codes",
        sources=(IdxImages(str(folder), NAMES),),
        tokenizers={"text": BytesConfig(), "image": codes},
        tasks=tasks,
        model=model,
        train=TrainConfig(**(defaults | settings)),
        sampling={"text": Sampling(temperature=0.0, max_frames=32)},
    )


def decoder(folder: Path) -> Recipe:
    """One code after another, and names from pictures."""
    tasks = (
        Task(("caption",), ("image",), weight=0.6, cond_dropout=0.1),
        # the pictures are predicted too: they teach what codes are like
        Task(("image",), ("caption",), weight=0.4, loss_on_inputs=True),
    )
    model = DecoderConfig(trunk=TransformerConfig(4, 128, 4, 4, 352))
    return family(folder, tasks, model, steps=800, optimizer="muon", learning_rate=4e-3)


def any_order(folder: Path) -> Recipe:
    """Codes in any order."""
    head = MaskedDiffusion(network=DiTConfig(4, 128, 4))
    model = DecoderConfig(trunk=TransformerConfig(2, 64, 2, 2, 176), heads={"image": head})
    tasks = (Task(("caption",), ("image",), cond_dropout=0.2),)
    return family(folder, tasks, model, steps=600, learning_rate=2e-3, ema_decay=0.998)


FAMILIES: dict[str, Callable[[Path], Recipe]] = {"decoder": decoder, "any_order": any_order}


# ---- drawing


def drawn(run: Run, prompts: Sequence[Document], guidance: float = 1.0) -> list[np.ndarray]:
    """The pictures that prompts are continued to."""
    samples = run.draw(prompts, Sampling(guidance=guidance), seed=0)
    return run.tokenizers["image"].decode_batch([sample.segment for sample in samples])


def by_name(run: Run, names: Sequence[str], guidance: float) -> list[np.ndarray]:
    """A picture for each name."""
    prompts = [run.prompt([text], "image") for text in run.encode("text", names)]
    return drawn(run, prompts, guidance)


def beginning(run: Run, picture: Segment) -> Segment:
    """The upper rows of a picture: what a decoder goes on from."""
    kept = picture.values[: KEPT_ROWS * GRID]
    return segment_of(run.vocabulary.signatures["image"], kept, info=picture.info)


def free_below(picture: Segment) -> Segment:
    """A picture whose lower rows are to be drawn."""
    return replace(picture, infill_spans=((KEPT_ROWS * GRID, GRID**2),))


def free_anywhere(picture: Segment, rng: np.random.Generator) -> Segment:
    """A picture of which a random half of the codes is to be drawn."""
    free = np.sort(rng.permutation(GRID**2)[: (GRID**2 + 1) // 2])
    spans = tuple((int(i), int(i) + 1) for i in free)
    return replace(picture, infill_spans=spans)


# ---- figures


class Judged:
    """The judge, and held-out pictures with their names."""

    def __init__(self, source: IdxImages):
        images, labels = source.load("train")
        chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:N_JUDGE])
        self.judge = train_pixel_judge(list(images[chosen]), [NAMES[k] for k in labels[chosen]])
        images, labels = source.load("heldout")
        self.images = images[:N_NAMED]
        self.names = [NAMES[k] for k in labels[:N_NAMED]]
        names = [NAMES[k] for k in labels]
        self.real = mean_estimate(self.judge.right(images, names))
        features = self.judge.decision_values(images)
        self.reference = features[1::2]
        self.floor = frechet(features[: 2 * N_DRAWN : 2], self.reference)

    def right(self, images: Sequence[np.ndarray], names: Sequence[str]) -> Estimate:
        """The share of pictures that are named so."""
        return mean_estimate(self.judge.right(images, names))


def measured(run: Run, judged: Judged, sheet: Path) -> Figures:
    """All figures of a trained family; the shares with their intervals."""
    pictures = run.encode("image", list(judged.images))
    again = run.tokenizers["image"].decode_batch(pictures)
    figures: Figures = {
        "judge on real pictures": judged.real,
        "judge after the round trip": judged.right(again, judged.names),
    }
    ways: dict[str, Callable[[Segment], Segment]] = {"the lower half": free_below}
    if run.lm.autoregressive("image"):
        figures |= by_guidance(run, judged, sheet)
        figures |= named(run, judged, pictures)
        ways = {"the lower half": partial(beginning, run)}
    else:
        ways["a random half"] = partial(free_anywhere, rng=np.random.default_rng(0))
    pictures = pictures[:N_COMPLETED]
    names = judged.names[:N_COMPLETED]
    texts = run.encode("text", names)
    for what, free in ways.items():
        for given, conditions in (
            ("by name", [[text] for text in texts]),
            ("alone", [[]] * len(texts)),
        ):
            prompts = [
                run.prompt(condition, "image", known=free(picture))
                for condition, picture in zip(conditions, pictures, strict=True)
            ]
            images = drawn(run, prompts, COMPLETING)
            figures[f"{what} drawn, {given}: judge"] = judged.right(images, names)
    return figures


def by_guidance(run: Run, judged: Judged, sheet: Path) -> Figures:
    """Pictures by name under each guidance: the judge, and the Fréchet distance."""
    names = [NAMES[i % len(NAMES)] for i in range(N_DRAWN)]
    found = {}
    for guidance in GUIDANCE:
        images = by_name(run, names, guidance)
        distance = frechet(judged.judge.decision_values(images), judged.reference)
        found[f"{guidance:g}"] = [judged.right(images, names), distance]
        write_sheet(sheet.with_stem(f"{sheet.stem}-{guidance:g}"), images)
    return {"guidance": found, "floor": judged.floor}


def named(run: Run, judged: Judged, pictures: Sequence[Segment]) -> Figures:
    """Held-out pictures named by what is written of them, and by ten scores."""
    prompts = [run.prompt([picture], "text") for picture in pictures]
    written = run.draw(prompts, run.sampling("text"), seed=0)
    texts = run.tokenizers["text"].decode_batch([sample.segment for sample in written])
    documents = [
        Document((text, picture), (False, True))
        for text in run.encode("text", NAMES)
        for picture in pictures
    ]
    scores = run.score_documents(documents, group_size=len(pictures))
    nll = torch.tensor([scored.nats[-1] for scored in scores]).view(len(NAMES), -1)
    likeliest = [NAMES[k] for k in nll.argmin(0)]
    return {
        "named by text": mean_estimate(np.array(texts) == np.array(judged.names)),
        "named by ten scores": mean_estimate(np.array(likeliest) == np.array(judged.names)),
    }


# ---- what is printed


def figures_of(
    name: str, folder: Path, out: Path, scale: float, judged: Callable[[], Judged]
) -> Figures:
    """Trains and measures one family, unless its figures are there already."""
    recipe = FAMILIES[name](folder.resolve())
    steps = max(1, round(scale * recipe.train.steps))
    run = timed_train(replace(recipe, train=replace(recipe.train, steps=steps)), out / name)
    path = out / name / "figures.json"
    if not path.exists():
        figures = measured(run, judged(), out / f"{name}.png")
        minutes = json.loads((out / name / SPENT).read_text())
        write_text(path, json.dumps({"CPU minutes of training": minutes, **figures}, indent=1))
    return json.loads(path.read_text())


def lines_of(name: str, figures: Figures) -> Iterator[str]:
    """What is printed of a family."""
    yield f"## {name}"
    bars = {"named by text": NAMED, "named by ten scores": SCORED}
    floor = figures.pop("floor", 0.0)
    sweep = figures.pop("guidance", {})
    for what, value in figures.items():
        bar = bars.get(what, COMPLETED if "drawn" in what else 0.0)
        yield f"{what}: {shown(value, bar)}"
    for guidance, (share, distance) in sweep.items():
        yield f"guidance {guidance}: judge {shown(share, DRAWN)}, Fréchet {distance:.3f}"
    if sweep:
        good = {g: distance for g, (share, distance) in sweep.items() if share[0] >= DRAWN}
        best = min(good, key=lambda g: good[g], default="none meets the bar")
        yield f"chosen: {best} (Fréchet of real pictures {floor:.3f})"


def shown(value: Any, bar: float = 0.0) -> str:
    """A number, or a share with its interval, with a verdict where there is a bar."""
    if value is None:
        return "not known: trained in several goes"
    if not isinstance(value, list):
        return f"{value:.1f}"
    text = str(Estimate(*value))
    if not bar:
        return text
    return f"{text}, bar {bar}: {verdict(value[0] >= bar)}"


def main() -> None:
    """Trains, measures and prints the families that the command line names."""
    measure_families(__doc__, FAMILIES, Path("runs/codes"), Judged, figures_of, lines_of)


if __name__ == "__main__":
    called(main)
