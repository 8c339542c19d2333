"""A run folder and the live objects in it. The only room that knows tokenizers and the model at once.

    RUN/recipe.json  tokenizers/MODALITY/  tokens/*.parquet  vocabulary.json  model.safetensors + config.json
        log.jsonl  checkpoints/  samples/  evaluation.json  report.html
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from mmtok import tokenizers as tokenizer_room
from mmtok.data.loader import Loader, Task
from mmtok.data.tokens import TokenFile, read_tokens, write_tokens
from mmtok.model.generate import Sampled, Sampling, fill_holes, generate
from mmtok.model.lm import LM
from mmtok.model.score import Score, score
from mmtok.progress import Progress, say
from mmtok.recipe import Recipe, kinds_of, load_recipe, read_recipe
from mmtok.segment import BadInput, Document, Segment
from mmtok.tokenizers.base import Tokenizer
from mmtok.train.checkpoint import save_tensors
from mmtok.train.fit_lm import Trainer, read_log
from mmtok.train.fit_tokenizer import fit_tokenizer
from mmtok.vocabulary import Vocabulary

N_FIT = 4_000  # signals that a tokenizer is fitted to at most
N_FIDELITY = 64  # held-out signals that its fidelity is measured on


class Run:
    """An opened run folder: its recipe, tokenizers, vocabulary and decoder, each opened when first asked for.

    seeds and cached data live in the folder, so that every question to the run has one answer.
    """

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder, self.recipe = folder, recipe

    @cached_property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """Modality -> tokenizer, in the recipe's order, which is the vocabulary's."""
        found = {}
        for m, config in self.recipe.tokenizers.items():
            folder = self.folder / "tokenizers" / m
            if not (folder / "tokenizer.json").exists():
                raise BadInput(f"{self.folder} has no fitted {m} tokenizer yet; run `mmtok train` on its recipe")
            # a tokenizer class from outside the package comes with its config
            found[m] = config.load(folder) if hasattr(config, "load") else tokenizer_room.load(folder)
        return found

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Laid out from the tokenizers, and checked against the one that the run was trained with."""
        vocabulary = Vocabulary([t.signature for t in self.tokenizers.values()])
        path = self.folder / "vocabulary.json"
        if path.exists():
            stored = _read_json(path)
            if not isinstance(stored, dict) or not isinstance(stored.get("fingerprint"), str):
                raise BadInput(f"{path} is damaged: it names no fingerprint; remove it if the tokenizers are as they were")
            vocabulary.check(stored["fingerprint"], str(self.folder))
        return vocabulary

    @cached_property
    def lm(self) -> LM:
        """The trained decoder. Raises BadInput before training is through."""
        path = self.folder / "model.safetensors"
        if not path.exists():
            raise BadInput(f"{self.folder} holds no trained model yet; `mmtok train` on its recipe finishes it")
        lm = self.untrained()
        try:
            lm.load_state_dict(load_file(path))
        except Exception as error:  # safetensors raises its own type, torch a RuntimeError that lists every key
            raise BadInput(f"{path} cannot be loaded ({str(error).splitlines()[0]}): remove it, and `mmtok train` makes it again "
                           "from the last checkpoint") from None
        return lm.eval()

    def untrained(self) -> LM:
        """A freshly initialised decoder of this run, from the recipe's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.train.seed)
            return LM(self.recipe.model, self.vocabulary).to(best_device()).eval()

    # ---- examples

    def examples(self, split: str, *fields: str) -> Iterator[dict[str, Any]]:
        """Raw examples of a split that have these fields, from all sources that have the split."""
        for source in self.recipe.sources:
            if split in source.splits and set(fields) <= set(source.fields):
                yield from source.examples(split, self.folder / "data")

    def token_files(self) -> list[TokenFile]:
        """The tokenised training split, one file per source."""
        fields = self.recipe.fields
        return [
            read_tokens(self._token_path(i), {f: self.tokenizers[fields[f]].signature for f in source.fields if fields[f] in self.tokenizers})
            for i, source in enumerate(self.recipe.sources)
        ]

    def _token_path(self, i: int) -> Path:
        return self.folder / "tokens" / f"{i}-{type(self.recipe.sources[i]).__name__}.parquet"

    # ---- questions to the model

    def task_for(self, given: Sequence[str], to: str) -> Task:
        """The trained task that makes `to` from segments of the modalities `given`. Raises BadInput with the tasks there are."""
        fields = self.recipe.fields
        # of several fields made, each is made from those before it too
        tasks = [t for t in self.recipe.tasks if not t.first]  # the others never saw an end
        orders = [([fields[f] for f in (*t.given, *t.make[:k])], fields[made], t) for t in tasks for k, made in enumerate(t.make)]
        orders += [([], fields[t.make[0]], t) for t in tasks if t.drop_given > 0 and t.given]
        for read, made, task in orders:
            if read == list(given) and made == to:
                return task
        trained = dict.fromkeys(f"{' + '.join(read) or 'nothing'} -> {made}" for read, made, _ in orders)
        asked = f"{' + '.join(given) or 'nothing'} -> {to}"
        raise BadInput(f"this run was never trained on {asked}; it was on: {', '.join(trained)}")

    def prompt(self, given: Sequence[Segment], to: str, known: Segment | None = None) -> Document:
        """An open document that asks for a segment of modality `to`; `known` frames of it may be given."""
        task = self.task_for([s.modality for s in given], to)
        head: tuple[Segment | None, ...] = tuple(given) or (None,) * len(task.given)
        signature = self.vocabulary.signatures[to]
        known = known or Segment(to, codes=np.zeros((0, len(signature.levels)), np.int64))
        return Document((*head, known), (False,) * len(head) + (True,), open_end=True)

    def sampling(self, modality: str, **changes: float | int | None) -> Sampling:
        """The recipe's way to draw a modality, with what is not None changed."""
        return replace(self.recipe.sampling.get(modality, Sampling()), **{k: v for k, v in changes.items() if v is not None})

    def draw(self, prompts: Sequence[Document], sampling: Sampling, seed: int, batch: int = 256) -> list[Sampled]:
        """Continue prompts, `batch` at a time. Raises BadInput when guidance is asked of a run trained without a null condition."""
        if not prompts:
            return []
        if sampling.guidance != 1:
            self._check_guidance(prompts[0], sampling.guidance)
        drawn: list[Sampled] = []
        generator = torch.Generator(self.lm.device).manual_seed(seed)
        holes = bool(prompts[0].segments[-1].holes)
        modality = prompts[0].segments[-1].modality
        with Progress(f"draw {modality}", len(prompts), "samples") as progress:
            for start in range(0, len(prompts), batch):
                drawn += (fill_holes if holes else generate)(self.lm, prompts[start : start + batch], sampling, generator)
                progress.advance(len(drawn) - start)
        return drawn

    def _check_guidance(self, prompt: Document, guidance: float) -> None:
        """Raise BadInput unless the task that the prompt asks was trained with just these segments left out."""
        given, to = [s.modality for s in prompt.segments[:-1] if s is not None], prompt.segments[-1].modality
        task = self.task_for(given, to)
        if given and not (task.drop_given > 0 and len(given) == len(task.given)):
            raise BadInput(f"guidance {guidance} needs a run trained with drop_given > 0 on a task {' + '.join(given)} -> {to}")

    def score_documents(self, documents: Sequence[Document], lm: LM | None = None) -> list[Score]:
        """Score documents under the trained decoder (or another one, such as an untrained one)."""
        return score(lm or self.lm, documents)

    def describe(self) -> str:
        """What the run holds, for `mmtok show`."""
        return describe(self.recipe) + "\n" + _describe_folder(self)


