"""What is drawn: a segment, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmtok.core.segment import Segment


@dataclass(frozen=True, eq=False)
class Sampled:
    """One drawn segment.

    Its info is empty, so that it decodes with the tokenizer's defaults: what a prompt's info says
    (a height, a count of samples) is true of the prompt's frames alone, and would cut off the new
    ones.

    Attributes:
        segment: the prompt's own frames included.
        stop: why it stopped: "end" or "cap".
        trajectory: states between noise and the sample, where they were recorded
            (`mmtok.model.trajectory`): segments, and which frames (T,) were still masked.
    """

    segment: Segment
    stop: str
    trajectory: tuple[tuple[Segment, np.ndarray], ...] = ()
