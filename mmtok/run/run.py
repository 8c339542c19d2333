"""A run folder, opened: the live objects in it, and the questions they answer.

RUN/recipe.json  tokenizers/MODALITY/  tokens/*.parquet  vocabulary.json  model.safetensors +
                 config.json
    log.jsonl  checkpoints/  samples/  evaluation.json  report.html
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Document, Segment, segment_of
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.mapped import MAP_FROM
from mmtok.data.preparation import DEFAULTS, Preparer, load_preparation, prepared_examples, preparer
from mmtok.data.tasks import Task, orders
from mmtok.data.tokens import TokenFile, read_tokens
from mmtok.errors import UserError
from mmtok.io.files import read_tensors
from mmtok.io.progress import Progress
from mmtok.io.tally import Tally
from mmtok.io.terminal import print_status
from mmtok.model.generate import fill_holes, generate, stream
from mmtok.model.likelihood import LogLikelihood, score, score_part
from mmtok.model.lm import LM
from mmtok.model.sampling import Sampled, Sampling
from mmtok.model.trajectory import trajectory_recorder
from mmtok.nn.device import resolve_device
from mmtok.run.folder import read_fingerprint, read_sha256
from mmtok.run.recipe import Recipe, kinds_of, load_recipe, read_recipe
from mmtok.tokenizers.base import Tokenizer, naming
from mmtok.train.checkpoint import Checkpoint, digest, kept_weights, load_weights

# documents that are scored between two lines about it, where the likelihood is solved for in steps
SLOW_AT_ONCE = 32


class Run:
    """An opened run folder: its recipe, tokenizers, vocabulary and decoder, each opened when first
    asked for.

    seeds and cached data live in the folder, so that every question to the run has one answer.
    device: the decoder's; by default the
    best there is. Tokenizers stay on the CPU. step: of the checkpoint whose weights are taken; by
    default those of the finished run, or, while it is not finished, of its newest sound checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        device: torch.device | None = None,
        step: int | None = None,
    ):
        self.folder, self.recipe, self.step = folder, recipe, step
        self.device = device or resolve_device()
        self._said: dict[str, set] = {}  # of each source, what was said of its preparation

    @cached_property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """Modality -> tokenizer, in the recipe's order, which is the vocabulary's."""
        found = {}
        for m, config in self.recipe.tokenizers.items():
            folder = self.folder / "tokenizers" / m
            if not (folder / "tokenizer.json").exists():
                raise UserError(
                    f"{self.folder} has no fitted {m} tokenizer yet; run `mmtok train` on its"
                    " recipe"
                )
            with naming(folder):
                found[m] = config.load(folder)
            if found[m].signature.modality != m:
                raise UserError(
                    f"{folder} holds a tokenizer of {found[m].signature.modality}, not of {m}: put"
                    " back what was fitted there, or remove the folder and fit again"
                )
            if m in DEFAULTS and load_preparation(folder, m) != self.recipe.preparation[m]:
                raise UserError(
                    f"{folder} prepares {m} in another way than the run's recipe.json: put back the"
                    " preparation.json that was there"
                )
        return found

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Laid out from the tokenizers, and checked against the one that the run was trained with."""
        vocabulary = Vocabulary([t.signature for t in self.tokenizers.values()])
        path = self.folder / "vocabulary.json"
        if path.exists():
            vocabulary.check(read_fingerprint(path), str(self.folder))
        return vocabulary

    @cached_property
    def lm(self) -> LM:
        """The trained decoder, or as far as it is trained.

        Raises UserError where there are no weights yet, or none that can be read.
        """
        checkpoint, path = self._checkpoint, self.folder / "model.safetensors"
        lm = self.untrained()
        if checkpoint is not None:
            try:
                lm.load_state_dict(kept_weights(checkpoint))
            except (RuntimeError, LookupError) as error:
                raise UserError(
                    f"the checkpoint of step {checkpoint.state['step']} in {self.folder} cannot be"
                    f" loaded ({str(error).splitlines()[0]}): it was not made from the recipe.json"
                    " beside it"
                ) from None
            return lm.eval()
        try:
            _check_digest(path)
            lm.load_state_dict(read_tensors(path))
        except (
            Exception
        ) as error:  # safetensors raises its own type, torch a RuntimeError that lists every key
            raise UserError(
                f"{path} cannot be loaded ({str(error).splitlines()[0]}): remove it, and `mmtok"
                " train` makes it again from the last checkpoint"
            ) from None
        return lm.eval()

    @property
    def trained(self) -> dict[str, int]:
        """After which step the decoder's weights are, and of how many: {"step": 400, "of": 900}.

        Raises UserError as `lm` does.
        """
        of = self.recipe.train.steps
        return {
            "step": of if self._checkpoint is None else self._checkpoint.state["step"],
            "of": of,
        }

    @cached_property
    def _checkpoint(self) -> Checkpoint | None:
        """The checkpoint whose weights are taken, which is said; None for those of the finished
        run.
        """
        if self.step is None and (self.folder / "model.safetensors").exists():
            return None
        found = load_weights(self.folder / "checkpoints", self.step)
        if found is None:
            raise UserError(
                f"{self.folder} holds no trained model yet, nor a checkpoint; `mmtok train` on its"
                " recipe makes them"
            )
        self.vocabulary.check(found.state["vocabulary"], f"the checkpoint in {self.folder}")
        unfinished = f"{self.folder} is not trained to its end: " if self.step is None else ""
        self.note(
            f"{unfinished}these are the weights of its checkpoint at step {found.state['step']} of"
            f" {self.recipe.train.steps}"
        )
        return found

    def note(self, line: str) -> None:
        """Say what whoever asks should know; of several processes the first does."""
        print_status(line)

    def untrained(self, device: torch.device | None = None) -> LM:
        """A freshly initialised decoder of this run, from the recipe's seed, on this device or the
        run's. Raises UserError for heads that cannot be there.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.train.seed)
            lm, home = LM(self.recipe.model, self.vocabulary), device or self.device
        drawn = (
            [m for m in self.vocabulary.signatures if lm.kind(m) != "exact"]
            if home.type == "mps"
            else []
        )
        if drawn:
            raise UserError(
                f"--device mps: {', '.join(drawn)} is drawn by diffusion, which needs float64, and"
                " MPS has none; say --device cpu"
            )
        return lm.to(home).eval()

    # ---- examples

    def examples(self, split: str, *fields: str) -> Iterator[dict[str, Any]]:
        """Prepared examples of a split that have these fields, from all sources that have the
        split.
        """
        for source in self.recipe.sources:
            if split in source.splits and set(fields) <= set(source.fields):
                yield from self.examples_of(source, split)

    def examples_of(self, source: Any, split: str) -> Iterator[dict[str, Any]]:
        """A source's examples of a split, each signal prepared for its tokenizer; what is done is
        said once for source and split.
        """
        preparers = {
            f: self.preparer(m) for f, m in source.fields.items() if m in self.recipe.tokenizers
        }
        of = {"train": "", "heldout": "held-out"}.get(split, split)
        said = self._said.setdefault(repr(source), set())
        yield from prepared_examples(
            source.examples(split, self.folder / "data"), preparers, of, said
        )

    def preparer(self, modality: str) -> Preparer:
        """What makes raw signals of a modality those that its tokenizer takes."""
        return preparer(
            modality, self.recipe.tokenizers[modality], self.recipe.preparation.get(modality)
        )

    def encode(self, modality: str, signals: Sequence[Any]) -> list[Segment]:
        """Raw signals as segments, prepared as those of the training were."""
        prepare = self.preparer(modality)
        with Tally(prepare.unit) as tally:
            named = lambda i, signal: (
                repr(signal[:40]) if isinstance(signal, str) else f"{modality} {i}"
            )
            prepared = [
                prepare(signal, named(i, signal), tally) for i, signal in enumerate(signals)
            ]
        return self.tokenizers[modality].encode_batch(prepared)

    def token_files(self) -> list[TokenFile]:
        """The tokenised training split, one file per source; large ones through maps that all
        processes share.
        """
        fields = self.recipe.fields
        signatures = lambda source: {
            f: self.tokenizers[fields[f]].signature
            for f in source.fields
            if fields[f] in self.tokenizers
        }
        return [
            read_tokens(self.token_path(i), signatures(source), MAP_FROM)
            for i, source in enumerate(self.recipe.sources)
        ]

    def token_path(self, i: int) -> Path:
        """Where the tokenised training split of source number i is."""
        return self.folder / "tokens" / f"{i}-{type(self.recipe.sources[i]).__name__}.parquet"

    # ---- questions to the model

    def task_for(self, given: Sequence[str], to: str) -> Task:
        """The trained task that makes `to` from segments of the modalities `given`.

        Raises UserError with the tasks there are.
        """
        there = orders(self.recipe.tasks, self.recipe.fields)
        for read, made, task in there:
            if read == tuple(given) and made == to:
                return task
        trained = dict.fromkeys(
            f"{' + '.join(read) or 'nothing'} -> {made}" for read, made, _ in there
        )
        asked = f"{' + '.join(given) or 'nothing'} -> {to}"
        raise UserError(f"this run was never trained on {asked}; it was on: {', '.join(trained)}")

    def prompt(self, given: Sequence[Segment], to: str, known: Segment | None = None) -> Document:
        """An open document that asks for a segment of modality `to`; `known` frames of it may be
        given.
        """
        task = self.task_for([s.modality for s in given], to)
        head: tuple[Segment | None, ...] = tuple(given) or (None,) * len(task.inputs)
        signature = self.vocabulary.signatures[to]
        known = known or segment_of(signature)
        return Document((*head, known), (False,) * len(head) + (True,), open_end=True)

    def sampling(self, modality: str, **changes: float | int | str | None) -> Sampling:
        """The recipe's way to draw a modality, with what is not None changed."""
        return replace(
            self.recipe.sampling.get(modality, Sampling()),
            **{k: v for k, v in changes.items() if v is not None},
        )

    def draw(
        self, prompts: Sequence[Document], sampling: Sampling, seed: int, batch: int = 256
    ) -> list[Sampled]:
        """Continue prompts, `batch` at a time.

        Raises UserError when guidance is asked of a run trained without a null condition.

        Of pictures and spectrograms that a head draws in steps the first have states that they went
        through (`mmtok.model.trajectory`).
        """
        if not prompts:
            return []
        sampling = self._guided(prompts, sampling)
        drawn: list[Sampled] = []
        generator = torch.Generator(self.lm.device).manual_seed(seed)
        holes = bool(prompts[0].segments[-1].holes)
        modality = prompts[0].segments[-1].modality
        fill, strips = (
            fill_holes if holes else generate,
            trajectory_recorder(self.lm, prompts[:batch], sampling),
        )
        with Progress(f"draw {modality}", len(prompts), "samples") as progress:

            def callback(step: int, frames: Tensor) -> None:
                """Of a head that draws in steps: that it is at work, and for the first batch what
                it looks like.
                """
                progress.advance(0, f"step {next(steps)}")
                if strips is not None and not drawn:
                    strips.callback(step, frames)

            for start in range(0, len(prompts), batch):
                steps = count(1)  # of this batch
                drawn += fill(
                    self.lm, prompts[start : start + batch], sampling, generator, callback=callback
                )
                progress.advance(len(drawn) - start, "")
        return drawn if strips is None else strips.attach(drawn)

    def stream(
        self, prompts: Sequence[Document], sampling: Sampling, seed: int
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, list[Sampled]]:
        """Continue one batch of prompts, a frame at a time, and return what `draw` does: see
        `mmtok.model.generate.stream`.
        """
        sampling = self._guided(prompts, sampling)
        return (
            yield from stream(
                self.lm, prompts, sampling, torch.Generator(self.lm.device).manual_seed(seed)
            )
        )

    def _guided(self, prompts: Sequence[Document], sampling: Sampling) -> Sampling:
        """The sampling; without guidance, which would only cost twice as much, where no prompt
        gives anything that it could lead to.

        Raises UserError unless the tasks that the prompts ask were trained with just the given
        segments left out.
        """
        if sampling.guidance == 1:
            return sampling
        asked = dict.fromkeys(
            (tuple(s.modality for s in p.segments[:-1] if s is not None), p.segments[-1].modality)
            for p in prompts
        )
        for given, to in asked:
            if given and not self.task_for(given, to).leaves_out(len(given)):
                raise UserError(
                    f"guidance {sampling.guidance} needs a run trained with cond_dropout > 0 on a"
                    f" task {' + '.join(given)} -> {to}"
                )
        return sampling if any(given for given, _ in asked) else replace(sampling, guidance=1.0)

    def score_documents(
        self, documents: Sequence[Document], lm: LM | None = None, at_once: int | None = None
    ) -> list[LogLikelihood]:
        """Score documents under the trained decoder (or another one, such as an untrained one).

        at_once: where a likelihood is drawn ("estimate", "bound"), every so many documents have the
        same random draws, so that likelihoods of one signal under several conditions compare. By
        default no two documents share theirs: their errors average out.
        """
        lm = lm or self.lm
        asked = _asked(documents)
        random = {"estimate"} if at_once is None else {"estimate", "bound"}
        if not any(lm.kind(m) in random for m in asked):
            with Progress("score", len(documents), "documents") as progress:
                return score(lm, documents, on_scored=progress.advance)
        scored: list[LogLikelihood] = []
        with Progress(f"score {', '.join(sorted(asked))}", len(documents), "documents") as progress:
            while (start := len(scored)) < len(documents):
                first = start % (at_once or len(documents))  # of its lot: by this the draws go
                size = min(SLOW_AT_ONCE, (at_once or len(documents)) - first)
                scored += score(lm, documents[start : start + size], seed=first)
                progress.advance(len(scored) - start)
        return scored

    def score_part(
        self, documents: Sequence[Document], k: int, n: int, lm: LM | None = None
    ) -> dict[int, LogLikelihood]:
        """Part k of n of what `score_documents` gives, by the documents' numbers."""
        lm = lm or self.lm
        if not any(lm.kind(m) == "estimate" for m in _asked(documents)):
            return score_part(lm, documents, k, n)
        scored: dict[int, LogLikelihood] = {}
        for start in range(k * SLOW_AT_ONCE, len(documents), n * SLOW_AT_ONCE):
            scored |= enumerate(
                score(lm, documents[start : start + SLOW_AT_ONCE], seed=start), start
            )
        return scored


