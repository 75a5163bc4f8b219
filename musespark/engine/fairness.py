"""Who has had how much: a counter per tenant, so that whoever asks for much can't starve whoever asks for little.

Virtual token counters, after "Fairness in Serving Large Language Models" (Sheng and others, OSDI 2024): each tenant's
counter grows with the work that is done for it, and the lowest goes first. A tenant that comes back after a pause
starts at the lowest counter of those who are there, so a pause earns nothing. What is computed again after a preemption
costs its tenant nothing, or a tenant that is preempted often would fall behind.
"""

from __future__ import annotations

from collections import Counter

PROMPT_TOKEN = 1
GENERATED_TOKEN = 4  # about what one costs beside a token of a prompt: nano's prefill and decode of eight streams


class FairShare:
    """The counters of all tenants that have sequences, and of those that left with more than they would get now."""

    def __init__(self, quantum: float) -> None:
        """One may take from another only who is behind by more than `quantum`: smaller differences are no injustice."""
        self._quantum = quantum
        self._counters: dict[str, float] = {}
        self._present: Counter[str] = Counter()  # sequences of each tenant

    @property
    def num_tenants(self) -> int:
        return len(self._present)

    def enter(self, tenant: str) -> None:
        """A sequence of `tenant` came."""
        if tenant not in self._present:
            least = self._least()
            self._counters[tenant] = max(self._counters.get(tenant, least), least)
        self._present[tenant] += 1

    def leave(self, tenant: str) -> None:
        """A sequence of `tenant` is gone."""
        self._present[tenant] -= 1
        if self._present[tenant]:
            return
        del self._present[tenant]
        least = self._least()  # nobody needs to be remembered who would be lifted to it anyway
        self._counters = {
            name: counter for name, counter in self._counters.items() if name in self._present or counter > least
        }
        if not self._present:
            self._counters.clear()

    def charge(self, tenant: str, cost: float) -> None:
        self._counters[tenant] += cost

    def counter(self, tenant: str) -> float:
        return self._counters[tenant]

    def is_ahead(self, tenant: str, other: str) -> bool:
        """Whether `tenant` has had so much more than `other` that it should give something up."""
        return self._counters[tenant] - self._counters[other] > self._quantum

    def _least(self) -> float:
        return min((self._counters[tenant] for tenant in self._present), default=0.0)
