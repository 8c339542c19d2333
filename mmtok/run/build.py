"""Makes a run: its folder, its tokenizers, its tokens, its decoder.

What is already made is kept, so the same call goes on where the last one stopped. This is the only
place that makes tokenizers and a trainer from a recipe; the finished parts are opened by `Run`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtok.core.interleaved import INTERLEAVED
from mmtok.data.interleaved import signals_in
from mmtok.data.preparation import save_preparation
from mmtok.data.subset import random_subset
from mmtok.data.tasks import check_rows
from mmtok.data.tokens import TokenFile
from mmtok.errors import UserError
from mmtok.io.files import is_temporary, remove_leftovers, write_text
from mmtok.io.locks import LOCK, folder_lock
from mmtok.io.terminal import print_status
from mmtok.model.lm import LM, fitting_heads
from mmtok.nn.device import resolve_device, stay_on_cpu
from mmtok.run.changes import changed_fields, changes_text, extend_training, refused_changes
from mmtok.run.finetune import copy_tokenizer
from mmtok.run.folder import record_notes, training_has_begun
from mmtok.run.pretrained import load_start, resolve_start
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run, open_run
from mmtok.run.signatures import planned_signatures
from mmtok.run.staged import StagedLoader, is_staged
from mmtok.run.streaming import TokenStream
from mmtok.run.tokenise import tokenise
from mmtok.run.training import loader_of, save_model, train_decoder
from mmtok.tokenizers.base import TokenizerConfig
from mmtok.tokenizers.jet_autoencoder import JetAutoencoderConfig
from mmtok.tokenizers.jet_vq import JetVQConfig
from mmtok.tokenizers.patches import NetworkConfig
from mmtok.train.checkpoint import has_checkpoint
from mmtok.train.checks import (
    check_freq_masks,
    check_guidance,
    check_sets,
    check_targets,
    check_variances,
    warn_pairing,
    warn_sigma_data,
)
from mmtok.train.distributed import Processes, check_replicas, init_distributed
from mmtok.train.log import read_log
from mmtok.train.tensorboard import TensorBoardWriter, need_tensorboard
from mmtok.train.tokenizer_fit import fit_tokenizer
from mmtok.train.vocoder_fit import remove_work

__all__ = ["Run", "fit", "open_run", "start_run", "tokenise", "train"]

N_FIT = 4_000  # the most signals that a tokenizer is fitted to
N_TRAIN = 20_000  # the most clips that a vocoder is trained on; they are kept in memory
N_FIDELITY = 64  # held-out signals that its fidelity is measured on
N_HELDOUT_NETWORK = 1000  # where networks make its codes


# ---- the folder


def start_run(recipe: Recipe, out: Path) -> Run:
    """Make the run folder, or open it again.

    While nothing is trained, the recipe may replace the one in the folder, if all that is there
    would have been made the same with it. So mistakes can be corrected by the same call with other
    fields. Raises UserError if the folder was made from another recipe, naming the differences.
    """
    signatures = planned_signatures(recipe)
    n_frames = {}
    for field, m in recipe.fields.items():
        known = m in signatures and signatures[m].frames
        n_frames[field] = known or 0
    check_rows(recipe.learned, recipe.train.seq_len, n_frames)
    if not training_has_begun(out):  # a trained run may be sampled with another guidance
        check_guidance(recipe.tasks, recipe.fields, recipe.sampling)
    if (out / "recipe.json").exists():
        _update_recipe(recipe, out)
    else:
        _make_folder(recipe, out)
    remove_leftovers(out)
    return Run(out, recipe)


def _make_folder(recipe: Recipe, out: Path) -> None:
    if out.exists():
        files = [f for f in out.iterdir() if f.name != LOCK and not is_temporary(f)]
        if files:
            raise UserError(f"{out} is not empty and not a run folder: choose another --out")
    # before anything is written: a mistyped path must not claim the folder
    _check_sources(recipe)
    for config in recipe.tokenizers.values():
        config.check()
    write_text(out / "recipe.json", recipe.to_json())


def _update_recipe(recipe: Recipe, out: Path) -> None:
    changes = changed_fields(recipe, out)
    refused = refused_changes(changes, out)
    if refused:
        raise UserError(
            f"{out} was made from another recipe ({changes_text(refused)}): choose another --out,"
            " or remove the folder"
        )
    if any(field.startswith("sources.") for field in changes):
        _check_sources(recipe)
    if changes:
        write_text(out / "recipe.json", recipe.to_json())
        print_status(
            f"nothing is trained in {out} yet, so its recipe is changed ({changes_text(changes)})"
        )


def _check_sources(recipe: Recipe) -> None:
    """Let the sources raise UserError, for a missing file for example."""
    for source in recipe.sources:
        source.check()


# ---- tokenizers


def fit(recipe: Recipe, out: Path, device: str | None = None) -> Run:
    """Fit the tokenizers, print their fidelity on held-out signals, and make the vocabulary.

    What is already made is kept. Raises UserError while another process fits or trains in `out`.

    Args:
        recipe: the recipe.
        out: the run folder.
        device: of the run that is returned, by name, as `resolve_device` takes it. Tokenizers are
            fitted on the CPU.
    """
    stay_on_cpu(device, "tokenizers learn")
    recipe = resolve_start(recipe, out)
    with init_distributed(device="cpu") as processes, ExitStack() as stack:

        def work() -> None:
            stack.enter_context(folder_lock(out))
            stack.enter_context(record_notes(out))
            _fit(recipe, out)

        processes.on_rank0(work)
    return Run(out, recipe, resolve_device(device))


def _fit(recipe: Recipe, out: Path) -> None:
    run = start_run(recipe, out)
    for m in recipe.tokenizers:
        if (out / "tokenizers" / m / "tokenizer.json").exists():
            print_status(f"{m} tokenizer stands")
        else:
            _fit_one(run, m)
    vocabulary = run.vocabulary
    if not (out / "vocabulary.json").exists():
        write_text(out / "vocabulary.json", json.dumps(vocabulary.as_dict(), indent=1))


def _fit_one(run: Run, modality: str) -> None:
    """Fit one tokenizer and save it, with its fidelity, by one renaming."""
    recipe = run.recipe
    config = recipe.tokenizers[modality]
    folder = run.folder / "tokenizers" / modality
    if copy_tokenizer(recipe, modality, folder):
        return
    work = run.folder / "training" / modality
    heldout = _some_signals(run, "heldout", modality, _n_heldout(config))
    tokenizer = fit_tokenizer(
        config,
        _signals_to_fit(run, modality),
        recipe.train.seed,
        precision=recipe.train.precision,
        folder=work,
        heldout=heldout,
    )
    fidelity = tokenizer.fidelity(heldout)
    temporary = folder.with_name(f".{modality}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        tokenizer.save(temporary)
        save_preparation(temporary, recipe.preparation.get(modality))
        write_text(temporary / "fidelity.json", json.dumps(fidelity, indent=1))
        temporary.rename(folder)
        remove_work(work)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    figures = ", ".join(f"{k} {v:.4g}" for k, v in fidelity.items())
    print_status(f"{modality} tokenizer {tokenizer.signature.fingerprint}: {figures}")


def _n_heldout(config: TokenizerConfig) -> int:
    """How many held-out signals figures are of: a codebook's use is that of all its codes."""
    if isinstance(config, (NetworkConfig, JetVQConfig, JetAutoencoderConfig)):
        return N_HELDOUT_NETWORK
    return N_FIDELITY


