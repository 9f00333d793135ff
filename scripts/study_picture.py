"""The picture of `study_policies.py`: a few figures over time, a line for each policy."""

from pathlib import Path

from vidcache_jax.lab.figures import Finished, curve, labels_of
from vidcache_jax.lab.plots import style
from vidcache_jax.metrics.table import METRICS
from vidcache_jax.sampling import output_file

SHOWN = ("told_place", "told_colours", "background_kept", "latent_std")


def draw(runs: Finished, path: Path) -> None:
    """Writes the PNG: each policy's mean over its videos; of figures that drift, the drift."""
    # Takes a second to import, and only the report needs it.
    from matplotlib.figure import Figure

    labels = labels_of(runs)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    for axes, name in zip(grid.flat, SHOWN, strict=True):
        metric = METRICS[name]
        for place, label in enumerate(labels):
            results = [result for run, result in runs if run.label == label]
            if line := curve(results, name, drifts=metric.drifts):
                colour, dash = style(place)
                axes.plot(line.seconds, line.mean, color=colour, linestyle=dash, label=label)
        if metric.unit == "share":
            axes.set_ylim(-0.03, 1.03)
        axes.set_title(f"{metric.title}{', drift' if metric.drifts else ''}", fontsize=10)
        axes.set_ylabel(metric.unit)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("seconds")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    path, partial = output_file.reserve(path, ".png")
    try:
        figure.savefig(partial, format="png", dpi=110)
    except OSError as error:
        output_file.discard(partial)
        raise output_file.cannot_write(path, error) from error
    output_file.publish(partial, path)
