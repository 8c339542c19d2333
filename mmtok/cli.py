"""The command line: one function per verb, nothing else.

`mmtok --help` and `mmtok VERB --help` import no torch.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from mmtok import __version__
from mmtok.commands.arguments import Arg, nearest, parse
from mmtok.errors import UserError
from mmtok.io import memory_budget, terminal
from mmtok.io.interrupt import raise_after_imports
from mmtok.io.messages import counted
from mmtok.io.terminal import drop, print_answer, print_answer_lines, print_status

Recipe = Annotated[
    Path, Arg("a Python file that holds one value named `recipe`, or a run's recipe.json", "RECIPE")
]
Run = Annotated[Path, Arg("a run's folder", "RUN")]
Out = Annotated[
    Path | None, Arg("the run's folder (default: runs/ and the recipe's name)", "RUN", "-o")
]
Overrides = Annotated[
    list[str], Arg("fields of the recipe with their new values; mmtok show RECIPE lists them")
]
Modality = Annotated[str, Arg("text, speech, image or jets", "MODALITY")]
RecipeFile = Annotated[
    Path | None, Arg("the run's recipe file, where it brings classes of its own", "FILE")
]
Folder = Annotated[
    Path | None,
    Arg(
        "a tokenizer's folder, or a sentencepiece .model file (default: the training-free tokenizer"
        " of the modality)",
        "FOLDER",
    ),
]
Device = Annotated[
    str | None,
    Arg(
        "where the decoder computes: cpu, cuda, cuda:1 or mps (default: a CUDA GPU where there is"
        " one, else the CPU); tokenizers, vocoders and judges stay on the CPU",
        "DEVICE",
    ),
]
Checkpoint = Annotated[
    int | None,
    Arg(
        "take the weights of the checkpoint of this step (default: of the finished run, or of the"
        " newest checkpoint while it is not finished)",
        "STEP",
    ),
]
OnCpu = Annotated[str | None, Arg("tokenizers work on the CPU, whatever is named here", "DEVICE")]
MaxMemory = Annotated[
    str | None,
    Arg(
        "what one file may take of memory, such as 8GB (default: half of what is free); larger ones"
        " are refused before they are read",
        "SIZE",
    ),
]
FIRST_SPEAKS = 60.0  # seconds that a machine's first process is given to say what is wrong


def fit(
    recipe: Recipe,
    *,
    out: Out = None,
    device: OnCpu = None,
    max_memory: MaxMemory = None,
    overrides: Overrides,
) -> None:
    """Learn what the recipe's tokenizers learn (text pieces, codebooks) and print their fidelity.

    Any field of the recipe can be set, as with train; mmtok show RECIPE lists them.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.run import build
    from mmtok.run.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    build.fit(loaded, out or _run_folder(recipe, loaded.name), device)


