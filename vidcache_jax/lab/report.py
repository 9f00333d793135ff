"""One page with everything in it: plots, pictures, tables, settings. Needs no network."""

import base64
import html
import importlib.resources
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vidcache_jax.lab import plots, vbench
from vidcache_jax.lab.comparison import Comparison
from vidcache_jax.lab.failures import Failure
from vidcache_jax.lab.figures import (
    TABLES,
    Finished,
    Interval,
    cost_rows,
    curve,
    labels_of,
    policy_figure,
)
from vidcache_jax.metrics.series import CLIP_SECONDS
from vidcache_jax.metrics.table import METRICS
from vidcache_jax.planning.counts import attended_frames
from vidcache_jax.sampling.rollout import Rollout

MAX_PICTURES = 12
"""Contact sheets in the page; the others are in the folder."""


def page(
    comparison: Comparison,
    runs: Finished,
    pictures: Mapping[str, Path],
    scores: Mapping[str, vbench.Scores],
    failures: Sequence[Failure],
    unread: Sequence[str] = (),
) -> str:
    """The report as HTML.

    Args:
      pictures: contact sheets of all policies (PNG), by caption.
      scores: VBench's, by label, where there are any.
      failures: runs that could not be made.
      unread: why some of VBench's scores could not be read.
    """
    style = (importlib.resources.files("vidcache_jax.lab") / "report.css").read_text()
    labels = labels_of(runs)
    parts = [
        _heading(comparison, runs),
        _failures(failures),
        _legend(labels),
        _plots(runs, labels),
        _figures(runs, labels),
        _pictures(pictures),
        _costs(comparison, runs),
        _vbench(scores, unread),
        _settings(comparison, runs),
        _files(),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon: a browser would ask for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{_text(_title(comparison))}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _title(comparison: Comparison) -> str:
    return f"{len(comparison.policies)} cache policies compared on {comparison.model.name}"


def _heading(comparison: Comparison, runs: Finished) -> str:
    wanted = len(comparison.runs)
    return (
        f"<h1>{_text(_title(comparison))}</h1>\n"
        f"<p>{_many(len(comparison.prompts), 'prompt')}, {_many(len(comparison.seeds), 'seed')}, "
        f"videos of {comparison.seconds:g} s; {len(runs)} of {wanted} videos are finished. "
        "All policies were given the same noise.</p>"
    )


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    # One bad prompt fails under every policy and seed, for one reason.
    grouped: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        who = f"{failure.run.label}, seed {failure.run.seed}"
        grouped.setdefault((failure.run.prompt, failure.reason), []).append(who)
    items = "".join(
        f"<li>“{_text(prompt)}”: {_text(reason)} <span class=faint>({_text('; '.join(who))})</span>"
        for (prompt, reason), who in grouped.items()
    )
    return f'<div class="missing"><h2>Could not be made</h2><ul>{items}</ul></div>'


def _legend(labels: Sequence[str]) -> str:
    items = []
    for place, label in enumerate(labels):
        colour, dash = plots.style(place)
        dashes = "" if isinstance(dash, str) else " ".join(str(3 * length) for length in dash[1])
        items.append(
            f'<li><svg viewBox="0 0 40 8" aria-hidden="true"><line x1="0" y1="4" x2="40" y2="4" '
            f'stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"/></svg> '
            f"<code>{_text(label)}</code></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _plots(runs: Finished, labels: Sequence[str]) -> str:
    figures = []
    for name, metric in METRICS.items():
        curves = {}
        for label in labels:
            results = [result for run, result in runs if run.label == label]
            found = curve(results, name, drifts=metric.drifts)
            if found is not None:
                curves[label] = found
        if not curves:
            continue
        drift = " Drift: minus that of the first chunk." if metric.drifts else ""
        title = f"{metric.title}{' drift' if metric.drifts else ''}"
        svg = plots.over_time(
            curves, labels, metric.unit, name=name, title=title, is_drift=metric.drifts
        )
        figures.append(
            f"<figure><h3>{_text(title)}</h3>{svg}"
            f"<figcaption>{_text(metric.definition)}.{drift}</figcaption></figure>"
        )
    return (
        '<h2>Over time</h2>\n<p class="faint">Lines: mean over all videos of a policy, prompts and '
        "seeds together. Shade: one standard deviation over the same videos; of a single prompt it "
        f'is the spread over seeds.</p>\n<div class="plots">{"".join(figures)}</div>'
    )


def _figures(runs: Finished, labels: Sequence[str]) -> str:
    rows = []
    for name, metric in METRICS.items():
        if not any(name in result.series for _, result in runs):
            continue
        statistic = "quality_drift" if metric.drifts else "mean"
        what = "first clip minus last" if metric.drifts else "mean"
        cells = [
            str(policy_figure(runs, label, name, statistic))
            + ("" if metric.drifts else _ending(policy_figure(runs, label, name, "last_clip")))
            for label in labels
        ]
        rows.append([f"{_text(metric.title)}, {what}", *cells])
    head = ["figure", *(f"<code>{_text(label)}</code>" for label in labels)]
    return (
        "<h2>Of whole videos</h2>\n"
        f'<p class="faint">Means over prompts of the means over seeds, with the 95 % interval of '
        f"the prompts (Student’s t; none from one prompt). A clip is {CLIP_SECONDS:g} s. In "
        f"brackets: the last clip. Full precision is in the CSV files.</p>{_table(head, rows)}"
    )


def _ending(interval: Interval) -> str:
    return "" if math.isnan(interval.mean) else f" ({interval.mean:.3g})"


def _pictures(pictures: Mapping[str, Path]) -> str:
    figures = [
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
        for caption, path in list(pictures.items())[:MAX_PICTURES]
    ]
    rest = len(pictures) - len(figures)
    more = f"<p>{rest} more are in the folder <code>pictures</code>.</p>" if rest else ""
    return f'<h2>Frames over time</h2>\n<div class="sheets">{"".join(figures)}</div>{more}'


def _costs(comparison: Comparison, runs: Finished) -> str:
    model = comparison.model
    rows = []
    for row in cost_rows(runs):
        rollout = Rollout(model.config, model.rollout, comparison.policies[str(row["policy"])])
        rows.append([
            f"<code>{_text(str(row['policy']))}</code>",
            f"{attended_frames(rollout, model.latent_size):g}",
            f"{int(row['cache_bytes']) / 2**20:.2f}",
            f"{float(row['chunk_ms']):.1f}",
            f"{float(row['first_chunk_s']):.1f}",
        ])  # fmt: skip
    head = [
        "policy", "latent frames attended to at most", "cache, MiB", "a chunk, ms",
        "first chunk, s",
    ]  # fmt: skip
    return (
        "<h2>Cost</h2>\n"
        '<p class="faint">Frames attended to: of the head and layer that sees most, as the video '
        "begins. Cache: as it ends; what else the chunk’s program needs is measured by "
        "<code>vidcache bench</code>. Of a chunk: the median time to its pixels, without metrics "
        "and mp4. The slowest first chunk has the compilation in it, unless an earlier process "
        f"left the program in the compilation cache.</p>{_table(head, rows)}"
    )


def _vbench(scores: Mapping[str, vbench.Scores], unread: Sequence[str]) -> str:
    problems = "".join(f"<li>{_text(reason)}" for reason in unread)
    missing = f'<div class="missing">Could not be read:<ul>{problems}</ul></div>' if unread else ""
    if not scores:
        return f"<h2>VBench</h2>\n{missing}" if missing else ""
    dimensions = dict.fromkeys(name for each in scores.values() for name in each.scores)
    rows = []
    for dimension in dimensions:
        cells = []
        for each in scores.values():
            score, drift = each.scores.get(dimension), each.drifts.get(dimension)
            change = "" if drift is None else f" (first clip minus last {drift:.3g})"
            cells.append("–" if score is None else f"{score:.4g}{change}")
        rows.append([_text(dimension), *cells])
    hashes = sorted({each.prompt_hash for each in scores.values()})
    extended = {each.extended for each in scores.values()}
    how = {frozenset({True}): "extended", frozenset({False}): "not extended"}
    head = ["dimension", *(f"<code>{_text(label)}</code>" for label in scores)]
    return (
        f"<h2>VBench</h2>\n{missing}<p>Prompt list SHA-256 {', '.join(map(_code, hashes))}; "
        f"prompts were {how.get(frozenset(extended), 'extended for some policies only')}.</p>"
        f"{_table(head, rows)}"
    )


def _settings(comparison: Comparison, runs: Finished) -> str:
    machines = dict.fromkeys(tuple(result.machine.items()) for _, result in runs)
    rollout = comparison.model.rollout
    rows = [
        *([_code(label), _code(repr(policy))] for label, policy in comparison.policies.items()),
        ["prompts", "<br>".join(_text(prompt) for prompt in comparison.prompts)],
        ["seeds", ", ".join(map(str, comparison.seeds))],
        ["seconds", f"{comparison.seconds:g}"],
        ["sampling", _code(repr(rollout))],
        *([_text(name), _text(value)] for machine in machines for name, value in machine),
    ]
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<h2>Settings and versions</h2>\n<table class="words">{body}</table>'


def _files() -> str:
    names = ", ".join(_code(name) for name in TABLES)
    return (
        f"<h2>Beside this page</h2>\n<p>All figures: {names}; figures.json has those of every "
        "chunk, with settings; the cost files are apart because no two machines agree on them. "
        "Videos side by side in <code>videos</code>, their frames over time in "
        "<code>pictures</code>, each run with its own mp4 in <code>runs</code>.</p>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [
        f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:])
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    return html.escape(text)
