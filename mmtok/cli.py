"""The command line: one function per verb, nothing else.

A verb's parameters are its arguments and its docstring is its help (`commands/arguments.py`). Verbs
import what they need inside themselves, so `mmtok --help` and `mmtok VERB --help` import no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from mmtok.commands.arguments import Arg
from mmtok.commands.dispatch import run_command_line
from mmtok.commands.embed_verb import embed
from mmtok.commands.options import (
    AS_FOUND,
    AnyColumns,
    AnyKind,
    Checkpoint,
    Classifier,
    Columns,
    Device,
    DropoutMembers,
    Ensemble,
    Folder,
    Guidances,
    Infill,
    JetFiles,
    MaxMemory,
    OnCpu,
    OtherVocoder,
    Out,
    Overrides,
    OwnTokenizers,
    PlayWith,
    Precision,
    Recipe,
    RecipeFile,
    RunFolder,
    SamplingSteps,
    SideA,
    SideB,
    Tests,
)
from mmtok.commands.score_verb import score
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.terminal import print_answer, print_answer_lines


def fit(
    recipe: Recipe,
    *,
    out: Out = None,
    device: OnCpu = None,
    max_memory: MaxMemory = None,
    overrides: Overrides,
) -> None:
    """Fit the recipe's tokenizers (text pieces, codebooks) and print their fidelity.

    Any field of the recipe can be set, as with train; mmtok show RECIPE lists them.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.run import build
    from mmtok.run.recipe import load_recipe, run_folder

    loaded = load_recipe(recipe, overrides)
    build.fit(loaded, out or run_folder(recipe, loaded), device)


