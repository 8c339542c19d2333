"""A report's charts: curves, spectrograms, histograms, jet images, drawn by matplotlib into
pictures that stand in the page.

All but spectrograms are drawn twice, for light and for dark pages, one panel a picture, so that the
page can lay them out at any width.
Letters: T frames, C channels, N values.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmtok.errors import missing_extra
from mmtok.report.html import Markup, data_uri, encoded, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OBSERVED = {
    "mass": ("mass", "GeV"),
    "multiplicity": ("number of constituents", ""),
    "pt": ("sum of the constituents' pt", "GeV"),
    "girth": ("girth: mean distance from the centre, weighted by pt", ""),
}
DECADES = 4.0  # of magnitude that a spectrogram shows: 80 dB


def need_matplotlib() -> None:
    """Raises UserError without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise missing_extra("a report", "report") from None


def spectrogram(
    log_mel: np.ndarray, top: float, share: float, seconds: float, range_hz: tuple[float, float]
) -> Markup:
    """log10 mel magnitudes (T, C) as a picture with its axes: time to the right, frequency upwards,
    DECADES below `top` dark.

    share: of the card's width, so that clips beside each other have one scale of time.
    """
    from matplotlib import colormaps

    level = np.clip((log_mel - top) / DECADES + 1, 0, 1)
    pixels = (colormaps["magma"](level.T[::-1])[..., :3] * 255).astype(
        np.uint8
    )  # (C, T, 3), low frequencies at the bottom
    picture = tag(
        "img",
        src=data_uri("image/png", encoded(Image.fromarray(pixels), "PNG")),
        alt=f"mel spectrogram, {seconds:.2f} s",
    )
    hz = [f"{x / 1000:.2g} kHz" if x >= 1000 else f"{x:.0f} Hz" for x in reversed(range_hz)]
    y_axis = tag("div", tag("span", hz[0]), tag("span", "mel"), tag("span", hz[1]), cls="y")
    x_axis = tag("div", tag("span", "0"), tag("span", f"{seconds:.2f} s"), cls="x")
    return tag("div", y_axis, tag("div", tag("div", picture, cls="shot", style=f"width:{share:.1%}"),
                                  tag("div", x_axis, style=f"width:max({share:.1%},4.5rem)")), cls="mel")  # fmt: skip


# ---- on light and on dark pages


@dataclass(frozen=True)
class Theme:
    """Colours of a chart; paper is the style sheet's --card."""

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
    """What `draw` puts on an empty figure, as a picture that follows the reader's light or dark
    page.

    n_colours: lines and text need few, and a palette makes their picture a third of the size; 0
    keeps all.
    """
    pictures = (_rendered(draw, theme, size_in) for theme in (LIGHT, DARK))
    palette = lambda x: x.quantize(n_colours, dither=Image.Dither.NONE) if n_colours else x
    light, dark = (data_uri("image/png", encoded(palette(x), "PNG")) for x in pictures)
    return tag(
        "picture",
        tag("source", srcset=dark, media="(prefers-color-scheme: dark)"),
        tag("img", src=light, alt=alt),
        cls="chart",
    )


