"""Localisers: what an answer is read as, and where each of them cuts."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import TreeTask, actions_of, tree_simulator

from cpi.draws import DrawKey
from cpi.groups import Localisation, Phase, Plan, Rollouts, Split, collect
from cpi.resets import Cost, Start, UniformWithinEpisode
from llm.first_errors import FirstErrors, Measuring
from llm.generate import Sampled, ThoughtSimulator
from llm.localize import Earlier, EntropyLocalizer, OracleLocalizer, SelfLocalizer, ValueLocalizer, parse_answer
from llm.metrics import step_metrics, step_sums
from llm.rewards.base import Score
from llm.tasks.base import Problem
from llm.thoughts import BarePrompts, ThoughtTrace
from llm.values import prefix_values

RIGHT = (1, 2, 0)
THETA = np.random.default_rng(3).normal(size=(3, 9, 3)) * 0.5


def _trace(thought_lengths, entropies=(), start=0, slot=0, text="0</thought>", problem="p"):
    ends = tuple(np.cumsum(thought_lengths).tolist())
    return ThoughtTrace(
        problem=Problem(problem, "?", ""),
        prompt_ids=(2,),
        ids=tuple([4] * sum(thought_lengths)),
        ends=ends,
        thoughts=tuple("0" for _ in ends),
        start=start,
        text=text,
        score=Score(0.0, "wrong"),
        key=DrawKey(seed=0, slot=slot),
        finished=True,
        entropies=tuple(entropies),
    )


@pytest.mark.parametrize(
    ("text", "status", "k"),
    [
        (r"Step 2 divides by zero. \boxed{2}", "exact", 1),
        (r"\boxed{ step 3 }", "exact", 2),
        (r"\boxed {03}", "exact", 2),
        (r"\boxed{1} no: \boxed{4}", "repeated", 3),
        (r"\boxed{4} and now \boxed{", "repeated", 3),  # only complete boxes hold an answer
        ("", "missing", None),
        ("The second step is wrong: 2", "missing", None),
        (r"\boxed{2", "missing", None),
        (r"\boxed{}", "not_a_number", None),
        (r"\boxed{1.5}", "not_a_number", None),
        (r"\boxed{3/2}", "not_a_number", None),
        (r"\boxed{\frac{3}{2}}", "not_a_number", None),
        (r"\boxed{2-3}", "not_a_number", None),
        (r"\boxed{1, 2}", "not_a_number", None),
        (r"\boxed{the second}", "not_a_number", None),
        (r"\boxed{none}", "not_a_number", None),
        (r"\boxed{²}", "not_a_number", None),
        (r"\boxed{0}", "out_of_range", None),
        (r"\boxed{5}", "out_of_range", None),
        (r"\boxed{-1}", "out_of_range", None),
        (r"\boxed{" + "9" * 10_000 + "}", "out_of_range", None),
        (r"\boxed{2} \boxed{7}", "out_of_range", None),  # the last box counts, and is not replaced by an earlier one
    ],
)
def test_an_answer_on_four_thoughts_is_read_as(text, status, k):
    answer = parse_answer(text, num_thoughts=4)
    assert (answer.status, answer.k) == (status, k)


@given(
    text=st.text(alphabet=st.sampled_from(list(r"\boxed{} 0123456789.-/step")), max_size=40),
    box=st.text(alphabet=st.sampled_from(list("0123456789 .-/²٣")), max_size=12),
    n=st.integers(1, 30),
)
def test_every_answer_is_a_step_in_range_or_no_reset(text, box, n):
    answer = parse_answer(f"{text} \\boxed{{{box}}}", n)
    if answer.k is None:
        assert answer.status in ("missing", "not_a_number", "out_of_range")
    else:
        assert 0 <= answer.k < n
        assert int(box) == answer.k + 1


class _Says:
    """A backend that answers with given texts, in turn."""

    def __init__(self, *texts):
        self.texts, self.requests, self.context = texts, [], None

    def sample(self, requests, temperature, top_p):
        self.requests += requests
        return [Sampled([i % len(self.texts)], [0.0], [0.0], True) for i in range(len(requests))]


def _self_localizer(*texts):
    backend = _Says(*texts)
    tokenizer = SimpleNamespace(decode=lambda ids, **_: texts[ids[0]])
    localizer = SelfLocalizer(backend, _Callable(tokenizer), BarePrompts())
    return localizer, backend


class _Callable:
    bos_token_id = None

    def __init__(self, inner):
        self.decode = inner.decode

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [1, 2, 3]}


def test_unusable_answers_are_no_reset_and_are_counted_by_kind():
    texts = [r"\boxed{2}", r"\boxed{1} \boxed{3}", "none", r"\boxed{x}", r"\boxed{9}"]
    localizer, _ = _self_localizer(*texts)
    rows = localizer.cut_probs([_trace([1, 1, 1], slot=i) for i in range(5)])
    assert [row.tolist() for row in rows] == [[0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert localizer.counts == Counter(exact=1, repeated=1, missing=1, not_a_number=1, out_of_range=1)
    assert localizer.spent.localisation_calls == 5
    assert localizer.spent.localisation_tokens == 5


def test_a_question_that_does_not_fit_the_context_is_not_asked_and_a_tight_one_is_answered_in_less():
    localizer, backend = _self_localizer(r"\boxed{1}")
    backend.context = 10  # the question has 3 tokens
    assert localizer.cut_probs([_trace([1, 1])])[0].tolist() == [1, 0]
    assert backend.requests[-1].max_tokens == 7
    backend.context = 3
    full = replace(localizer, counts=Counter(), spent=Cost())
    assert full.cut_probs([_trace([1, 1])])[0].tolist() == [0, 0]
    assert backend.requests[-1].max_tokens == 0
    assert full.counts == Counter(too_long=1)
    assert full.spent.localisation_calls == 0


def test_a_response_without_a_thought_is_not_asked_about():
    localizer, backend = _self_localizer(r"\boxed{1}")
    assert localizer.cut_probs([_trace([])])[0].tolist() == []
    assert backend.requests[-1].max_tokens == 0
    assert localizer.counts == Counter(no_thought=1)
    assert localizer.spent.localisation_calls == 0


def test_every_episode_of_a_prompt_is_localised_from_a_draw_of_its_own():
    localizer, backend = _self_localizer(r"\boxed{1}")
    base = [_trace([1, 1], slot=i) for i in range(4)]
    reset = [ThoughtTrace(**{**vars(t), "key": t.key.at(phase=Phase.RESET)}) for t in base]
    localizer.cut_probs(base + reset)
    assert len({r.key for r in backend.requests}) == 8
    assert {r.key.phase for r in backend.requests} == {Phase.LOCALISE}


def test_the_least_sure_thought_is_the_one_with_the_token_of_highest_entropy():
    row = lambda *args, **kwargs: EntropyLocalizer().cut_probs([_trace(*args, **kwargs)])[0].tolist()  # noqa: E731
    assert row([2, 3, 1], [0.1, 0.2, 0.0, 0.9, 0.3, 0.5]) == [0, 1, 0]
    assert row([2, 3, 1], [0.1, 0.8, 0.0, 0.7, 0.3, 0.5]) == [1, 0, 0]
    assert row([2, 3, 1], [0.1, 0.8, 0.0, 0.7, 0.3, 0.9]) == [0, 0, 1]
    # a suffix has entropies for its own tokens only: thought 0 was inherited
    assert row([2, 3, 1], [0.0, 0.7, 0.3, 0.5], start=1) == [0, 1, 0]
    # a trailing token after the last thought belongs to it; an empty response has nothing to cut
    assert EntropyLocalizer().cut_probs([_trace([], [])])[0].tolist() == []


def _rollouts(n, theta=THETA):
    _, simulator = tree_simulator(theta, RIGHT)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    keys = [DrawKey(seed=5, slot=i) for i in range(n)]
    return simulator, simulator.continue_from([root] * n, keys)


def test_monte_carlo_values_are_the_success_probabilities_of_prefixes():
    """Tree of depth 3 with pi = softmax(theta): P(success | prefix) by hand; 1,500 continuations, 4 standard errors."""
    simulator, traces = _rollouts(30)
    trace = next(t for t in traces if actions_of(t)[:2] == list(RIGHT[:2]) and not t.outcome)
    K = 1500
    values = prefix_values(simulator, [(trace, k) for k in range(3)], K).values
    pi = np.exp(THETA) / np.exp(THETA).sum(axis=-1, keepdims=True)
    step = [pi[0, 0, 1], pi[1, 1, 2], pi[2, 1 * 3 + 2, 0]]
    want = np.array([np.prod(step), np.prod(step[1:]), step[2]])
    assert np.all(np.abs(values - want) < 4 * np.sqrt(want * (1 - want) / K))


def test_the_value_localiser_cuts_at_the_last_thought_from_which_success_was_seen():
    theta = THETA.copy()
    for h, y in enumerate(RIGHT):
        theta[h, :, y] += 1.0
    simulator, traces = _rollouts(40, theta)
    failures = [t for t in traces if not t.outcome]
    localizer = ValueLocalizer(simulator, continuations=64)
    rows = localizer.cut_probs(failures)
    true = [simulator.task.first_error(t.problem, t.thoughts) for t in failures]
    assert [np.eye(3)[k].tolist() for k in true] == [row.tolist() for row in rows]
    assert len(set(true)) > 1
    assert localizer.counts == Counter(success=len(failures))
    # all failures are of one prompt here, so equal prefixes share their continuations
    prefixes = {tuple(actions_of(t)[:k]) for t in failures for k in range(3)}
    assert localizer.spent.rollouts == 64 * len(prefixes)
    assert localizer.spent.tokens == 64 * sum(3 - len(p) for p in prefixes)


class _Generous(TreeTask):
    """The tree, with a part of the marks for a wrong answer."""

    def score(self, problems, responses):
        return [replace(score, value=max(score.value, 0.05)) for score in super().score(problems, responses)]


def test_a_part_of_the_marks_is_no_success_to_the_value_localiser():
    theta = THETA.copy()
    for h, y in enumerate(RIGHT):
        theta[h, :, y] += 1.0
    simulator, traces = _rollouts(40, theta)
    generous = replace(simulator, task=_Generous(simulator.task.right))
    marks = [r.outcome for r in generous.continue_from([t.prefix(0) for t in traces], [t.key for t in traces])]
    assert set(marks) == {0.05, 1.0}
    failures = [t for t in traces if not t.outcome]
    rows = [ValueLocalizer(s, continuations=16).cut_probs(failures) for s in (simulator, generous)]
    assert np.array_equal(*rows) and np.unique(rows[0], axis=0).shape[0] > 1


def test_without_any_success_the_value_localiser_does_not_reset():
    never = THETA.copy()
    never[2, :, 0] = -50.0  # the last right step is out of reach
    simulator, traces = _rollouts(4, never)
    localizer = ValueLocalizer(simulator, continuations=2)
    assert all(row.sum() == 0 for row in localizer.cut_probs(traces))
    assert localizer.counts == Counter(no_success=4)


def test_the_account_holds_the_value_localisers_rollouts():
    simulator, _ = _rollouts(1)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    keys = [DrawKey(seed=6, prompt=i) for i in range(8)]
    account = collect(simulator, [root] * 8, keys, Plan(Split((4,), (4,)), ValueLocalizer(simulator, 2))).account
    assert account.no_failure < 8
    assert account.localiser_rollouts == 2 * 3 * (8 - account.no_failure)
    assert account.localiser_tokens == 2 * 6 * (8 - account.no_failure)


class _Silent(TreeTask):
    """The tree, by a task that does not say where its responses go wrong."""

    knows_first_error = False

    def first_error(self, problem, thoughts):
        return None


def test_first_errors_by_value_are_those_that_a_silent_task_keeps_to_itself():
    simulator, _ = _rollouts(1)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    keys = [DrawKey(seed=6, prompt=i) for i in range(8)]
    rollouts = collect(simulator, [root] * 8, keys, Plan(Split((4,), (4,)), UniformWithinEpisode()))
    silent = replace(simulator, task=_Silent(simulator.task.right))
    seeds = [loc.seed for loc in rollouts.localisations]
    assert len(seeds) > 3

    found = Measuring(every=2, seeds=3, continuations=256)(silent, rollouts, step=4)
    assert [found(s) for s in seeds[:3]] == [simulator.task.first_error(s.problem, s.thoughts) for s in seeds[:3]]
    assert [found(s) for s in seeds[3:]] == [None] * (len(seeds) - 3)
    assert found.rollouts == 3 * 3 * 256
    metrics = step_metrics(step_sums(_with(rollouts, rollouts.localisations, seeds), [], found, {}))
    assert metrics["kappa"] == 1.0 and metrics["localiser_exact"] is not None
    assert metrics["oracle_rollouts"] == 3 * 3 * 256

    assert Measuring(every=2)(silent, rollouts, step=3).rollouts == 0
    assert Measuring(every=0)(silent, rollouts, step=4).rollouts == 0
    told = Measuring(every=2)(simulator, rollouts, step=4)  # a task that knows is asked about all of them
    assert told.rollouts == 0 and None not in [told(s) for s in seeds]


def test_without_resets_the_first_failure_of_each_prompt_is_measured():
    simulator, _ = _rollouts(1)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    rollouts = collect(
        simulator, [root] * 6, [DrawKey(seed=6, prompt=i) for i in range(6)], Plan(Split((8,), ()), Start())
    )
    silent = replace(simulator, task=_Silent(simulator.task.right))
    failures = [[t for t in ts if not t.outcome] for ts in rollouts.fresh]
    assert all(len(ts) > 1 for ts in failures)
    found = Measuring(every=1, seeds=4, continuations=64)(silent, rollouts, step=0)
    known = [[found(t) is not None for t in ts] for ts in failures]
    assert known == [[i < 4 and t is ts[0] for t in ts] for i, ts in enumerate(failures)]


def test_a_localiser_by_value_is_not_measured_against_its_own_continuations():
    simulator, traces = _rollouts(4)
    seeds = [t for t in traces if not t.outcome]
    asked = []

    class Recording(ThoughtSimulator):
        def continue_from(self, prefixes, keys):
            asked.append(set(keys))
            return super().continue_from(prefixes, keys)

    recording = Recording(**{f.name: getattr(simulator, f.name) for f in fields(simulator)})
    recording.task = _Silent(simulator.task.right)
    ValueLocalizer(recording, 4).cut_probs(seeds)
    localisations = [Localisation(0, s, np.eye(3)[0], 0) for s in seeds]
    Measuring(every=1)(recording, _with(_fresh(seeds)[0], localisations, seeds), step=0)
    by_localiser, by_oracle = asked
    assert by_localiser and by_oracle and not by_localiser & by_oracle


def test_streams_of_values_share_no_draw():
    simulator, traces = _rollouts(4)
    states = [(t, k) for t in traces for k in range(t.num_decisions)]
    keys = [{r.key for r in prefix_values(simulator, states, 4, stream=stream).rollouts} for stream in (0, 1)]
    assert keys[0] and not keys[0] & keys[1]


class _Knows:
    """A task whose responses all go wrong at the thought that the problem's uid names."""

    def first_error(self, problem, thoughts):
        return int(problem.uid)