def _asked(documents: Sequence[Document]) -> set[str]:
    """The modalities whose probability is asked for."""
    return {
        s.modality
        for d in documents
        for s, predicted in zip(d.segments, d.predict)
        if predicted and s is not None
    }


def _check_digest(weights: Path) -> None:
    """Raise ValueError unless the file has the SHA-256 that config.json beside it says; a run from
    before it said so is taken as it is.
    """
    written = read_sha256(weights.with_name("config.json"))
    if written is not None and written != digest(weights):
        raise ValueError("it is not what was written: its SHA-256 is not the one in config.json")


def open_run(
    folder: Path | str,
    recipe_file: Path | None = None,
    device: torch.device | None = None,
    step: int | None = None,
) -> Run:
    """Open a run folder. recipe_file: the recipe's own Python file, when it brings classes from
    outside the package.
    device: where its decoder computes; None is the best there is. step: of the checkpoint whose
    weights are taken, as `Run` says.

    Raises UserError for a folder that is not a run.
    """
    folder = Path(folder)
    path = folder / "recipe.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run folder: it has no recipe.json (make one with `mmtok train"
            f" RECIPE --out {folder}`)"
        )
    return Run(
        folder,
        read_recipe(path, tuple(kinds_of(load_recipe(recipe_file))) if recipe_file else ()),
        device,
        step,
    )
