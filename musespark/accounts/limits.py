"""How much may be used how fast: the nouns and the arithmetic of limits, without any storage.

A `Rate` is one leaky bucket of one subject (an organisation, a project or a key): so many requests, tokens or images a
minute or a day. The arithmetic is the continuous-state form of the generic cell rate algorithm (GCRA, ITU-T I.371
annex A): the level drains all the time, a use fits if it does not spill. All of it is in whole numbers, so that the
store in memory (limits_memory.py) and the shared one (limits_shared.py) can't differ by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Protocol

from musespark.errors import ConcurrencyLimitExceeded, InvalidRequest, RateLimitExceeded, RequestExceedsLimit

SubjectKind = Literal["organisation", "project", "key"]
Unit = Literal["requests", "tokens", "images"]

MINUTE_MS = 60_000
DAY_MS = 86_400_000
PERIODS = {"minute": MINUTE_MS, "day": DAY_MS}
LARGEST_LIMIT = 10**10  # of any rate: a level is at most twice limit · DAY_MS, which stays below 2^63
MAX_WAIT_MS = DAY_MS
CONCURRENCY_RETRY_MS = 1000  # nobody knows when a running request will end


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one subject may use; None is no limit. Raises InvalidRequest for a number that makes no sense."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    images_per_minute: int | None = None
    images_per_day: int | None = None
    concurrent_requests: int | None = None
    context_tokens: int | None = None  # prompt and completion of one request together

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_LIMIT:
                message = f"{field.name} is {value!r}; it must be a whole number from 0 to {LARGEST_LIMIT:,}, or null"
                raise InvalidRequest(message, param=field.name)

    @classmethod
    def of_plan(cls, named: Mapping[str, Any]) -> Limits:
        """What a plan says of limits; `context_length` is another name of `context_tokens`. Raises InvalidRequest."""
        known = {field.name for field in fields(cls)}
        values = {("context_tokens" if name == "context_length" else name): value for name, value in named.items()}
        unknown = sorted(set(values) - known)
        if unknown:
            message = f"limits has {unknown[0][:40]!r}; there are {', '.join(sorted(known))}"
            raise InvalidRequest(message, param=f"limits.{unknown[0][:40]}")
        return cls(**values)

    def but(self, special: Limits) -> Limits:
        """These, except where `special` says something else."""
        given = {name: value for name, value in asdict(special).items() if value is not None}
        return replace(self, **given)

    def rates(self, kind: SubjectKind, subject_id: str) -> tuple[Rate, ...]:
        found = []
        for unit in ("requests", "tokens", "images"):
            for period in PERIODS:
                limit = getattr(self, f"{unit}_per_{period}")
                if limit is not None:
                    found.append(Rate(kind, subject_id, unit, period, limit))  # type: ignore[arg-type]
        return tuple(found)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Rate:
    """One bucket: `limit` units a `period`, all of them at once at most."""

    kind: SubjectKind
    subject_id: str
    unit: Unit
    period: Literal["minute", "day"]
    limit: int

    @property
    def name(self) -> str:
        """The bucket's place in a store. Not the limit: what was used counts on when a limit is changed."""
        return f"{self.subject_id}:{self.unit}:{self.period}"

    @property
    def period_ms(self) -> int:
        return PERIODS[self.period]


