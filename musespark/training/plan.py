"""Which rows make up which step: a pure function of the seed and of how many steps each phase took.

Nothing is remembered between steps but counters that can be counted again, so a resumed run reads on exactly where the
interrupted one stopped, and no source repeats a row before it has handed out all its rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from musespark.training.recipe import Phase


class Plan:
    """Hands out (source, row) pairs step by step.

    sizes: rows per source. rows_per_step: pairs per step.
    """

    def __init__(self, phases: tuple[Phase, ...], sizes: Mapping[str, int], *, rows_per_step: int, seed: int) -> None:
        self._phases = phases
        self._sizes = sizes
        self._rows_per_step = rows_per_step
        self._seed = seed
        self._taken = dict.fromkeys(sorted(sizes), 0)
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    @property
    def taken(self) -> Mapping[str, int]:
        """Rows handed out so far, per source."""
        return self._taken

    def rows(self, phase_index: int, step: int) -> list[tuple[str, int]]:
        """The rows of the next step, which is number `step` of its phase."""
        rows = []
        for name in self._choose(phase_index, step):
            epoch, place = divmod(self._taken[name], self._sizes[name])
            rows.append((name, int(self._order(name, epoch)[place])))
            self._taken[name] += 1
        return rows

    def skip(self, phase_index: int, steps: int) -> None:
        """Count the first `steps` steps of a phase as taken."""
        for step in range(steps):
            for name in self._choose(phase_index, step):
                self._taken[name] += 1

    def _choose(self, phase_index: int, step: int) -> list[str]:
        mix = self._phases[phase_index].mix
        names = sorted(mix)
        shares = np.array([mix[name] for name in names], float)
        # Systematic sampling: one random offset, evenly spaced picks, so each step's mixture is as near to the shares
        # as whole rows allow and right on average.
        rng = np.random.default_rng((self._seed, phase_index, step))
        points = (rng.random() + np.arange(self._rows_per_step)) / self._rows_per_step
        picks = np.searchsorted(np.cumsum(shares / shares.sum()), points, side="right")
        return [names[min(i, len(names) - 1)] for i in picks]

    def _order(self, name: str, epoch: int) -> np.ndarray:
        key = name, epoch
        if key not in self._orders:
            number = zlib.crc32(name.encode())  # a source keeps its order when others join
            self._orders = {k: v for k, v in self._orders.items() if k[0] != name}
            self._orders[key] = np.random.default_rng((self._seed, number, epoch, 1)).permutation(self._sizes[name])
        return self._orders[key]
