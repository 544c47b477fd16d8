"""What a detector's graph gives -> detections: scores, labels, corners, and the place of each in the reading order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detections:
    """Boxes with their labels, before any rule or after some.

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
        """Those that an array of indices or of truth values names, in its order."""
        return Detections(self.labels[which], self.scores[which], self.boxes[which], self.ranks[which])

    def with_boxes(self, boxes: np.ndarray) -> Detections:
        """The same in other places."""
        return Detections(self.labels, self.scores, boxes, self.ranks)


def decode(outputs: Mapping[str, np.ndarray], width: int, height: int) -> Detections:
    """As many detections as the detector has queries, the surest first.

    outputs : ``logits`` [1, q, labels], ``pred_boxes`` [1, q, 4] (centre, width, height, 0..1) and ``order_logits``
    [1, q, q]. width, height : of the page, in pixels.

    A query that may be two things comes twice, as in ``post_process_object_detection`` of transformers.
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

    Row i, column j, for i < j, says how much speaks for i before j; the rest of the square says nothing. Every query
    votes on every other, and who has the fewest votes against coming first is first.
    """
    before = np.triu(sigmoid(np.asarray(logits, np.float32)), 1)
    votes = before.sum(axis=0) + np.tril(1.0 - before.T, -1).sum(axis=0)
    ranks = np.empty(len(votes), np.int64)
    ranks[np.argsort(votes, kind="stable")] = np.arange(len(votes))
    return ranks


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Without overflow at any logit."""
    half = np.exp(-np.abs(logits))
    positive = 1.0 / (1.0 + half)
    return np.asarray(np.where(logits >= 0, positive, 1.0 - positive))
