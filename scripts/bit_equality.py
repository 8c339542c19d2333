"""Does a change of the code change a figure? Every recipe, made tiny, before and after, by the bit.

    python scripts/bit_equality.py --save FILE.json [FAMILY ...]      before: write the figures
    python scripts/bit_equality.py --compare FILE.json [FAMILY ...]   after: equal, or DIFFERS?

Both on one machine with the same packages, on the CPU, in float32, on one thread. A family is the
name of a file in recipes/; all have their turn where none is named. The data that a recipe makes
for itself stays, but is little; in the place of a user's files some are made here.

    tokens   SHA-256 of the training split as tokenised: of every field, which rows have it, the
             shapes of these, and their codes or latents
    losses   the loss of each step
    sample   SHA-256 of what is drawn for every task: given the condition and, where training left
             it out too, without it, and by guidance. Latents show every bit; codes that are drawn
             do not tell of the last bits of their logits
    score    -log p in nats of held-out documents of every task; "refused" where there is none

Exit status 0: all is equal, or all was saved; 1: something differs, or went wrong, which does not
keep the other families from their turn; 2: wrong words.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from itertools import islice, product, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtok.core.segment import Document, Segment
from mmtok.data.tasks import Contrast, Task
from mmtok.errors import UserError
from mmtok.heads.cascade import Cascade
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.set_diffusion import SetDiffusion
from mmtok.io.files import write_text
from mmtok.io.strict_json import read_json
from mmtok.model.embed import embed
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.denoisers import DiTConfig, TokenMLPConfig
from mmtok.nn.unet import UNetConfig
from mmtok.run.build import train
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import Run
from mmtok.run.tokenise import tokenise
from mmtok.sources.conformers import Conformers
from mmtok.sources.degraded import Degraded
from mmtok.sources.fsdd import FSDD
from mmtok.sources.handwritten import HandwrittenDigits
from mmtok.sources.images import ImageFolder, ScannedDigits, write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.sources.linear_gaussian import LinearGaussian
from mmtok.sources.neutrinos import NeutrinoEvents
from mmtok.sources.pythia import PythiaJets
from mmtok.sources.sentences import SpokenSentences
from mmtok.sources.sound_files import write_sound
from mmtok.sources.sounds import SoundFolder
from mmtok.sources.speech import SpeechFolder, SpokenDigits
from mmtok.sources.text import TextFile
from mmtok.sources.videos import MovingDigits
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.image_latents import KLPatchesConfig
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import SentencePieceConfig
from mmtok.tokenizers.video import VideoConfig
from mmtok.train.log import read_log

RECIPES = Path(__file__).parent.parent / "recipes"
FAMILIES = sorted(path.stem for path in RECIPES.glob("*.py"))
FIGURES = ("tokens", "losses", "sample", "score")
STEPS = 20  # of the training, and of a tokenizer that is learned
MOST_POSITIONS = 256  # in a row
MOST_FRAMES = 12  # of what is drawn until its end
N_DOCUMENTS = 2  # of each task, that are scored and whose conditions are asked for
GUIDANCE = 2.0


# ---- a user's data, made here


def make_text(folder: Path) -> Path:
    """A UTF-8 file, some of whose characters take several bytes."""
    path = folder / "text.txt"
    lines = [f"line {i}: {'abcde'[i % 5] * (i % 7)} été ▁ and so on\n" for i in range(60)]
    path.write_text("".join(lines))
    return path


def make_pictures(folder: Path) -> Path:
    """Two folders of coloured pictures, which are not of the size that any tokenizer takes."""
    rng = np.random.default_rng(0)
    for i in range(20):
        name = ("red fox", "coat")[i % 2]
        (folder / name).mkdir(exist_ok=True)
        write_image(folder / name / f"{i}.png", rng.integers(0, 256, (36, 40, 3), np.uint8))
    return folder


def make_sounds(folder: Path) -> Path:
    """Tones with a little noise, each beside its transcript."""
    rng = np.random.default_rng(0)
    for i in range(20):
        tone = 0.3 * np.sin(np.arange(5000 + 200 * i) * (0.1 + 0.3 * (i % 2)))
        samples = tone + rng.uniform(-0.05, 0.05, len(tone))
        write_sound(folder / f"{i:02d}.wav", samples.astype(np.float32))
        (folder / f"{i:02d}.txt").write_text(("low", "high")[i % 2] + f" {i}")
    return folder


def make_digits(folder: Path) -> Path:
    """Tones named as recordings of two digits by two speakers, some of them held out."""
    rng = np.random.default_rng(0)
    (folder / "digits").mkdir()
    for i, (digit, name) in enumerate(product(range(2), ("ann", "ben"))):
        for take in (0, 1, 5, 6, 7):
            tone = 0.3 * np.sin(np.arange(3000 + 300 * i) * (0.1 + 0.1 * i))
            samples = tone + rng.uniform(-0.05, 0.05, len(tone))
            path = folder / "digits" / f"{digit}_{name}_{take}.wav"
            write_sound(path, samples.astype(np.float32))
    return folder / "digits"


def make_jets(folder: Path) -> Path:
    """Jets of 2 to 15 particles: pt in GeV, eta and phi beside the axis."""
    rng = np.random.default_rng(0)
    jets = []
    for n in rng.integers(2, 16, 20):
        pt_gev = np.sort(rng.uniform(1, 90, n))[::-1]
        angles = rng.normal(0, 0.2, (2, n))
        jets.append(np.stack([pt_gev, *angles], 1).astype(np.float32))
    write_jets(folder / "jets.npz", jets)
    return folder / "jets.npz"


# ---- tiny recipes


def tiny(recipe: Recipe, data: Path, seed: int = 0) -> Recipe:
    """The recipe with few examples, small networks and STEPS steps; all else is as it was.

    data: a folder for the files that are made in the place of a user's. Raises ValueError for a
    source that is not known here.
    """
    trunk = replace(recipe.model.trunk, depth=2, width=32, n_heads=4, n_kv_heads=2, feed_forward=48)
    heads = {m: tiny_head(head) for m, head in recipe.model.heads.items()}
    config = replace(recipe.train, steps=STEPS, warmup=5, batch_size=2, log_every=1)
    seq_len = min(config.seq_len, MOST_POSITIONS)
    return replace(
        recipe,
        sources=tuple(tiny_source(source, data) for source in recipe.sources),
        tokenizers={m: tiny_tokenizer(config) for m, config in recipe.tokenizers.items()},
        model=replace(recipe.model, trunk=trunk, heads=heads),
        train=replace(config, seq_len=seq_len, precision="float32", seed=seed),
    )


def tiny_source(source: Any, data: Path) -> Any:
    """A source with few examples, those of files made in `data`."""
    if isinstance(source, Degraded):
        return replace(source, source=tiny_source(source.source, data), copies=1)
    if isinstance(source, HandwrittenDigits):
        return replace(source, copies=1, n_digits=60)
    if isinstance(source, (MovingDigits, ScannedDigits)):
        return replace(source, copies=1)
    if isinstance(source, SpokenDigits):
        return replace(source, n_utterances=30)
    if isinstance(source, SpokenSentences):
        return replace(source, n_utterances=60)
    if isinstance(source, PythiaJets):
        return replace(source, n_per_class=6, n_heldout=2, processes=1)
    if isinstance(source, TextFile):
        return replace(source, path=str(make_text(data)), chunk_chars=64)
    if isinstance(source, ImageFolder):
        return replace(source, path=str(make_pictures(data)))
    if isinstance(source, SpeechFolder):
        return replace(source, path=str(make_sounds(data)))
    if isinstance(source, SoundFolder):
        return replace(source, path=str(make_sounds(data)))
    if isinstance(source, JetFile):
        return replace(source, path=str(make_jets(data)))
    if isinstance(source, Conformers):
        return replace(source, n_molecules=4, n_starts=2, heldout_share=0.3)
    if isinstance(source, (LinearGaussian, NeutrinoEvents)):
        return replace(source, n_train=40, n_heldout=10)
    if isinstance(source, FSDD):
        return replace(source, path=str(make_digits(data)), n_strings=6)
    raise ValueError(f"{type(source).__name__} is no source that is made small here: add it")


def tiny_tokenizer(config: Any) -> Any:
    """A tokenizer's config that is learned in no time."""
    if isinstance(config, VQPatchesConfig):
        return replace(
            config,
            quantizer=replace(config.quantizer, n_codes=16),
            autoencoder=small_autoencoder(config.autoencoder),
            steps=STEPS,
        )
    if isinstance(config, VideoConfig):
        return replace(config, picture=tiny_tokenizer(config.picture))
    if isinstance(config, KLPatchesConfig):
        return replace(config, autoencoder=small_autoencoder(config.autoencoder), steps=STEPS)
    if isinstance(config, SentencePieceConfig):
        return replace(config, n_pieces=300)
    if isinstance(config, DMelConfig) and config.has_training:
        if config.dequantiser is not None:
            config = replace(config, dequantiser=briefly(config.dequantiser))
        return replace(config, vocoder=briefly(config.vocoder))
    return config