def _signals_to_fit(run: Run, modality: str) -> Sequence[Any]:
    """The signals that a tokenizer is fitted to."""
    config = run.recipe.tokenizers[modality]
    if config.has_training:
        clips = (np.asarray(clip, np.float16) for clip in _signals(run, "train", modality))
        return random_subset(clips, N_TRAIN, run.recipe.train.seed)
    if config.learns:
        return _some_signals(run, "train", modality, N_FIT)
    return ()


def _some_signals(run: Run, split: str, modality: str, n: int) -> Sequence[Any]:
    """At most n random signals of a modality, the same for a seed."""
    return random_subset(_signals(run, split, modality), n, run.recipe.train.seed)


def _signals(run: Run, split: str, modality: str) -> Iterator[Any]:
    for source in run.recipe.sources:
        names = [f for f, m in source.fields.items() if m in (modality, INTERLEAVED)]
        if names and split in source.splits:
            for example in run.examples_of(source, split):
                for name in (name for name in names if name in example):
                    if source.fields[name] == INTERLEAVED:
                        yield from signals_in(example[name], modality)
                    else:
                        yield example[name]


# ---- the decoder


def train(
    recipe: Recipe,
    out: Path,
    tensorboard: bool = False,
    device: str | None = None,
    stream: bool = False,
) -> Run:
    """Fit if needed, tokenise, train.

    The same call again resumes, and does nothing for a finished run. With another number of steps a
    run is trained on, finished or not; `learning_rate` says how its learning rate goes on. Under
    torchrun all processes share the training, and rank 0 does everything else. Raises UserError
    while another process fits or trains in `out`.

    Args:
        recipe: the recipe.
        out: the run folder.
        tensorboard: write the log as TensorBoard's scalars too, to RUN/tensorboard, from the first
            logged step on.
        device: of the decoder, by name, as `resolve_device` takes it; None is the best there is.
        stream: train on the first token files while the others are made; see `mmtok.data.stages`.
    """
    recipe = resolve_start(recipe, out)
    with init_distributed(device=device) as processes, ExitStack() as stack:

        def start() -> None:
            check_replicas(processes, recipe.train.replicas)
            if tensorboard:
                need_tensorboard()
            stack.enter_context(folder_lock(out))
            stack.enter_context(record_notes(out))
            extend_training(recipe, out)
            _fit(recipe, out)

        def open_board() -> Callable[[dict], None] | None:
            if not tensorboard:
                return None
            board = TensorBoardWriter(out / "tensorboard", read_log(out / "log.jsonl"))
            return stack.enter_context(board).add

        processes.on_rank0(start)
        run = Run(out, recipe, processes.device)
        if not recipe.learned:
            processes.on_rank0(lambda: print_status(f"{out} has no tasks: tokenizers are all"))
            return run
        if (out / "model.safetensors").exists():
            processes.on_rank0(open_board)
            processes.on_rank0(lambda: print_status(f"{out} is trained: nothing to do"))
            return run
        lm, initialise = _checked_decoder(run, processes)
        processes.on_rank0(lambda: warn_pairing(lm, recipe.tasks, recipe.fields))

        def check(files: Callable[[], Sequence[TokenFile]]) -> None:
            predicted = {f: recipe.fields[f] for task in recipe.tasks for f in task.predicted}
            check_sets(lm, files, predicted)
            warn_sigma_data(lm, files, predicted, recipe.train.seed)

        staged = None
        if is_staged(run, stream, processes):
            if not stream:
                tokenise(run, processes)
            tokens = processes.on_rank0(lambda: stack.enter_context(TokenStream(run)))
            staged = StagedLoader(run, processes, tokens, loader_of, check)
        else:
            tokenise(run, processes)
            processes.on_rank0(lambda: check(run.token_files))
        weights = train_decoder(run, lm, processes, open_board, initialise, staged)
        if staged is not None:
            staged.finish()
        save_model(run, weights, processes)
    return run


