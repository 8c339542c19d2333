"""A report's charts, drawn by matplotlib: curves, histograms, jet images; and spectrograms.

All but spectrograms are drawn twice, for light and for dark pages, one chart per picture, so that
the page can arrange them at any width.
Letters: T frames, C channels, N values.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmtok.errors import missing_extra
from mmtok.report.html import Markup, png, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECADES = 4.0  # of magnitude that a spectrogram shows: 80 dB
MANY_POINTS = 12  # from so many on a curve has no markers
OFF_SCALE = 0.01  # share of generated values outside a histogram that its title mentions


def need_matplotlib() -> None:
    """Raises UserError without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401 - only tried
    except ImportError:
        raise missing_extra("a report", "report") from None


def spectrogram(
    log_mel: np.ndarray, top: float, share: float, seconds: float, range_hz: tuple[float, float]
) -> Markup:
    """A spectrogram with its axes, time to the right and frequency upwards.

    Args:
        log_mel: log10 mel magnitudes (T, C).
        top: The magnitude that is brightest; DECADES below it is black.
        share: Of the available width, so that clips next to each other have one scale of time.
        seconds: The clip's length.
        range_hz: The lowest and the highest frequency.
    """
    from matplotlib import colormaps

    brightness = np.clip((log_mel - top) / DECADES + 1, 0, 1)
    upright = brightness.T[::-1]  # (C, T), low frequencies at the bottom
    pixels = (colormaps["magma"](upright)[..., :3] * 255).astype(np.uint8)  # (C, T, 3)
    alt = f"mel spectrogram, {seconds:.2f} s"
    picture = tag("img", src=png(Image.fromarray(pixels)), alt=alt)
    low, high = map(_frequency, range_hz)
    y_axis = tag("div", tag("span", high), tag("span", "mel"), tag("span", low), cls="y")
    x_axis = tag("div", tag("span", "0"), tag("span", f"{seconds:.2f} s"), cls="x")
    shot = tag("div", picture, cls="shot", style=f"width:{share:.1%}")
    below = tag("div", x_axis, style=f"width:max({share:.1%},4.5rem)")
    return tag("div", y_axis, tag("div", shot, below), cls="mel")


def _frequency(hz: float) -> str:
    return f"{hz / 1000:.2g} kHz" if hz >= 1000 else f"{hz:.0f} Hz"


# ---- charts for light and dark pages


@dataclass(frozen=True)
class Theme:
    """Colours of a chart. paper equals --card of the style sheet."""

    paper: str
    ink: str
    line: str
    ours: str
    other: str
    real: str


LIGHT = Theme("#ffffff", "#2b3138", "#d5dae0", "#0b62b8", "#c4500a", "#c9d0d8")
DARK = Theme("#1b1f24", "#d3d9e0", "#3a424b", "#62b0f5", "#f0995a", "#4b545f")


def chart(
    alt: str,
    draw: Callable[[Figure, Theme], None],
    size_in: tuple[float, float] = (3.9, 3.1),
    n_colours: int = 64,
) -> Markup:
    """A chart as a picture that follows the reader's light or dark page.

    Args:
        alt: The picture in words.
        draw: Draws on an empty figure.
        size_in: Width and height in inches.
        n_colours: Size of the picture's palette; 0 keeps all colours. Lines and text need few, and
            a palette makes the file a third of the size.
    """
    light, dark = (
        png(_reduced(_rendered(draw, theme, size_in), n_colours)) for theme in (LIGHT, DARK)
    )
    return tag(
        "picture",
        tag("source", srcset=dark, media="(prefers-color-scheme: dark)"),
        tag("img", src=light, alt=alt),
        cls="chart",
    )


def _reduced(picture: Image.Image, n_colours: int) -> Image.Image:
    if not n_colours:
        return picture
    return picture.quantize(n_colours, dither=Image.Dither.NONE)


def _rendered(
    draw: Callable[[Figure, Theme], None], theme: Theme, size_in: tuple[float, float]
) -> Image.Image:
    """What `draw` draws in a theme's colours."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with rc_context(_settings(theme)):
        figure = Figure(size_in, dpi=160, facecolor=theme.paper, layout="constrained")
        draw(figure, theme)
        # A label in a script that the font lacks is drawn as boxes. The alt text has its letters.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
            # scripts with joined letters
            warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively")
            figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def _settings(theme: Theme) -> Any:
    """Matplotlib's settings of a theme: their names are a type of its own."""
    return {
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "axes.titlesize": 10.5,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
    }