def train(
    recipe: Recipe,
    *,
    out: Out = None,
    tensorboard: Annotated[
        bool, Arg("write the log's numbers for TensorBoard too, to RUN/tensorboard")
    ] = False,
    device: Device = None,
    max_memory: MaxMemory = None,
    overrides: Overrides,
) -> None:
    """Fit if needed, tokenise, train. The same command again resumes.

    Any field of the recipe can be set by its name, shortened while it stays unique: --train.steps
    200, --learning_rate 1e-3; mmtok show RECIPE lists them all with their values. Once training has
    begun changed fields are refused with the difference, and before that those by which tokenizers
    and tokens were made that stand. One may change at any time: with more (or fewer) --train.steps
    a run is trained on, finished or not; what becomes of the learning rate is said.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.run import build
    from mmtok.run.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    build.train(loaded, out or _run_folder(recipe, loaded.name), tensorboard, device)


def sample(
    run: Run,
    *,
    prompt: Annotated[
        list[str], Arg("text, or files of any modality, in the order of a trained task", "PROMPT")
    ] = (),
    to: Annotated[str, Arg("what to draw: a modality, or a field of the recipe", "FIELD")],
    n: Annotated[
        int | None, Arg("how many samples (default: 8; 1 with --play or --out -)", "N", "-n")
    ] = None,
    out: Annotated[
        Path | None,
        Arg(
            "where the samples go (default: the run's samples/asked); - streams one, speech or"
            " text, to stdout",
            "DIR",
            "-o",
        ),
    ] = None,
    play: Annotated[
        str | None,
        Arg(
            "play speech while it is drawn, by a player that is found, or by COMMAND: raw 16-bit"
            " mono into its stdin, "
            "{rate} stands for the rate in Hz",
            "COMMAND",
            alone="",
        ),
    ] = None,
    seed: Annotated[int, Arg("of everything random", "SEED")] = 0,
    temperature: Annotated[
        float | None, Arg("below 1: likelier frames; 0: the likeliest", "T")
    ] = None,
    top_k: Annotated[int | None, Arg("draw among the K likeliest only", "K")] = None,
    top_p: Annotated[float | None, Arg("draw among the likeliest that hold a share P", "P")] = None,
    guidance: Annotated[float | None, Arg("strength of the condition; 1: as trained", "W")] = None,
    max_frames: Annotated[int | None, Arg("the cap of one sample", "N")] = None,
    precision: Annotated[
        str | None,
        Arg(
            "weights while drawing (default: what this machine is fast in)",
            choices=("auto", "float32", "bf16", "int8"),
        ),
    ] = None,
    compiled: Annotated[
        bool, Arg("compile the step: half a minute first, then faster; for many frames")
    ] = False,
    steps: Annotated[
        int | None,
        Arg(
            "of a head that draws in steps: fewer are faster (default: as many as the recipe says)",
            "N",
        ),
    ] = None,
    aug_noise: Annotated[
        float | None,
        Arg("of a cascade: share of noise in the picture below, from 0 to below 1", "S"),
    ] = None,
    infill: Annotated[
        str | None,
        Arg(
            "draw these frames of FILE anew; of codes in any order several spans: 0:3,8:12",
            "FILE:START:STOP",
        ),
    ] = None,
    device: Device = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Draw from the model: mmtok sample RUN --prompt seven --to image"""
    memory_budget.set_limit(max_memory)
    if n is not None and n < 1:
        raise UserError(f"sample: -n is {n}; it must be at least 1")
    if not 0 <= seed < 2**63:
        raise UserError(f"sample: --seed is {seed}; it must be from 0 to {2**63 - 1}")
    from mmtok.commands.play import sample as sample_or_play
    from mmtok.run.distributed import together

    changes = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "guidance": guidance,
        "max_frames": max_frames,
        "precision": precision,
        "compiled": compiled or None,
        "steps": steps,
        "aug_noise": aug_noise,
    }
    for path in (
        together(
            run,
            recipe,
            lambda opened: sample_or_play(
                opened, prompt, to, n, out, seed, infill, play, **changes
            ),
            device,
            checkpoint,
        )
        or ()
    ):
        print_answer(path)


