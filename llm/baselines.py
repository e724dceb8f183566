"""The methods that resets are compared with, over the same simulator, estimators and account.

Each is a frozen dataclass with a `roll` (`llm.objective.TrainingMethod`): sample, compare, hand over rows of the loss.
The deviations from the source are numbered in its docstring; to all of them applies that

  (a) by default there is one on-policy update per batch, so a ratio is 1 and PPO's clip does not bind; no KL term but
      SCoRe's;
  (b) rows are averaged as in `llm.objective`, with the method's own normaliser as a factor on the advantages where it
      has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cpi.advantages import AdvantageEstimator, MeanBaseline
from cpi.draws import DrawKey
from cpi.groups import Account, Group, Phase, Plan, Rollouts, Split, collect, failed
from cpi.resets import Start
from llm.generate import ThoughtSimulator
from llm.objective import Roll, Row, own_logprobs, own_tokens
from llm.thoughts import Prefix, ThoughtTrace
from llm.values import prefix_values

__all__ = ["CritiqueGRPO", "SCoRe", "SegmentTree", "SegmentUnit", "SegmentValues"]

_MEAN = MeanBaseline()

SegmentUnit = Literal["thoughts", "tokens"]


def _decisive(trace: ThoughtTrace, max_prob: float) -> NDArray[np.bool_]:
    """The tokens [T] that the response sampled itself with a probability below `max_prob` (1 takes all)."""
    mask = own_tokens(trace)
    if max_prob < 1.0:
        mask[trace.inherited_tokens :] = np.exp(trace.logprobs) < max_prob
    return mask


def _normalised(rows: list[Row]) -> list[Row]:
    """The rows of one prompt, rescaled so that each trained token weighs 1/Z, Z their number in the prompt."""
    sizes = [int(row.mask_T.sum()) for row in rows]
    total = max(sum(sizes), 1)
    factors = [len(rows) * size / total for size in sizes]
    return [replace(row, advantage_T=row.advantage_T * factor) for row, factor in zip(rows, factors, strict=True)]


@dataclass(frozen=True)
class SegmentValues:
    """VinePPO (arXiv 2410.01679) and SPO-chain (arXiv 2505.23564): advantages from Monte Carlo values along a rollout.

    V at the beginning of a segment is the mean of `continuations` rollouts from there (at the end of the response: the
    outcome), and every token of a segment has A = V(its end) - V(its beginning). VinePPO: each thought is a segment and
    all tokens are trained (no `interval`). SPO-chain: tokens of probability below `max_prob` = 0.9 are cut points; a
    segment ends after `interval` of them, wherever in a thought; and they alone are trained, normalised by their
    number.

    Deviations, beside (a) and (b): (1) equal prefixes of a prompt, its start above all, share their continuations,
    which are in the account as discarded rollouts. VinePPO's code (McGill-NLP/VinePPO) further (2) whitens
    advantages over the batch, where here a batch of more gains than losses keeps its drift; (3) averages over all
    tokens of a minibatch, where here a row weighs by its own length as a GRPO row does; (4) makes two epochs, has K
    = 9 continuations (here `continuations`) and a KL term. (5) SPO-chain's tokens are counted in each prompt apart.
    """

    name: str
    rollouts: int
    continuations: int
    max_prob: float = 1.0
    interval: int | None = None
    needs_reference: ClassVar[bool] = False
    remark: ClassVar[None] = None

    @property
    def rows_per_prompt(self) -> int:
        return self.rollouts

    def roll(self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey]) -> Roll:
        buffer = collect(simulator, roots, keys, Plan(Split((self.rollouts,), ()), Start()))
        traces = buffer.episodes()
        starts = [self._segment_starts(t) for t in traces]
        states = [(t, int(s)) for t, own in zip(traces, starts, strict=True) for s in own]
        found = prefix_values(simulator, states, self.continuations, ThoughtTrace.token_prefix)
        _charge(buffer.account, found.rollouts, discarded=True)
        values = np.split(found.values, np.cumsum([len(own) for own in starts])[:-1])
        rows = [self._row(t, own, v) for t, own, v in zip(traces, starts, values, strict=True)]
        if self.max_prob < 1.0:
            by_prompt = [rows[i : i + self.rollouts] for i in range(0, len(rows), self.rollouts)]
            rows = [row for own in by_prompt for row in _normalised(own)]
        shown = [np.array([e.outcome for e in g.episodes]) for g in buffer.groups]
        return Roll(rows, buffer, [_MEAN(r[None])[0] for r in shown])

    def _segment_starts(self, trace: ThoughtTrace) -> NDArray[np.int64]:
        """The tokens at which segments begin, the first one of the response among them."""
        if self.interval is not None:
            ends = np.flatnonzero(_decisive(trace, self.max_prob))[self.interval - 1 :: self.interval] + 1
        else:
            ends = np.array(trace.ends[:-1], dtype=np.int64)
        return np.unique(np.append(ends[ends < len(trace.ids)], 0))

    def _row(self, trace: ThoughtTrace, starts: NDArray[np.int64], values: NDArray[np.float64]) -> Row:
        """Advantages of tokens: those of their segment."""
        steps = np.diff(np.append(values, trace.outcome))
        segment_T = np.searchsorted(starts, np.arange(len(trace.ids)), side="right") - 1
        mask = _decisive(trace, self.max_prob)
        advantage_T = np.where(mask, steps[segment_T], 0.0)
        return Row(trace.prompt_ids, trace.ids, mask, advantage_T, logprob_T=own_logprobs(trace))


def _charge(account: Account, rollouts: Sequence[ThoughtTrace], discarded: bool = False) -> None:
    """Put one more batch of rollouts on the account."""
    tokens = sum(r.generated for r in rollouts)
    account.batches += 1
    account.rollouts += len(rollouts)
    account.tokens += tokens
    if discarded:
        account.discarded_rollouts += len(rollouts)
        account.discarded_tokens += tokens


@dataclass(frozen=True)
class SegmentTree:
    """SPO-tree (arXiv 2505.23564) and TreeRPO (TRL issue 4177): a balanced tree of segments, advantages among siblings.

    ``branching`` (2, 4) draws 2 first segments of `segment` thoughts or tokens (`unit`; tokens are SPO's) and 4
    continuations of each: 8 leaves. The value of a leaf is its outcome, that of a node the mean of its leaves, and a
    segment's advantage compares its end with the ends of its siblings. Every segment is trained once, and each trained
    token of a prompt's tree weighs the same. SPO-tree: r - mean, and only tokens of probability below `max_prob` = 0.9.
    TreeRPO: (r - mean)/std, all tokens.

    Deviations, beside (a) and (b): (1) a response too short for its next branching point branches before its last
    thought or token; (2) a node's first child is the rest of the rollout in which the node was sampled (the same law,
    and no rollout is thrown away); (3) SPO-tree keeps segments without an advantage in the normaliser.
    """

    name: str
    branching: tuple[int, ...]
    segment: int
    estimator: AdvantageEstimator
    max_prob: float = 1.0
    unit: SegmentUnit = "thoughts"
    needs_reference: ClassVar[bool] = False
    remark: ClassVar[None] = None

    @property
    def rows_per_prompt(self) -> int:
        return int(np.prod(self.branching))

    def roll(self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey]) -> Roll:
        account = Account(prompts=len(roots))
        leaves, cuts = self._grow(simulator, roots, keys, account)
        rows: list[Row] = []
        for own, own_cuts in zip(leaves, cuts, strict=True):
            advantages = self.segment_advantages(np.array([leaf.outcome for leaf in own]))
            rows += _normalised([self._row(i, leaf, own_cuts, advantages) for i, leaf in enumerate(own)])
        buffer, shown = self._report(leaves, cuts, account)
        return Roll(rows, buffer, shown)

    def _grow(
        self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey], account: Account
    ) -> tuple[list[list[ThoughtTrace]], list[list[NDArray[np.int64]]]]:
        """The leaves of each prompt's tree in order of their paths, and for each level below the first its nodes' cuts.

        Level by level: the nodes of a level are the rollouts so far, each of which is re-entered at its cut, a number
        of tokens.
        """
        first = self.branching[0]
        slots = [(i, key.at(phase=Phase.BASE, slot=j)) for i, key in enumerate(keys) for j in range(first)]
        drawn = list(simulator.continue_from([roots[i] for i, _ in slots], [key for _, key in slots]))
        _charge(account, drawn)
        nodes = [drawn[i * first : (i + 1) * first] for i in range(len(roots))]
        cuts: list[list[NDArray[np.int64]]] = [[] for _ in roots]
        for level, width in enumerate(self.branching[1:], 1):
            prefixes, prefix_keys = [], []
            for i, own in enumerate(nodes):
                at = np.array([self._cut(t, level) for t in own])
                cuts[i].append(at)
                prefixes += [t.token_prefix(int(c)) for t, c in zip(own, at, strict=True) for _ in range(width - 1)]
                slot = level << 32
                prefix_keys += [keys[i].at(phase=Phase.RESET, slot=slot + j) for j in range(len(own) * (width - 1))]
            more = iter(simulator.continue_from(prefixes, prefix_keys))
            nodes = [[leaf for t in own for leaf in (t, *(next(more) for _ in range(width - 1)))] for own in nodes]
            _charge(account, [leaf for own in nodes for j, leaf in enumerate(own) if j % width])
        return nodes, cuts

    def _cut(self, trace: ThoughtTrace, level: int) -> int:
        """How many tokens of a node are kept; never fewer than it inherited, though it may have added no thought."""
        if self.unit == "tokens":
            return min(level * self.segment, max(len(trace.ids) - 1, 0))
        k = min(level * self.segment, max(trace.num_decisions - 1, 0))
        return max(trace.ends[k - 1] if k else 0, trace.inherited_tokens)

    def segment_advantages(self, outcomes: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """For leaf outcomes in path order: the advantage of each node at each level, [b_1], [b_1 b_2], ..."""
        tree = outcomes.reshape(self.branching)
        depth = len(self.branching)
        values = [tree.mean(axis=tuple(range(level, depth))) for level in range(1, depth + 1)]
        return [self.estimator(v.reshape(-1, b)).ravel() for v, b in zip(values, self.branching, strict=True)]

    def _row(
        self, i: int, leaf: ThoughtTrace, cuts: list[NDArray[np.int64]], advantages: list[NDArray[np.float64]]
    ) -> Row:
        """Leaf i: each token that it sampled itself has the advantage of the segment that it lies in."""
        below = np.cumprod((1, *self.branching[:0:-1]))[::-1]  # leaves under a node of each level
        path = [i // int(b) for b in below]  # the number of the leaf's node in each level
        ends = np.array([int(at[node]) for at, node in zip(cuts, path, strict=False)])
        level_T = np.searchsorted(ends, np.arange(len(leaf.ids)), side="right")
        advantage_T = np.array([a[node] for a, node in zip(advantages, path, strict=True)])[level_T]
        mask = _decisive(leaf, self.max_prob)
        return Row(leaf.prompt_ids, leaf.ids, mask, np.where(mask, advantage_T, 0.0), logprob_T=own_logprobs(leaf))

    def _report(
        self, leaves: list[list[ThoughtTrace]], cuts: list[list[NDArray[np.int64]]], account: Account
    ) -> tuple[Rollouts[ThoughtTrace], list[NDArray[np.float64]]]:
        """The leaves of each last branching as a group, for metrics; the first level's rollouts are the fresh ones."""
        width, groups, shown = self.branching[-1], [], []
        for prompt, own in enumerate(leaves):
            for node in range(len(own) // width):
                members = tuple(own[node * width : (node + 1) * width])
                cut = int(cuts[prompt][-1][node])
                kept = members[0].token_prefix(cut).k
                groups.append(Group(prompt, "reset" if cut else "base", members, kept))
                shown.append(self.estimator([[m.outcome for m in members]])[0])
        stride = self.rows_per_prompt // self.branching[0]
        return Rollouts(groups, [], account, [tuple(own[::stride]) for own in leaves]), shown


def _revise(
    simulator: ThoughtSimulator, attempts: Sequence[ThoughtTrace], remark: str, phase: Phase
) -> list[ThoughtTrace]:
    """One new response for each attempt, with the attempt and a remark about it in the context."""
    prefixes = [simulator.revision_root(t.problem, t.text, remark) for t in attempts]
    return list(simulator.continue_from(prefixes, [t.key.at(phase=phase) for t in attempts]))


def _whole(trace: ThoughtTrace, advantage: float, longest: int, beta: float) -> Row:
    """REINFORCE on a whole response: the sum over its tokens, up to the constant 1/longest."""
    size = len(trace.ids)
    factor = size / longest
    return Row(
        trace.prompt_ids,
        trace.ids,
        np.ones(size, dtype=np.bool_),
        np.full(size, advantage * factor),
        kl=beta * factor,
        logprob_T=own_logprobs(trace),
    )


@dataclass(frozen=True)
class CritiqueGRPO:
    """Critique-GRPO (arXiv 2506.03106) with its binary critique: learn from refinements of wrong responses.

    `originals` rollouts of a prompt; each wrong one is refined with itself and the words that it is incorrect in the
    context; the best refinement takes the place of its original. Advantages are r - mean over the mixed group, the
    normaliser is constant, and the tokens of the refinement, trained as a response to the bare prompt, count as
    p / (p + gamma) in place of a ratio (`llm.objective.Row.shaping`).

    Deviations, beside (a) and (b): (1) the refinement replaces the response that it refines, and of equally good ones
    the first is taken; (2) the constant is the longest response allowed; (3) with several updates per batch the slope
    of p / (p + gamma) stays that of the policy that sampled. Refinements that are not used are discarded rollouts
    in the account.
    """

    name: str
    originals: int
    gamma: float = 0.1
    needs_reference: ClassVar[bool] = False
    remark: ClassVar[str] = (
        "The solution above is incorrect. Solve the problem again, correctly, keeping to the same rules for steps."
    )

    @property
    def rows_per_prompt(self) -> int:
        return self.originals

    def roll(self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey]) -> Roll:
        buffer = collect(simulator, roots, keys, Plan(Split((self.originals,), ()), Start()))
        wrong = [t for t in buffer.episodes() if failed(t)]
        refined = dict(zip(map(id, wrong), _revise(simulator, wrong, self.remark, Phase.REVISE), strict=True))
        _charge(buffer.account, list(refined.values()))
        groups = [self._mixed(g, refined) for g in buffer.groups]
        kept = {id(t) for g in groups for t in g.episodes}
        unused = [t for t in [*wrong, *refined.values()] if id(t) not in kept]
        buffer.account.discarded_rollouts += len(unused)
        buffer.account.discarded_tokens += sum(t.generated for t in unused)
        advantages = [_MEAN([[t.outcome for t in g.episodes]])[0] for g in groups]
        rows = [
            self._row(t, roots[g.prompt], float(a), simulator.sampling.max_tokens)
            for g, row in zip(groups, advantages, strict=True)
            for t, a in zip(g.episodes, row, strict=True)
        ]
        return Roll(rows, Rollouts(groups, [], buffer.account, buffer.fresh), advantages)

    def _mixed(self, group: Group[ThoughtTrace], refined: dict[int, ThoughtTrace]) -> Group[ThoughtTrace]:
        wrong = [t for t in group.episodes if id(t) in refined]
        if not wrong:
            return group
        replaced = max(wrong, key=lambda t: refined[id(t)].outcome)
        members = tuple(refined[id(t)] if t is replaced else t for t in group.episodes)
        return Group(group.prompt, "base", members)

    def _row(self, trace: ThoughtTrace, root: Prefix, advantage: float, longest: int) -> Row:
        size = len(trace.ids)
        shaping = self.gamma if trace.key.phase == Phase.REVISE else 0.0
        advantage_T = np.full(size, advantage * size / longest)
        logprob_T = None if shaping else own_logprobs(trace)  # a refinement was sampled in another context
        return Row(root.prompt_ids, trace.ids, np.ones(size, dtype=np.bool_), advantage_T, shaping, logprob_T=logprob_T)


