"""What is measured of proteins, and how a report shows them: optional for a modality."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log, log2

from protein_reader import RESIDUES, read_proteins

from mmtok.core.segment import Document
from mmtok.data.subset import random_subset
from mmtok.evaluation.task import TaskEvaluation, share_ended
from mmtok.metrics.intervals import paired_difference, ratio_estimate
from mmtok.report.html import Markup, table, tag
from mmtok.report.samples import Sample
from mmtok.run.run import Run

N_SCORED = 300
END = "."  # what the unigram model draws after the last residue


def protein_from_text(task: TaskEvaluation) -> dict[str, float]:
    """Held-out proteins given their headers, and samples for these headers.

    bits_per_residue (exact, the end included) beside that of a unigram model of training residues,
    with 95 % intervals; p of their difference. composition: total variation between the residues of
    samples and of held-out proteins, beside that of as many training ones. copies: samples that are
    training proteins.
    """
    training = [protein for _, protein in task.rows("train")]
    rows = random_subset(task.rows("heldout"), N_SCORED, task.seed)
    proteins = [protein for _, protein in rows]
    n_residues = [len(protein) for protein in proteins]
    bits = _bits(task, rows)
    unigram = unigram_bits(training, proteins)
    per_residue = [ratio_estimate(x, n_residues) for x in (bits, unigram)]
    figures = per_residue[0].named("bits_per_residue")
    figures |= per_residue[1].named("bits_per_residue_unigram")
    figures["difference_p"] = paired_difference(bits, unigram)[1]

    chosen = [rows[i % len(rows)] for i in range(task.run.recipe.n_samples)]
    prompts = [header for header, _ in chosen]
    sampled = task.sample(prompts)
    task.save_samples(task.name, prompts, sampled)
    drawn = task.decode(sampled)
    asked = frequencies(protein for _, protein in chosen)
    figures["composition"] = total_variation(frequencies(drawn), asked)
    figures["composition_training"] = total_variation(frequencies(training), asked)
    known = set(training)
    figures["copies"] = sum(protein in known for protein in drawn) / len(drawn)
    figures["stopped"] = share_ended(sampled)
    return figures


def _bits(task: TaskEvaluation, rows: Sequence[tuple[str, str]]) -> list[float]:
    """-log2 p of each protein given its header."""
    headers = task.input_tokenizer.encode_batch([header for header, _ in rows])
    segments = task.target_tokenizer.encode_batch([protein for _, protein in rows])
    pairs = zip(headers, segments, strict=True)
    scores = task.run.score_documents([Document(pair, (False, True)) for pair in pairs])
    return [score.nats[1] / log(2) for score in scores]


def unigram_bits(training: Sequence[str], proteins: Sequence[str]) -> list[float]:
    """-log2 p of each protein whose residues, and end, are drawn at their training frequencies.

    Each is counted once more than it occurs.
    """
    counts = Counter(RESIDUES + END)
    counts.update("".join(protein + END for protein in training))
    bits = {letter: log2(counts.total() / n) for letter, n in counts.items()}
    return [sum(bits[letter] for letter in protein + END) for protein in proteins]


def frequencies(proteins: Iterable[str]) -> dict[str, float]:
    """Share of each residue."""
    counts = Counter("".join(proteins))
    return {letter: n / counts.total() for letter, n in counts.items()}


def total_variation(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """Half the sum of |p - q|: 0 of equal distributions, 1 of disjoint ones."""
    return sum(abs(p.get(letter, 0.0) - q.get(letter, 0.0)) for letter in {*p, *q}) / 2


def protein_section(run: Run, prompts: dict[str, list[Sample]]) -> list[Markup]:
    """How often each residue comes in the samples of each header."""
    rows = []
    for header, samples in prompts.items():
        proteins = [protein for sample in samples for protein in read_proteins(sample.path, {})]
        counts = Counter("".join(proteins))
        rows.append((header, " ".join(f"{letter} {n}" for letter, n in sorted(counts.items()))))
    return [tag("p", "Residues by header."), table(("header", "residues"), rows)]