def score(
    run: Run,
    files: Annotated[list[str], Arg("files of any modality, folders of them, or words", "FILE")],
    *,
    condition: Annotated[list[str], Arg("the condition: text, or a file", "PROMPT")] = (),
    device: Device = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """How likely the model finds what it is shown: nats and the customary unit per segment; exact,
    a bound or an estimate.

    Of continuous latents the nats are of a density over their standardised values, and may be below
    0.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.score import score as score_files
    from mmtok.commands.score import totals
    from mmtok.run.distributed import together

    rows = (
        together(
            run, recipe, lambda opened: score_files(opened, files, condition), device, checkpoint
        )
        or []
    )
    for row in [*rows, *totals(rows)]:
        print_answer(row)


def evaluate(
    run: Run,
    *,
    force: Annotated[bool, Arg("again, also where evaluation.json stands")] = False,
    device: Device = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Compute every metric that the recipe's tasks have -> RUN/evaluation.json"""
    memory_budget.set_limit(max_memory)
    from mmtok.evaluation.evaluate import evaluate as evaluate_run
    from mmtok.run.distributed import together

    for name, value in _figures(
        together(run, recipe, lambda opened: evaluate_run(opened, force=force), device, checkpoint)
        or {}
    ):
        print_answer(
            f"{name:<56} {value:.4g}" if isinstance(value, float) else f"{name:<56} {value}"
        )


def report(
    run: Run,
    *,
    force: Annotated[bool, Arg("again, also where a newer report stands")] = False,
    device: OnCpu = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Write one self-contained page, RUN/report.html: curves, pictures, players, histograms, the
    metrics.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.nn.device import resolve_device, stay_on_cpu
    from mmtok.report.report import write_report
    from mmtok.run.run import open_run

    stay_on_cpu(device, "tokenizers work")
    print_answer(write_report(open_run(run, recipe, resolve_device("cpu"), checkpoint), force))


def export(
    run: Run,
    *,
    out: Annotated[Path, Arg("the folder to write", "DIR", "-o")],
    to: Annotated[
        str | None,
        Arg(
            "the modality that its model writes (default: text, where a task makes text)",
            "MODALITY",
        ),
    ] = None,
    device: Annotated[
        str | None, Arg("weights are written from the CPU, whatever is named here", "DEVICE")
    ] = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Write a run of one-channel modalities as a folder that AutoModelForCausalLM and AutoTokenizer
    open.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.export import export as export_run
    from mmtok.nn.device import resolve_device, stay_on_cpu
    from mmtok.run.run import open_run

    stay_on_cpu(device, "weights are written")
    print_answer(export_run(open_run(run, recipe, resolve_device("cpu"), checkpoint), out, to))


def tokenize(
    modality: Modality,
    files: Annotated[
        list[Path],
        Arg(
            "the signals: one per file, or a file of jets; a folder for all files below it", "FILE"
        ),
    ],
    *,
    out: Annotated[Path, Arg("the token file to write", "TOKENS", "-o")],
    tokenizer: Folder = None,
    prepare: Annotated[
        list[str],
        Arg(
            "of the signals, where the tokenizer's folder does not say it: channel=left, fit=crop,"
            " background=black, "
            "normal_form=NFC, ...",
            "FIELD=VALUE",
        ),
    ] = (),
    check: Annotated[bool, Arg("decode again and print the fidelity")] = False,
    allow_clipping: Annotated[
        bool, Arg("write jets of which more than a fifth lies outside the tokenizer's ranges")
    ] = False,
    shard: Annotated[
        str | None,
        Arg(
            "take every N-th signal from the I-th on (from 0), into tokens-0000I-of-0000N.parquet",
            "I/N",
        ),
    ] = None,
    device: OnCpu = None,
    max_memory: MaxMemory = None,
) -> None:
    """Turn files into tokens: mmtok tokenize image *.png -o digits.parquet"""
    memory_budget.set_limit(max_memory)
    from mmtok.commands.tokenize import tokenize_files
    from mmtok.nn.device import stay_on_cpu

    stay_on_cpu(device, "tokenizers work")
    done = tokenize_files(modality, files, out, tokenizer, shard, check, prepare, allow_clipping)
    print_answer_lines(done.summary())


def detokenize(
    tokens: Annotated[Path, Arg("a token file", "TOKENS")],
    *,
    out: Annotated[Path, Arg("the folder for the files made", "DIR", "-o")],
    tokenizer: Folder = None,
    device: OnCpu = None,
    max_memory: MaxMemory = None,
) -> None:
    """Turn tokens back into files, under the names of those that they were made from; of others
    named by field and row.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.tokenize import detokenize_file
    from mmtok.nn.device import stay_on_cpu

    stay_on_cpu(device, "tokenizers work")
    paths = detokenize_file(tokens, out, tokenizer)
    print_answer(f"{counted(len(paths), 'file')} in {out}")


def show(
    path: Annotated[
        Path,
        Arg(
            "a recipe, a run's folder, a token file, a tokenizer's folder or a sentencepiece .model"
            " file",
            "PATH",
        ),
    ],
    *,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
    overrides: Overrides,
) -> None:
    """Say what a recipe, a run, a token file or a tokenizer holds: sizes, parameters, bitrates,
    fingerprints.

    Of a recipe and a run also every field by the name that sets it; a recipe's can be set here as
    with train, to see what comes of it. What only the data tells is said once the tokenizers are
    fitted.
    """
    memory_budget.set_limit(max_memory)
    if not path.exists():
        raise UserError(f"show: {path} does not exist")
    from mmtok.commands.show import (
        describe,
        describe_run,
        describe_tokenizer,
        describe_tokens,
    )

    if path.suffix in (".py", ".json"):
        from mmtok.run.recipe import load_recipe

        print_answer_lines(describe(load_recipe(path, overrides)))
    elif overrides:
        raise UserError(
            f"show: {overrides[0]} is for recipes, and {path} is none: what is made has the fields"
            " that it was made with"
        )
    elif (path / "recipe.json").exists():
        from mmtok.nn.device import resolve_device
        from mmtok.run.run import open_run

        print_answer_lines(describe_run(open_run(path, recipe, resolve_device("cpu"))))
    elif (path / "tokenizer.json").exists() or path.suffix == ".model":
        print_answer_lines(describe_tokenizer(path))
    else:
        print_answer_lines(describe_tokens(path))


VERBS = {
    verb.__name__: verb
    for verb in (fit, train, sample, score, evaluate, report, export, tokenize, detokenize, show)
}


def _run_folder(recipe: Path, name: str) -> Path:
    """A run's own recipe.json means that run."""
    return recipe.parent if recipe.name == "recipe.json" else Path("runs") / name


def _figures(table: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested table of figures as (dotted name, value)."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def overview() -> str:
    """What `mmtok --help` prints: every verb with the first line of its docstring."""
    lines = [f"  {name:<12}{verb.__doc__.splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: mmtok VERB ...",
            "",
            *lines,
            "",
            "mmtok VERB --help says more; mmtok --version says which.",
        ]
    )


def dispatch(words: list[str]) -> int:
    """Find the verb and run it; returns 0, or what it leaves with.

    Raises UserError for an unknown one.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print_answer_lines(overview())
    elif words[0] == "--version":
        print_answer(f"mmtok {__version__}")
    elif words[0] not in VERBS:
        raise UserError(f"unknown verb {words[0]!r}{nearest(words[0], VERBS)}")
    else:
        verb = VERBS[words[0]]
        try:
            verb(**parse(verb, words[1:]))
        except SystemExit as stop:  # argparse after --help; one of several processes
            return stop.code if isinstance(stop.code, int) else 0
    return 0


def main(words: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 2 for wrong input (one line on stderr), 130
    for Ctrl-C.

    words: None: those that the process was started with, which then also gets the standard streams
    that it lacks.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter(
                "default", UserWarning
            )  # once per text: what the readers converted
            warnings.showwarning = _notes()
            if words is None:
                terminal.open_streams()
                raise_after_imports()
            code = dispatch(sys.argv[1:] if words is None else words)
            sys.stdout.flush()
            if "stdout" in terminal.closed and not code:
                _say("note: standard output is closed, so the answer was not printed")
        return code
    except KeyboardInterrupt as stop:
        _say(str(stop) or "interrupted")
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough (mmtok show x | head)
        drop(sys.stdout)
        drop(sys.stderr)
        return 141
    except UserError as error:
        wrong = str(error)
    except OSError as error:
        wrong = ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(
            error
        )
    _let_the_first_say_it()
    with suppress(BrokenPipeError):
        _say(wrong)
    return 2


def _notes() -> Callable[..., None]:
    """Shows warnings as notes, each text once: Python's filters forget what was shown whenever one
    of them changes.
    """
    said: set[str] = set()

    def show(message: Warning | str, *_: Any) -> None:
        text = f"note: {message}"
        if text not in said:
            said.add(text)
            _say(text)

    return show


def _let_the_first_say_it() -> None:
    """Of the processes that torchrun started on a machine and that have not met yet, wait for the
    first to say what is wrong in them all.

    torchrun ends the others as soon as one has ended; so none may end before the first has spoken.
    Who is still here then speaks too.
    """
    processes = sys.modules.get("mmtok.train.distributed")
    if os.environ.get("LOCAL_RANK", "0") != "0" and not (processes and processes.initialized):
        with suppress(KeyboardInterrupt):
            time.sleep(FIRST_SPEAKS)


def _say(text: str) -> None:
    """One line on stderr."""
    rank = os.environ.get("RANK", "0")  # torchrun's: of several processes it says which one speaks
    print_status(
        f"{'mmtok' if rank == '0' else f'mmtok (process {rank})'}: {' '.join(text.split())}"
    )