def small_autoencoder(config: Any) -> Any:
    """Networks of images with few channels."""
    if isinstance(config, ConvPatches):
        return replace(config, hidden=8)
    return replace(config, width=16)


def briefly(network: Any) -> Any:
    """The config of a vocoder or de-quantiser that is trained in no time."""
    sizes = ConvNeXtConfig(width=8, depth=1)
    training = replace(
        network.training, steps=STEPS, batch_size=2, crop_frames=16, log_every=1, network=sizes
    )
    return replace(network, training=training)


def tiny_head(head: Any) -> Any:
    """A head's config with a small network and few steps."""
    if isinstance(head, FrameDiffusion):
        return replace(head, steps=3, ode_steps=2, network=TokenMLPConfig(depth=1, width=16))
    if isinstance(head, (GridDiffusion, SetDiffusion)):
        return replace(head, steps=3, ode_steps=2, network=DiTConfig(depth=1, width=16, n_heads=2))
    if isinstance(head, MaskedDiffusion):
        return replace(head, bound_draws=4, network=DiTConfig(depth=1, width=16, n_heads=2))
    if isinstance(head, Cascade):
        network = UNetConfig(widths=(8, 8), blocks=1, n_heads=2)
        stages = [replace(stage, steps=2, ode_steps=1, network=network) for stage in head.stages]
        return replace(head, stages=tuple(stages))
    return head


