"""What a report reads. Every file of a run directory may be missing or short: runs are looked at while they go on."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from unmask.errors import UserError
from unmask.run_directory import read_jsonl

Record = dict[str, Any]

_FILES = ("config.yaml", "env.json", "metrics.jsonl", "rollouts.jsonl", "summary.json", "evaluation")


@dataclass(frozen=True)
class RunData:
    """The files of a run directory, as far as they are there.

    Args:
        config: config.yaml as it was parsed; `config_text` as it was written.
        before, after: evaluations on the same test items; each has a `score` and a list of `generations`.
        notes: one sentence about each file that is missing or unreadable.
    """

    path: Path
    config: Record
    config_text: str
    env: Record
    metrics: list[Record]
    rollouts: list[Record]
    before: Record | None
    after: Record | None
    summary: Record
    notes: list[str]

    @property
    def supervised(self) -> bool:
        """Whether this was fine-tuning on given answers rather than reinforcement learning."""
        return any("train/loss" in row for row in self.metrics) or ("batch" in self.config and not self._has_method)

    @property
    def _has_method(self) -> bool:
        return "method" in self.config or "method" in self.summary

    @property
    def method(self) -> str:
        """Name of the method; a control run with shuffled rewards is named as such."""
        if self.config.get("shuffle_rewards"):
            return f"{self.config.get('method', 'training')}, shuffled rewards"
        if self._has_method:
            return str(self.config.get("method") or self.summary["method"])
        return "supervised fine-tuning" if self.supervised else "training"

    @property
    def task(self) -> str:
        """Name of the task."""
        named = self.summary.get("task") or (self.after or self.before or {}).get("task")
        task = self.config.get("task")
        written = task.get("class_path", "") if isinstance(task, dict) else task
        return str(named or str(written or "").rsplit(".", 1)[-1].lower() or "unknown task")

    @property
    def model(self) -> str:
        """What the run started from."""
        return str(self.config.get("model") or ("a new model" if self.config.get("scratch") else "unknown model"))

    @property
    def seed(self) -> Any:
        """The seed, None if no file tells it."""
        return self.config.get("seed", self.summary.get("seed"))

    @property
    def date(self) -> str | None:
        """Day of the run in UTC: `date` of env.json, else that of the last change of its metrics or config."""
        if self.env.get("date"):
            return str(self.env["date"])[:10]
        for name in ("metrics.jsonl", "config.yaml", "summary.json"):
            if (self.path / name).is_file():
                return datetime.fromtimestamp((self.path / name).stat().st_mtime, UTC).date().isoformat()
        return None

    @property
    def steps(self) -> int:
        """The last finished step."""
        return max((row["step"] for row in self.metrics), default=0)

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds: of the whole story where a summary tells them, else of the recorded steps."""
        if _finite(self.summary.get("seconds")):
            return float(self.summary["seconds"])
        spent = self.series("time/step")[1] or [
            row["time/rollout"] + row["time/update"]
            for row in self.metrics
            if _finite(row.get("time/rollout")) and _finite(row.get("time/update"))
        ]
        return sum(spent) if spent else None

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was recorded and is finite."""
        rows = [row for row in self.metrics if _finite(row.get(name))]
        return [row["step"] for row in rows], [float(row[name]) for row in rows]

    def broken_values(self) -> list[str]:
        """Names of metrics that were nan or infinite at some step."""
        return sorted({name for row in self.metrics for name, v in row.items() if isinstance(v, float) and v - v != 0})


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(path: Path) -> RunData:
    """Reads a run directory.

    Raises:
        UserError: there is no directory, or none of the files of a run is in it.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no directory: name a run directory")
    if not any((path / name).exists() for name in _FILES):
        raise UserError(f"{path} is no run directory: it holds none of {', '.join(_FILES[:-1])}")
    notes: list[str] = []
    text, config = _yaml(path / "config.yaml", notes)
    run = RunData(
        path=path,
        config=config,
        config_text=text,
        env=_json(path / "env.json", notes) or {},
        metrics=_rows(path / "metrics.jsonl", notes),
        rollouts=[],
        before=_evaluation(path / "evaluation" / "before.json", notes),
        after=_evaluation(path / "evaluation" / "after.json", notes),
        summary=_json(path / "summary.json", notes, expected=False) or {},
        notes=notes,
    )
    if not run.supervised:  # fine-tuning rolls nothing out
        run.rollouts.extend(_rows(path / "rollouts.jsonl", notes))
    return run