def train(
    recipe: Recipe,
    *,
    out: Out = None,
    tensorboard: Annotated[
        bool, Arg("write the log's numbers for TensorBoard too, to RUN/tensorboard")
    ] = False,
    weights: Annotated[
        str | None,
        Arg(
            "how often sources are read, relative to their sizes: speech=2 reads that twice as"
            " often, 0=0.5 the first one half as often (the recipe's train.source_weights)",
            "SOURCE=WEIGHT,...",
        ),
    ] = None,
    stream: Annotated[
        bool, Arg("begin to train on the first token files while the others are made")
    ] = False,
    device: Device = None,
    max_memory: MaxMemory = None,
    overrides: Overrides,
) -> None:
    """Fit if needed, tokenise, train. The same command again resumes.

    Any field of the recipe can be set by its name, shortened while it stays unique:
    --train.steps 200, --learning_rate 1e-3. mmtok show RECIPE lists them all with their values.

    A run that exists keeps its recipe: changed fields are refused with the difference once training
    has begun, and before that if tokenizers or tokens were already made from them. The exception is
    --train.steps: with more (or fewer) steps a run is trained on, finished or not. A line on stderr
    says what becomes of the learning rate.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.run import build
    from mmtok.run.recipe import load_recipe, run_folder

    if weights is not None:
        overrides = [*overrides, "--train.source_weights", weights]
    loaded = load_recipe(recipe, overrides)
    build.train(loaded, out or run_folder(recipe, loaded), tensorboard, device, stream)


def sample(
    run: RunFolder,
    *,
    prompt: Annotated[
        Sequence[str],
        Arg(
            "text, or files of any modality, in the order of a trained task; - reads a text from"
            " stdin",
            "PROMPT",
        ),
    ] = (),
    prompts: Annotated[
        Path | None,
        Arg("a text file, each line of which is a prompt of its own; n samples of each", "FILE"),
    ] = None,
    to: Annotated[str, Arg("what to sample: a modality, or a field of the recipe", "FIELD")],
    voice: Annotated[
        Path | None, Arg("a clip of who is to speak, of a run that reads voices", "CLIP")
    ] = None,
    n: Annotated[
        int | None,
        Arg("how many samples (default: 8; 1 with --prompts, --play or --out -)", "N", "-n"),
    ] = None,
    timestamps: Annotated[
        bool, Arg("of text read in a clip: write when each word is said, to NAME.words.csv")
    ] = False,
    best_of: Annotated[
        int, Arg("keep of so many draws the one that is likeliest per frame", "N")
    ] = 1,
    out: Annotated[
        Path | None,
        Arg(
            "the folder for the samples (default: the run's samples/asked); - streams one sample,"
            " speech or text, to stdout",
            "DIR",
            "-o",
        ),
    ] = None,
    play: PlayWith = None,
    seed: Annotated[int, Arg("seed of all random numbers", "SEED")] = 0,
    temperature: Annotated[
        float | None, Arg("below 1: likelier frames; 0: always the likeliest", "T")
    ] = None,
    top_k: Annotated[int | None, Arg("sample among the K likeliest only", "K")] = None,
    top_p: Annotated[
        float | None, Arg("sample among the likeliest that together have probability P", "P")
    ] = None,
    guidance: Annotated[float | None, Arg("strength of the condition; 1: as trained", "W")] = None,
    max_frames: Annotated[int | None, Arg("the most frames of one sample", "N")] = None,
    precision: Precision = None,
    compiled: Annotated[
        bool, Arg("compile the step: half a minute first, then faster; for many frames")
    ] = False,
    steps: SamplingSteps = None,
    aug_noise: Annotated[
        float | None,
        Arg("cascade: share of noise added to the low-resolution picture, 0 to below 1", "S"),
    ] = None,
    rows: Annotated[
        int | None, Arg("picture of any size: its rows of patches; 0: as the model draws", "N")
    ] = None,
    columns: Annotated[
        int | None, Arg("picture of any size: patches of a row; 0: as the model draws", "N")
    ] = None,
    infill: Infill = None,
    vocoder: OtherVocoder = None,
    device: Device = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Sample from the model: mmtok sample RUN --prompt seven --to image."""
    memory_budget.set_limit(max_memory)
    if n is not None and n < 1:
        raise UserError(f"sample: -n is {n}; it must be at least 1")
    if not 0 <= seed < 2**63:
        raise UserError(f"sample: --seed is {seed}; it must be from 0 to {2**63 - 1}")
    from mmtok.commands.play import sample as sample_or_play
    from mmtok.run.distributed import run_on_all_ranks
    from mmtok.run.run import Run

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
        "n_rows": rows,
        "n_columns": columns,
    }

    def work(opened: Run) -> list[Path]:
        """Draw, and give the paths of what was written."""
        if vocoder is not None:
            opened.take_vocoder(vocoder)
        return sample_or_play(
            opened,
            prompt,
            to,
            n,
            out,
            seed,
            infill,
            play,
            voice,
            best_of,
            timestamps,
            prompts,
            **changes,
        )

    paths = run_on_all_ranks(run, recipe, work, device, checkpoint)
    for path in paths or ():
        print_answer(path)


