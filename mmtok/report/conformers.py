"""The report's section of conformers: drawn ones laid upon the minima that a molecule has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mmtok.evaluation.task import TaskEvaluation
from mmtok.io.messages import counted
from mmtok.io.molecules import Conformer, bonds_of, canonical_smiles, read_sdf
from mmtok.metrics.conformers import rmsd_matrix, superposed
from mmtok.report.html import Markup, one_line, tag
from mmtok.report.plots import Theme, chart
from mmtok.report.samples import Sample, more_prompts
from mmtok.run.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_MOLECULES = 6  # shown at most
N_MINIMA = 4  # of each, those of lowest energy
MARGIN_ANGSTROM = 1.0  # about what is shown
SPLITS = {"train": "seen in training", "heldout": "held out"}
FIELDS = (("molecule",), ("conformer",))  # of the tasks whose data have minima

LABELS = {
    "n_molecules": "molecules",
    "n_references": "their minima: the references",
    "cov_r": "minima with a sample within 0.75 Å",
    "amr_r": "least RMSD of a sample to each minimum, mean [Å]",
    "cov_p": "samples within 0.75 Å of a minimum",
    "amr_p": "least RMSD of a minimum to each sample, mean [Å]",
    "etkdg_cov_r": "minima with a raw ETKDGv3 embedding within 0.75 Å",
    "etkdg_amr_r": "least RMSD of such an embedding to each minimum, mean [Å]",
    "etkdg_cov_p": "such embeddings within 0.75 Å of a minimum",
    "etkdg_amr_p": "least RMSD of a minimum to each of them, mean [Å]",
    "stereo_right": "samples with the stereochemistry that the SMILES names",
}
REMARK = (
    "Grey: references, which are minima of the molecule's energy, the lowest first. In colour upon"
    " each: the drawn conformer that is nearest to it, laid where its RMSD over heavy atoms is"
    " least. Of a molecule that the run does not have: all that were drawn, upon the first."
)


@dataclass(frozen=True, eq=False)
class Panel:
    """Conformers that are drawn over each other, where they lie.

    Attributes:
        title: above them.
        references: in grey.
        drawn: in colour.
    """

    title: str
    references: Sequence[Conformer]
    drawn: Sequence[Conformer]


def conformer_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Of each molecule its minima with the nearest drawn conformers, in pictures."""
    shown = list(islice(prompts.items(), N_MOLECULES))
    names = {prompt: canonical_smiles(prompt) for prompt, _ in shown}
    minima_of = _minima(run, set(names.values()))
    pictures = []
    for prompt, samples in shown:
        drawn = [conformer for sample in samples for conformer in read_sdf(sample.path)]
        where, minima = minima_of.get(names[prompt], ("not among the run's molecules", []))
        if drawn:
            words = f"{counted(len(minima), 'reference')}, {len(drawn):,} drawn; {where}"
            pictures.append(_picture(f"{one_line(prompt, 44)}\n{words}", panels(minima, drawn)))
    return [
        tag("p", REMARK),
        tag("div", *pictures, cls="charts"),
        *more_prompts(prompts, len(shown)),
    ]


def _minima(run: Run, molecules: set[str]) -> dict[str, tuple[str, list[Conformer]]]:
    """SMILES -> the words for its split, and its minima; of molecules that the run has."""
    found: dict[str, tuple[str, list[Conformer]]] = {}
    for task in run.recipe.tasks:
        if task.modalities(run.recipe.fields) != FIELDS:
            continue
        for split, words in SPLITS.items():
            minima = defaultdict(list)
            for smiles, conformer in TaskEvaluation(run, task).rows(split):
                if smiles in molecules:
                    minima[smiles].append(conformer)
            found |= {smiles: (words, some) for smiles, some in minima.items()}
    return found


def panels(minima: Sequence[Conformer], drawn: Sequence[Conformer]) -> list[Panel]:
    """A panel for each of the first minima, with the nearest drawn conformer; see REMARK.

    All are moved upon the first, and that into its axes.
    """
    if not minima:
        first = in_axes(drawn[0])
        return [Panel("", (), [superposed(first, conformer) for conformer in drawn])]
    first = in_axes(minima[0])
    references = [superposed(first, minimum) for minimum in minima[:N_MINIMA]]
    rmsd = rmsd_matrix(references, drawn)
    return [
        Panel(f"{row.min():.2f} Å", (reference,), (superposed(reference, drawn[row.argmin()]),))
        for reference, row in zip(references, rmsd, strict=True)
    ]


def in_axes(conformer: Conformer) -> Conformer:
    """A conformer about its middle, turned so that it reaches farthest along x, then along y."""
    centred = conformer.positions - conformer.positions.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1]
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])  # a rotation, not a mirror
    return Conformer(conformer.smiles, centred @ axes)


# ---- the picture


def _picture(title: str, shown: Sequence[Panel]) -> Markup:
    """Panels, two beside each other, all on one scale and seen along z."""
    parts = [c.positions for panel in shown for c in (*panel.references, *panel.drawn)]
    positions = np.concatenate(parts)[:, :2]
    low = positions.min(0) - MARGIN_ANGSTROM
    high = positions.max(0) + MARGIN_ANGSTROM

    def draw(figure: Figure, theme: Theme) -> None:
        """Thick grey lines below thin ones in colour."""
        figure.suptitle(title, fontsize=9)
        n_columns = min(2, len(shown))
        n_rows = -(-len(shown) // n_columns)
        for place, panel in enumerate(shown, 1):
            axes = figure.add_subplot(n_rows, n_columns, place)
            for conformer in panel.references:
                _draw_bonds(axes, conformer, theme.real, 4.5)
            for conformer in panel.drawn:
                _draw_bonds(axes, conformer, theme.ours, 1.3)
            axes.set_title(panel.title, fontsize=9)
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
            axes.set_axis_off()

    return chart(f"drawn conformers upon minima: {title}".replace("\n", ": "), draw)


def _draw_bonds(axes: Axes, conformer: Conformer, colour: str, width: float) -> None:
    """The bonds as lines, those that are nearer to the eye over the others."""
    from matplotlib.collections import LineCollection

    ends = conformer.positions[bonds_of(conformer.smiles)]  # (B, 2, 3)
    ends = ends[ends[..., 2].mean(1).argsort()]
    lines = LineCollection(ends[..., :2], colors=colour, linewidths=width, capstyle="round")
    axes.add_collection(lines)
