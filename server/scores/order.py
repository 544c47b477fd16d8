"""The reading order: blocks of both readings are paired, and the order of the pairs is compared."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from .text import distance, plain

UNLIKE = 0.7  # normalised edit distance from which on two blocks do not match (OmniDocBench's bound)


def score_order(truth: Sequence[str], read: Sequence[str]) -> float | None:
    """The normalised edit distance between the true order of blocks and the order read, 0 to 1.

    Blocks without a partner are left out, as they count in the text's score. None: there is nothing to order.
    """
    truth, read = [text for text in map(plain, truth) if text], [text for text in map(plain, read) if text]
    if not truth or not read:
        return None
    unlike = process.cdist(truth, read, scorer=Levenshtein.normalized_distance)
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(unlike), strict=True) if unlike[i, j] < UNLIKE]
    if not pairs:
        return None
    in_truth = [int(i) for i, _ in sorted(pairs)]
    as_read = [int(i) for i, _ in sorted(pairs, key=lambda pair: pair[1])]
    return distance(in_truth, as_read)
