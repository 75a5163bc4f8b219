"""What is left of a caller's rate limits, in the headers that OpenAI's clients know.

`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`. A request may be under several limits of one kind (of its key,
project and organisation, a minute and a day); the headers show the one with the least left.
"""

from __future__ import annotations

from collections.abc import Iterable

from musespark.accounts.limits import Standing


def rate_headers(standings: Iterable[Standing]) -> dict[str, str]:
    tightest: dict[str, Standing] = {}
    for standing in standings:
        unit: str = standing.rate.unit
        if unit not in tightest or _order(standing) < _order(tightest[unit]):
            tightest[unit] = standing
    headers = {}
    for unit, standing in tightest.items():
        headers[f"x-ratelimit-limit-{unit}"] = str(standing.rate.limit)
        headers[f"x-ratelimit-remaining-{unit}"] = str(standing.remaining)
        headers[f"x-ratelimit-reset-{unit}"] = duration(standing.reset_ms)
    return headers


def _order(standing: Standing) -> tuple[int, int]:
    return standing.remaining, -standing.reset_ms


def duration(ms: int) -> str:
    """As OpenAI writes it, which is Go's way: 12ms, 1.5s, 6m0s, 23h59m59s."""
    if ms < 1000:
        return f"{ms}ms"
    seconds, rest = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f"{seconds}.{rest:03d}".rstrip("0") if rest else str(seconds)
    return f"{hours}h{minutes}m{fraction}s" if hours else f"{minutes}m{fraction}s" if minutes else f"{fraction}s"
