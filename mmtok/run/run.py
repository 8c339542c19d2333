"""An opened run folder: its tokenizers, vocabulary and decoder; sampling and scoring with them.

RUN/recipe.json        the recipe, with all fields
    tokenizers/        a folder for each modality
    vocabulary.json    the tokenizers' signatures, and the fingerprint of their ids
    data/              what sources download or make
    tokens/            the training split, a folder of Parquet files for each source; stages.json,
                       where training began before all were made
    checkpoints/       to resume from
    log.jsonl          losses of the training
    notes.txt          warnings about the data
    model.safetensors  the trained decoder, with config.json
    samples/  evaluation.json  report.html
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.core.interleaved import INTERLEAVED
from mmtok.core.segment import Document, Segment, segment_of
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.interleaved import Interleaver, fields_of, interleaved_preparer
from mmtok.data.mapped import MAP_FROM
from mmtok.data.preparation import DEFAULTS, Preparer, load_preparation, prepared_examples, preparer
from mmtok.data.tasks import Task, order_fits, orders
from mmtok.data.tokens import TokenFile, read_tokens
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.io.files import digest, read_tensors
from mmtok.io.progress import Progress
from mmtok.io.tally import Tally
from mmtok.io.terminal import print_status
from mmtok.model.generate import generate, infill, stream
from mmtok.model.likelihood import LogLikelihood, score, score_part
from mmtok.model.lm import LM
from mmtok.model.queue import DrawQueue
from mmtok.model.sampling import Sampled
from mmtok.model.trajectory import trajectory_recorder
from mmtok.nn.deferred import record
from mmtok.nn.device import resolve_device
from mmtok.run.folder import read_fingerprint, read_sha256
from mmtok.run.recipe import Recipe, kinds_of, load_recipe, read_recipe
from mmtok.sources.base import Interleaved
from mmtok.tokenizers.base import Tokenizer, TokenizerConfig, naming
from mmtok.tokenizers.other_vocoder import vocoder_name, with_vocoder
from mmtok.train.checkpoint import Checkpoint, kept_weights, load_weights
from mmtok.train.checks import check_guidance

# of documents, with the size of groups as `Run.score_documents` takes it
Mixture = Callable[[Sequence[Document], int | None], list[LogLikelihood]]

SLOW_BATCH = 32  # documents scored at once where a likelihood takes many steps


class Run:
    """An opened run folder. Tokenizers, vocabulary and decoder are loaded when first used.

    All randomness comes from the recipe's seeds, and data is cached in the folder, so the same call
    has the same result each time.

    Attributes:
        folder: of the run.
        recipe: of the run.
        device: of the decoder; by default the best there is. Tokenizers stay on the CPU.
        step: of the checkpoint whose weights are used. None is the finished run, or the newest
            sound checkpoint while it is not finished.
        members: what scores with it, in words and numbers, see `mmtok.run.ensemble`.
        mixture: gives the scores of all members together, where there are any.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        device: torch.device | None = None,
        step: int | None = None,
    ) -> None:
        self.folder = folder
        self.recipe = recipe
        self.step = step
        self.device = device or resolve_device()
        self.members: Mapping[str, Any] = {}
        self.mixture: Mixture | None = None
        self._noted: dict[str, set] = {}  # source -> what was noted of its preparation

    @cached_property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """Modality -> tokenizer, in the recipe's order, which is the vocabulary's."""
        return {m: self._load_tokenizer(m) for m in self.recipe.tokenizers}

    def take_vocoder(self, name: Path) -> None:
        """Make sound of speech with another vocoder, see `with_vocoder`.

        Raises UserError where the run has no speech.
        """
        if "speech" not in self.tokenizers:
            raise UserError(f"--vocoder: {self.folder} has no speech; leave it out")
        self.tokenizers["speech"] = with_vocoder(self.tokenizers["speech"], name)

    @property
    def vocoder(self) -> str:
        """What makes the sound of speech, in figures; "" where nothing does, or not yet."""
        try:
            return vocoder_name(self.tokenizers.get("speech"))
        except UserError:
            return ""

    def _load_tokenizer(self, modality: str) -> Tokenizer:
        config = self.recipe.tokenizers[modality]
        folder = self.folder / "tokenizers" / modality
        if not (folder / "tokenizer.json").exists():
            raise UserError(
                f"{self.folder} has no fitted {modality} tokenizer yet; run `mmtok train` on its"
                " recipe"
            )
        with naming(folder):
            tokenizer = config.load(folder)
        found = tokenizer.signature.modality
        if found != modality:
            raise UserError(
                f"{folder} holds a tokenizer of {found}, not of {modality}: put back what was"
                " fitted there, or remove the folder and fit again"
            )
        preparation = self.recipe.preparation.get(modality)
        if modality in DEFAULTS and load_preparation(folder, modality) != preparation:
            raise UserError(
                f"{folder} prepares {modality} in another way than the run's recipe.json: put back"
                " the preparation.json that was there"
            )
        return tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizers' vocabulary, checked against the one the run was trained with."""
        vocabulary = Vocabulary([t.signature for t in self.tokenizers.values()])
        path = self.folder / "vocabulary.json"
        if path.exists():
            vocabulary.check(read_fingerprint(path), str(self.folder))
        return vocabulary

    # ---- the decoder

    @cached_property
    def lm(self) -> LM:
        """The trained decoder, or as far as it is trained.

        Raises UserError if there are no weights yet, or none that can be read.
        """
        checkpoint = self._checkpoint
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
        path = self.folder / "model.safetensors"
        try:
            _check_digest(path)
            lm.load_state_dict(read_tensors(path))
        except Exception as error:  # safetensors has its own type; torch's message is long
            raise UserError(
                f"{path} cannot be loaded ({str(error).splitlines()[0]}): remove it, and `mmtok"
                " train` makes it again from the last checkpoint"
            ) from None
        return lm.eval()

    @property
    def trained(self) -> dict[str, int]:
        """How far the decoder is trained: {"step": 400, "of": 900}.

        Raises UserError as `lm` does.
        """
        n_steps = self.recipe.train.steps
        step = n_steps
        if self._checkpoint is not None:
            step = self._checkpoint.state["step"]
        return {"step": step, "of": n_steps}

    @cached_property
    def _checkpoint(self) -> Checkpoint | None:
        """The checkpoint whose weights are used, with a note; None for a finished run's weights."""
        if self.step is None and (self.folder / "model.safetensors").exists():
            return None
        self._check_tasks()
        found = load_weights(self.folder / "checkpoints", self.step)
        if found is None:
            raise UserError(
                f"{self.folder} holds no trained model yet, nor a checkpoint; `mmtok train` on its"
                " recipe makes them"
            )
        self.vocabulary.check(found.state["vocabulary"], f"the checkpoint in {self.folder}")
        line = (
            f"these are the weights of its checkpoint at step {found.state['step']} of"
            f" {self.recipe.train.steps}"
        )
        if self.step is None:
            line = f"{self.folder} is not trained to its end: {line}"
        self.note(line)
        return found

    def _check_tasks(self) -> None:
        """Raise UserError where there is no decoder, and will not be."""
        if not self.recipe.learned:
            raise UserError(
                f"{self.folder} has tokenizers alone, as its recipe has no tasks: there is no"
                " decoder to ask; `mmtok tokenize` and `mmtok detokenize` take --tokenizer"
                f" {self.folder / 'tokenizers'}"
            )

    def note(self, line: str) -> None:
        """Print a note for the user; under torchrun only rank 0 does."""
        print_status(line)

    def untrained(self, device: torch.device | None = None) -> LM:
        """A freshly initialised decoder, from the recipe's seed, by default on the run's device.

        Raises UserError for heads that do not fit, or that the device cannot compute.
        """
        device = device or self.device
        with self._first_seed():
            lm = LM(self.recipe.model, self.vocabulary)
        if device.type == "mps":
            diffused = [m for m in self.vocabulary.signatures if lm.kind(m) != "exact"]
            if diffused:
                raise UserError(
                    f"--device mps: {', '.join(diffused)} is drawn by diffusion, which needs"
                    " float64, and MPS has none; say --device cpu"
                )
        return lm.to(device).eval()

    def deferred(self) -> tuple[LM, Callable[[], None]]:
        """The decoder of `untrained` on the meta device, and what writes its first values.

        That is to be called when its weights are sharded; nobody needs memory for all of them.
        """
        with self._first_seed():
            lm, made = record(partial(LM, self.recipe.model, self.vocabulary))

        def fill() -> None:
            with self._first_seed():
                made.fill(lm)

        return lm.eval(), fill

    @contextmanager
    def _first_seed(self) -> Iterator[None]:
        """The recipe's seed for the block; what is drawn elsewhere does not change."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.train.seed)
            yield

    # ---- examples

    def examples(self, split: str, *fields: str) -> Iterator[dict[str, Any]]:
        """Prepared examples of a split that have these fields, from all sources that have it."""
        wanted = set(fields)
        for source in self.recipe.sources:
            if split in source.splits and wanted <= set(source.fields):
                for example in self.examples_of(source, split):
                    if wanted <= example.keys():
                        yield example

    def examples_of(self, source: Any, split: str) -> Iterator[dict[str, Any]]:
        """A source's examples of a split, each signal prepared for its tokenizer.

        What the preparation changes is noted once for each source and split.
        """
        split_name = {"train": "", "heldout": "held-out"}.get(split, split)
        examples = source.examples(split, self.folder / "data")
        yield from prepared_examples(
            examples, self.preparers_of(source), split_name, self.noted_of(source)
        )

    def preparers_of(self, source: Any) -> dict[str, Preparer]:
        """The preparer of each field of a source that has a tokenizer, or parts that have."""
        found = {}
        for f, m in source.fields.items():
            if m == INTERLEAVED:
                found[f] = self.interleaved_preparer()
            elif m in self.recipe.tokenizers:
                found[f] = self.preparer(m)
        return found

    def interleaved_preparer(self) -> Preparer:
        """Prepares the parts of interleaved documents, each as its modality."""
        return interleaved_preparer({m: self.preparer(m) for m in self.recipe.tokenizers})

    def noted_of(self, source: Any) -> set[tuple[str, str]]:
        """What was noted so far of the preparation of a source's signals, see `Tally`."""
        return self._noted.setdefault(repr(source), set())

    def preparer(self, modality: str) -> Preparer:
        """Turns raw signals of a modality into those that its tokenizer takes."""
        return preparer(
            modality, self.tokenizer_config(modality), self.recipe.preparation.get(modality)
        )

    def tokenizer_config(self, modality: str) -> TokenizerConfig:
        """The recipe's config of a tokenizer, with the files that the run keeps for it."""
        return self.recipe.tokenizers[modality].kept_in(self.folder / "tokenizers" / modality)

    def encode(self, modality: str, signals: Sequence[Any]) -> list[Segment]:
        """Raw signals as segments, prepared as in training."""
        prepare = self.preparer(modality)
        prepared = []
        with Tally(prepare.unit, self._noted.setdefault(modality, set())) as tally:
            for i, signal in enumerate(signals):
                name = repr(signal[:40]) if isinstance(signal, str) else f"{modality} {i}"
                prepared.append(prepare(signal, name, tally))
        return self.tokenizers[modality].encode_batch(prepared)

    def document(self, signal: Interleaved, name: str) -> Document:
        """A raw interleaved document as segments, prepared as in training.

        name: what messages call it.
        """
        return self.prepared_document(self.interleaved_preparer()(signal, name), name)

    def prepared_document(self, signal: Interleaved, name: str) -> Document:
        """The same of a document whose signals are prepared."""
        [parts] = Interleaver(self.tokenizers).encode([(name, signal)])
        return Document(tuple(s for s, _ in parts), tuple(predict for _, predict in parts))

    def token_files(self, parts: Sequence[int] | None = None) -> list[TokenFile]:
        """The tokenised training split, one folder of files per source, opened as one.

        Large files are memory-mapped, so that processes share them.

        parts: how many of each source, from the first on, where they need not all be made.

        Raises UserError where they are not made, or not all of them.
        """
        files = []
        counts: Sequence[int | None] = parts or [None] * len(self.recipe.sources)
        for i, (source, n) in enumerate(zip(self.recipe.sources, counts, strict=True)):
            signatures = fields_of(source.fields, self.tokenizers)
            files.append(read_tokens(self.token_path(i), signatures, MAP_FROM, n))
        return files

    def token_path(self, i: int) -> Path:
        """The folder of the tokenised training split of source number i."""
        return self.folder / "tokens" / f"{i}-{type(self.recipe.sources[i]).__name__}"

    # ---- sampling

    def task_for(self, condition: Sequence[str], to: str) -> Task:
        """The trained task that makes modality `to` from segments of the modalities `condition`.

        Raises UserError, with the tasks there are, if there is none.
        """
        self._check_tasks()
        trained = orders(self.recipe.tasks, self.recipe.fields)
        for inputs, target, task in trained:
            if inputs == tuple(condition) and target == to:
                return task
        for inputs, target, task in trained:
            if to in self.recipe.tokenizers and order_fits(tuple(condition), to, inputs, target):
                return task
        known = dict.fromkeys(_order_text(inputs, target) for inputs, target, _ in trained)
        raise UserError(
            f"this run was never trained on {_order_text(condition, to)}; it was on:"
            f" {', '.join(known)}"
        )

    def prompt(
        self, condition: Sequence[Segment], to: str, known: Segment | None = None
    ) -> Document:
        """An open document whose last segment, of modality `to`, is to be sampled.

        Args:
            condition: the segments before it; () leaves the condition out.
            to: the modality.
            known: frames of the segment that are known already.
        """
        task = self.task_for([s.modality for s in condition], to)
        head: tuple[Segment | None, ...] = tuple(condition) or (None,) * len(task.inputs)
        known = known or segment_of(self.vocabulary.signatures[to])
        return Document((*head, known), (False,) * len(head) + (True,), open_end=True)

    def sampling(self, modality: str, **changes: Any) -> Sampling:
        """The recipe's sampling of a modality, with the changes that are not None.

        changes: fields of `Sampling`.
        """
        sampling = self.recipe.sampling.get(modality, Sampling())
        return replace(sampling, **{k: v for k, v in changes.items() if v is not None})

    def draw(
        self, prompts: Sequence[Document], sampling: Sampling, seed: int, batch: int = 256
    ) -> list[Sampled]:
        """Sample the continuations of prompts, `batch` at a time.

        For pictures and spectrograms of non-autoregressive heads, the first samples have
        trajectories (`mmtok.model.trajectory`). Raises UserError if guidance is asked of a run
        trained without the null condition.
        """
        if not prompts:
            return []
        sampling = self._checked_guidance(prompts, sampling)
        samples: list[Sampled] = []
        generator = torch.Generator(self.lm.device).manual_seed(seed)
        last = prompts[0].target
        continue_prompts = infill if last.infill_spans else generate
        recorder = None
        if self.tokenizers[last.modality].has_pictures:
            recorder = trajectory_recorder(self.lm, prompts[:batch], sampling)
        with Progress(f"draw {last.modality}", len(prompts), "samples") as progress:

            def callback(step: int, frames: Tensor) -> None:
                """Show progress after each denoising step; keep the first batch's states."""
                progress.advance(0, f"step {next(steps)}")
                if recorder is not None and not samples:
                    recorder.callback(step, frames)

            for start in range(0, len(prompts), batch):
                steps = count(1)  # of this batch
                some = prompts[start : start + batch]
                samples += continue_prompts(self.lm, some, sampling, generator, callback=callback)
                progress.advance(len(samples) - start, "")
        if recorder is None:
            return samples
        return recorder.attach(samples)

    def stream(
        self, prompts: Sequence[Document], sampling: Sampling, seed: int
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, list[Sampled]]:
        """As `draw`, for one batch, a frame at a time: see `mmtok.model.generate.stream`."""
        sampling = self._checked_guidance(prompts, sampling)
        generator = torch.Generator(self.lm.device).manual_seed(seed)
        return (yield from stream(self.lm, prompts, sampling, generator))

    def queue(self, modality: str, rows: int = 64, **changes: Any) -> DrawQueue:
        """A queue of prompts for a modality, new ones of which join while others are drawn.

        Args:
            modality: what is drawn.
            rows: how many prompts are drawn at once, at most.
            changes: of the recipe's sampling, as of `sampling`.

        Raises:
            UserError: As of `DrawQueue`, and for guidance of a run that was trained without the
                null condition.
        """
        sampling = self.sampling(modality, **changes)
        check_guidance(self.recipe.tasks, self.recipe.fields, {modality: sampling})
        return DrawQueue(self.lm, modality, sampling, rows)

    def _checked_guidance(self, prompts: Sequence[Document], sampling: Sampling) -> Sampling:
        """The sampling, without guidance if no prompt has a condition: it would cost twice as much.

        Raises UserError unless the prompts' tasks were trained with their condition dropped.
        """
        if sampling.guidance == 1:
            return sampling
        prompt_orders = dict.fromkeys(
            (tuple(s.modality for s in p.segments[:-1] if s is not None), p.target.modality)
            for p in prompts
        )
        for condition, to in prompt_orders:
            if condition and not self.task_for(condition, to).leaves_out(len(condition)):
                raise UserError(
                    f"guidance {sampling.guidance} needs a run trained with cond_dropout > 0 on a"
                    f" task {' + '.join(condition)} -> {to}"
                )
        if any(condition for condition, _ in prompt_orders):
            return sampling
        return replace(sampling, guidance=1.0)

    # ---- scoring

    def score_documents(
        self,
        documents: Sequence[Document],
        lm: LM | None = None,
        group_size: int | None = None,
    ) -> list[LogLikelihood]:
        """LogLikelihood documents under the trained decoder.

        Args:
            documents: with the segments whose -log p is asked for marked as predicted.
            lm: another decoder, such as an untrained one.
            group_size: where a likelihood is a random estimate or bound, every group of so many
                documents has the same random numbers, so that likelihoods of one signal under
                several conditions can be compared. By default no two documents share them, so
                their errors average out.
        """
        if lm is None and self.mixture is not None:
            return self.mixture(documents, group_size)
        lm = lm or self.lm
        predicted = _predicted_modalities(documents)
        random_kinds = {"estimate"}
        if group_size is not None:
            random_kinds.add("bound")
        if not any(lm.kind(m) in random_kinds for m in predicted):
            with Progress("score", len(documents), "documents") as progress:
                return score(lm, documents, on_scored=progress.advance)
        scores: list[LogLikelihood] = []
        label = f"score {', '.join(sorted(predicted))}"
        with Progress(label, len(documents), "documents") as progress:
            while (start := len(scores)) < len(documents):
                # the random numbers depend on the place in the group
                size = group_size or len(documents)
                place = start % size
                some = documents[start : start + min(SLOW_BATCH, size - place)]
                scores += score(lm, some, seed=place)
                progress.advance(len(scores) - start)
        return scores

    def score_part(
        self, documents: Sequence[Document], k: int, n: int, lm: LM | None = None
    ) -> dict[int, LogLikelihood]:
        """Part k of n of what `score_documents` gives, by the documents' numbers."""
        lm = lm or self.lm
        if not any(lm.kind(m) == "estimate" for m in _predicted_modalities(documents)):
            return score_part(lm, documents, k, n)
        scores: dict[int, LogLikelihood] = {}
        for start in range(k * SLOW_BATCH, len(documents), n * SLOW_BATCH):
            some = documents[start : start + SLOW_BATCH]
            scores |= enumerate(score(lm, some, seed=start), start)
        return scores


