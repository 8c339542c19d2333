"""Makes a run: starts its folder, fits its tokenizers, tokenises, trains.

What stands is kept, so the same call goes on.

The only place that builds live objects from a recipe; what is opened again and asked afterwards is
a `Run` (opened.py).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtok.core.segment import Segment
from mmtok.data.loader import Loader
from mmtok.data.preparation import save_preparation
from mmtok.data.subset import random_subset
from mmtok.data.tasks import check_rows
from mmtok.data.tokens import TokenFile, write_tokens
from mmtok.errors import UserError
from mmtok.io.files import (
    atomic_write,
    is_temporary,
    remove_leftovers,
    save_tensors,
    write_text,
)
from mmtok.io.locks import LOCK, folder_lock
from mmtok.io.messages import counted
from mmtok.io.overrides import leaves
from mmtok.io.progress import Progress, span_text
from mmtok.io.strict_json import read_json
from mmtok.io.terminal import print_status
from mmtok.model.lm import LM, fitting_heads
from mmtok.nn.device import resolve_device, stay_on_cpu
from mmtok.run.folder import is_begun, noted
from mmtok.run.pretrained import load_start, settled
from mmtok.run.recipe import Recipe, kinds_of
from mmtok.run.run import Run, open_run
from mmtok.run.signatures import planned_signatures
from mmtok.tokenizers.base import Tokenizer, counting, encode_named
from mmtok.train.checkpoint import digest, load_checkpoint, planned_steps
from mmtok.train.checks import (
    check_bands,
    check_cuts,
    check_guidance,
    note_pairing,
    note_spreads,
)
from mmtok.train.config import TrainConfig
from mmtok.train.distributed import Processes, init_distributed
from mmtok.train.log import read_log
from mmtok.train.schedule import schedule_text
from mmtok.train.tensorboard import Board, need_tensorboard
from mmtok.train.tokenizer_fit import fit_tokenizer
from mmtok.train.trainer import Trainer

__all__ = ["Run", "fit", "open_run", "save_model", "start_run", "tokenise", "train"]

N_FIT = 4_000  # signals that a tokenizer is fitted to at most
N_FIDELITY = 64  # held-out signals that its fidelity is measured on
FORETOLD = 10  # steps after which it is said how long a training will take
N_COUNTED = 200  # segments of a field whose customary units are counted
HOW = {
    "train.fsdp",
    "train.activation_checkpointing",
    "train.compile",
}  # fields that say how a run is made, not what it is: they may change on the way


def start_run(recipe: Recipe, out: Path) -> Run:
    """Make the run folder, or open it again.

    Raises UserError when it was made from another recipe, naming what differs.

    While nothing is trained, a recipe by which all that stands would have been made too takes the
    place of the one that is there: what is found wrong on the way can be set right by the same call
    with other fields.
    """
    path, signatures = out / "recipe.json", planned_signatures(recipe)
    check_rows(
        recipe.tasks,
        recipe.train.seq_len,
        {f: (m in signatures and signatures[m].frames) or 0 for f, m in recipe.fields.items()},
    )
    if not is_begun(out):  # a trained run keeps its recipe, and may be asked for another guidance
        check_guidance(recipe.tasks, recipe.fields, recipe.sampling)
    if path.exists():
        changed = _changed(path, recipe)
        refused = (
            changed
            if is_begun(out)
            else {k: pair for k, pair in changed.items() if _made_by(k, out)}
        )
        if refused:
            raise UserError(
                f"{out} was made from another recipe ({_told(refused)}): choose another --out, or"
                " remove the folder"
            )
        if any(k.startswith("sources.") for k in changed):
            _check_sources(recipe)
        if changed:
            write_text(path, recipe.to_json())
            print_status(
                f"nothing is trained in {out} yet, so its recipe is changed ({_told(changed)})"
            )
    else:
        if out.exists() and any(
            file.name != LOCK and not is_temporary(file) for file in out.iterdir()
        ):
            raise UserError(f"{out} is not empty and not a run folder: choose another --out")
        _check_sources(
            recipe
        )  # before anything is written: a mistyped path must not claim the folder
        for config in recipe.tokenizers.values():
            config.check()
        write_text(path, recipe.to_json())
    remove_leftovers(out)
    return Run(out, recipe)


def _plan_more(recipe: Recipe, out: Path) -> None:
    """Where a run that is begun differs from the recipe in its number of steps alone, let it have
    the recipe's: training goes on from there.

    A finished model is taken away, and then stands as its last checkpoint. Raises UserError for
    fewer steps than were made, and for a run whose checkpoints are gone.
    """
    path, model = out / "recipe.json", out / "model.safetensors"
    changed = _changed(path, recipe) if path.exists() and is_begun(out) else {}
    if set(changed) != {"train.steps"}:
        return
    ((before, steps),) = changed.values()
    checkpoint = load_checkpoint(out / "checkpoints")
    if checkpoint is None:
        raise UserError(
            f"{out} cannot be trained on, as its checkpoints are gone and with them the optimiser's"
            " state: choose another --out"
        )
    done = before if model.exists() else checkpoint.state["step"]
    if steps < done:
        raise UserError(
            f"{out} has made {done} steps, which --train.steps {steps} would have to undo: say at"
            f" least {done}, or choose another --out"
        )
    model.unlink(
        missing_ok=True
    )  # before the recipe: cut here, the run is unfinished, and the same call goes on
    (out / "config.json").unlink(missing_ok=True)
    write_text(path, recipe.to_json())


def _changed(path: Path, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Field -> its value in a run's recipe.json and in this recipe, of those that say what the run
    is and differ.
    """
    old, new = leaves(_filled_in(read_json(path), recipe)), leaves(json.loads(recipe.to_json()))
    differ = [k for k in {**old, **new} if old.get(k) != new.get(k) and k not in HOW]
    return {k: (old.get(k, "absent"), new.get(k, "absent")) for k in differ}