# ---- opening, fitting, training


def best_device() -> torch.device:
    """The accelerator where there is one, else the CPU (CUDA_VISIBLE_DEVICES= hides the accelerator)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_run(folder: Path | str, recipe_file: Path | None = None) -> Run:
    """Open a run folder. recipe_file: the recipe's own Python file, when it brings classes from outside the package.

    Raises BadInput for a folder that is not a run.
    """
    folder = Path(folder)
    path = folder / "recipe.json"
    if not path.is_file():
        raise BadInput(f"{folder} is not a run folder: it has no recipe.json (make one with `mmtok train RECIPE --out {folder}`)")
    return Run(folder, read_recipe(path, tuple(kinds_of(load_recipe(recipe_file))) if recipe_file else ()))


def start_run(recipe: Recipe, out: Path) -> Run:
    """Make the run folder, or open it again. Raises BadInput when it was made from another recipe, naming what differs."""
    path = out / "recipe.json"
    if path.exists():
        old, new = _leaves(_read_json(path)), _leaves(json.loads(recipe.to_json()))
        changed = [f"{k}: {old.get(k, 'absent')} -> {new.get(k, 'absent')}" for k in {**old, **new} if old.get(k) != new.get(k)]
        if changed:
            shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise BadInput(f"{out} was made from another recipe ({shown}): choose another --out, or remove the folder")
    else:
        if out.exists() and any(out.iterdir()):
            raise BadInput(f"{out} is not empty and not a run folder: choose another --out")
        for source in recipe.sources:  # before anything is written: a mistyped path must not claim the folder
            if hasattr(source, "check"):
                source.check()
        _write_text(path, recipe.to_json())
    return Run(out, recipe)


def fit(recipe: Recipe, out: Path) -> Run:
    """Fit what its tokenizers learn, print their fidelity on held-out signals, and lay out the vocabulary; what stands is kept."""
    run = start_run(recipe, out)
    fields = recipe.fields
    for m, config in recipe.tokenizers.items():
        folder = out / "tokenizers" / m
        if (folder / "tokenizer.json").exists():
            say(f"{m} tokenizer stands")
            continue
        names = [f for f, modality in fields.items() if modality == m]
        tokenizer = fit_tokenizer(config, list(islice(_signals(run, "train", names), N_FIT)), recipe.train.seed)
        fidelity = tokenizer.fidelity(list(islice(_signals(run, "heldout", names), N_FIDELITY)))
        temporary = folder.with_name(f".{m}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            tokenizer.save(temporary)
            _write_text(temporary / "fidelity.json", json.dumps(fidelity, indent=1))
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        say(f"{m} tokenizer {tokenizer.signature.fingerprint}: " + ", ".join(f"{k} {v:.4g}" for k, v in fidelity.items()))
    vocabulary = run.vocabulary
    if not (out / "vocabulary.json").exists():
        _write_text(out / "vocabulary.json", json.dumps(vocabulary.as_dict(), indent=1))
    return run


def _signals(run: Run, split: str, names: Sequence[str]) -> Iterator[Any]:
    for source in run.recipe.sources:
        mine = [n for n in names if n in source.fields]
        if mine and split in source.splits:
            for example in source.examples(split, run.folder / "data"):
                yield from (example[n] for n in mine if n in example)


def tokenise(run: Run) -> None:
    """Write the training split of every source as a token file; what stands is kept."""
    fields = run.recipe.fields
    for i, source in enumerate(run.recipe.sources):
        path = run._token_path(i)
        if path.exists():
            say(f"{path.name} stands")
            continue
        mine = {f: run.tokenizers[fields[f]] for f in source.fields if fields[f] in run.tokenizers}
        with Progress(f"tokenise {type(source).__name__}", None, "examples") as progress:
            rows = _encoded(source.examples("train", run.folder / "data"), mine, progress)
            n = write_tokens(path, {f: t.signature for f, t in mine.items()}, rows)
        say(f"{path.name}: {n} examples")


def _encoded(examples: Iterator[Mapping[str, Any]], mine: Mapping[str, Tokenizer], progress: Progress) -> Iterator[dict[str, Segment]]:
    while chunk := list(islice(examples, 256)):
        columns = {}
        for f, tokenizer in mine.items():
            having = [i for i, e in enumerate(chunk) if f in e]
            columns[f] = dict(zip(having, tokenizer.encode_batch([chunk[i][f] for i in having])))
        yield from ({f: column[i] for f, column in columns.items() if i in column} for i in range(len(chunk)))
        progress.advance(len(chunk))


def train(recipe: Recipe, out: Path) -> Run:
    """Fit if needed, tokenise, train; the same call again resumes, and does nothing when all is done."""
    run = fit(recipe, out)
    if (out / "model.safetensors").exists():
        say(f"{out} is trained: nothing to do")
        return run
    _check_heads(run)
    lm = run.untrained()  # before the long work: sizes that do not fit are found here
    tokenise(run)
    config = recipe.train
    loader = Loader(run.token_files(), recipe.tasks, run.vocabulary, recipe.corrupt, config.rows, config.row_length, config.seed)
    log_path = out / "log.jsonl"
    trainer = Trainer(lm, loader, config, out / "checkpoints", lambda line: _log(log_path, line))
    if trainer.resume():
        say(f"resuming at step {trainer.step}")
    _write_text(log_path, "".join(json.dumps(x) + "\n" for x in read_log(log_path) if x["step"] <= trainer.step))
    say(f"training {sum(p.numel() for p in lm.parameters()) / 1e6:.2f} M parameters, {config.steps} steps of {config.rows} x {config.row_length} positions")
    with Progress("train", config.steps, "steps", done=trainer.step) as progress:
        trainer.run(lambda step: progress.advance())
    save_model(run, trainer.weights())
    return run


def _check_heads(run: Run) -> None:
    """Raise BadInput when a task makes many-channel frames that no head fills in."""
    for task in run.recipe.tasks:
        for name in (*task.make, *(task.given if task.predict_given else ())):
            m = run.recipe.fields[name]
            if not run.vocabulary.signatures[m].one_channel and m not in run.recipe.model.heads:
                raise BadInput(f"{m} is made by the task {task}, but model.heads has no head for it: add Parallel() or Chained()")


def _log(path: Path, line: dict) -> None:
    try:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file
    nats = " ".join(f"{m} {x:.3f}" for m, x in line["nats"].items() if x is not None)
    say(f"step {line['step']}: loss {line['loss']:.4f}, nats {nats}, {line['positions_per_s']:.0f} positions/s")


def save_model(run: Run, weights: Mapping[str, torch.Tensor]) -> None:
    """model.safetensors beside a config.json that names its own type, so that no loader drops the heads silently."""
    config = {"model_type": "mmtok", "vocabulary": run.vocabulary.fingerprint, "recipe": "recipe.json"}
    _write_text(run.folder / "config.json", json.dumps(config, indent=1))
    with _in_place_when_whole(run.folder / "model.safetensors") as temporary:
        save_tensors(temporary, weights)


def _write_text(path: Path, text: str) -> None:
    with _in_place_when_whole(path) as temporary:
        temporary.write_text(text)


@contextmanager
def _in_place_when_whole(path: Path) -> Iterator[Path]:
    """A temporary name to write under; the file appears under its own when it is whole, or nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error  # a full disk names no file
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # not JSON, or no text at all
        raise BadInput(f"{path} is not valid JSON: {error}") from None


