"""What chains of steps have in common: at each step one action is right, and all of them must be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cpi.mdp import MDPError

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def check_chain(right: Sequence[int], reliability: Sequence[float], Y: int) -> tuple[Int, Float]:
    """The right action of each step [H], and the probability with which pi takes it [H]."""
    right_H, reliability_H = np.asarray(right, dtype=np.int64), np.asarray(reliability, dtype=np.float64)
    if Y < 2:
        raise MDPError(f"a step needs at least 2 actions, a right one and a wrong one, got Y = {Y}")
    if right_H.size < 1 or right_H.shape != reliability_H.shape:
        raise MDPError(f"each step needs a right action and a reliability, got {right_H.size} and {reliability_H.size}")
    if ((right_H < 0) | (right_H >= Y)).any():
        raise MDPError(f"right actions must lie in 0..{Y - 1}, got {right_H.tolist()}")
    if not ((reliability_H >= 0) & (reliability_H <= 1)).all():
        raise MDPError(f"reliabilities must be probabilities, got {reliability_H.tolist()}")
    return right_H, reliability_H


def chain_policy(right_H: Int, reliability_H: Float, X: int, Y: int) -> Float:
    """In every state of step h the right action with its reliability, the others alike: [H, X, Y]."""
    pi_HY = np.repeat(((1.0 - reliability_H) / (Y - 1))[:, None], Y, axis=1)
    pi_HY[np.arange(right_H.size), right_H] = reliability_H
    return np.repeat(pi_HY[:, None, :], X, axis=1)


def right_so_far(reliability_H: Float) -> Float:
    """P(steps 0 .. h - 1 are all right), [H + 1]."""
    return np.concatenate([[1.0], np.cumprod(reliability_H)])


def all_right_from(reliability_H: Float) -> Float:
    """P(steps h .. H - 1 are all right), [H + 1]."""
    return right_so_far(reliability_H[::-1])[::-1]


def first_wrong(y_NH: Int, right_H: Int) -> Int:
    """0-based index of the first wrong action of each row [N]; -1 if there is none."""
    wrong_NH = np.atleast_2d(y_NH) != right_H
    return np.where(wrong_NH.any(axis=1), wrong_NH.argmax(axis=1), -1)