@dataclass(frozen=True)
class SCoRe:
    """SCoRe (arXiv 2409.12917): two attempts; first the second one learns, then there is a bonus for getting better.

    Each first attempt y1 is followed by a second one y2 that sees y1 and a hedged instruction, whether y1 is right or
    not. Both are trained by REINFORCE without a baseline, each with a penalty beta1 KL(pi(y) || initial model)
    (`llm.objective.Row.kl`). Stage I, the steps before `stage1_steps`: y2 is trained with r(y2), y1 with no reward but
    the penalty beta1 + beta2, which holds it where it is. Stage II: y1 is trained with r(y1), y2 with
    r(y2) + alpha (r(y2) - r(y1)).

    Deviations, beside (a) and (b): (1) y2 sees y1 as text that is encoded anew; (2) with several updates a step the
    penalty stays that of the policy that sampled. A model that cannot use a second attempt (the embedded one was never
    shown any) collapses in stage II: use SCoRe with an instruction-tuned model.
    """

    name: str
    pairs: int
    alpha: float = 10.0
    stage1_steps: int = 0
    beta1: float = 0.01
    beta2: float = 0.1
    remark: ClassVar[str] = (
        "There may be an error in the solution above. Look for it, correct it if there is one, and write out the "
        "whole solution again, keeping to the same rules for steps."
    )

    @property
    def rows_per_prompt(self) -> int:
        return 2 * self.pairs

    @property
    def needs_reference(self) -> bool:
        return self.beta1 > 0 or (self.stage1_steps > 0 and self.beta2 > 0)

    def roll(self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey]) -> Roll:
        buffer = collect(simulator, roots, keys, Plan(Split((self.pairs,), ()), Start()))
        first = buffer.episodes()
        second = _revise(simulator, first, self.remark, Phase.REVISE)
        _charge(buffer.account, second)
        r1, r2 = (np.array([t.outcome for t in ts]).reshape(-1, self.pairs) for ts in (first, second))
        stage1 = keys[0].step < self.stage1_steps
        weighed = (np.zeros_like(r1), r2) if stage1 else (r1, r2 + self.alpha * (r2 - r1))
        longest = simulator.sampling.max_tokens
        beta_first, beta_second = self.beta1 + self.beta2 * stage1, self.beta1
        groups, rows = [], []
        for prompt, (a1, a2) in enumerate(zip(*weighed, strict=True)):
            own = slice(prompt * self.pairs, (prompt + 1) * self.pairs)
            groups.append(Group(prompt, "base", (*first[own], *second[own])))
            rows += [_whole(t, float(a), longest, beta_first) for t, a in zip(first[own], a1, strict=True)]
            rows += [_whole(t, float(a), longest, beta_second) for t, a in zip(second[own], a2, strict=True)]
        return Roll(rows, Rollouts(groups, [], buffer.account, buffer.fresh), list(np.concatenate(weighed, axis=1)))