def _metrics(localisations, failures):
    rollouts, _ = _fresh(failures)
    return step_metrics(step_sums(_with(rollouts, localisations, failures), [], FirstErrors(_Knows()), {}))


def _fresh(failures):
    simulator, _ = _rollouts(1)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    return collect(simulator, [root], [DrawKey(seed=1)], Plan(Split((2,), ()), UniformWithinEpisode())), simulator


def _with(rollouts, localisations, failures):
    return Rollouts([], localisations, rollouts.account, [tuple(failures)])


def test_kappa_rho_and_p_by_hand():
    """Four failures of 4, 4, 2 and 2 thoughts, first errors 1, 3, 0, 0; answers 1 (hit), 2, none, 0 (hit)."""
    seeds = [_trace([1] * n, problem=str(k)) for n, k in [(4, 1), (4, 3), (2, 0), (2, 0)]]
    point = [np.eye(4)[1], np.eye(4)[2], np.zeros(2), np.eye(2)[0]]
    answers = [Localisation(0, s, row, k) for s, row, k in zip(seeds, point, [1, 2, -1, 0], strict=True)]
    got = _metrics(answers, seeds)
    assert got["kappa"] == pytest.approx(2 / 4)
    assert got["rho"] == pytest.approx(2 / 3)
    assert got["p"] == pytest.approx(4 / 12)
    assert got["localiser_exact"] == pytest.approx(2 / 3)
    assert got["localiser_clean"] == 1.0
    assert got["localiser_deviation"] == pytest.approx(-1 / 3)

    uniform = UniformWithinEpisode().cut_probs(seeds)
    got = _metrics([Localisation(0, s, row, 0) for s, row in zip(seeds, uniform, strict=True)], seeds)
    assert got["kappa"] == 1.0
    assert got["rho"] == pytest.approx(got["p"])

    # a prompt with many failures, of which one is a seed, is one seed in rho and in p
    got = _metrics(
        [Localisation(0, s, row, 0) for s, row in zip(seeds, uniform, strict=True)], [*seeds, *seeds[:1] * 5]
    )
    assert got["rho"] == pytest.approx(got["p"]) == pytest.approx(4 / 12)
    assert _metrics([], [*seeds, *seeds[:1] * 5])["p"] == pytest.approx(9 / 32)


