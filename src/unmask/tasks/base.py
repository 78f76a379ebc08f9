"""What a task is: rows, rewards and a metric, the same for training and evaluation."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, overload

from unmask.errors import UserError
from unmask.rewards import by_name
from unmask.rewards.base import Reward, Weighted
from unmask.tasks.protocols import UNMASK, Protocol, Usual

Row = dict[str, Any]
ENDLESS = 2**20
"""Nominal length of a generated training set: rows are made when they are asked for."""
LONGEST = 2**20
"""Answer slots, at most; more is a slip of the finger that would not fit any memory."""
MOST_ITEMS = 100_000
"""Rows of a generated validation or test set, at most: they are made one after the other."""


@dataclass(frozen=True)
class Task(ABC):
    """Rows of three splits with their rewards. The config object is the task.

    A row has `prompt` (a string, or a chat: a list of {role, content}), `id`, the columns that its rewards read, and
    where there is one `completion` (the target of supervised fine-tuning) and `cluster` (rows with the same cluster are
    not independent: confidence intervals count clusters).

    Args:
        answer_length: answer slots, in tokens. The default stands for the protocol's, where that fixes them.
        protocol: how prompts are laid out; one of `protocols`. Stands in result files, as the parser does.
    """

    name: ClassVar[str]
    answers: ClassVar[Literal["text", "image"]] = "text"  # what a model is asked for
    alphabet: ClassVar[str | Sequence[str] | None] = None  # for the tokenizer of a new model: all characters, or words
    image_tokenizer: ClassVar[Path | None] = None  # folder with the image tokenizer of a new model
    protocols: ClassVar[Mapping[str, Protocol]] = {"unmask": UNMASK}  # how it can be asked and decoded
    other_parsers: ClassVar[Mapping[str, Reward]] = {}  # name -> metric that reads answers in another way

    overall: ClassVar[Literal["rows", "categories"]] = "rows"  # what the score is a mean of

    answer_length: int = Usual(256)
    protocol: str = "unmask"

    def __post_init__(self):
        if self.answer_length < 1:
            raise UserError(f"task {self.name}: answer_length must be at least 1, not {self.answer_length}")
        if self.answer_length > LONGEST:
            raise UserError(f"task {self.name}: answer_length must be at most {LONGEST}, not {self.answer_length}")
        if self.protocol not in self.protocols:
            raise UserError(f"task {self.name} has no protocol {self.protocol!r}; it has {', '.join(self.protocols)}")
        if isinstance(self.answer_length, Usual):
            usual = self.asked_as.answer_length or type(self).answer_length
            object.__setattr__(self, "answer_length", Usual(usual))

    @property
    def asked_as(self) -> Protocol:
        """What the protocol fixes."""
        return self.protocols[self.protocol]

    @property
    def parser(self) -> str:
        """How answers are read, by name."""
        return "unmask"

    @abstractmethod
    def rows(self, split: str) -> Sequence[Row]:
        """The rows of `train`, `validation` or `test`.

        Raises:
            UserError: the task has no such split, or its data cannot be read.
        """

    @abstractmethod
    def rewards(self) -> list[Weighted]:
        """What training maximises by default."""

    @property
    @abstractmethod
    def success(self) -> Reward:
        """The metric: a completion is solved if and only if this gives exactly 1."""

    def measures(self) -> list[Reward]:
        """Rewards whose means an evaluation reports beside the score."""
        return []

    def named_reward(self, spec: str) -> Reward:
        """The reward that a word stands for; one of the task's own keeps the options that fit how the task is asked.

        Raises:
            UserError: there is no such reward.
        """
        try:
            own = [weighted.reward for weighted in self.rewards()]
        except UserError:  # it has none: they are named
            own = []
        return by_name(spec, [*own, *self.measures()])

    def metric(self, parser: str | None = None) -> Reward:
        """The metric with answers read as `parser` reads them; None: the task's own way.

        Raises:
            UserError: the task has no such parser.
        """
        if parser in (None, self.parser):
            return self.success
        if parser not in self.other_parsers:
            known = ", ".join((self.parser, *self.other_parsers))
            raise UserError(f"--parser {parser}: task {self.name} has {known}")
        return self.other_parsers[parser]

    def stored_row(self, question: str, ground_truth: Any) -> Row:
        """The columns that the metric reads, from a stored generation.

        Raises:
            ValueError: question and ground truth do not tell them.
        """
        del question, ground_truth
        raise ValueError(f"generations of task {self.name} cannot be scored without its rows")

    def sources(self, split: str) -> dict[str, str]:
        """The data behind a split: file or data set name -> sha256; empty for generated rows."""
        del split
        return {}

    def no_split(self, split: str, splits: Sequence[str] = ("train", "validation", "test")) -> UserError:
        """The error for a split that is not among `splits`."""
        return UserError(f"task {self.name} has no split {split!r}; it has {', '.join(splits)}")


@dataclass(frozen=True)
class World(Task, ABC):
    """A task whose rows are generated: no download, no model.

    Training rows are made on demand, and row i is a pure function of (data_seed, i) and the task's settings. The fixed
    validation and test sets hold distinct prompts and do not depend on the demonstrations' carelessness.

    Args:
        data_seed: other seeds give other training rows; which items belong to which split never changes.
        validation_items: rows of the validation set.
        test_items: rows of the test set.
        careless_at_fewest: probability of a careless demonstration on the easiest training items ...
        careless_at_most: ... and on the hardest. Validation and test show right solutions only.
        careless_jump: difficulty in [0, 1] from which the second probability holds; null is linear in between.
    """

    data_seed: int = 0
    validation_items: int = 300
    test_items: int = 600
    careless_at_fewest: float = 0.0
    careless_at_most: float = 0.0
    careless_jump: float | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("careless_at_fewest", "careless_at_most"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"task {self.name}: {name} is a probability in [0, 1], not {getattr(self, name)}")
        for name in ("validation_items", "test_items"):
            if getattr(self, name) < 1:
                raise UserError(f"task {self.name}: {name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > MOST_ITEMS:
                raise UserError(f"task {self.name}: {name} must be at most {MOST_ITEMS}, not {getattr(self, name)}")

    @abstractmethod
    def make(self, split: str, rng: random.Random) -> Row:
        """One item of the split, without `id`; `completion` may be careless where `split` is train."""

    def rows(self, split: str) -> Sequence[Row]:
        if split == "train":
            return Generated(self._row, ENDLESS)
        if split not in ("validation", "test"):
            raise self.no_split(split)
        wanted = self.validation_items if split == "validation" else self.test_items
        distinct: dict[str, Row] = {}
        # The fixed sets come from seed 0 whatever data_seed is: two runs are compared on the same items.
        for i in range(50 * wanted + 1000):
            row = self.make(split, random.Random(f"{self.name}/0/{split}/{i}"))
            distinct.setdefault(str(row["prompt"]), row)
            if len(distinct) == wanted:
                return [{"id": f"{self.name}-{split}-{j}", **row} for j, row in enumerate(distinct.values())]
        raise UserError(f"task {self.name}: there are not {wanted} distinct {split} items; lower {split}_items")

    def _row(self, i: int) -> Row:
        rng = random.Random(f"{self.name}/{self.data_seed}/train/{i}")
        return {"id": f"{self.name}-train-{i}", **self.make("train", rng)}

    def is_careless(self, split: str, difficulty: float, rng: random.Random) -> bool:
        """Whether this demonstration is careless; `difficulty` is 0 for the easiest items, 1 for the hardest."""
        share = difficulty if self.careless_jump is None else float(difficulty >= self.careless_jump)
        probability = self.careless_at_fewest + (self.careless_at_most - self.careless_at_fewest) * share
        return rng.random() < probability and split == "train"


class Generated(Sequence[Row]):
    """A sequence whose row i is made when it is asked for."""

    def __init__(self, make: Callable[[int], Row], length: int):
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(self._length)[index]]
        return self._make(range(self._length)[index])

    def __iter__(self) -> Iterator[Row]:
        return map(self._make, range(self._length))


def stable_share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone: the same in every interpreter, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48


def split_of(key: str) -> str:
    """The split of an item by its key: test with probability 1/5, validation 1/10, train the rest."""
    share = stable_share(key)
    return "test" if share < 0.2 else "validation" if share < 0.3 else "train"


def by_split(keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """A small known set of keys cut into the same shares as by `split_of`, but exactly; each split in sorted order."""
    shuffled = sorted(keys, key=stable_share)
    test, held_out = round(0.2 * len(keys)), round(0.3 * len(keys))
    parts = {"train": shuffled[held_out:], "validation": shuffled[test:held_out], "test": shuffled[:test]}
    return {split: tuple(sorted(members)) for split, members in parts.items()}
