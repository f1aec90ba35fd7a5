"""What a run has drawn from each of its sets of shards so far, for the metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.pipeline.plan import Plan


def names_of(plan: Plan) -> list[str]:
    """A name for each set of shards: its folder's, numbered where two bear the same."""
    folders = [one.folder.parent.name for one in plan.corpus.sets]
    return [name if folders.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(folders)]


class Mixture:
    """Counts samples and tokens of each set over the whole run; one set alone is not counted."""

    def __init__(self, plan: Plan, metrics: Path, step: int) -> None:
        """
        Args:
            plan: of the training.
            metrics: of the run; the line of `step` says what was drawn until then.
            step: optimiser steps done.
        """
        self._plan = plan
        self._names = names_of(plan)
        self._drawn = np.zeros((2, len(self._names)), np.int64)
        if step and len(self._names) > 1:
            with metrics.open() as lines:
                found: Mapping[str, Any] = next(
                    (line for line in map(json.loads, lines) if line["step"] == step and line["kind"] == "train"), {}
                )
            for place, name in enumerate(self._names):
                self._drawn[:, place] = found.get("drawn", {}).get(name, (0, 0))

    def add(self, step: int) -> dict[str, Any]:
        """Count global step `step` (from 0); the entries of its line: {} for one set.

        `drawn` holds samples and tokens of each set since the run's first step, `mixture` the share of each, by what
        the weights are shares of.
        """
        if len(self._names) == 1:
            return {}
        samples = np.array([sample for pack in self._plan.batch(step).packs for sample in pack.samples])
        sources, tokens = self._plan.source_of(samples), self._plan.lengths.tokens[samples]
        self._drawn[0] += np.bincount(sources, minlength=len(self._names))
        np.add.at(self._drawn[1], sources, tokens)
        by = self._drawn[int(self._plan.spec.mix_by == "tokens")]
        return {
            "drawn": dict(zip(self._names, self._drawn.T.tolist(), strict=True)),
            "mixture": dict(zip(self._names, (by / by.sum()).tolist(), strict=True)),
        }
