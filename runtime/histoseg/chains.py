"""Chains of things each of which knows the next: put in order all at once.

Pointer jumping (Wyllie, The Complexity of Parallel Computations, 1979): each looks one step ahead, then two,
then four. Following them one by one in Python takes several times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Chains:
    """Things in the order of their chains: first those that end, then those that run in circles."""

    order: Numbers
    sizes: Numbers
    """Things of each chain."""
    chain: Numbers
    """The chain of each thing."""
    open_count: int
    """Chains that end."""

    @property
    def heads(self) -> Numbers:
        """The first thing of each chain; the lowest of a circle."""
        return self.order[find_begins(self.sizes)]


def follow(after: Numbers) -> Chains:
    """Follow things to their ends or around.

    Args:
        after: The thing after each thing, -1 where a chain ends; none comes after two.
    """
    own = np.arange(len(after))
    ends = after < 0
    led_to = np.zeros(len(after), np.bool_)
    led_to[after[~ends]] = True
    opens = np.flatnonzero(~led_to)
    heads = np.concatenate([opens, _find_lowest(np.where(ends, own, after), ends)])
    is_head = np.zeros(len(after), np.bool_)
    is_head[heads] = True
    last = ends | is_head[after]
    steps, end = _count_steps(np.where(last, own, after))
    number = np.empty(len(after), np.int64)
    number[end[heads]] = np.arange(len(heads))
    chain, sizes = number[end], steps[heads] + 1
    order = np.empty_like(own)
    order[(find_begins(sizes) + sizes - 1)[chain] - steps] = own
    return Chains(order, sizes, chain, len(opens))


def join_ranges(begins: Numbers, counts: Numbers) -> Numbers:
    """Return `begins[0], begins[0] + 1, ...`, `counts[0]` numbers, then those of `begins[1]`, and so on."""
    return np.repeat(begins - find_begins(counts), counts) + np.arange(counts.sum())


def find_begins(sizes: Numbers) -> Numbers:
    """Return where parts of these sizes begin, one after another."""
    return np.cumsum(sizes) - sizes


def _find_lowest(jump: Numbers, ends: NDArray[np.bool_]) -> Numbers:
    """Return the lowest thing of each circle."""
    own = np.arange(len(jump))
    lowest = np.where(ends, -1, own)
    while True:
        lower = np.minimum(lowest, lowest[jump])
        if np.array_equal(lower, lowest):
            return np.flatnonzero(lowest == own)
        lowest, jump = lower, jump[jump]


def _count_steps(jump: Numbers) -> tuple[Numbers, Numbers]:
    """Return how far the end of each thing's chain is, and the end; an end comes after itself."""
    steps = (jump != np.arange(len(jump))).astype(np.int64)
    while True:
        further = jump[jump]
        if np.array_equal(further, jump):
            return steps, jump
        steps, jump = steps + steps[jump], further
