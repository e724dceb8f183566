"""The embedded model: its tokenizer is exact, its recipe runs, and the committed checkpoint is what the docs say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.config import ConfigError
from llm.generate import Sampling
from llm.measure import measure
from llm.setup import World, build_world, load_model
from llm.statistics import wilson
from llm.tasks.chains import FUNCTIONS, VALUES, Chains
from llm.tasks.dials import MAX_STEPS, split_of
from llm.thoughts import THOUGHT_END, BarePrompts
from llm.tiny import CHECKPOINT
from llm.tiny.__main__ import TinyConfig, main
from llm.tiny.recipe import Recipe, Teacher, losses, warm_start
from llm.tiny.tokenizer import build_tokenizer, vocabulary

SMALL = Recipe(updates=3, batch=4, hidden=16, layers=1, heads=2, feed_forward=16)


@st.composite
def transcripts(draw: st.DrawFn) -> str:
    """A prompt, a response with arbitrary values, and a localisation answer."""
    functions = draw(st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=MAX_STEPS))
    values = draw(st.lists(st.integers(0, VALUES - 1), min_size=len(functions) + 1, max_size=len(functions) + 1))
    question = Chains.problem(values[0], functions).question
    prompt = BarePrompts().localize(None, question, Chains.thoughts(functions, values))
    return prompt + Teacher().check(Chains.problem(values[0], functions), Chains.thoughts(functions, values))


@given(transcripts())
def test_text_round_trips_without_unknown_tokens(text: str) -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids
    assert tokenizer(tokenizer.decode(ids)).input_ids == ids


def test_numbers_delimiters_and_boxes_are_single_tokens() -> None:
    tokenizer = build_tokenizer()
    for word in [*map(str, range(21)), THOUGHT_END, "\\boxed{", " \\boxed{", "}", *FUNCTIONS, BarePrompts().cue]:
        assert len(tokenizer(word).input_ids) == 1, word
    assert len(vocabulary()) == len(set(vocabulary())) == len(tokenizer)


def test_the_localisation_prompt_continues_prompt_and_response_token_by_token() -> None:
    tokenizer, task = build_tokenizer(), Chains()
    problem = task.problems("train", 1, 0)[0]
    thoughts = task.solution(problem)
    solve = tokenizer(BarePrompts().solve(tokenizer, problem.question)).input_ids
    response = tokenizer("".join(t + THOUGHT_END for t in thoughts)).input_ids
    cue = tokenizer(BarePrompts().cue).input_ids
    assert tokenizer(BarePrompts().localize(tokenizer, problem.question, thoughts)).input_ids == solve + response + cue


def test_an_unknown_character_becomes_unk_and_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.decode(loaded("7?").input_ids) == "7<unk>"
    assert loaded.get_vocab() == build_tokenizer().get_vocab()
    assert (loaded.pad_token, loaded.eos_token, loaded.chat_template) == ("<pad>", "</s>", None)


def test_the_teacher_is_right_as_often_as_the_familys_reliability() -> None:
    rng, teacher = np.random.default_rng(0), Teacher()
    problem = Chains.problem(0, ["g0", "e1"] * 6)
    hard = easy = 0
    for _ in range(500):
        values = [0, *(int(v) for v in re.findall(r"=([0-9]+)", " ".join(teacher.attempt(problem, 0.7, rng))))]
        right = [FUNCTIONS[f][x] == y for f, x, y in zip(problem.meta["functions"], values, values[1:], strict=False)]
        hard, easy = hard + sum(right[0::2]), easy + sum(right[1::2])
    assert easy == 3000
    assert wilson(hard, 3000, level=0.999).low < 0.7 < wilson(hard, 3000, level=0.999).high


def test_teachers_misconceptions_are_bijections_that_are_wrong_everywhere() -> None:
    teacher = Teacher()
    for name, table in FUNCTIONS.items():
        wrong = [teacher.step(name, x, reliability=0.0, u=0.5) for x in range(VALUES)]
        if name[0] == "e":
            assert tuple(wrong) == table
        else:
            assert sorted(wrong) == list(range(VALUES))
            assert all(w != t for w, t in zip(wrong, table, strict=True))


def test_a_checker_without_blind_spots_names_the_true_first_error() -> None:
    rng, teacher, task = np.random.default_rng(1), Teacher(blind=0), Chains()
    found = 0
    while found < 200:
        problem, reliability = teacher.question(8, rng)
        thoughts = teacher.attempt(problem, reliability, rng)
        k = task.first_error(problem, thoughts)
        if k is not None:
            found += 1
            assert teacher.check(problem, thoughts).endswith(f" \\boxed{{{k + 1}}}")


def test_the_recipe_never_uses_an_evaluation_question() -> None:
    rng, teacher = np.random.default_rng(2), Teacher()
    prompts = [teacher.example(steps, rng).prompt for steps in range(2, MAX_STEPS + 1) for _ in range(50)]
    assert all(split_of(prompt.rstrip("\n")) == "train" for prompt in prompts)


def test_the_recipe_is_a_function_of_its_seed() -> None:
    (model, _, history), (again, _, _), (other, _, _) = (warm_start(replace(SMALL, seed=s)) for s in (0, 0, 1))
    assert history.shape == (3, 2)
    weights, same, different = (torch.cat([p.flatten() for p in m.parameters()]) for m in (model, again, other))
    assert torch.equal(weights, same)
    assert not torch.equal(weights, different)


def test_losses_are_the_models_own_where_the_labels_are_masked_by_hand() -> None:
    model, tokenizer, _ = warm_start(SMALL)
    rng = np.random.default_rng(3)
    example = next(e for e in (Teacher().example(5, rng) for _ in range(100)) if e.check)
    language, localisation = losses(model, tokenizer, [example])
    prompt, response, cue, check = (
        tokenizer(text).input_ids for text in (example.prompt, example.response, BarePrompts().cue, example.check)
    )
    ids = torch.tensor([[*prompt, *response, *cue, *check, tokenizer.eos_token_id]])
    begin, end = len(prompt), len(prompt) + len(response)
    for kept, loss in ((slice(begin, end), language), (slice(end + len(cue), None), localisation)):
        labels = torch.full_like(ids, -100)
        labels[:, kept] = ids[:, kept]
        assert model(ids, labels=labels).loss.item() == pytest.approx(loss.item(), abs=1e-5)


def test_the_command_makes_a_folder_that_loads_and_says_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "model"
    measured = main(TinyConfig(out=str(out), updates=2, batch=2, eval_problems=2, threads=1))
    assert json.loads((out / "measured.json").read_text())["recipe"] == measured["recipe"]
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == len(AutoTokenizer.from_pretrained(out))


def test_the_command_refuses_a_folder_that_is_not_empty_or_not_writable(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        main(TinyConfig(out=str(tmp_path)))
    with pytest.raises(ConfigError, match="cannot write"):
        main(TinyConfig(out=str(tmp_path / "mine.txt" / "below")))
    with pytest.raises(ConfigError, match="--out"):
        main(TinyConfig())
    with pytest.raises(ConfigError, match="updates must be at least 1"):
        main(TinyConfig(out=str(tmp_path / "new"), updates=0))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def world() -> World:
    model, tokenizer = load_model(str(CHECKPOINT), "float32")
    return build_world(model, tokenizer, Chains(), Sampling(0.7, 0.95, 128, 20, 64), 512, 0.3, 32)


def test_the_committed_checkpoint_is_small_and_speaks_the_recipes_tokens(world: World) -> None:
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) < 1_500_000
    assert world.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert world.model.dtype == torch.float32
    assert sum(p.numel() for p in world.model.parameters()) < 400_000


def test_the_committed_checkpoint_measures_as_its_own_record_says(world: World) -> None:
    """200 other held-out problems than the record's: each share within the 99.9% interval of the difference."""
    record: dict[str, Any] = json.loads((CHECKPOINT / "measured.json").read_text())["rows"][world.task.name]
    found = measure(world, world.task.problems("eval", 200, seed=77), seed=77)
    pairs = [(record["sampled"], found["sampled"], 1600)]
    pairs += [(record["localiser"][name], found["localiser"][name], None) for name in ("exact", "clean")]
    for stated, share, n in pairs:
        p, n_stated, n_found = stated["value"], n or stated["n"], share["n"]
        half = 3.3 * np.sqrt(p * (1 - p) * (1 / n_stated + 1 / n_found)) + 1 / n_found
        assert abs(share["value"] - p) <= half
    assert found["sampled"]["value"] < 0.1  # room to learn
    assert set(found["localiser"]["statuses"]) == {"exact"}