def curve(
    title: str,
    unit: str,
    steps: Sequence[int],
    values: Sequence[float | None],
    held_out: Mapping[str, float],
) -> Markup:
    """Values by training step; None and what is not finite are left out.

    held_out: Name -> value. "model" is a dot at the last step, the others are dashed lines.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        """One panel, the legend above it."""
        axes = figure.subplots()
        known = [
            (step, value)
            for step, value in zip(steps, values, strict=True)
            if value is not None and np.isfinite(value)
        ]
        marker = "o" if len(known) < MANY_POINTS else None
        known_steps, known_values = zip(*known, strict=True)
        axes.plot(
            known_steps,
            known_values,
            color=theme.ours,
            lw=1.6,
            marker=marker,
            ms=3,
            label="training",
        )
        _draw_held_out(axes, known_steps[-1], held_out, theme)
        axes.set(title=title, xlabel="step", ylabel=unit, xlim=(0, None))
        axes.grid(color=theme.line, lw=0.5)
        if held_out:
            figure.legend(loc="outside upper center", ncols=2)

    return chart(f"{title} in {unit} by training step", draw)


def _draw_held_out(axes: Axes, last_step: int, held_out: Mapping[str, float], theme: Theme) -> None:
    all_dashes = ((), (5, 3), (1.5, 2))
    for (name, value), dashes in zip(held_out.items(), all_dashes, strict=False):
        if name == "model":
            axes.plot(
                last_step,
                value,
                "D",
                color=theme.other,
                ms=5,
                label=f"held-out {value:.3g}",
                zorder=5,
                clip_on=False,
            )
        else:
            label = f"{name} {value:.3g}"
            axes.axhline(value, color=theme.ink, lw=1.1, dashes=dashes, label=label)


def histogram(
    title: str,
    label: str,
    unit: str,
    generated: np.ndarray,
    real: np.ndarray,
    round_trip: np.ndarray,
) -> Markup:
    """Densities of three samples of numbers (N,), and below them generated over round trip.

    The ratio has its counting error. Without a unit the values are integers.
    """
    edges = _edges(np.concatenate((real, round_trip)), generated, integer=not unit)
    off_scale = np.mean((generated < edges[0]) | (generated > edges[-1]))
    if off_scale > OFF_SCALE:
        title += f", {off_scale:.0%} of generated off scale"

    def draw(figure: Figure, theme: Theme) -> None:
        """Two panels over one axis: the densities, and a third as high the ratio."""
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        filled = {"histtype": "stepfilled", "color": theme.real}
        dashed = {"histtype": "step", "color": theme.other, "ls": "--", "lw": 1.2}
        solid = {"histtype": "step", "color": theme.ours, "lw": 1.6}
        bin_width = edges[1] - edges[0]
        for values, name, style in (
            (real, "real", filled),
            (round_trip, "tokenised real", dashed),
            (generated, "generated", solid),
        ):
            weights = np.full(len(values), 1 / max(1, len(values)) / bin_width)
            axes.hist(values, edges, weights=weights, label=name, **style)
        axes.set(title=title, ylabel=f"density [1/{unit}]" if unit else "density")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper center",
            ncols=3,
            columnspacing=1.2,
        )
        _draw_ratio(below, edges, generated, round_trip, theme)
        below.set(
            xlabel=f"{label} [{unit}]" if unit else label,
            ylabel="gen. / tok.",
            xlim=(edges[0], edges[-1]),
        )
        figure.align_ylabels()

    return chart(f"{title}: {label}, generated and real", draw, (3.9, 3.5))


def _edges(real: np.ndarray, generated: np.ndarray, integer: bool, n_bins: int = 30) -> np.ndarray:
    """Edges of bins over the central 99 % of both samples.

    Generated values that are far off widen the range of the real ones threefold at most. Bins of
    `integer` values have integer widths and are centred on them.
    """
    real_low, real_high = np.percentile(real, (0.5, 99.5))
    low = real_low
    high = real_high
    if len(generated):
        reach = real_high - real_low or 1.0
        generated_low, generated_high = np.percentile(generated, (0.5, 99.5))
        low = max(min(low, generated_low), real_low - reach)
        high = min(max(high, generated_high), real_high + reach)
    if not integer:
        return np.linspace(low, high if high > low else low + 1, n_bins + 1)
    bin_width = max(1, int(np.ceil((high - low) / n_bins)))
    return np.arange(np.floor(low) - 0.5, np.ceil(high) + bin_width, bin_width)


def _draw_ratio(
    axes: Axes, edges: np.ndarray, ours: np.ndarray, reference: np.ndarray, theme: Theme
) -> None:
    """The ratio of two normalised histograms in the bins where both have counts."""
    a = np.histogram(ours, edges)[0]
    b = np.histogram(reference, edges)[0]
    filled = (a > 0) & (b > 0)
    ratio = a[filled] / b[filled] * len(reference) / max(1, len(ours))
    error = ratio * np.sqrt(1 / a[filled] + 1 / b[filled])  # of two independent counts
    centres = ((edges[1:] + edges[:-1]) / 2)[filled]
    axes.axhline(1, color=theme.ink, lw=0.8)
    axes.errorbar(centres, ratio, error, fmt=".", ms=4, lw=0.9, color=theme.ours)
    axes.set(ylim=(0, 2), yticks=(0, 1, 2))


def jet_images(title: str, images: Mapping[str, np.ndarray], half_width: float) -> Markup:
    """Mean jet images (eta, phi), in GeV per jet and pixel, on one logarithmic colour scale.

    half_width: Of the images, in eta and in phi [rad].
    """

    def draw(figure: Figure, theme: Theme) -> None:
        """A panel for each image, side by side, and one colour bar for all."""
        from matplotlib.colors import LogNorm

        panels = figure.subplots(1, len(images), sharey=True)
        top = max(float(image.max()) for image in images.values()) or 1.0
        bottom = top * 1e-5
        for axes, (name, image) in zip(panels, images.items(), strict=True):
            shown = axes.imshow(
                np.maximum(image, bottom),
                origin="lower",
                cmap="magma",
                norm=LogNorm(bottom, top),
                extent=(-half_width, half_width) * 2,
                interpolation="nearest",
            )
            axes.set_title(name, fontsize=9)
            axes.set(xlabel="Δφ [rad]")
        panels[0].set_ylabel("Δη")
        figure.suptitle(title, fontsize=10.5)
        bar = figure.colorbar(shown, ax=panels)
        bar.set_label("GeV per jet and pixel", fontsize=8.5)
        bar.outline.set_edgecolor(theme.line)

    return chart(f"{title}: mean jet images", draw, (3.9, 2.2), n_colours=0)