# ---- figures


def figures(family: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """The figures of a family by name, whose data and run are made in `folder`.

    Raises whatever goes wrong on the way.
    """
    data = folder / "data"
    data.mkdir(parents=True)
    recipe = tiny(load_recipe(RECIPES / f"{family}.py"), data, seed)
    run = train(recipe, folder / "run", device="cpu")
    if not recipe.learned:
        return figures_of_tokenizers(run)
    return {
        "tokens": tokens_digest(run),
        "losses": [float(line["loss"]).hex() for line in read_log(run.folder / "log.jsonl")],
        "sample": sample_digest(run, seed),
        "score": scores(run),
    }


def figures_of_tokenizers(run: Run) -> dict[str, Any]:
    """Of a run without tasks: distances in training, and weights in the place of samples."""
    tokenise(run)
    weights = hashlib.sha256()
    for path in sorted((run.folder / "tokenizers").rglob("*.safetensors")):
        weights.update(path.read_bytes())
    losses: list[str] = []
    for path in sorted((run.folder / "training").rglob("log.jsonl")):
        lines = map(json.loads, path.read_text().splitlines())
        losses += [float(line["distance"]).hex() for line in lines]
    return {
        "tokens": tokens_digest(run),
        "losses": losses,
        "sample": weights.hexdigest(),
        "score": [],
    }


def tokens_digest(run: Run) -> str:
    """SHA-256 of the token files' fields, in their order."""
    made = hashlib.sha256()
    for file in run.token_files():
        for field in file.fields:
            having = file.has(field)
            made.update(having.astype(np.uint8).tobytes())
            add_segments(made, [file.segment(field, i) for i in np.flatnonzero(having)])
    return made.hexdigest()


def add_segments(made: Any, segments: Iterable[Segment]) -> None:
    """Add the shapes and values of segments (T, C) or (T, D) to a hash.

    Codes count as int64 and latents as float32, whatever they are kept in.
    """
    for segment in segments:
        kind = np.float32 if segment.codes is None else np.int64
        values = segment.latents if segment.codes is None else segment.codes
        made.update(np.array(values.shape, np.int64).tobytes())
        made.update(np.ascontiguousarray(values, dtype=kind).tobytes())


def whole_tasks(run: Run) -> list[Task]:
    """The run's tasks that see their last field to its end: only these can be asked for."""
    return [task for task in run.recipe.tasks if not task.max_target_frames]


def held_out(run: Run, task: Task | Contrast) -> list[tuple[Segment, ...]]:
    """A few held-out documents of a task or contrast: segments in the order of its fields."""
    names = task.fields
    rows = list(islice(run.examples("heldout", *names), N_DOCUMENTS))
    columns = []
    for name in names:
        tokenizer = run.tokenizers[run.recipe.fields[name]]
        columns.append(tokenizer.encode_batch([row[name] for row in rows]))
    return list(zip(*columns, strict=True))


def sample_digest(run: Run, seed: int) -> str:
    """SHA-256 of what is drawn for the tasks, of as much as is trained, and of vectors."""
    made = hashlib.sha256()
    for task in whole_tasks(run):
        n = len(task.inputs)
        to = run.recipe.fields[task.targets[0]]
        given = [run.prompt(document[:n], to) for document in held_out(run, task)]
        sampling = run.sampling(to, max_frames=MOST_FRAMES, precision="float32")
        asked = [(given, sampling)]
        if n and task.cond_dropout:
            asked.append(([run.prompt((), to)], sampling))
            asked.append((given, replace(sampling, guidance=GUIDANCE)))
        for prompts, way in asked:
            add_segments(made, [drawn.segment for drawn in run.draw(prompts, way, seed)])
    for contrast in run.recipe.contrasts:
        segments = [segment for row in held_out(run, contrast) for segment in row]
        made.update(embed(run.lm, segments).tobytes())
    return made.hexdigest()


def scores(run: Run) -> list[str]:
    """-log p of held-out documents in nats, as `float.hex` writes them; or "refused", by task."""
    found: list[str] = []
    for task in whole_tasks(run):
        predict = (False,) * len(task.inputs) + (True,) * len(task.targets)
        documents = [Document(segments, predict) for segments in held_out(run, task)]
        try:
            found += [float(scored.nats[-1]).hex() for scored in run.score_documents(documents)]
        except UserError:
            found.append("refused")
    return found


# ---- saving and comparing


def made_by(families: Sequence[str], work: Path, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each family with its figures, or with what went wrong: {"error": ...}.

    What the package says meanwhile is in FAMILY/said.txt below `work`.
    """
    for family in families:
        folder = work / family
        start = time.perf_counter()
        folder.mkdir(parents=True)
        try:
            with (
                open(folder / "said.txt", "w") as said,
                redirect_stderr(said),
                warnings.catch_warnings(action="ignore"),  # such sketches fit nothing well
            ):
                found = figures(family, folder, seed)
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        took = f"{time.perf_counter() - start:.0f} s"
        print(f"{family}: {found.get('error', 'done')} ({took})", file=sys.stderr, flush=True)
        yield family, found


def verdicts(family: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """A line for each figure of a family; all that are not equal hold the word DIFFERS."""
    if before is None:
        return [f"{family}: DIFFERS (the file has no such family)"]
    both = {"before": before, "now": now}
    wrong = [f"{when}: {found['error']}" for when, found in both.items() if "error" in found]
    if wrong:
        return [f"{family}: DIFFERS ({'; '.join(wrong)})"]
    return [f"{family} {name}: {verdict(before.get(name), now[name])}" for name in FIGURES]


def verdict(before: Any, now: Any) -> str:
    """equal, or DIFFERS; of lists also from which of their values on, counted from 1."""
    if before == now:
        return "equal"
    if not isinstance(before, list):
        return "DIFFERS"
    first = 1 + sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False))
    )
    return f"DIFFERS from number {first} on, of {len(now)}"


def main(words: Sequence[str] | None = None) -> int:
    """Saves or compares as the command line says. Returns the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--save", type=Path, metavar="FILE.json", help="write the figures")
    asked.add_argument("--compare", type=Path, metavar="FILE.json", help="with what --save wrote")
    parser.add_argument("--seed", type=int, default=0, help="of tokenizers, training and samples")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep all that is made, by family")
    given = parser.parse_args(words)
    families = given.families or FAMILIES
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        try:
            check(families, work)
            before = read_figures(given.compare) if given.compare else {}
        except UserError as error:
            parser.error(str(error))
        torch.set_num_threads(1)
        found = made_by(families, work, given.seed)
        return compared(found, before) if given.compare else saved(found, given.save)


def check(families: Sequence[str], work: Path) -> None:
    """Raise UserError for a family that there is none of, and for one that was made before."""
    for family in families:
        if family not in FAMILIES:
            raise UserError(f"{family} is no family; there are {', '.join(FAMILIES)}")
        if (work / family).exists():  # a finished run would be taken as it is
            raise UserError(
                f"{work / family} is there already: remove it, or choose another --work"
            )


def read_figures(path: Path) -> dict[str, Any]:
    """What --save wrote. Raises UserError for what is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; write it by --save")
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(x, dict) for x in found.values()):
        raise UserError(f"{path} holds no figures by family; write it by --save")
    return found


def saved(found: Iterable[tuple[str, dict[str, Any]]], path: Path) -> int:
    """Write the figures as they come, so that they stay where a run is cut; the exit status."""
    made: dict[str, Any] = {}
    for family, of_family in found:
        made[family] = of_family
        write_text(path, json.dumps(made, indent=1) + "\n")
    return int(any("error" in of_family for of_family in made.values()))


def compared(found: Iterable[tuple[str, dict[str, Any]]], before: Mapping[str, Any]) -> int:
    """Print a line for each figure; the exit status."""
    differ = False
    for family, now in found:
        lines = verdicts(family, before.get(family), now)
        print("\n".join(lines), flush=True)
        differ = differ or any("DIFFERS" in line for line in lines)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
