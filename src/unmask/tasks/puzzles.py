"""What Countdown and Sudoku share: rows that are generated or come from files, asked barely or in a chat."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.rewards.base import Reward, Weighted
from unmask.rewards.text import Format
from unmask.tasks.base import Generated, Row, World
from unmask.tasks.files import check_validation_share, some_part_of
from unmask.tasks.hub import Source
from unmask.tasks.protocols import CHAT, D1, UNMASK, Protocol


@dataclass(frozen=True)
class Puzzle(World, ABC):
    """A world whose rows may come from files too, and which has two layouts, whatever the rows' source.

    Protocol `unmask` is the *bare* layout, characters only, for tiny models. `chat` is for language models:
    instructions, then the question; the answer is a `<reasoning>` block and an `<answer>`. `d1` is that chat with d1's
    prefill and decoding.

    Of files, validation is a slice of the training rows, chosen by a stable hash of the `cluster`, so that rows with
    one cluster stay together. One file serves all splits: `train` and `validation` are parts of it, `test` is all of
    it.

    Args:
        data: empty: rows are generated. Else a file (.jsonl, .json, .csv, .tsv), a folder with train and test files, or
            the id of a hub data set; options of the generator then change nothing.
        subset: the hub data set's configuration; not used for files.
        validation_share: of the training rows of `data`, held out.
    """

    protocols: ClassVar[Mapping[str, Protocol]] = {"unmask": UNMASK, "chat": CHAT, "d1": D1}
    instructions: ClassVar[str]

    data: str = ""
    subset: str | None = None
    validation_share: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        check_validation_share(self.name, self.validation_share)

    @abstractmethod
    def checked(self, place: str, row: Mapping[str, Any]) -> Row:
        """The columns that rewards read, and `cluster`, from a row of `data`.

        Raises:
            UserError: a field is missing or wrong; the message begins with the place.
        """

    @abstractmethod
    def bare_item(self, row: Row) -> Row:
        """Such a row with its bare `prompt`, and with `answer` and `completion` if there is a known solution."""

    @abstractmethod
    def question(self, row: Row) -> str:
        """What a chat asks, behind the instructions."""

    @abstractmethod
    def worked(self, row: Row) -> tuple[str, str]:
        """The bare `completion` as a chat shows it: the reasoning, and the content of `<answer>`."""

    @abstractmethod
    def judge(self, training: bool) -> Reward:
        """The puzzle's own reward; for training with partial credit."""

    @property
    def bare(self) -> bool:
        """Whether prompts and answers are characters only."""
        return self.protocol == "unmask"

    def laid_out(self, item: Row) -> Row:
        """A bare item in the layout of the protocol."""
        if self.bare:
            return item
        protocol = self.asked_as
        row = {**item, "prompt": protocol.chat(self.instructions, self.question(item))}
        if "completion" in item:
            reasoning, answer = self.worked(item)
            text = f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"
            row["completion"] = text.removeprefix(protocol.prefill)
        return row

    def rows(self, split: str) -> Sequence[Row]:
        if not self.data:
            return super().rows(split)
        if split not in ("train", "validation", "test"):
            raise self.no_split(split)
        source = self._source(split)
        rows = [self._kept(place, row, source.part) for place, row in source.rows()]
        if split != "test":
            keys = [row["cluster"] for row in rows]
            rows = some_part_of(split, rows, keys, self.validation_share, self.name, self.data)
        return Generated(lambda i: self.laid_out(self.bare_item(rows[i])), len(rows))

    def _kept(self, place: str, row: Mapping[str, Any], part: str) -> Row:
        """A row of `data` with its own columns, but for those that say how to solve it: these are made here."""
        own = {name: value for name, value in row.items() if name not in ("answer", "completion")}
        return {**own, **self.checked(place, row), "id": f"{self.name}-{part}-{place.rpartition(' ')[2]}"}

    def rewards(self) -> list[Weighted]:
        if self.bare:
            return [Weighted(self.judge(training=True))]
        form = Format(opened=bool(self.asked_as.prefill))
        return [Weighted(self.judge(training=True), 2.0), Weighted(form, 0.5)]

    @property
    def success(self) -> Reward:
        return self.judge(training=False)

    def sources(self, split: str) -> dict[str, str]:
        return self._source(split).sha256() if self.data else {}

    def _source(self, split: str) -> Source:
        return Source(self.data, "test" if split == "test" else "train", self.subset)
