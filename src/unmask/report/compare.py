"""Several runs side by side: a table, curves over each other, and the same as JSON."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.report.curves import Line, chart
from unmask.report.data import RunData, pair, read_run
from unmask.report.page import document, duration, percent, points, span
from unmask.run_directory import write_json, write_text

_CURVES = (
    ("eval/success", "greedy success (validation)", True),
    ("rollout/success", "success of rollouts (train)", True),
    ("rollout/reward", "mean reward of rollouts", False),
    ("update/kl", "KL from the reference", False),
    ("train/loss", "training loss", False),
)


def comparison_rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """One JSON-safe row per run, in the given order: what it was, and what came of it.

    Keys: run (shortest distinguishing name), task, method, model, seed, steps; before, after, interval (shares in
    [0, 1]), items; change, change_interval (paired), fixed, broken; best_validation, best_validation_step,
    last_validation; seconds. None: unknown.

    Raises:
        UserError: no run is named, or one of them is none.
    """
    return [_row(data, name) for data, name in _read(runs)]


def _read(runs: Sequence[Path]) -> list[tuple[RunData, str]]:
    if not runs:
        raise UserError("name at least one run directory to compare")
    paths = [Path(run) for run in runs]
    return list(zip([read_run(path) for path in paths], _names(paths), strict=True))


def _names(paths: Sequence[Path]) -> list[str]:
    """The ends of the paths, as short as they can be and still differ."""
    whole = [Path(os.path.abspath(path)).parts for path in paths]
    longest = max(len(parts) for parts in whole)
    for size in range(1, longest):
        names = [os.path.join(*parts[-size:]) for parts in whole]
        if len(set(names)) == len(set(whole)):
            return names
    return [os.path.join(*parts) for parts in whole]


def _row(data: RunData, name: str) -> dict[str, Any]:
    steps, validation = data.series("eval/success")
    best = max(validation, default=None)
    paired = pair(data.before, data.after)
    after = data.after or {}
    return {
        "run": name,
        "task": data.task,
        "method": data.method,
        "model": data.model,
        "seed": data.seed,
        "steps": data.steps,
        "before": None if data.before is None else data.before["score"],
        "after": after.get("score"),
        "interval": after.get("interval"),
        "items": after.get("items"),
        "change": None if paired is None else paired.change,
        "change_interval": None if paired is None or paired.interval is None else list(paired.interval),
        "fixed": None if paired is None else paired.fixed,
        "broken": None if paired is None else paired.broken,
        "best_validation": best,
        "best_validation_step": None if best is None else steps[validation.index(best)],
        "last_validation": validation[-1] if validation else None,
        "seconds": None if data.seconds is None else round(data.seconds, 1),
    }


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Writes `comparison.html` and `compare.json` (the rows) into the directory `out`; returns the page.

    Raises:
        UserError: no run is named, or one of them is none.
    """
    read = _read(runs)
    rows = [_row(data, name) for data, name in read]
    html = (
        f"<header><h1>Comparison <small>{len(rows)} run{'' if len(rows) == 1 else 's'}</small></h1></header>"
        f"{_warning(read)}{_table(rows)}"
    )
    curves = ""
    for metric, title, unit in _CURVES:
        # a run without this curve keeps its place, so that a colour means the same run in every plot
        lines = [Line(name, *data.series(metric), dots=metric == "eval/success") for data, name in read]
        curves += chart(lines, title, 490, 220, unit=unit)
    html += f'<h2>Curves</h2><div class="plots two">{curves}</div>' if curves else ""
    write_json(Path(out) / "compare.json", rows)
    page = Path(out) / "comparison.html"
    write_text(page, document("Comparison", html))
    return page


def _warning(read: Sequence[tuple[RunData, str]]) -> str:
    told = []
    results = [data.after for data, _ in read if data.after]
    for key in ("task", "split", "protocol", "parser", "sampler", "items"):
        if any(result.get(key) != results[0].get(key) for result in results):
            told.append(key)
    if not told:
        return ""
    return f'<p class="callout">The final scores are not comparable: runs differ in {escape(", ".join(told))}.</p>'


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows without columns that nobody knows."""
    columns = {
        "run": ("run", lambda row: str(row["run"])),
        "task": ("task", lambda row: str(row["task"])),
        "method": ("method", lambda row: str(row["method"])),
        "seed": ("seed", lambda row: str(row["seed"])),
        "steps": ("steps", lambda row: str(row["steps"])),
        "before": ("before", lambda row: percent(row["before"])),
        "after": ("after", lambda row: percent(row["after"])),
        "interval": ("95 % interval", lambda row: span(*row["interval"])),
        "change": ("change, points", lambda row: points(row["change"])),
        "fixed": ("fixed / broken", lambda row: f"{row['fixed']} / {row['broken']}"),
        "best_validation": ("validation, best", lambda row: percent(row["best_validation"])),
        "seconds": ("time", lambda row: duration(row["seconds"])),
    }
    known = [key for key in columns if any(row[key] is not None for row in rows)]
    words, unknown = ("run", "task", "method"), "\N{EN DASH}"
    head = "".join(f"<th{_aligned(key, words)}>{columns[key][0]}</th>" for key in known)
    body = ""
    for number, row in enumerate(rows):
        cells = [
            f"<td{_aligned(key, words)}>{unknown if row[key] is None else escape(columns[key][1](row))}</td>"
            for key in known
        ]
        cells[0] = cells[0].replace("<td>", f'<td class="key" style="--c:var(--c{number % 8})">', 1)
        body += f"<tr>{''.join(cells)}</tr>"
    return f'<div class="scroll"><table class="plain dense"><tr>{head}</tr>{body}</table></div>'


def _aligned(key: str, words: Sequence[str]) -> str:
    return "" if key in words else ' class="number"'