def test_the_oracle_has_recall_and_precision_one():
    simulator, traces = _rollouts(20)
    seeds = [t for t in traces if not t.outcome]
    rows = OracleLocalizer(simulator.task).cut_probs(seeds)
    localisations = [Localisation(0, s, row, int(row.argmax())) for s, row in zip(seeds, rows, strict=True)]
    rollouts, _ = _fresh(seeds)
    got = step_metrics(step_sums(_with(rollouts, localisations, seeds), [], FirstErrors(simulator.task), {}))
    assert (got["kappa"], got["rho"], got["localiser_deviation"]) == (1.0, 1.0, 0.0)
    assert got["p"] == pytest.approx(1 / 3)


def test_a_margin_moves_every_cut_towards_the_start_and_costs_nothing():
    rows = [np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.25, 0.5, 0.0]), np.zeros(2)]
    spent = Cost(localisation_calls=3)
    inner = SimpleNamespace(spent=spent, counts=Counter({"exact": 3}), cut_probs=lambda episodes: rows)
    earlier = Earlier(inner, by=2)
    assert [row.tolist() for row in earlier.cut_probs([])] == [[0.0, 1.0, 0.0, 0.0], [0.75, 0.0, 0.0], [0.0, 0.0]]
    assert earlier.spent is spent and earlier.counts == {"exact": 3}