def evaluate(
    run: RunFolder,
    *,
    force: Annotated[bool, Arg("compute again, even if evaluation.json exists")] = False,
    guidance: Guidances = (),
    ensemble: Ensemble = (),
    dropout_members: DropoutMembers = 0,
    vocoder: OtherVocoder = None,
    device: Device = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Compute the metrics of all the recipe's tasks; write RUN/evaluation.json.

    With --ensemble or --dropout_members likelihoods and classes are those of all members together;
    samples are the run's own.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.evaluation.evaluate import evaluate as evaluate_run
    from mmtok.io.overrides import leaves
    from mmtok.run.distributed import run_on_all_ranks
    from mmtok.run.ensemble import take_ensemble
    from mmtok.run.run import Run

    def work(opened: Run) -> dict[str, Any]:
        if vocoder is not None:
            opened.take_vocoder(vocoder)
        take_ensemble(opened, ensemble, dropout_members)
        return evaluate_run(opened, force, guidance)

    figures = run_on_all_ranks(run, recipe, work, device, checkpoint) or {}
    for name, value in leaves(figures).items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print_answer(f"{name:<56} {shown}")


def report(
    run: RunFolder,
    *,
    force: Annotated[bool, Arg("write again, even if a newer report exists")] = False,
    vocoder: OtherVocoder = None,
    device: OnCpu = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Write RUN/report.html: one self-contained page of curves, samples and metrics.

    Samples and figures are those that are there; --vocoder is for the round trips of real clips.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.nn.device import resolve_device, stay_on_cpu
    from mmtok.report.report import write_report
    from mmtok.run.run import open_run

    stay_on_cpu(device, "tokenizers work")
    opened = open_run(run, recipe, resolve_device("cpu"), checkpoint)
    if vocoder is not None:
        opened.take_vocoder(vocoder)
    print_answer(write_report(opened, force))


def export(
    run: RunFolder,
    *,
    out: Annotated[Path, Arg("the folder to write", "DIR", "-o")],
    to: Annotated[
        str | None,
        Arg(
            "the modality that the exported model writes (default: text, if a task has it as its"
            " target)",
            "MODALITY",
        ),
    ] = None,
    adapter: Annotated[
        bool, Arg("write the adapters of a run trained with --lora alone, as peft reads them")
    ] = False,
    device: Annotated[
        str | None, Arg("accepted for uniformity: weights are written from the CPU", "DEVICE")
    ] = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer open.

    Only for runs whose modalities have one channel each: a Llama, or what they started from.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.export import export as export_run
    from mmtok.nn.device import resolve_device, stay_on_cpu
    from mmtok.run.run import open_run

    stay_on_cpu(device, "weights are written")
    opened = open_run(run, recipe, resolve_device("cpu"), checkpoint)
    print_answer(export_run(opened, out, to, adapter))


def tokenize(
    modality: Annotated[
        str,
        Arg(
            "text, speech, image or jets, or one that the --recipe brings; or the folder of a run"
            " whose tokenizers are fitted, for the tokens of its sources",
            "MODALITY",
        ),
    ],
    files: Annotated[
        Sequence[Path],
        Arg(
            "files of one signal or of many jets each; a folder stands for all in it, - for"
            " standard input; none for a run",
            "FILE",
        ),
    ] = (),
    *,
    out: Annotated[
        str | None,
        Arg(
            "the token file to write; FOLDER/, with its slash, is a folder of parts: the same"
            " command goes on where it was interrupted",
            "TOKENS",
            "-o",
        ),
    ] = None,
    tokenizer: Folder = None,
    prepare: Annotated[
        Sequence[str],
        Arg(
            "how signals are prepared, unless the tokenizer's folder says so: channel=left,"
            " fit=crop, background=black, normal_form=NFC, ...",
            "FIELD=VALUE",
        ),
    ] = (),
    check: Annotated[bool, Arg("decode again and print the fidelity")] = False,
    allow_clipping: Annotated[
        bool, Arg("write jets even if more than a fifth lies outside the tokenizer's ranges")
    ] = False,
    shard: Annotated[
        str | None,
        Arg(
            "take every N-th signal from the I-th on (from 0), into tokens-0000I-of-0000N.parquet;"
            " of files of many signals every N-th file, of FOLDER/ every N-th part",
            "I/N",
        ),
    ] = None,
    columns: Columns = None,
    jet_files: JetFiles = AS_FOUND,
    workers: Annotated[
        int | None,
        Arg("processes that share the work (default: one per core, where the work is long)", "N"),
    ] = None,
    ray: Annotated[
        str | None,
        Arg(
            "let a Ray cluster make the parts of FOLDER/, at ADDRESS (default: one of this"
            " machine); all of it must see the files under the same paths",
            "ADDRESS",
            alone="",
        ),
    ] = None,
    recipe: OwnTokenizers = None,
    device: OnCpu = None,
    max_memory: MaxMemory = None,
) -> None:
    """Turn files into tokens: mmtok tokenize image *.png -o digits.parquet.

    mmtok tokenize RUN makes the token files of a run that `mmtok fit` began, from corpora of any
    layout. With --shard or --ray a cluster shares the work, and `mmtok train` goes on from there.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.piped import spooled
    from mmtok.commands.tokenize import How, needed_out, tokenize_files, tokenize_run
    from mmtok.nn.device import stay_on_cpu

    stay_on_cpu(device, "tokenizers work")
    reading = jet_files.with_columns(columns)
    if not files:
        own = {
            "out": out,
            "tokenizer": tokenizer,
            "prepare": prepare,
            "check": check,
            "allow_clipping": allow_clipping,
        }
        given = [name for name, value in (own | reading).items() if value]
        how = How(True, shard, workers, ray)
        print_answer(tokenize_run(modality, given, recipe, how))
        return
    out = needed_out(out)
    how = How(out.endswith("/"), shard, workers, ray, check)
    with spooled(files) as there:
        done = tokenize_files(
            modality, there, Path(out), tokenizer, prepare, allow_clipping, recipe, reading, how
        )
    print_answer_lines(done.summary())


def detokenize(
    tokens: Annotated[Path, Arg("a token file", "TOKENS")],
    *,
    out: Annotated[Path, Arg("the folder for the files; -: one file to stdout", "DIR", "-o")],
    tokenizer: Folder = None,
    vocoder: OtherVocoder = None,
    recipe: OwnTokenizers = None,
    device: OnCpu = None,
    max_memory: MaxMemory = None,
) -> None:
    """Turn tokens back into files.

    A file gets the name of the one that its tokens were made from; if the token file does not hold
    it, the name of the field and the number of the row.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.detokenize import detokenize_to
    from mmtok.nn.device import stay_on_cpu

    stay_on_cpu(device, "tokenizers work")
    detokenize_to(out, tokens, tokenizer, recipe, vocoder)


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
    """Describe a recipe, a run, a token file or a tokenizer: sizes, bitrates, fingerprints.

    For a recipe and a run it also lists every field by the name that sets it. A recipe's fields can
    be set here as with train, to see their effect. Sizes that depend on the data are known once the
    tokenizers are fitted.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.show import describe_path

    print_answer_lines(describe_path(path, recipe, overrides))


def compare(
    a: SideA,
    b: SideB,
    *,
    modality: AnyKind = None,
    columns: AnyColumns = None,
    tests: Tests = None,
    n: Annotated[int, Arg("signals of each set, at random, at most", "N", "-n")] = 2_000,
    permutations: Annotated[int, Arg("of the null of every test", "N")] = 500,
    power: Annotated[int, Arg("pairs of sets that power is measured with; 0: none", "N")] = 20,
    classifier: Classifier = "boosted",
    json: Annotated[bool, Arg("print one JSON object instead of tables")] = False,
    jet_files: JetFiles = AS_FOUND,
    seed: Annotated[int, Arg("seed of all random numbers", "SEED")] = 0,
    max_memory: MaxMemory = None,
) -> None:
    """Compare two sets of signals: could they be of one distribution?

    mmtok compare generated.npz real.npz

    Every signal becomes a few features, which the table lists; rows of a table are taken as they
    are. Tests: ks, the mean Kolmogorov-Smirnov distance of the features; sks, the same along random
    directions; sw, sliced Wasserstein-1; fgd, Frechet distance, extrapolated; mmd, quartic kernel;
    c2st, the AUC of a classifier on held-out signals; particles, the same of a set transformer on
    what jets are made of. A p-value is how often labels at random give a statistic as large. Power
    says how often the test finds a small, declared difference: where it is low, a large p-value
    says little.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.compare import as_json, as_text, columns_of, comma_names
    from mmtok.commands.compare import compare as compare_places

    of_tables, jet_columns = columns_of(columns)
    reading = jet_files.with_columns(jet_columns)
    compared = compare_places(
        a,
        b,
        modality,
        of_tables,
        comma_names(tests),
        n,
        permutations,
        power,
        classifier,
        reading,
        seed,
    )
    text = as_text
    if json:
        text = as_json
    print_answer_lines(text(compared))


MAKING = (fit, train, sample, score, embed, evaluate, report, compare, export)
VERBS = {verb.__name__: verb for verb in (*MAKING, tokenize, detokenize, show)}


def main(words: list[str] | None = None) -> int:
    """Run a command line, by default the process's own, and return its exit code."""
    return run_command_line(VERBS, words)
