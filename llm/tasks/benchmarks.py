r"""The paper's ten benchmarks, from the hub or from files of rows, in one shape: question, answer, verifier.

| name | rows | scored by |
|---|---|---|
| oly | NuminaMath-CoT, source olympiads, answer short and verifiable | math |
| hmmt | MathArena HMMT November 2025 (30 problems) | math |
| lvl5 | MATH (Hendrycks), level 5; the hub's train and test rows are the splits | math |
| ace | AceReason-Math | math |
| stra | StrategyQA, test | yes/no |
| csqa | CommonsenseQA, validation | letter |
| chem, bio, mat, phys | SciKnowEval v2, level L3, by domain | letter, else text or number |

LiveCodeBench is in `llm.tasks.livecodebench`. A row's fields are checked on loading; rows that are whole but cannot be
scored (a proof without a short answer, a key that is no option) are left out and counted in `Benchmark.skipped`.

Splits. Where the hub has no split of its own, the half of the questions with the smaller hashes, and at least 500 (all,
if there are fewer), is for evaluation, the rest may be trained on. So hmmt has no training split. An evaluation subset
is drawn from the evaluation half by seed: ``problems("eval", 500, seed)``. The paper trains on 400 problems of oly and
evaluates on 500 others; which ones it does not say, so the problems here are not the same.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.rewards.base import Score
from llm.tasks.base import Problem, Split, TaskError
from llm.tasks.options import read_options
from llm.tasks.rows import Row, Source, check_fields, hub_rows, local_rows
from llm.tasks.splits import draw, partition, question_hash, refuse_overlap, without_duplicates
from llm.tasks.verifiers import score_by_name
from llm.thoughts import last_boxed

__all__ = ["RECIPES", "Benchmark", "Item", "Recipe", "choice_question"]

EVAL_AT_LEAST = 500
"""The size of an evaluation subset in the paper."""
_STREAMED_POOL = 4_000
_LONGEST_TEXT_ANSWER = 100


@dataclass(frozen=True)
class Item:
    """What a row says: the question as the model sees it, the reference answer, and who compares."""

    question: str
    answer: str
    verifier: str


@dataclass(frozen=True)
class Recipe:
    """How rows become problems.

    fields: the fields used, with their types. also: those that only some rows use. wanted: is the row one of this
    benchmark's. read: the item, or the reason (a few words) why the row cannot be scored. eval_split: the hub's split
    that is for evaluation, None to partition by hash. pool: stop reading after so many problems (for data sets too
    large to read whole).
    """

    hub_id: str
    sources: tuple[Source, ...]
    fields: Mapping[str, type | tuple[type, ...]]
    read: Callable[[Mapping[str, Any]], Item | str]
    also: Callable[[Mapping[str, Any]], Mapping[str, type | tuple[type, ...]]] = lambda row: {}
    wanted: Callable[[Mapping[str, Any]], bool] = lambda row: True
    eval_split: str | None = None
    pool: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """One of the benchmarks. `path`: rows from a file or folder with the hub's schema in place of the hub."""

    name: str
    path: Path | None = None

    @classmethod
    def from_spec(cls, spec: str) -> Benchmark:
        """The task of ``NAME`` or ``NAME@PATH``."""
        head, _ = read_options(spec, {})
        name, at, path = head.partition("@")
        if at and not path:
            raise TaskError(f"give a path after the @: {name}@PATH")
        if name not in RECIPES:
            raise TaskError(f"cannot read task {spec!r}: a benchmark is written NAME or NAME@PATH")
        return cls(name, Path(path) if path else None)

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name]

    @cached_property
    def skipped(self) -> Counter[str]:
        """How many rows could not be scored, by reason; filled when the rows are read."""
        return Counter()

    @cached_property
    def _splits(self) -> dict[Split, list[Problem]]:
        by_split: dict[str, list[Problem]] = defaultdict(list)
        for row in self._rows():
            problem = self._problem(row)
            if problem is not None:
                by_split[row.split].append(problem)
            if self.recipe.pool is not None and sum(map(len, by_split.values())) >= self.recipe.pool:
                break
        if not by_split:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.skipped.items()) or "none is of this benchmark"
            raise TaskError(f"{self.name}: no usable row in {self.path or self.recipe.hub_id} ({reasons})")
        train, evaluation = self._split(by_split)
        refuse_overlap(train, evaluation, self.name)
        return {"train": train, "eval": evaluation}

    def _split(self, by_split: Mapping[str, list[Problem]]) -> tuple[list[Problem], list[Problem]]:
        if self.recipe.eval_split is None:
            problems = without_duplicates(p for split in by_split.values() for p in split)
            return partition(problems, max(EVAL_AT_LEAST, len(problems) // 2))
        evaluation = without_duplicates(by_split.get(self.recipe.eval_split, []))
        held_out = {question_hash(p.question) for p in evaluation}
        rest = [p for split, ps in by_split.items() if split != self.recipe.eval_split for p in ps]
        return without_duplicates(p for p in rest if question_hash(p.question) not in held_out), evaluation

    def _rows(self) -> Iterable[Row]:
        if self.path is None:
            return hub_rows(self.name, self.recipe.hub_id, self.recipe.sources)
        return local_rows(self.name, self.path, list(dict.fromkeys(s.split for s in self.recipe.sources)))

    def _problem(self, row: Row) -> Problem | None:
        check_fields(self.name, row, self.recipe.fields)
        if not self.recipe.wanted(row.fields):
            return None
        check_fields(self.name, row, self.recipe.also(row.fields))
        item = self.recipe.read(row.fields)
        if isinstance(item, str):
            self.skipped[item] += 1
            return None
        uid = f"{self.name}/{question_hash(item.question)[:16]}"
        return Problem(uid, item.question, item.answer, {"verifier": item.verifier})

    def size(self, split: Split) -> int:
        """How many problems the split holds."""
        return len(self._splits[split])

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        return draw(self._splits[split], n, seed, f"the {split} split of {self.name}")

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        return score_by_name(problems, responses)

    @property
    def knows_first_error(self) -> bool:
        return False

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        """None: these data sets do not know."""
        return None


def choice_question(question: str, labels: Sequence[str], texts: Sequence[str]) -> str:
    r"""A question with its options as lines ``A. text``, and the form of the answer."""
    options = "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
    return f"{question}\n\n{options}\n\nGive the letter of the right option as \\boxed{{letter}}."


_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox|operatorname)\s*\{[^{}]*\}")


def _verifiable(answer: str) -> bool:
    """A short formula or number: no words, and more than a bare capital (the letter of an option)."""
    bare = _TEXT.sub(" words ", answer)
    return len(answer) <= 60 and not _PROSE.search(bare) and re.search(r"\d|[a-z]|\\", bare) is not None


def _boxed_solution(row: Mapping[str, Any]) -> Item | str:
    answer = last_boxed(row["solution"])
    if answer is None:
        return "without a boxed answer"
    return Item(row["problem"], answer.strip(), "math")


def _oly(row: Mapping[str, Any]) -> Item | str:
    item = _boxed_solution(row)
    if isinstance(item, Item) and not _verifiable(item.answer):
        return "with an answer that is not short and verifiable"
    return item


def _problem_answer(row: Mapping[str, Any]) -> Item | str:
    answer = str(row["answer"]).strip()
    return Item(row["problem"], answer, "math") if answer else "without an answer"


def _stra(row: Mapping[str, Any]) -> Item | str:
    question = f"{row['question']}\n\nGive the answer as \\boxed{{yes}} or \\boxed{{no}}."
    return Item(question, "yes" if row["answer"] else "no", "yes_no")


def _choice(row: Mapping[str, Any]) -> Item | str:
    labels, texts, key = row["choices"]["label"], row["choices"]["text"], row["answerKey"].strip()
    if len(labels) != len(texts) or key not in labels:
        return "with a key that is no option"
    return Item(choice_question(row["question"], labels, texts), key, "choice")


def _sciknow(row: Mapping[str, Any]) -> Item | str:
    if "mcq" in row["type"]:
        return _choice(row)
    if isinstance(row["answer"], bool) or not isinstance(row["answer"], str | int | float):
        return "with an answer that is no text or number"
    answer = str(row["answer"]).strip()
    if not answer:
        return "without an answer"
    if len(answer) > _LONGEST_TEXT_ANSWER:
        return "with an answer too long to be compared"
    return Item(row["question"], answer, "text")


_CHOICES = {"question": str, "choices.label": list, "choices.text": list, "answerKey": str}
_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def _sciknow_recipe(domain: str) -> Recipe:
    return Recipe(
        hub_id="hicai-zju/SciKnowEval",
        sources=(Source("v2", "test"),),
        fields={
            **dict.fromkeys(("question", "type", "domain", "details.level"), str),
            **dict.fromkeys(("choices", "answerKey", "answer"), object),
        },
        also=lambda row: _CHOICES if "mcq" in row["type"] else {},
        wanted=lambda row: row["details"]["level"] == "L3" and row["domain"] == domain,
        read=_sciknow,
    )


RECIPES: Mapping[str, Recipe] = {
    "oly": Recipe(
        hub_id="AI-MO/NuminaMath-CoT",
        sources=(Source(None, "train"),),
        fields={"source": str, "problem": str, "solution": str},
        wanted=lambda row: row["source"] == "olympiads",
        read=_oly,
        pool=_STREAMED_POOL,
    ),
    "hmmt": Recipe(
        hub_id="MathArena/hmmt_nov_2025",
        sources=(Source(None, "train"),),
        fields={"problem_idx": (int, str), "problem": str, "answer": (str, int, float), "problem_type": list},
        read=_problem_answer,
    ),
    "lvl5": Recipe(
        hub_id="EleutherAI/hendrycks_math",
        sources=tuple(Source(subject, split) for split in ("train", "test") for subject in _SUBJECTS),
        fields={"problem": str, "level": str, "type": str, "solution": str},
        wanted=lambda row: row["level"] == "Level 5",
        read=_boxed_solution,
        eval_split="test",
    ),
    "stra": Recipe(
        hub_id="ChilleD/StrategyQA",
        sources=(Source(None, "test"),),
        fields={"question": str, "answer": bool},
        read=_stra,
    ),
    "ace": Recipe(
        hub_id="nvidia/AceReason-Math",
        sources=(Source(None, "train"),),
        fields={"problem": str, "answer": (str, int, float)},
        read=_problem_answer,
    ),
    "chem": _sciknow_recipe("Chemistry"),
    "bio": _sciknow_recipe("Biology"),
    "csqa": Recipe(
        hub_id="tau/commonsense_qa",
        sources=(Source(None, "validation"),),
        fields=_CHOICES,
        read=_choice,
    ),
    "mat": _sciknow_recipe("Material"),
    "phys": _sciknow_recipe("Physics"),
}
"""By name, in the order of the paper's table 3."""