def _rendered(
    draw: Callable[[Figure, Theme], None], theme: Theme, size_in: tuple[float, float]
) -> Image.Image:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        theme.ink,
    )
    lines = {
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.line,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(
        ink
        | lines
        | {
            "font.size": 10,
            "axes.titlesize": 10.5,
            "legend.fontsize": 8.5,
            "legend.frameon": False,
        }
    ):
        figure = Figure(size_in, dpi=160, facecolor=theme.paper, layout="constrained")
        draw(figure, theme)
        file = io.BytesIO()
        # a label in a script that the font lacks is drawn as boxes; the picture's alt text has its
        # letters
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
            warnings.filterwarnings(
                "ignore", "Matplotlib currently does not support .* natively"
            )  # of scripts with joined letters
            figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def curve(
    title: str,
    unit: str,
    steps: Sequence[int],
    values: Sequence[float | None],
    held_out: Mapping[str, float],
) -> Markup:
    """Values by step; held_out: name -> level, "model" as a dot at the last step, the others as
    dashed lines.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        """One panel: the training's values as a line, what is held out on top, the legend above."""
        axes = figure.subplots()
        known = [(s, v) for s, v in zip(steps, values) if v is not None and np.isfinite(v)]
        axes.plot(
            *zip(*known),
            color=theme.ours,
            lw=1.6,
            marker="o" if len(known) < 12 else None,
            ms=3,
            label="training",
        )
        for (name, level), dashes in zip(held_out.items(), ((), (5, 3), (1.5, 2))):
            if name == "model":
                axes.plot(
                    known[-1][0],
                    level,
                    "D",
                    color=theme.other,
                    ms=5,
                    label=f"held-out {level:.3g}",
                    zorder=5,
                    clip_on=False,
                )
            else:
                axes.axhline(
                    level, color=theme.ink, lw=1.1, dashes=dashes, label=f"{name} {level:.3g}"
                )
        axes.set(title=title, xlabel="step", ylabel=unit, xlim=(0, None))
        axes.grid(color=theme.line, lw=0.5)
        if held_out:
            figure.legend(loc="outside upper center", ncols=2)

    return chart(f"{title} in {unit} by training step", draw)


def histogram(
    title: str,
    label: str,
    unit: str,
    generated: np.ndarray,
    real: np.ndarray,
    round_trip: np.ndarray,
) -> Markup:
    """Densities of three samples of numbers (N,), and below them the ratio of the first to the
    last, with its counting error.
    """
    edges = _edges(np.concatenate((real, round_trip)), generated, whole=not unit)
    off = np.mean((generated < edges[0]) | (generated > edges[-1]))
    title += f", {off:.0%} of generated off scale" if off > 0.01 else ""

    def draw(figure: Figure, theme: Theme) -> None:
        """Two panels over one axis: the densities, and a third as high the ratio."""
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for values, name, style in (
            (real, "real", {"histtype": "stepfilled", "color": theme.real}),
            (
                round_trip,
                "tokenised real",
                {"histtype": "step", "color": theme.other, "ls": "--", "lw": 1.2},
            ),
            (generated, "generated", {"histtype": "step", "color": theme.ours, "lw": 1.6}),
        ):
            axes.hist(
                values,
                edges,
                weights=np.full(len(values), 1 / max(1, len(values)) / (edges[1] - edges[0])),
                label=name,
                **style,
            )
        axes.set(title=title, ylabel=f"density [1/{unit}]" if unit else "density")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper center",
            ncols=3,
            columnspacing=1.2,
        )
        _ratio(below, edges, generated, round_trip, theme)
        below.set(
            xlabel=f"{label} [{unit}]" if unit else label,
            ylabel="gen. / tok.",
            xlim=(edges[0], edges[-1]),
        )
        figure.align_ylabels()

    return chart(f"{title}: {label}, generated and real", draw, (3.9, 3.5))


def _edges(real: np.ndarray, generated: np.ndarray, whole: bool, n_bins: int = 30) -> np.ndarray:
    """Bins over 99 % of either sample; one that is far off widens the real range threefold at most."""
    low, high = np.percentile(real, (0.5, 99.5))
    reach = high - low or 1.0
    low = max(min(low, np.percentile(generated, 0.5)), low - reach) if len(generated) else low
    high = min(max(high, np.percentile(generated, 99.5)), high + reach) if len(generated) else high
    if not whole:
        return np.linspace(low, high if high > low else low + 1, n_bins + 1)
    width = max(1, int(np.ceil((high - low) / n_bins)))
    return np.arange(np.floor(low) - 0.5, np.ceil(high) + width, width)


def _ratio(
    axes: Axes, edges: np.ndarray, ours: np.ndarray, reference: np.ndarray, theme: Theme
) -> None:
    a, b = np.histogram(ours, edges)[0], np.histogram(reference, edges)[0]
    some = (a > 0) & (b > 0)
    ratio = a[some] / b[some] * len(reference) / max(1, len(ours))
    error = ratio * np.sqrt(1 / a[some] + 1 / b[some])  # of two independent counts
    axes.axhline(1, color=theme.ink, lw=0.8)
    axes.errorbar(
        ((edges[1:] + edges[:-1]) / 2)[some], ratio, error, fmt=".", ms=4, lw=0.9, color=theme.ours
    )
    axes.set(ylim=(0, 2), yticks=(0, 1, 2))


def jet_pictures(title: str, pictures: Mapping[str, np.ndarray], half_width: float) -> Markup:
    """Mean jet images (eta, phi) side by side on one logarithmic colour scale, in GeV per jet and
    pixel.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        """A panel for each picture, and one bar of colours for all."""
        from matplotlib.colors import LogNorm

        panels = figure.subplots(1, len(pictures), sharey=True)
        top = max(float(x.max()) for x in pictures.values()) or 1.0
        for axes, (name, picture) in zip(panels, pictures.items()):
            shown = axes.imshow(np.maximum(picture, top * 1e-5), origin="lower", cmap="magma", norm=LogNorm(top * 1e-5, top),
                                extent=(-half_width, half_width) * 2, interpolation="nearest")  # fmt: skip
            axes.set_title(name, fontsize=9)
            axes.set(xlabel="Δφ [rad]")
        panels[0].set_ylabel("Δη")
        figure.suptitle(title, fontsize=10.5)
        bar = figure.colorbar(shown, ax=panels)
        bar.set_label("GeV per jet and pixel", fontsize=8.5)
        bar.outline.set_edgecolor(theme.line)

    return chart(f"{title}: mean jet images", draw, (3.9, 2.2), n_colours=0)