def _checked_decoder(run: Run, processes: Processes) -> tuple[LM, Callable[[], None] | None]:
    """The decoder before training, checked against tasks and data before the long work begins.

    One that will be sharded is on the meta device. The second result gives it its values then.
    """
    recipe = run.recipe
    _check_heads(run)
    lm, fill = _untrained(run, processes)
    check_targets(lm, recipe.tasks, recipe.fields)
    check_variances(lm, recipe.tasks, recipe.fields)
    check_freq_masks(recipe.input_masking, recipe.fields, run.vocabulary.signatures)
    for task in recipe.tasks:
        if task.target_masking is not None:
            masking = dict.fromkeys(task.targets, task.target_masking)
            check_freq_masks(masking, recipe.fields, run.vocabulary.signatures, "target_masking")

    def initialise() -> None:
        fill()
        if recipe.start and not has_checkpoint(run.folder / "checkpoints"):
            load_start(lm, recipe)

    if lm.device.type == "meta":
        return lm, initialise
    initialise()
    return lm, None


def _untrained(run: Run, processes: Processes) -> tuple[LM, Callable[[], None]]:
    """The untrained decoder and what gives it its first values, if it has none yet."""
    if not run.recipe.train.fsdp or processes.world_size == 1:
        return run.untrained(), lambda: None
    try:
        return run.deferred()
    except (NotImplementedError, RuntimeError) as error:  # of a head that is not the package's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        processes.on_rank0(
            lambda: print_status(
                "every process needs memory for the complete decoder at the start, as a part of it"
                f" needs values while it is made ({reason})"
            )
        )
    return run.untrained(torch.device("cpu")), lambda: None


def _check_heads(run: Run) -> None:
    """Raise UserError if a predicted modality has several channels or latents, but no head."""
    for task in run.recipe.tasks:
        for field in task.predicted:
            m = run.recipe.fields[field]
            if m == INTERLEAVED:  # which parts are predicted, only the documents say
                continue
            signature = run.vocabulary.signatures[m]
            if not signature.one_channel and m not in run.recipe.model.heads:
                raise UserError(
                    f"{m} is made by the task {task}, but model.heads has no head for it: add"
                    f" {fitting_heads(signature)}"
                )