def _told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The first differences in words."""
    words = [f"{k}: {old} -> {new}" for k, (old, new) in changed.items()]
    return "; ".join(words[:5] + [f"and {len(words) - 5} more"] * (len(words) > 5))


def _made_by(key: str, out: Path) -> bool:
    """Whether something stands in the folder of an untrained run that the field `key` of its recipe
    had a part in.

    A tokenizer is made by its own fields, its signals' preparation, the sources and the seed; the
    vocabulary and the token files by all tokenizers too.
    """
    fitted = {path.parent.name for path in out.glob("tokenizers/*/tokenizer.json")}
    of_all = (out / "vocabulary.json").exists() or any(out.glob("tokens/*.parquet"))
    if key.startswith(("tokenizers.", "preparation.")):
        return of_all or key.split(".")[1] in fitted
    return key.startswith(("sources.", "train.seed")) and (of_all or bool(fitted))


def _check_sources(recipe: Recipe) -> None:
    for source in recipe.sources:
        source.check()


def _filled_in(stored: Any, recipe: Recipe) -> Any:
    """A stored recipe with the defaults of fields that are younger than it, where it can be read at
    all.
    """
    try:
        return json.loads(Recipe.from_json(json.dumps(stored), tuple(kinds_of(recipe))).to_json())
    except UserError:
        return stored


def fit(recipe: Recipe, out: Path, device: str | None = None) -> Run:
    """Fit what its tokenizers learn, print their fidelity on held-out signals, and lay out the
    vocabulary; what stands is kept.

    device: of the run that is returned, by name, as `resolve_device` takes it; tokenizers learn on
    the CPU. Raises UserError while another process fits or trains in `out`.
    """
    stay_on_cpu(device, "tokenizers learn")
    recipe = settled(recipe, out)
    with init_distributed(device="cpu") as processes, ExitStack() as stack:
        processes.on_rank0(
            lambda: (
                stack.enter_context(folder_lock(out)),
                stack.enter_context(noted(out)),
                _fit(recipe, out),
            )
        )
    return Run(out, recipe, resolve_device(device))


def _fit(recipe: Recipe, out: Path) -> None:
    run = start_run(recipe, out)
    fields = recipe.fields
    for m, config in recipe.tokenizers.items():
        folder = out / "tokenizers" / m
        if (folder / "tokenizer.json").exists():
            print_status(f"{m} tokenizer stands")
            continue
        names = [f for f, modality in fields.items() if modality == m]
        some = lambda split, n, names=names: random_subset(
            _signals(run, split, names), n, recipe.train.seed
        )
        tokenizer = fit_tokenizer(
            config,
            some("train", N_FIT) if config.learns else (),
            recipe.train.seed,
            precision=recipe.train.precision,
        )
        fidelity = tokenizer.fidelity(some("heldout", N_FIDELITY))
        temporary = folder.with_name(f".{m}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            tokenizer.save(temporary)
            save_preparation(temporary, recipe.preparation.get(m))
            write_text(temporary / "fidelity.json", json.dumps(fidelity, indent=1))
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        print_status(
            f"{m} tokenizer {tokenizer.signature.fingerprint}: "
            + ", ".join(f"{k} {v:.4g}" for k, v in fidelity.items())
        )
    vocabulary = run.vocabulary
    if not (out / "vocabulary.json").exists():
        write_text(out / "vocabulary.json", json.dumps(vocabulary.as_dict(), indent=1))


def _signals(run: Run, split: str, names: Sequence[str]) -> Iterator[Any]:
    for source in run.recipe.sources:
        mine = [n for n in names if n in source.fields]
        if mine and split in source.splits:
            for example in run.examples_of(source, split):
                yield from (example[n] for n in mine if n in example)


def tokenise(run: Run) -> None:
    """Write the training split of every source as a token file; what stands is kept."""
    fields = run.recipe.fields
    for i, source in enumerate(run.recipe.sources):
        path = run.token_path(i)
        if path.exists():
            print_status(f"{path.name} stands")
            continue
        mine = {f: run.tokenizers[fields[f]] for f in source.fields if fields[f] in run.tokenizers}
        n = source.count("train", run.folder / "data")
        with Progress(f"tokenise {type(source).__name__}", n, "examples") as progress:
            rows = _encoded(run.examples_of(source, "train"), mine, progress)
            n = write_tokens(path, {f: t.signature for f, t in mine.items()}, rows)
        print_status(f"{path.name}: {counted(n, 'example')}")


def _encoded(
    examples: Iterator[Mapping[str, Any]], mine: Mapping[str, Tokenizer], progress: Progress
) -> Iterator[dict[str, Segment]]:
    """The examples as rows of segments.

    Raises UserError for a signal that is refused, naming its field and where it came from.
    """
    done = 0
    with counting(mine.values()):
        while chunk := list(islice(examples, 256)):
            columns = {}
            for f, tokenizer in mine.items():
                having = [i for i, e in enumerate(chunk) if f in e]
                named = [
                    (f"{f} of {getattr(chunk[i], 'name', f'example {done + i}')}", chunk[i][f])
                    for i in having
                ]
                columns[f] = dict(zip(having, encode_named(tokenizer, named)))
            yield from (
                {f: column[i] for f, column in columns.items() if i in column}
                for i in range(len(chunk))
            )
            done += len(chunk)
            progress.advance(len(chunk))


def train(recipe: Recipe, out: Path, tensorboard: bool = False, device: str | None = None) -> Run:
    """Fit if needed, tokenise, train; the same call again resumes, and does nothing when all is
    done.

    With another number of steps a run that is begun, or finished, is trained on to it: the learning
    rate goes on as `learning_rate` says.

    tensorboard: write what the log says as TensorBoard's scalars too, to RUN/tensorboard; what was
    logged before is there as well.
    device: of the decoder, by name, as `resolve_device` takes it; None is the best there is.
    Under torchrun all processes share the training, and the first does everything else. Raises
    UserError while another one fits or trains in `out`.
    """
    recipe = settled(recipe, out)
    with init_distributed(device=device) as processes, ExitStack() as stack:
        processes.on_rank0(
            lambda: (
                need_tensorboard() if tensorboard else None,
                stack.enter_context(folder_lock(out)),
                stack.enter_context(noted(out)),
                _plan_more(recipe, out),
                _fit(recipe, out),
            )
        )
        run = Run(out, recipe, processes.device)
        opened = lambda: (
            stack.enter_context(Board(out / "tensorboard", read_log(out / "log.jsonl"))).add
        )
        board = opened if tensorboard else lambda: lambda line: None
        if (out / "model.safetensors").exists():
            message = f"{out} is trained: nothing to do"
            processes.on_rank0(lambda: (board(), print_status(message)))
            return run
        _check_heads(run)
        # before the long work: sizes that do not fit are found here. What will be sharded need not
        # fit into one GPU
        lm = run.untrained(
            torch.device("cpu") if recipe.train.fsdp and processes.world_size > 1 else None
        )
        check_cuts(lm, recipe.tasks, recipe.fields)
        processes.on_rank0(lambda: note_pairing(lm, recipe.tasks, recipe.fields))
        check_bands(recipe.input_masking, recipe.fields, run.vocabulary.signatures)
        if (
            recipe.start and load_checkpoint(out / "checkpoints") is None
        ):  # else training goes on from there
            load_start(lm, recipe)
        processes.on_rank0(lambda: (tokenise(run), _note_spreads(run, lm)))
        weights = _trained(run, lm, processes, board)
        processes.on_rank0(lambda: save_model(run, weights))
    return run


def _trained(
    run: Run, lm: LM, processes: Processes, board: Callable[[], Callable[[dict], None]]
) -> dict[str, torch.Tensor]:
    """The weights to keep, after training from the newest checkpoint or from the start.

    board(): opens what is told the log's lines too.
    """
    recipe, config, log_path = run.recipe, run.recipe.train, run.folder / "log.jsonl"
    files = _token_files(run, processes)
    loader = Loader(
        files,
        recipe.tasks,
        run.vocabulary,
        recipe.input_masking,
        config.batch_size,
        config.seq_len,
        config.seed,
    )
    progress = Progress("train", config.steps, "steps")
    told: list[Callable[[dict], None]] = [lambda line: _log(log_path, line, progress.left)]
    tell = lambda line: [listener(line) for listener in told]
    trainer = Trainer(
        lm,
        loader,
        config,
        run.folder / "checkpoints",
        tell,
        processes,
        _units_per_frame(run, files),
    )
    resumed = trainer.resume()

    def begin() -> None:
        if resumed:
            print_status(f"resuming at step {trainer.step}")
        if len(trainer.planned) > 1:
            print_status(schedule_text(config, trainer.planned))
        kept = [line for line in read_log(log_path) if line["step"] <= trainer.step]
        write_text(log_path, "".join(json.dumps(line) + "\n" for line in [trainer.header(), *kept]))
        told.append(board())
        among = (
            f", {'sharded over' if trainer.sharded else 'shared by'} {processes.world_size} processes"
            * (processes.world_size > 1)
        )
        n_parameters = sum(p.numel() for p in lm.parameters())
        size = f"{n_parameters / 1e6:.2f} M parameters in {trainer.precision}"
        print_status(
            f"training {size}, {counted(config.steps, 'step')} of {config.batch_size} x"
            f" {config.seq_len} positions{among}"
        )

    processes.on_rank0(begin)
    if processes.is_rank0:
        progress.done = first = trainer.step
        with progress:
            trainer.run(lambda step: _stepped(progress, first, config))
    else:
        trainer.run()
    return trainer.weights()


def _stepped(progress: Progress, first: int, config: TrainConfig) -> None:
    """Count a step; after some of them say how long the training will take.

    first: the step that this call went on from.
    """
    progress.advance()
    pace = progress.pace.seconds
    if progress.done - first != FORETOLD or progress.done >= config.steps or pace is None:
        return
    n = config.steps - (first and progress.done)
    what = f"the {n:,} steps that are left" if first else f"{n:,} steps"
    saved = (
        f"; checkpoints every {config.checkpoint_every}"
        if config.checkpoint_every < config.steps
        else ""
    )
    print_status(f"about {span_text(pace * n)} for {what} at {pace:.2g} s a step{saved}")


def _token_files(run: Run, processes: Processes) -> Sequence[TokenFile]:
    """The run's token files, first opened by the first process, which writes what all map; it alone
    says where that cannot be written.
    """
    files = processes.on_rank0(run.token_files)
    if files is None:
        with warnings.catch_warnings(action="ignore"):
            files = run.token_files()
    return files


def _units_per_frame(run: Run, files: Sequence[TokenFile]) -> dict[str, float]:
    """Modality -> how many of its customary unit (bytes of a text, particles of a jet) a frame that
    is learned holds on average.

    Counted on segments spread evenly over the token files, so that it is the same when the training
    goes on.
    """
    made = {f for task in run.recipe.tasks for f in task.predicted}
    counts: dict[str, np.ndarray] = {}
    for file, f in ((file, f) for file in files for f in file.fields if f in made):
        m, having = file.signatures[f].modality, np.flatnonzero(file.has(f))
        for i in having[np.linspace(0, len(having) - 1, min(len(having), N_COUNTED)).astype(int)]:
            segment = file.segment(f, i)
            counts[m] = counts.get(m, 0) + np.array(
                [run.tokenizers[m].n_units(segment), len(segment)]
            )
    return {m: float(n_units / n_frames) for m, (n_units, n_frames) in counts.items() if n_units}


def _check_heads(run: Run) -> None:
    """Raise UserError when a task makes many-channel or latent frames that no head fills in."""
    for task in run.recipe.tasks:
        for name in task.predicted:
            m = run.recipe.fields[name]
            signature = run.vocabulary.signatures[m]
            if not signature.one_channel and m not in run.recipe.model.heads:
                raise UserError(
                    f"{m} is made by the task {task}, but model.heads has no head for it: add"
                    f" {fitting_heads(signature)}"
                )


def _note_spreads(run: Run, lm: LM) -> None:
    made = {f: run.recipe.fields[f] for task in run.recipe.tasks for f in task.predicted}
    note_spreads(lm, run.token_files, made, run.recipe.train.seed)


def _log(path: Path, line: dict, left: str) -> None:
    """Add a line to the log, and say it. left: how long the training will take yet, or nothing."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise OSError(
            error.errno, error.strerror, str(path)
        ) from error  # a full disk names no file
    listed = lambda key: " ".join(
        f"{m} {x:.3f}" for m, x in line.get(key, {}).items() if x is not None
    )
    losses = "".join(
        f", {name} {listed(key)}"
        for name, key in (("nats", "nats"), ("training loss", "training_loss"))
        if listed(key)
    )
    print_status(
        f"step {line['step']}: loss {line['loss']:.4f}{losses}, {line['positions_per_s']:.0f}"
        " positions/s" + f", {left}" * bool(left)
    )


def save_model(run: Run, weights: Mapping[str, torch.Tensor]) -> None:
    """model.safetensors beside a config.json with its SHA-256, and a type of its own, so that no
    loader drops the heads silently.
    """
    with atomic_write(run.folder / "model.safetensors") as temporary:
        save_tensors(temporary, weights)
        config = {
            "model_type": "mmtok",
            "vocabulary": run.vocabulary.fingerprint,
            "recipe": "recipe.json",
            "sha256": digest(temporary),
            "planned": planned_steps(run.folder / "checkpoints"),
        }
        write_text(run.folder / "config.json", json.dumps(config, indent=1))