def _order_text(condition: Sequence[str], to: str) -> str:
    """An order of modalities in words: "text -> image"."""
    return f"{' + '.join(condition) or 'nothing'} -> {to}"


def _predicted_modalities(documents: Sequence[Document]) -> set[str]:
    """The modalities whose probability is asked for."""
    return {
        segment.modality
        for document in documents
        for segment, predicted in zip(document.segments, document.predict, strict=True)
        if predicted and segment is not None
    }


def _check_digest(weights: Path) -> None:
    """Raise ValueError unless the file has the SHA-256 in config.json, if that has one."""
    written = read_sha256(weights.with_name("config.json"))
    if written is not None and written != digest(weights):
        raise ValueError("it is not what was written: its SHA-256 is not the one in config.json")


def open_run(
    folder: Path | str,
    recipe_file: Path | None = None,
    device: torch.device | None = None,
    step: int | None = None,
) -> Run:
    """Open a run folder.

    Raises UserError if it is none.

    Args:
        folder: of the run.
        recipe_file: the recipe's own Python file, if it defines classes of its own.
        device: of the decoder; None is the best there is.
        step: of the checkpoint whose weights are used (see `Run`).
    """
    folder = Path(folder)
    path = folder / "recipe.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run folder: it has no recipe.json (make one with `mmtok train"
            f" RECIPE --out {folder}`)"
        )
    kinds: tuple[type, ...] = ()
    if recipe_file:
        kinds = tuple(kinds_of(load_recipe(recipe_file)))
    return Run(folder, read_recipe(path, kinds), device, step)
