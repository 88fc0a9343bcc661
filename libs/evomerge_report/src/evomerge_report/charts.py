"""The report's PNG charts, from plain data. Imports matplotlib: never inside the service's own process.

Colours are Okabe and Ito's set (2008), which people with any colour vision tell apart; operators look as `styles` says.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evomerge_common.domain.history import mean_curve, mean_name
from evomerge_report.history import Candidate, History, short_name
from evomerge_report.result import pareto_front
from evomerge_report.styles import looks

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#666666",
)  # fmt: skip
_MARKERS = {
    "square": "s", "plus": "P", "diamond": "D", "down": "v", "circle": "o", "up": "^", "hexagon": "h", "cross": "X",
    "pentagon": "p", "left": "<", "right": ">", "star": "*", "thin": "d",
}  # fmt: skip


_drawn: dict[str, tuple[str, bytes]] = {}
"""Name of a picture → what it showed when it was drawn last, and its bytes."""


def draw_all(history: History, result: Mapping[str, Any], folder: Path) -> None:
    """Writes fitness_plot.png, diversity_plot.png, pareto_front.png, hypervolume.png and benchmark_comparison.png.

    A picture that would show what it showed the last time is not drawn again.
    """
    search = _search_shown(history)
    compared = repr([result.get(key) for key in ("champion", "sources", "improvement")])
    pictures: tuple[tuple[str, str, Callable[[], Figure]], ...] = (
        ("fitness_plot.png", search, lambda: fitness_figure(history)),
        ("diversity_plot.png", search, lambda: diversity_figure(history)),
        ("pareto_front.png", search, lambda: pareto_figure(history)),
        ("hypervolume.png", repr(result.get("hypervolume")), lambda: hypervolume_figure(result)),
        ("benchmark_comparison.png", compared, lambda: comparison_figure(result)),
    )
    for name, shown, draw in pictures:
        before, picture = _drawn.get(name, ("", b""))
        if before != shown:
            picture = _png(draw())
            _drawn[name] = shown, picture
        (folder / name).write_bytes(picture)


def _search_shown(history: History) -> str:
    """All that pictures of the search alone show, as text."""
    candidates = [
        (c.digest, c.index, c.operator, c.fitness, c.scores("search"), c.raced, c.failure is None)
        for c in history.candidates.values()
    ]
    return repr((history.population, history.champion_digest, history.generations, candidates))


def fitness_figure(history: History) -> Figure:
    """Draws every candidate as a dot, best so far, mean, and the best source as the line to beat."""
    figure, axes = _figure(9.6, 5.0)
    scored = history.scored
    if not scored:
        return _empty(figure, axes, "no candidate has a score yet")
    styles = _styles(scored)
    for operator, (colour, marker) in styles.items():
        own = [c for c in scored if c.operator == operator]
        axes.scatter([c.index for c in own], [c.fitness or 0.0 for c in own], s=34, c=colour, marker=marker,
                     edgecolors="white", linewidths=0.6, label=f"{operator} ({len(own)})", zorder=3)  # fmt: skip
    stopped = [(c.index, c.raced) for c in history.stopped if c.raced is not None]
    if stopped:
        axes.errorbar(
            [index for index, _ in stopped], [raced.fitness for _, raced in stopped],
            yerr=[[max(0.0, raced.fitness - raced.low) for _, raced in stopped],
                  [max(0.0, raced.high - raced.fitness) for _, raced in stopped]],
            fmt="o", markersize=4, markerfacecolor="none", color="#aaaaaa", elinewidth=0.8,
            label=f"stopped: estimate, 95% ({len(stopped)})", zorder=1,
        )  # fmt: skip
    best: list[float] = []
    for candidate in scored:
        best.append(max([candidate.fitness or 0.0, *best[-1:]]))
    axes.step([c.index for c in scored], best, where="post", color=GREEN, linewidth=2.2, label="best so far", zorder=2)
    places, means = _mean_curve(history)
    axes.plot(places, means, color=RED, linewidth=1.6, linestyle=(0, (5, 2)), label=mean_name(history.population),
              zorder=2)  # fmt: skip
    sources = [c.fitness or 0.0 for c in history.sources if c.fitness is not None]
    if sources:
        axes.axhline(max(sources), color=GREY, linewidth=1.2, linestyle=":", label="best source", zorder=1)
    failed = [c.index for c in history.candidates.values() if c.failure is not None and c.fitness is None]
    if failed:
        low = min(c.fitness or 0.0 for c in scored)
        axes.scatter(
            failed, [low] * len(failed), s=40, c="black", marker="x", label=f"failed ({len(failed)})", zorder=3
        )
    axes.set_xlabel("candidate, in order of proposal")
    axes.set_ylabel("fitness on search items (higher is better)")
    axes.set_title("Fitness over the search", loc="left", fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def diversity_figure(history: History) -> Figure:
    """Draws the mean pairwise distance of the live population over the search."""
    figure, axes = _figure(9.6, 3.8)
    axes.set_title("Diversity of the population", loc="left", fontweight="bold")
    if not history.generations:
        return _empty(figure, axes, "no generation has been completed yet")
    generations = history.generations
    axes.plot([g.evaluated for g in generations], [g.diversity for g in generations], color=BLUE, marker="o",
              markersize=5 if len(generations) <= 60 else 0, linewidth=1.8)  # fmt: skip
    axes.set_ylim(0, max(0.05, 1.15 * max(g.diversity for g in generations)))
    axes.set_xlabel("candidates scored")
    axes.set_ylabel("mean pairwise genome distance (0–1)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def pareto_figure(history: History) -> Figure:
    """Draws all candidates on pairs of tasks, with the front of each pair and the front over all tasks.

    Of three tasks every pair is drawn, of more the three pairs that are hardest to have together.
    """
    scored = [c for c in history.scored if c.scores("search")]
    tasks = list(scored[0].scores("search")) if scored else []
    if len(tasks) < 2:
        figure, (axes,) = _panels(7.6, 6.0, 1)
        axes.set_title("Trade-off between tasks", loc="left", fontweight="bold")
        return _empty(figure, axes, "the suite has one task: no trade-off" if tasks else "no candidate has a score yet")
    pairs = _most_conflicting(scored, tasks)[:3]
    figure, panels = _panels(7.6, 6.0, 1) if len(pairs) == 1 else _panels(4.4 * len(pairs) + 2.4, 4.6, len(pairs))
    for axes, pair in zip(panels, pairs, strict=True):
        _trade_off(axes, history, scored, pair, tasks)
    panels[0].set_title("Trade-off between tasks", loc="left", fontweight="bold")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def _trade_off(
    axes: Axes, history: History, scored: Sequence[Candidate], pair: tuple[str, str], tasks: Sequence[str]
) -> None:
    first, second = pair
    points = {c.digest: (c.scores("search").get(first, 0.0), c.scores("search").get(second, 0.0)) for c in scored}
    for operator, (colour, marker) in _styles(scored).items():
        own = [points[c.digest] for c in scored if c.operator == operator]
        axes.scatter([x for x, _ in own], [y for _, y in own], s=38, c=colour, marker=marker, edgecolors="white",
                     linewidths=0.6, label=operator, zorder=3)  # fmt: skip
    front = _front(points.values())
    axes.plot([x for x, _ in front], [y for _, y in front], color=GREEN, linewidth=1.6,
              label="front of the two tasks", zorder=2)  # fmt: skip
    if len(tasks) > 2:
        every = [points[c.digest] for c in pareto_front(scored)]
        axes.scatter([x for x, _ in every], [y for _, y in every], s=110, facecolors="none", edgecolors=GREEN,
                     linewidths=1.3, label=f"front over all {len(tasks)} tasks", zorder=2)  # fmt: skip
    if history.champion_digest in points:
        x, y = points[history.champion_digest]
        axes.scatter([x], [y], s=260, c=RED, marker="*", edgecolors="white", linewidths=0.8, label="champion", zorder=4)
    axes.set_xlabel(f"{first} (search score)")
    axes.set_ylabel(f"{second} (search score)")


def hypervolume_figure(result: Mapping[str, Any]) -> Figure:
    """Draws how much the front over all tasks dominates, after each generation."""
    figure, axes = _figure(9.6, 4.0)
    curve = result.get("hypervolume") or []
    axes.set_title("Hypervolume of the front over all tasks", loc="left", fontweight="bold")
    if not curve:
        return _empty(figure, axes, "needs two to five tasks and a candidate with scores")
    axes.plot([one["evaluated"] for one in curve], [one["hypervolume"] for one in curve], color=GREEN, linewidth=2.2,
              marker="o", markersize=5)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("candidates")
    axes.set_ylabel("volume above zero in every task")
    return figure


def comparison_figure(result: Mapping[str, Any]) -> Figure:
    """Draws champion and sources per task, with 95% intervals; on held-out items where there are any."""
    champion, sources = result.get("champion") or {}, result.get("sources") or []
    split = "holdout" if champion.get("holdout") else "search"
    ours = champion.get(split)
    bars = ([("champion", ours)] if ours else []) + [
        (short_name(s["reference"]), s[split]) for s in sources if s[split]
    ]
    tasks = list(bars[0][1]["tasks"]) if bars else []
    figure, axes = _figure(max(7.0, 2.6 + 1.1 * len(tasks) * max(1.0, len(bars) / 3)), 4.8)
    where = "held-out items" if split == "holdout" else "search items: selection saw these"
    axes.set_title(f"Champion and sources ({where})", loc="left", fontweight="bold")
    if not bars:
        return _empty(figure, axes, "nothing has been scored yet")
    colours = (
        [RED, *([BLUE, ORANGE, SKY, PURPLE, YELLOW, GREY] * (1 + len(bars) // 6))] if ours else [BLUE, ORANGE, SKY]
    )
    hatches = ["", "", "//", "..", "\\\\", "xx", "--"]
    width = 0.8 / len(bars)
    groups = [*tasks, "weighted mean"] if len(tasks) > 1 else tasks
    for place, (name, scores) in enumerate(bars):
        entries = [scores["tasks"].get(t) for t in tasks]
        values = [e["score"] if e else 0.0 for e in entries]
        intervals = [e.get("interval95") if e else None for e in entries]
        if len(tasks) > 1:
            values.append(scores["fitness"])
            intervals.append(scores.get("interval95"))
        places = [group + (place - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        errors = [
            [max(0.0, v - i[0]) if i else 0.0 for v, i in zip(values, intervals, strict=True)],
            [max(0.0, i[1] - v) if i else 0.0 for v, i in zip(values, intervals, strict=True)],
        ]
        axes.bar(places, values, width * 0.92, color=colours[place % len(colours)], edgecolor="white", linewidth=0.8,
                 hatch=hatches[place % len(hatches)], label=name, yerr=errors, capsize=3,
                 error_kw={"elinewidth": 1.1, "ecolor": "#333333"}, zorder=2)  # fmt: skip
    if len(groups) > len(tasks):
        axes.axvline(len(tasks) - 0.5, color="#bbbbbb", linewidth=1.0)
    gains = (result.get("improvement") or {}).get("tasks", {})
    lost = {
        task: "\n" + _wrapped(f"▼ worse than {short_name(one['against'])}", width=14)
        for task, one in gains.items()
        if one["worse"]
    }
    axes.set_xticks(range(len(groups)), [_wrapped(g) + lost.get(g, "") for g in groups])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("score (higher is better)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    axes.text(
        0, -0.2, "error bars: 95% bootstrap interval over items", transform=axes.transAxes, fontsize=8, color=GREY
    )
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = _panels(width, height, 1)
    return figure, axes


def _panels(width: float, height: float, count: int) -> tuple[Figure, list[Axes]]:
    """Axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = [figure.add_subplot(1, count, place) for place in range(1, count + 1)]
    for axes in panels:
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _empty(figure: Figure, axes: Axes, text: str) -> Figure:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=12)
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=130, metadata={"Software": None})
    return file.getvalue()