@dataclass(frozen=True, slots=True)
class Cap:
    """How many requests of one subject may run at the same time."""

    kind: SubjectKind
    subject_id: str
    limit: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a store remembers: the level at a moment, in units · period_ms. One unit is `period_ms` high, and every
    millisecond `limit` of it drains; the bucket holds `limit · period_ms`.
    """

    level: int = 0
    updated_ms: int = 0


EMPTY = Bucket()


def drain(rate: Rate, bucket: Bucket, now_ms: int) -> int:
    """The level now. A clock that went back drains nothing, one that jumped ahead empties the bucket at most."""
    return max(0, bucket.level - max(0, now_ms - bucket.updated_ms) * rate.limit)


def add(rate: Rate, bucket: Bucket, amount: int, now_ms: int) -> Bucket:
    """The bucket after a use of `amount` units, or the return of some. It may overflow: a debt that drains later.

    A debt is at most one more bucket, so that a single mistake can't lock anybody out for longer than two periods.
    """
    level = drain(rate, bucket, now_ms) + amount * rate.period_ms
    return Bucket(min(max(0, level), 2 * rate.limit * rate.period_ms), now_ms)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of one rate: for headers. `reset_ms` is when all of it will be there again."""

    rate: Rate
    remaining: int
    reset_ms: int


def standing(rate: Rate, bucket: Bucket, now_ms: int) -> Standing:
    level = drain(rate, bucket, now_ms)
    remaining = max(0, rate.limit * rate.period_ms - level) // rate.period_ms
    return Standing(rate, remaining, -(-level // rate.limit) if rate.limit else rate.period_ms)


def check(rates: Sequence[Rate], buckets: Mapping[str, Bucket], costs: Mapping[Unit, int], now_ms: int) -> None:
    """Raise RateLimitExceeded for the rate that has to be waited for longest, if any has to.

    Raises RequestExceedsLimit for a use that is larger than a whole bucket: waiting would never help.
    """
    longest: tuple[int, Rate] | None = None
    for rate in rates:
        cost = costs.get(rate.unit, 0)
        if cost == 0:
            continue
        if cost > rate.limit:
            raise RequestExceedsLimit(
                f"this request needs {cost:,} {rate.unit}, and {_whose(rate)} may use {rate.limit:,} a {rate.period}; "
                "make it smaller, or ask the owner of the limit to raise it"
            )
        spilt = drain(rate, buckets.get(rate.name, EMPTY), now_ms) + (cost - rate.limit) * rate.period_ms
        if spilt > 0:
            wait_ms = -(-spilt // rate.limit)
            if longest is None or wait_ms > longest[0]:
                longest = wait_ms, rate
    if longest is not None:
        wait_ms, rate = longest
        raise RateLimitExceeded(
            f"{_whose(rate)} may use {rate.limit:,} {rate.unit} a {rate.period}, and has; "
            f"try again in {wait_ms / 1000:,.3f} s",
            retry_after_ms=wait_ms,
        )


def check_cap(cap: Cap, num_running: int) -> None:
    """Raise ConcurrencyLimitExceeded if one more would be too many."""
    if num_running >= cap.limit:
        raise ConcurrencyLimitExceeded(
            f"{_whose(cap)} may have {cap.limit:,} requests running at the same time, and has; "
            "try again when one has ended",
            retry_after_ms=CONCURRENCY_RETRY_MS,
        )


def _whose(limit: Rate | Cap) -> str:
    return f"the {limit.kind} {limit.subject_id}"


class LimitStore(Protocol):
    """Where buckets and running requests are counted. Thread-safe; all or nothing in every call."""

    def take(self, rates: Sequence[Rate], costs: Mapping[Unit, int]) -> list[Standing]:
        """Use `costs` of all `rates`. Raises RateLimitExceeded or RequestExceedsLimit, and then has used nothing."""
        ...

    def correct(self, rates: Sequence[Rate], costs: Mapping[Unit, int]) -> None:
        """Use more, or with negative numbers less, than was taken, whatever the limits say: it has happened."""
        ...

    def enter(self, caps: Sequence[Cap], request_id: str) -> None:
        """Count `request_id` as running. Raises ConcurrencyLimitExceeded."""
        ...

    def renew(self, request_ids: Sequence[str]) -> None:
        """Say that these still run; a store that outlives its processes forgets those that nobody speaks for."""
        ...

    def leave(self, request_id: str) -> None:
        """It runs no longer. Unknown ones are ignored."""
        ...
