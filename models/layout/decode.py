"""From a detector's outputs to detections: scores, labels, corners, and ranks in the reading order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detections:
    """Boxes with labels, before or between rules.

    labels : [n] ids. scores : [n] 0..1. boxes : [n, 4] left, top, right, bottom in pixels. ranks : [n], smaller is read
    earlier.
    """

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    ranks: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: np.ndarray) -> Detections:
        """The detections at indices, or where a mask is true, in order."""
        return Detections(self.labels[which], self.scores[which], self.boxes[which], self.ranks[which])

    def with_boxes(self, boxes: np.ndarray) -> Detections:
        """The same detections with other boxes."""
        return Detections(self.labels, self.scores, boxes, self.ranks)


def decode(outputs: Mapping[str, np.ndarray], width: int, height: int) -> Detections:
    """As many detections as the detector has queries, the highest score first.

    outputs : ``logits`` [1, q, labels], ``pred_boxes`` [1, q, 4] (centre, width, height, 0..1) and ``order_logits``
    [1, q, q]. width, height : of the page, in pixels.

    A query with two likely labels gives two detections, as in transformers' ``post_process_object_detection``.
    """
    logits = np.asarray(outputs["logits"][0], np.float32)
    queries, count = logits.shape
    scores = sigmoid(logits).ravel()
    best = np.argsort(-scores, kind="stable")[:queries]
    query = best // count
    centre, size = np.split(np.asarray(outputs["pred_boxes"][0], np.float32), 2, axis=-1)
    corners = np.concatenate([centre - 0.5 * size, centre + 0.5 * size], axis=-1)
    page = np.array([width, height, width, height], np.float32)
    ranks = order_ranks(outputs["order_logits"][0])
    return Detections(best % count, scores[best], (corners * page)[query], ranks[query])


def order_ranks(logits: np.ndarray) -> np.ndarray:
    """[q, q] pairwise logits -> [q] places in the reading order.

    Row i, column j, for i < j, has the logit of i before j; the rest of the square is not used. Every query votes on
    every other, and the query with the fewest votes against comes first.
    """
    before = np.triu(sigmoid(np.asarray(logits, np.float32)), 1)
    votes = before.sum(axis=0) + np.tril(1.0 - before.T, -1).sum(axis=0)
    ranks = np.empty(len(votes), np.int64)
    ranks[np.argsort(votes, kind="stable")] = np.arange(len(votes))
    return ranks


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The logistic function, without overflow at any logit."""
    half = np.exp(-np.abs(logits))
    positive = 1.0 / (1.0 + half)
    return np.asarray(np.where(logits >= 0, positive, 1.0 - positive))
