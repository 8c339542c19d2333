"""The report's section of videos: samples by prompt, as animations that the page holds itself."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from mmtok.report.html import Markup, data_uri, tag
from mmtok.report.samples import N_PROMPTS, Sample, more_prompts
from mmtok.run.run import Run
from mmtok.sources.video_files import WRITTEN

N_VIDEOS = 8  # shown per prompt
MOST_BYTES = 2_000_000  # of a video that is shown; larger ones are named

LABELS = {
    "frame_accuracy": "pictures after the first three that show what the video does",
    "judge_heldout": "the same for real held-out pictures",
    "judge_round_trip": "the same after the tokenizer's round trip",
    "continued_psnr_db": "PSNR of continuations from the real pictures [dB]",
    "repeated_psnr_db": "the same of the last picture given, repeated [dB]",
    "length_right": "continuations as long as the real video",
}


def video_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Samples by prompt."""
    blocks = []
    shown = list(islice(prompts.items(), N_PROMPTS))
    for prompt, samples in shown:
        strip = tag("div", *map(_figure, samples[:N_VIDEOS]), cls="strip")
        blocks.append(tag("div", tag("h3", prompt), strip, cls="prompt"))
    return [tag("div", *blocks, cls="prompts"), *more_prompts(prompts, len(shown))]


def _figure(sample: Sample) -> Markup:
    """A video that plays; its name where it is large, or no animation."""
    path = sample.path
    if path.suffix != WRITTEN or path.stat().st_size > MOST_BYTES:
        return tag("figure", tag("figcaption", path.name))
    source = data_uri("image/gif", path.read_bytes())
    return tag("figure", tag("img", src=source, alt=path.stem, cls="pixels"))
