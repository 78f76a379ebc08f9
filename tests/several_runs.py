"""A process of `test_distributed.py`: several runs, since starting costs most of the time."""

import json
import sys
from pathlib import Path

from runs import run


def main() -> None:
    """Words: a folder, and a JSON list of runs: [name, *options]."""
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, *options in plan:
        finished = run(folder, name, *options)
    finished.runtime.leave()


if __name__ == "__main__":
    main()
