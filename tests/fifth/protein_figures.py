"""What is measured of generated proteins, and how a report shows them: optional for a modality."""

from collections import Counter

from protein_reader import read_proteins

from mmtok.evaluation.task import TaskEvaluation, share_ended
from mmtok.report.html import Markup, table, tag
from mmtok.report.samples import Sample
from mmtok.run.run import Run


def protein_from_text(task: TaskEvaluation) -> dict[str, float]:
    """Share of residues that training proteins of the family that was asked for have too."""
    residues: dict[str, set[str]] = {}
    for family, protein in task.rows("train"):
        residues.setdefault(family, set()).update(protein)
    families = sorted(residues)
    prompts = [families[i % len(families)] for i in range(task.run.recipe.n_samples)]
    sampled = task.sample(prompts)
    task.save_samples(task.name, prompts, sampled)
    pairs = zip(prompts, task.decode(sampled), strict=True)
    own = [letter in residues[family] for family, protein in pairs for letter in protein]
    return {"own_residues": sum(own) / max(1, len(own)), "stopped": share_ended(sampled)}


def protein_section(run: Run, prompts: dict[str, list[Sample]]) -> list[Markup]:
    """How often each residue comes in the samples of each family."""
    rows = []
    for family, samples in prompts.items():
        proteins = [protein for sample in samples for protein in read_proteins(sample.path, {})]
        counts = Counter("".join(proteins))
        rows.append((family, " ".join(f"{letter} {n}" for letter, n in sorted(counts.items()))))
    return [tag("p", "Residues by family."), table(("family", "residues"), rows)]
