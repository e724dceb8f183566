"""Each baseline's defining computation, on an example done by hand or against an exact reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripted import actions_of, tree_simulator
from training import tiny_trainer
from transformers import AutoModelForCausalLM

from cpi.advantages import MeanBaseline, ZScore
from cpi.draws import DrawKey
from cpi.groups import Phase
from llm.baselines import CritiqueGRPO, SCoRe, SegmentTree, SegmentValues
from llm.config import ConfigError
from llm.generate import Sampled, Sampling, ThoughtSimulator
from llm.methods import MethodConfig, build_method, parse_branching
from llm.rewards.base import Score
from llm.setup import TINY
from llm.tasks.base import Problem
from llm.thoughts import BarePrompts, Prefix, ThoughtTrace
from llm.trainer import kl_to_go

PROBLEM = Problem("p", "?", "")
ROOT = Prefix(PROBLEM, (7, 7))


class _Scripted:
    """A simulator of responses of three one-token thoughts whose reward is read from a table by phase and slot."""

    sampling = SimpleNamespace(max_tokens=12)

    def __init__(self, **rewards):
        self.rewards = {Phase[name]: values for name, values in rewards.items()}
        self.revised = []

    def revision_root(self, problem, attempt, remark):
        self.revised.append((attempt, remark))
        return Prefix(problem, (7, 7, 8))

    def continue_from(self, prefixes, keys):
        return [self._trace(p, k) for p, k in zip(prefixes, keys, strict=True)]

    def _trace(self, prefix, key):
        own = 3 - prefix.k
        value = float(self.rewards[key.phase][key.slot % 2**32])
        return ThoughtTrace(
            problem=prefix.problem,
            prompt_ids=prefix.prompt_ids,
            ids=prefix.thought_ids + (10 * key.phase + key.slot % 2**32,) * own,
            ends=(1, 2, 3),
            thoughts=("a", "b", "c"),
            start=prefix.k,
            text=f"{key.phase}:{key.slot}",
            score=Score(value, "correct" if value == 1 else "wrong"),
            key=key,
            finished=True,
            logprobs=(-0.01, -1.0, -2.0)[prefix.k :],
            entropies=(0.0,) * own,
        )


def _roll(method, **rewards):
    simulator = _Scripted(**rewards)
    return simulator, method.roll(simulator, [ROOT], [DrawKey(seed=0)])


def _trace(lengths, logprobs, outcome=0.0):
    ends = tuple(np.cumsum(lengths).tolist())
    return ThoughtTrace(
        PROBLEM, (7,), tuple(range(len(logprobs))), ends, ("x",) * len(ends), 0, "", Score(outcome, "wrong"),
        DrawKey(seed=0), True, tuple(logprobs), (0.0,) * len(logprobs),
    )  # fmt: skip


# ---- Dr. GRPO


def test_dr_grpo_is_trls_dr_grpo_on_rewards_minus_their_mean(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, method="dr-grpo", seed=2, micro_rows=32)
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    model = trainer.model
    trainer.compute_loss(model, inputs).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    groups = trainer._reset_step.rollouts.groups
    centred = np.concatenate([np.array([e.outcome for e in g.episodes]) for g in groups]).reshape(-1, 8)
    centred = centred - centred.mean(axis=1, keepdims=True)
    assert np.abs(centred).max() > 0
    trainer.loss_type = "dr_grpo"
    inputs["advantages"] = torch.as_tensor(centred.reshape(-1, 1), dtype=torch.float32)
    trainer.compute_loss(model, inputs).backward()
    for name, p in model.named_parameters():
        assert float((got[name] - p.grad).abs().max()) < 1e-7, name


# ---- VinePPO, SPO-chain


def test_vineppo_steps_are_differences_of_values_and_sum_to_outcome_minus_start():
    method = SegmentValues("vineppo", rollouts=2, continuations=2)
    trace = _trace([2, 1, 1], [-1.0] * 4, outcome=1.0)
    starts = method._segment_starts(trace)
    assert starts.tolist() == [0, 2, 3]
    row = method._row(trace, starts, np.array([0.25, 0.5, 0.0]))
    assert row.advantage_T.tolist() == [0.25, 0.25, -0.5, 1.0]
    assert row.mask_T.all()


def test_vineppo_estimates_the_exact_advantage_of_each_thought():
    """A tree with pi = softmax(theta): V of every prefix in closed form; 800 continuations, 4 standard errors."""
    theta = np.random.default_rng(3).normal(size=(3, 9, 3)) * 0.5
    right = (1, 2, 0)
    theta[np.arange(3), :, right] += 1.0
    pi = np.exp(theta) / np.exp(theta).sum(axis=-1, keepdims=True)
    path = [pi[0, 0, 1], pi[1, 1, 2], pi[2, 5, 0]]

    def value(actions):
        good = list(actions) == list(right[: len(actions)])
        return float(np.prod(path[len(actions) :])) if good else 0.0

    _, simulator = tree_simulator(theta, right)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    method = SegmentValues("vineppo", rollouts=24, continuations=800)
    roll = method.roll(simulator, [root], [DrawKey(seed=1)])
    wrong_late = 0
    for row, trace in zip(roll.rows, roll.rollouts.episodes(), strict=True):
        y = actions_of(trace)
        want = np.array([value(y[: k + 1]) - value(y[:k]) for k in range(3)])
        assert np.abs(row.advantage_T - want).max() < 4 * np.sqrt(2 * 0.25 / 800)
        wrong_late += y[0] == right[0] and trace.outcome == 0
    assert wrong_late


def test_the_account_of_vineppo_holds_its_continuations():
    method = SegmentValues("vineppo", rollouts=2, continuations=2)
    _, roll = _roll(method, BASE=[1, 0], VALUE=[0] * 20)
    # the start is shared by both rollouts; the two further prefixes of each are its own: 2 + 2 * 2 * 2 continuations
    assert roll.rollouts.account.rollouts == 2 + 10
    assert roll.rollouts.account.discarded_rollouts == 10
    assert roll.rollouts.account.tokens == 6 + 2 * 3 + 4 * (2 + 1)


def test_tokens_after_the_last_thought_belong_to_its_segment():
    trace = _trace([2, 1], [-1.0] * 4, outcome=1.0)
    method = SegmentValues("vineppo", rollouts=2, continuations=2)
    starts = method._segment_starts(trace)
    assert method._row(trace, starts, np.array([0.25, 0.5])).advantage_T.tolist() == [0.25, 0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("interval", "starts", "values", "advantages"),
    [
        (1, [0, 3, 5], [0.5, 0.75, 0.25], [0, 0, 0.25, 0, -0.5, 0.75]),  # the last cut point ends the response
        (2, [0, 5], [0.5, 0.125], [0, 0, -0.375, 0, -0.375, 0.875]),
        (3, [0], [0.5], [0, 0, 0.5, 0, 0.5, 0.5]),
        (4, [0], [0.5], [0, 0, 0.5, 0, 0.5, 0.5]),
    ],
)
def test_a_segment_of_spo_chain_ends_after_its_cut_points_wherever_in_a_thought(interval, starts, values, advantages):
    """Thoughts of tokens (sure, sure, unsure, sure), (unsure, unsure): cut points at tokens 2, 4 and 5."""
    method = SegmentValues("spo-chain", rollouts=2, continuations=2, max_prob=0.9, interval=interval)
    trace = _trace([4, 2], [-0.01, -0.01, -1.0, -0.02, -0.5, -0.7], outcome=1.0)
    assert method._segment_starts(trace).tolist() == starts
    row = method._row(trace, method._segment_starts(trace), np.array(values))
    assert row.mask_T.tolist() == [False, False, True, False, True, True]
    assert row.advantage_T.tolist() == advantages


class _Letters:
    """A tokenizer of single letters, and a backend that goes on with a written response; letters of `unsure` are."""

    def __init__(self, response, unsure=""):
        self.response, self.unsure, self.asked = response, unsure, []

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids, **_):
        return "".join(map(chr, ids))

    def sample(self, requests, temperature, top_p):
        self.asked += requests
        return [self._row(r) for r in requests]

    def _row(self, request):
        done = len(request.ids) - len("?\n")
        ids, over = [], False
        for c in self.response[done : done + request.max_tokens]:
            ids.append(ord(c))
            over = request.stop.push(c)
            if over:
                break
        logprobs = [-1.0 if chr(i) in self.unsure else -0.01 for i in ids]
        return Sampled(ids, logprobs, [0.0] * len(ids), over)


class _Marks:
    """A task that gives each response in turn the next of some marks."""

    def __init__(self, *marks):
        self.marks = iter(marks)

    def score(self, problems, texts):
        return [Score(next(self.marks), "correct") for _ in texts]


def _written(response, unsure="", marks=(), **sampling):
    letters = _Letters(response, unsure)
    simulator = ThoughtSimulator(letters, letters, _Marks(*marks), BarePrompts(), Sampling(**sampling))
    return letters, simulator, simulator.root(PROBLEM)


RESPONSE = "ab</thought>c</thought>\\boxed{1}</thought>"


@pytest.mark.parametrize("sampling", [{}, {"max_thought_tokens": 14}, {"max_thoughts": 2}, {"max_tokens": 21}], ids=str)
def test_a_response_re_entered_at_any_token_goes_on_as_it_did(sampling):
    """Every cut of a response whose delimiter is ten tokens long, whole or stopped at one of the caps."""
    _, simulator, root = _written(RESPONSE, marks=[0.5] * 99, **sampling)
    (trace,) = simulator.continue_from([root], [DrawKey(seed=0)])
    cuts = range(len(trace.ids))
    again = simulator.continue_from([trace.token_prefix(t) for t in cuts], [DrawKey(seed=0)] * len(cuts))
    for t, suffix in zip(cuts, again, strict=True):
        assert (suffix.ids, suffix.ends, suffix.thoughts) == (trace.ids, trace.ends, trace.thoughts)
        assert (suffix.text, suffix.finished) == (trace.text, trace.finished)
        assert (suffix.inherited_tokens, suffix.generated) == (t, len(trace.ids) - t)
        assert suffix.start == sum(e <= t for e in trace.ends)
        assert len(suffix.logprobs) == suffix.generated
    for k in range(trace.num_decisions):
        assert trace.token_prefix(trace.ends[k - 1] if k else 0) == trace.prefix(k)
    with pytest.raises(IndexError, match="outside the tokens"):
        trace.token_prefix(len(trace.ids))


def test_spo_chain_takes_values_in_the_middle_of_thoughts():
    """Unsure letters a, c and the 1 in the box: with two cut points a segment, V at the start and after c."""
    marks = [1, 0, *(0, 1, 1, 1), *(1, 1, 1, 0)]  # rollouts, from the start, after c
    method = SegmentValues("spo-chain", rollouts=2, continuations=4, max_prob=0.9, interval=2)
    letters, simulator, root = _written(RESPONSE, "ac1", marks)
    roll = method.roll(simulator, [root], [DrawKey(seed=0)])
    after_c = RESPONSE.index("c") + 1
    # both rollouts are the same response, so their prefixes are shared
    assert [len(r.ids) - 2 for r in letters.asked] == [0] * 2 + [0] * 4 + [after_c] * 4
    cut_points = [0, after_c - 1, RESPONSE.index("1")]
    # V: 3/4 at the start, 3/4 after c; outcomes 1 and 0. Six trained tokens in all, three a row
    for row, last in zip(roll.rows, (0.25, -0.75), strict=True):
        assert np.flatnonzero(row.mask_T).tolist() == cut_points
        assert row.advantage_T[cut_points].tolist() == [0.0, 0.0, last]
    account = roll.rollouts.account
    assert account.rollouts == 2 + 8
    assert account.tokens == 2 * len(RESPONSE) + 4 * len(RESPONSE) + 4 * (len(RESPONSE) - after_c)


def test_spo_normalises_by_the_number_of_trained_tokens_of_a_prompt():
    method = SegmentValues("spo-chain", rollouts=2, continuations=1, max_prob=0.9, interval=1)
    _, roll = _roll(method, BASE=[1, 0], VALUE=[0.5] * 20)
    # logprobs (-.01, -1, -2): two of three tokens of each rollout are trained, four in all; V = 1/2 wherever asked
    weights = [row.advantage_T / row.mask_T.sum() / len(roll.rows) for row in roll.rows]
    np.testing.assert_allclose(weights[0], [0, 0, 0.5 / 4])
    np.testing.assert_allclose(weights[1], [0, 0, -0.5 / 4])


# ---- SPO-tree, TreeRPO


def test_values_go_up_the_tree_and_siblings_are_compared():
    tree = SegmentTree("spo-tree", (2, 4), 1, MeanBaseline())
    nodes, leaves = tree.segment_advantages(np.array([1.0, 0, 0, 0, 1, 1, 1, 0]))
    assert nodes.tolist() == [-0.25, 0.25]
    assert leaves.tolist() == [0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75]
    deep = SegmentTree("treerpo", (2, 2, 2), 1, ZScore(0, 0.0))
    top, middle, bottom = deep.segment_advantages(np.array([1.0, 1, 1, 0, 0, 0, 0, 0]))
    assert top.tolist() == [1, -1]
    assert middle.tolist() == [1, -1, 0, 0]
    assert bottom.tolist() == [0, 0, 1, -1, 0, 0, 0, 0]


@pytest.mark.parametrize(("branching", "trained"), [((2, 4), 2 * 1 + 8 * 2), ((2, 2, 2), 2 + 4 + 8), ((3, 3), 3 + 18)])
def test_every_segment_of_the_tree_is_trained_exactly_once_with_its_own_advantage(branching, trained):
    """Responses of three thoughts of one token, one thought a segment, the last one to the end."""
    leaves = int(np.prod(branching))
    outcomes = np.random.default_rng(0).integers(0, 2, size=64)
    tree = SegmentTree("treerpo", branching, 1, MeanBaseline())
    _, roll = _roll(tree, BASE=outcomes, RESET=outcomes[8:])
    account = roll.rollouts.account
    assert len(roll.rows) == account.rollouts == leaves
    assert account.discarded_rollouts == 0
    assert account.tokens == sum(int(row.mask_T.sum()) for row in roll.rows) == trained
    assert account.batches == len(branching)

    traces = [e for g in roll.rollouts.groups for e in g.episodes]
    advantages = tree.segment_advantages(np.array([t.outcome for t in traces]))
    for i, (row, trace) in enumerate(zip(roll.rows, traces, strict=True)):
        path = np.unravel_index(i, branching)
        levels = [min(k, len(branching) - 1) for k in range(3)]
        nodes = [int(np.ravel_multi_index(path[: level + 1], branching[: level + 1])) for level in levels]
        want = np.array([advantages[level][node] for level, node in zip(levels, nodes, strict=True)])
        factor = leaves * row.mask_T.sum() / trained
        np.testing.assert_allclose(row.advantage_T, np.where(row.mask_T, want * factor, 0.0))
        assert row.mask_T.tolist() == [k >= trace.start for k in range(3)]
    # siblings share what is above them
    for group in roll.rollouts.groups:
        assert len({t.ids[: group.k] for t in group.episodes}) == 1


def test_a_short_response_branches_before_its_last_thought():
    tree = SegmentTree("spo-tree", (2, 2), 9, MeanBaseline())
    _, roll = _roll(tree, BASE=[1, 0], RESET=[0, 1])
    assert [g.k for g in roll.rollouts.groups] == [2, 2]


def test_a_tree_of_token_segments_branches_inside_thoughts():
    """Segments of 3 tokens, the second level's in the middle of the first delimiter; the leaves' marks by hand."""
    tree = SegmentTree("spo-tree", (2, 2, 2), 3, MeanBaseline(), unit="tokens")
    marks = [1, 0, *(1, 0), *(0, 0, 1, 0)]  # level by level
    letters, simulator, root = _written(RESPONSE, marks=marks)
    roll = tree.roll(simulator, [root], [DrawKey(seed=0)])
    assert [len(r.ids) - 2 for r in letters.asked] == [0] * 2 + [3] * 2 + [6] * 4
    # leaves in path order: (1, new 0), (new 1, new 0), (0, new 1), (new 0, new 0)
    assert [e.outcome for g in roll.rollouts.groups for e in g.episodes] == [1, 0, 1, 0, 0, 1, 0, 0]
    n = len(RESPONSE)
    trained = 2 * 3 + 4 * 3 + 8 * (n - 6)
    last = roll.rows[7]
    assert last.mask_T.tolist() == [False] * 6 + [True] * (n - 6)
    np.testing.assert_allclose(last.advantage_T[6:], 0.0)  # its sibling failed as well
    fifth = roll.rows[4]  # first leaf of the second half: all of its tokens are its own
    assert fifth.mask_T.all()
    factor = 8 * n / trained
    np.testing.assert_allclose(fifth.advantage_T[:3], -0.125 * factor)  # 1/4 against 1/2
    np.testing.assert_allclose(fifth.advantage_T[3:6], 0.25 * factor)  # 1/2 against 0
    np.testing.assert_allclose(fifth.advantage_T[6:], -0.5 * factor)  # 0 against 1
    assert {g.k for g in roll.rollouts.groups} == {0}
    assert {g.kind for g in roll.rollouts.groups} == {"reset"}


def test_a_node_that_adds_no_thought_is_re_entered_where_it_began():
    """A suffix that ends at once keeps what it inherited: its next cut is there, and not one thought earlier."""
    tree = SegmentTree("treerpo", (2, 2, 2), 1, MeanBaseline())
    whole = _trace([2, 2], [-1.0] * 5)
    ended = replace(whole, ids=whole.ids[:3], ends=(2,), thoughts=("x",), start=1)
    assert tree._cut(whole, 1) == 2
    assert tree._cut(ended, 2) == ended.inherited_tokens == 2


def test_spo_tree_trains_improbable_tokens_only():
    tree = SegmentTree("spo-tree", (2, 2), 1, MeanBaseline(), max_prob=0.9)
    _, roll = _roll(tree, BASE=[1, 0], RESET=[0, 1])
    assert [row.mask_T.tolist() for row in roll.rows] == [[False, True, True]] * 4


@pytest.mark.parametrize("text", ["", "8", "1x8", "2x", "2*4", "2x-4", "axb"])
def test_an_unreadable_branching_is_one_clear_line(text):
    with pytest.raises(ConfigError, match="branching must be two or more widths of at least 2"):
        parse_branching(text)


# ---- Critique-GRPO


def test_the_best_refinement_replaces_its_original():
    """Originals 0, 1, 0, 0; refinements of the wrong ones 0, 1, 1: the one of original 2 is the first best."""
    simulator, roll = _roll(CritiqueGRPO("critique-grpo", 4), BASE=[0, 1, 0, 0], REVISE=[0, None, 1, 1])
    assert [attempt for attempt, _ in simulator.revised] == ["0:0", "0:2", "0:3"]
    (group,) = roll.rollouts.groups
    assert [t.key.phase for t in group.episodes] == [Phase.BASE, Phase.BASE, Phase.REVISE, Phase.BASE]
    assert roll.advantages[0].tolist() == [-0.5, 0.5, 0.5, -0.5]
    assert [row.shaping for row in roll.rows] == [0.0, 0.0, 0.1, 0.0]
    assert all(row.prompt_ids == ROOT.prompt_ids for row in roll.rows)  # the critique is not in the context that learns
    # constant normaliser: three tokens of at most twelve
    assert roll.rows[2].advantage_T.tolist() == [0.5 * 3 / 12] * 3
    account = roll.rollouts.account
    assert (account.rollouts, account.discarded_rollouts) == (7, 3)


def test_without_a_failure_critique_grpo_is_dr_grpo():
    simulator, roll = _roll(CritiqueGRPO("critique-grpo", 2), BASE=[1, 1])
    assert simulator.revised == []
    assert [row.shaping for row in roll.rows] == [0.0, 0.0]


def test_the_gradient_of_a_refinement_is_that_of_p_over_p_plus_gamma(tmp_path: Path):
    """Against autograd on sum_t p_t / (p_t + gamma), one sequence at a time."""
    trainer = tiny_trainer(tmp_path, method="critique-grpo", max_tokens=64, seed=2, micro_rows=16)
    own = trainer.method.roll

    def with_rewards(*args):  # the model is too weak to refine: pretend that refinements are right
        roll = own(*args)
        return replace(roll, rows=[replace(r, advantage_T=np.full(r.mask_T.size, 0.3)) for r in roll.rows])

    trainer.method = SimpleNamespace(roll=with_rewards, name="critique-grpo", rows_per_prompt=4)
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    model = trainer.model
    trainer.compute_loss(model, inputs).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    rows = trainer._reset_roll.rows
    assert {row.shaping for row in rows} == {0.0, 0.1}
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        log_probs = torch.log_softmax(model(ids).logits[0] / trainer.args.temperature, dim=-1)
        tokens = torch.arange(len(row.prompt_ids), ids.shape[1])
        log_p = log_probs[tokens - 1, ids[0, tokens]]
        term = log_p.exp() / (log_p.exp() + row.shaping) if row.shaping else log_p
        total = total - 0.3 * term.mean()
    (total / len(rows)).backward()
    for name, p in model.named_parameters():
        assert float((got[name] - p.grad).abs().max()) < 1e-6, name


# ---- SCoRe


def test_score_rewards_the_second_attempt_for_getting_better():
    """Pairs (0, 1), (1, 1), (1, 0), alpha = 10: y1 gets 0, 1, 1 and y2 gets 1 + 10, 1, 0 - 10."""
    simulator, roll = _roll(SCoRe("score", 3, stage1_steps=0, beta1=0.0), BASE=[0, 1, 1], REVISE=[1, 1, 0])
    assert [a for a, _ in simulator.revised] == ["0:0", "0:1", "0:2"]  # right ones too
    assert len({remark for _, remark in simulator.revised}) == 1  # and nothing tells which
    # three tokens of at most twelve: the sum over tokens, by the constant 1/12
    assert [row.advantage_T[0] * 12 / 3 for row in roll.rows] == [0, 1, 1, 11, 1, -10]
    assert roll.advantages[0].tolist() == [0, 1, 1, 11, 1, -10]
    assert [row.prompt_ids for row in roll.rows] == [(7, 7)] * 3 + [(7, 7, 8)] * 3
    assert [row.kl for row in roll.rows] == [0.0] * 6
    assert roll.rollouts.account.rollouts == 6


def test_stage_one_of_score_trains_the_second_attempt_and_ties_the_first():
    """y1 is held by beta1 + beta2 in stage I, and all attempts by beta1 in both, on the scale of their advantages."""
    method = SCoRe("score", 2, stage1_steps=3, beta1=0.25, beta2=0.5)
    assert method.needs_reference
    for step, first, second, kl in ((2, [0, 0], [1, 0], 0.75), (3, [0, 1], [11, -10], 0.25)):
        simulator = _Scripted(BASE=[0, 1], REVISE=[1, 0])
        roll = method.roll(simulator, [ROOT], [DrawKey(seed=0, step=step)])
        assert roll.advantages[0].tolist() == first + second
        assert [row.kl * 12 / 3 for row in roll.rows] == [kl, kl, 0.25, 0.25]
    assert replace(method, beta1=0.0).needs_reference
    assert replace(method, stage1_steps=0).needs_reference
    assert not replace(method, beta1=0.0, stage1_steps=0).needs_reference
    assert not replace(method, beta1=0.0, beta2=0.0).needs_reference


def test_the_estimate_of_the_kl_gradient_is_unbiased():
    """Its mean over all 27 paths of a tree, weighed by probability, is autograd's gradient of the exact KL."""
    generator = torch.Generator().manual_seed(0)
    theta, other = (torch.randn(3, 9, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    theta.requires_grad_()
    paths = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    nodes = [[(0, 0, a), (1, a, b), (2, 3 * a + b, c)] for a, b, c in paths]

    def log_probs(logits):
        table = torch.log_softmax(logits, dim=-1)
        return torch.stack([torch.stack([table[node] for node in path]) for path in nodes])

    log_p, log_ref = log_probs(theta), log_probs(other)
    p = log_p.sum(dim=1).exp()
    (want,) = torch.autograd.grad((p * (log_p - log_ref).sum(dim=1)).sum(), theta, retain_graph=True)
    estimate = (log_p * kl_to_go(log_p - log_ref).detach()).sum(dim=1)
    (got,) = torch.autograd.grad((p.detach() * estimate).sum(), theta)
    assert float(want.abs().max()) > 0.1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def _moved(trainer, size=0.02):
    """The trainer with weights that are no longer the initial ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trainer.model.parameters():
            if p.requires_grad:
                p += size * torch.randn(p.shape, generator=generator)
    return trainer


@pytest.mark.parametrize("lora", [False, True], ids=["copy", "adapter"])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_gradient_of_score_is_that_of_the_hand_written_loss(stage, lora, tmp_path: Path):
    settings = {"method": "score", "score_stage1_steps": 2 - stage, "score_beta1": 0.1, "score_beta2": 0.3}
    settings["max_tokens"] = 64
    trainer = _moved(tiny_trainer(tmp_path, seed=2, micro_rows=32, lora=lora, **settings))
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    model = trainer.model
    trainer.compute_loss(model, inputs).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    model.zero_grad()
    initial = AutoModelForCausalLM.from_pretrained(TINY)
    rows, total, kl = trainer._reset_roll.rows, torch.zeros(()), []
    rewards = np.concatenate(trainer._reset_step.advantages)
    for i, (row, reward) in enumerate(zip(rows, rewards, strict=True)):
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        tokens = torch.arange(len(row.prompt_ids), ids.shape[1])
        log_p, log_ref = (
            torch.log_softmax(m(ids).logits[0] / trainer.args.temperature, dim=-1)[tokens - 1, ids[0, tokens]]
            for m in (model, initial)
        )
        beta = 0.4 if stage == 1 and i % 8 < 4 else 0.1  # a first attempt is held by both
        ratio = (log_p - log_ref).detach()
        kl.append(float(ratio.sum()))
        to_go = torch.stack([ratio[t:].sum() for t in range(len(ratio))])
        total = total - (log_p * (reward - beta * to_go)).sum() / 64
    (total / len(rows)).backward()
    assert np.mean(np.abs(kl)) > 0.05
    assert trainer._reset_metrics["kl"] == pytest.approx(np.mean(kl), abs=1e-5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert float((got[name] - p.grad).abs().max()) < 1e-6, name


def _kl_of_first_attempts(trainer):
    """Mean over the last step's first attempts of sum_t KL(pi(. | y_<t) || initial model), over the vocabulary."""
    initial = AutoModelForCausalLM.from_pretrained(TINY)
    found = []
    for row in (r for r in trainer._reset_roll.rows if r.kl):
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        with torch.no_grad():
            log_p, log_ref = (
                torch.log_softmax(m(ids).logits[0, len(row.prompt_ids) - 1 : -1] / trainer.args.temperature, dim=-1)
                for m in (trainer.model, initial)
            )
        found.append(float((log_p.exp() * (log_p - log_ref)).sum()))
    return np.mean(found)


def test_a_large_beta_keeps_first_attempts_where_they_were(tmp_path: Path):
    """Six steps that push second attempts somewhere else, with next to no tie and with a strong one."""
    kl = {}
    for beta in (1e-9, 3.0):
        settings = {"method": "score", "score_stage1_steps": 6, "score_beta2": beta, "score_beta1": 0.0, "steps": 6}
        trainer = tiny_trainer(tmp_path, learning_rate=1e-3, prompts=24, train_problems=48, max_tokens=48, **settings)
        trainer.method = _Pushed(trainer.method)
        trainer.args.save_strategy = "no"
        trainer.train()
        kl[beta] = _kl_of_first_attempts(trainer)
    assert kl[1e-9] > 1.0
    assert kl[3.0] < 0.2 * kl[1e-9]


class _Pushed:
    """SCoRe with second attempts that are rewarded for tokens of even number."""

    def __init__(self, method):
        self.method, self.name, self.rows_per_prompt = method, method.name, method.rows_per_prompt

    def roll(self, simulator, roots, keys):
        roll = self.method.roll(simulator, roots, keys)
        return replace(roll, rows=[r if r.kl else self._pushed(r) for r in roll.rows])

    def _pushed(self, row):
        even = np.array(row.completion_ids) % 2 == 0
        return replace(row, advantage_T=np.where(even, 1.0, -1.0) * even.size / 48)


def test_a_resumed_run_is_tied_to_the_initial_model_and_not_to_its_checkpoint(tmp_path: Path):
    """Four steps; then the last two of them again from the checkpoint between: the same log-ratios, to the last bit.

    Against the checkpoint they would be zero in the first of these steps.
    """
    settings = {"method": "score", "score_stage1_steps": 4, "score_beta2": 1e-3, "score_beta1": 0.0, "steps": 4}
    settings["max_tokens"] = 48
    logs = {}
    for name, checkpoint in (("whole", None), ("resumed", tmp_path / "whole" / "checkpoints" / "checkpoint-2")):
        logs[name] = []
        trainer = tiny_trainer(tmp_path / name, on_log=logs[name].append, save_every=2, learning_rate=1e-3, **settings)
        trainer.method = _Pushed(trainer.method)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    assert [row["step"] for row in logs["resumed"]] == [2, 3]
    assert [row["kl"] for row in logs["resumed"]] == [row["kl"] for row in logs["whole"][2:]]
    assert logs["whole"][0]["kl"] == 0.0 != logs["resumed"][0]["kl"]


@pytest.mark.parametrize("method", ["score", "critique-grpo"])
@pytest.mark.parametrize("split", ["3", "2", "2/3"])
def test_methods_that_pair_rollouts_need_an_even_number_of_slots(method, split):
    with pytest.raises(ConfigError, match="halves the slots"):
        build_method(MethodConfig(method=method, split=split), None)


def test_at_the_default_layout_every_paired_method_draws_at_most_eight_rollouts():
    for method in ("score", "critique-grpo", "spo-tree", "treerpo"):
        _, roll = _roll(build_method(MethodConfig(method=method), None), BASE=[0] * 8, REVISE=[0] * 8, RESET=[0] * 8)
        assert roll.rollouts.account.rollouts == 8