def _rows(path: Path, notes: list[str]) -> list[Record]:
    rows = [row for row in read_jsonl(path) if isinstance(row, dict) and isinstance(row.get("step"), int)]
    if not rows:
        notes.append(f"{path.name} has no finished row." if path.exists() else f"{path.name} is missing.")
    return rows


def _yaml(path: Path, notes: list[str]) -> tuple[str, Record]:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return "", {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict):
        notes.append(f"{path.name} could not be parsed.")
        return text, {}
    return text, settings


def _json(path: Path, notes: list[str], expected: bool = True) -> Record | None:
    if not path.is_file():
        if expected:
            notes.append(f"{path.name} is missing.")
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # cut off while being written
        content = None
    if not isinstance(content, dict):
        notes.append(f"{path.name} could not be read.")
        return None
    return content


def _evaluation(path: Path, notes: list[str]) -> Record | None:
    result = _json(path, notes, expected=False)
    if result is None:
        return None
    if not _finite(result.get("score")):
        notes.append(f"{path.name} holds no score.")
        return None
    generations = result.get("generations")
    kept = [item for item in generations if isinstance(item, dict)] if isinstance(generations, list) else []
    return {**result, "generations": kept}


@dataclass(frozen=True)
class Paired:
    """The same items before and after.

    Args:
        both, fixed, broken, neither: how many answers were right both times, only after, only before, never.
        interval: 95 % interval of the change in success, in [-1, 1]; None without items.
        pairs: (before, after) records per answer.
    """

    both: int
    fixed: int
    broken: int
    neither: int
    interval: tuple[float, float] | None
    pairs: list[tuple[Record, Record]]

    @property
    def change(self) -> float:
        """Mean change in success, in [-1, 1]."""
        return (self.fixed - self.broken) / max(1, len(self.pairs))

    def between(self, was: bool, became: bool) -> list[tuple[Record, Record]]:
        """Pairs that were right (`was`) before and are right (`became`) after."""
        return [two for two in self.pairs if (_right(two[0]), _right(two[1])) == (was, became)]


def _right(item: Record) -> bool:
    return bool(item.get("correct"))


def pair(before: Record | None, after: Record | None) -> Paired | None:
    """Matches the generations of two evaluations by item, by position where ids are missing or not unique.

    None where there are not two, or nothing matches.
    """
    if not before or not after:
        return None
    keys = [[(item.get("id"), item.get("copy", 0)) for item in result["generations"]] for result in (before, after)]
    if any(len(set(own)) < len(own) or any(name is None for name, _ in own) for own in keys):
        keys = [[(place, 0) for place in range(len(own))] for own in keys]
    old = dict(zip(keys[0], before["generations"], strict=True))
    matched = zip(keys[1], after["generations"], strict=True)
    pairs = [(old[key], item) for key, item in matched if key in old]
    if not pairs:
        return None
    counts = {(a, b): 0 for a in (False, True) for b in (False, True)}
    for a, b in pairs:
        counts[_right(a), _right(b)] += 1
    both, fixed, broken, neither = (counts[key] for key in ((True, True), (False, True), (True, False), (False, False)))
    return Paired(both, fixed, broken, neither, _interval(pairs, fixed, broken), pairs)


def _interval(pairs: list[tuple[Record, Record]], fixed: int, broken: int) -> tuple[float, float]:
    """95 % interval of a paired difference of proportions (Bonett & Price 2012: one fixed and one broken item added).

    Items that share a `cluster` are not independent: the variance is multiplied by the design effect, the
    cluster-robust variance of the mean difference over the one of independent items (at least 1).
    """
    n = len(pairs)
    mean = (fixed - broken) / n
    sums: dict[Any, float] = {}
    for place, (a, b) in enumerate(pairs):
        cluster = str(b.get("cluster") or b.get("id") or place)
        sums[cluster] = sums.get(cluster, 0.0) + _right(b) - _right(a) - mean
    naive = fixed + broken - n * mean**2
    robust = sum(total**2 for total in sums.values()) * len(sums) / max(1, len(sums) - 1)
    effect = max(1.0, robust / naive) if naive > 0 else 1.0
    up, down = (fixed + 1) / (n + 2), (broken + 1) / (n + 2)
    half = 1.959964 * math.sqrt(effect * (up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)
