"""Reset samplers: distributions over cuts, missing mass for "no reset"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpi.draws import DrawKey
from cpi.episodes import Episode
from cpi.resets import Noisy, Oracle, Start, UniformWithinEpisode, Visitation, draw_cuts

KEY = DrawKey(0)


@dataclass(frozen=True)
class Chain:
    """An episode of n decisions whose improvable ones are marked."""

    marks: tuple[bool, ...]
    start: int = 0
    outcome: float = 0.0
    key: DrawKey = KEY

    @property
    def num_decisions(self):
        return len(self.marks)

    @property
    def generated(self):
        return len(self.marks)

    def prefix(self, k):
        return k


def _accept(episode):
    return np.array(episode.marks, dtype=float)


EPISODES = st.lists(st.lists(st.booleans(), max_size=6).map(tuple).map(Chain), min_size=1, max_size=4)
SAMPLERS = [
    Start(),
    UniformWithinEpisode(),
    Visitation(H=6),
    Oracle(_accept),
    Oracle(_accept, Visitation(H=6), renormalise=False),
    Noisy(Oracle(_accept), exact=0.6, shift_probs={-1: 0.7, 2: 0.3}),
]


@given(EPISODES)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_every_row_is_a_distribution_over_the_cuts_of_its_episode(sampler, episodes):
    rows = sampler.cut_probs(episodes)
    assert [row.size for row in rows] == [e.num_decisions for e in episodes]
    for row in rows:
        assert (row >= 0).all()
        assert row.sum() <= 1 + 1e-12


def test_the_protocol_knows_an_episode():
    assert isinstance(Chain((True,)), Episode)


def test_uniform_within_an_episode_is_not_the_visitation():
    """One episode of one decision and one of two: the short one's decision has weight 1/2 against 1/3."""
    episodes = [Chain((True,)), Chain((True, True))]
    within = UniformWithinEpisode().cut_probs(episodes)
    visits = Visitation(H=2).cut_probs(episodes)
    mass = sum(row.sum() for row in visits)
    assert within[0][0] / len(episodes) == pytest.approx(1 / 2)
    assert visits[0][0] / mass == pytest.approx(1 / 3)
    assert [row.tolist() for row in visits] == [[0.5], [0.5, 0.5]]


def test_the_oracle_over_visitation_is_algorithm_3():
    """Conditioned on acceptance, (episode, k) is uniform over the accepted decisions of the whole batch."""
    episodes = [Chain((True, False, False)), Chain((True, True, True)), Chain((False, False, False))]
    rows = Oracle(_accept, Visitation(H=3), renormalise=False).cut_probs(episodes)
    joint = np.stack(rows) / sum(row.sum() for row in rows)
    np.testing.assert_allclose(joint, np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]]) / 4)


def test_the_oracle_counts_every_prefix_that_it_is_asked_about():
    oracle = Oracle(_accept)
    oracle.cut_probs([Chain((True, False)), Chain((False,) * 3)])
    assert oracle.spent.oracle_queries == 5


def test_a_noisy_localiser_is_right_as_often_as_it_says():
    noisy = Noisy(Oracle(_accept), exact=0.6, shift_probs={-1: 0.75, 1: 0.25})
    (row,) = noisy.cut_probs([Chain((False, False, True, False))])
    np.testing.assert_allclose(row, [0.0, 0.3, 0.6, 0.1])
    (first,) = noisy.cut_probs([Chain((True, False))])
    np.testing.assert_allclose(first, [0.9, 0.1])  # too early is out of the episode: clipped
    assert noisy.spent.oracle_queries == 6


def test_cuts_are_drawn_with_the_rows_probabilities():
    u = np.linspace(0, 1, 1000, endpoint=False)
    cuts = np.array(draw_cuts([np.array([0.2, 0.0, 0.5])] * 1000, u))
    shares = [np.mean(cuts == k) for k in (-1, 0, 1, 2)]
    np.testing.assert_allclose(shares, [0.3, 0.2, 0.0, 0.5], atol=2e-3)
    assert draw_cuts([np.empty(0)], np.array([0.5])) == [-1]


def test_bad_oracles_and_horizons_get_one_clear_line():
    with pytest.raises(ValueError, match=r"acceptances in \[0, 1\]"):
        Oracle(lambda e: np.array([2.0])).cut_probs([Chain((True,))])
    with pytest.raises(ValueError, match="more than H = 1"):
        Visitation(H=1).cut_probs([Chain((True, True))])
    with pytest.raises(ValueError, match="sum to 1"):
        Noisy(Start(), exact=0.5, shift_probs={1: 0.3})