def _leaves(node: Any, way: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {k: v for key, child in node.items() for k, v in _leaves(child, f"{way}.{key}" if way else key).items()}
    if isinstance(node, list):
        return {k: v for i, child in enumerate(node) for k, v in _leaves(child, f"{way}.{i}").items()}
    return {way: node}


# ---- descriptions


def describe(recipe: Recipe) -> str:
    """A recipe as text: its parts, tasks and sizes."""
    lines = [f"recipe {recipe.name}"]
    lines += [f"  {m}: {config}" for m, config in recipe.tokenizers.items()]
    lines += [f"  source {source}" for source in recipe.sources]
    lines += [f"  task {task}, weight {task.weight:g}" for task in recipe.tasks]
    return "\n".join([*lines, f"  {recipe.model}", f"  {recipe.train}"])


def _describe_folder(run: Run) -> str:
    lines = [f"run {run.folder}"]
    fitted = all((run.folder / "tokenizers" / m / "tokenizer.json").exists() for m in run.recipe.tokenizers)
    if fitted:
        lines.append(f"  vocabulary {run.vocabulary.fingerprint}: {run.vocabulary.size} ids")
        lines += [f"  {m}: {s.levels[:3] if len(s.levels) > 3 else s.levels}{'...' if len(s.levels) > 3 else ''} levels, tokenizer {s.fingerprint}"
                  for m, s in run.vocabulary.signatures.items()]
    steps = read_log(run.folder / "log.jsonl")
    trained = (run.folder / "model.safetensors").exists()
    at = f"step {steps[-1]['step']} of {run.recipe.train.steps}" if steps else "not started"
    lines.append(f"  training: {'done, ' if trained else ''}{at}" + (f", {sum(p.numel() for p in run.lm.parameters())} parameters" if trained else ""))
    return "\n".join(lines)
