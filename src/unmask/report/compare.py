"""Several runs side by side: a table, a plot, and the same as JSON."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from unmask.report.curves import Line, plot
from unmask.report.data import RunData, pair, read_run
from unmask.report.page import document
from unmask.run_directory import write_json, write_text


def comparison_rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """One row per run: what it was, and what came of it."""
    return [_row(read_run(run)) for run in runs]


def _row(data: RunData) -> dict[str, Any]:
    steps, validation = data.series("eval/success")
    paired = pair(data.before, data.after)
    seconds = data.series("time/step")[1]
    return {
        "run": data.path.name,
        "task": data.task,
        "method": data.title.split(" on ")[0],
        "seed": data.config.get("seed"),
        "steps": len(data.metrics),
        "before": None if data.before is None else data.before["score"],
        "after": None if data.after is None else data.after["score"],
        "interval": None if data.after is None else data.after["interval"],
        "fixed": None if paired is None else paired.fixed,
        "broken": None if paired is None else paired.broken,
        "best_validation": max(validation, default=None),
        "best_validation_step": steps[validation.index(max(validation))] if validation else None,
        "seconds": round(sum(seconds), 1),
    }


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Writes `comparison.html` and `compare.json` into `out`; returns the page."""
    rows = comparison_rows(runs)
    names = list(rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_shown(row[name]))}</td>" for name in names) + "</tr>" for row in rows
    )
    head = "".join(f"<th>{escape(name.replace('_', ' '))}" for name in names)
    html = f"<h1>Comparison of {len(rows)} runs</h1><div class=scroll><table class=plain><tr>{head}</tr>{body}</table></div>"
    data = [read_run(run) for run in runs]
    for metric, title in (("eval/success", "greedy success (validation)"), ("rollout/success", "success of rollouts")):
        lines = [Line(run.path.name, *run.series(metric), dots=metric == "eval/success") for run in data]
        lines = [line for line in lines if line.steps]
        if lines:
            html += f"<div class=wide>{plot(title, lines, 9.0, 3.2, unit=True)}</div>"
    write_json(out / "compare.json", rows)
    page = out / "comparison.html"
    write_text(page, document("Comparison", html))
    return page


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return " to ".join(_shown(part) for part in value)
    return str(value)