def _styles(candidates: Sequence[Candidate]) -> dict[str, tuple[str, str]]:
    """Operator → colour and marker, in order of first appearance."""
    return {name: (look.light, _MARKERS[look.shape]) for name, look in looks(c.operator for c in candidates).items()}


def _mean_curve(history: History) -> tuple[list[int], list[float]]:
    """Computes the mean fitness as it stood after each scored candidate."""
    points = [(c.index, c.fitness or 0.0) for c in history.scored]
    points += [(c.index, c.raced.fitness) for c in history.stopped if c.raced is not None]
    points.sort()
    return [index for index, _ in points], mean_curve(points, population=history.population)


def _most_conflicting(candidates: Sequence[Candidate], tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of tasks, the lowest correlation of scores first."""
    columns = {task: [c.scores("search").get(task, 0.0) for c in candidates] for task in tasks}
    pairs = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    return sorted(pairs, key=lambda pair: _correlation(columns[pair[0]], columns[pair[1]]))


def _front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one matches or beats in both, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = (sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)) ** 0.5
    return covariance / spread if spread > 0 else 1.0


def _wrapped(name: str, width: int = 16) -> str:
    lines = [""]
    for word in name.replace("_", " _").replace("-", "- ").split(" "):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word + ("" if word.endswith("-") else " ")
    return "\n".join(line.strip() for line in lines).replace(" _", "_")
