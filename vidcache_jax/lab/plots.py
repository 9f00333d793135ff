"""Figures over time as SVG that takes its ink from the page it stands in."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vidcache_jax.lab.figures import Curve

# Told apart without colour vision (after Okabe and Ito) and on light and dark ground.
COLOURS = (
    "#3b8fd0", "#e08a00", "#00a078", "#d55e00", "#c56a9c", "#56b4e9", "#a89400", "#8a8a8a"
)  # fmt: skip
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))
_INK = "#010203"
"""Stands for the page's own ink while matplotlib draws."""


def style(place: int) -> tuple[str, str | tuple[int, tuple[float, ...]]]:
    """Colour and dash of the line of the policy at this place; 32 differ."""
    return COLOURS[place % len(COLOURS)], DASHES[(place // len(COLOURS) + place) % len(DASHES)]


def over_time(
    curves: Mapping[str, Curve],
    places: Sequence[str],
    unit: str,
    *,
    name: str,
    title: str,
    is_drift: bool,
) -> str:
    """One plot: each policy's mean, and around it one standard deviation over its videos.

    Args:
      curves: by label.
      places: all labels; a label's place gives its line the style it has in every plot.
      unit: of the vertical axis.
      name: distinguishes the plot's ids from those of others in the page.
      title: what a screen reader says of the plot.
      is_drift: draws a line at 0.

    Returns:
      An `<svg>` element without fixed size, references or scripts.
    """
    # Takes a second to import, and only a report needs it.
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **{key: _INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor",
                                 "xtick.color", "ytick.color")},
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5, 2.6), layout="constrained")
        axes = figure.subplots()
        if is_drift:
            axes.axhline(0, color=_INK, linewidth=0.6)
        for label, curve in curves.items():
            colour, dash = style(places.index(label))
            marker = "o" if len(curve.seconds) == 1 else ""
            (line,) = axes.plot(curve.seconds, curve.mean, color=colour, marker=marker)
            line.set(linestyle=dash, linewidth=1.4)
            low, high = curve.mean - curve.deviation, curve.mean + curve.deviation
            axes.fill_between(curve.seconds, low, high, color=colour, alpha=0.15, linewidth=0)
        if unit == "share":
            axes.set_ylim(-0.05, 1.05)
        axes.set_xlabel("seconds")
        axes.set_ylabel(unit)
        text = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=empty)
    return _inline(text.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> str:
    """The element alone, scalable, with ids of its own and the page's ink."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its one style rule is meant for the whole document, which is the page here.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    view = re.search(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", svg)
    assert view is not None, "matplotlib gives every figure a size"
    spoken = html.escape(f"{title} over time, a line for each policy")
    svg = f'<svg {view[1]} role="img" aria-label="{spoken}">' + svg[view.end() :]
    svg = re.sub(r'id="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    return svg.replace(_INK, "currentColor")
