"""Muse Spark: the family that this repository trains, and the one that `templates` and `parser` speak by default."""

from __future__ import annotations

from musespark.chat.dialect import Dialect
from musespark.chat.settings import ChatSettings

DIALECT = Dialect(
    effort_word="effort",
    own_effort="reasoning effort:",
    comments_on_calls=True,
    thinks_without_recipient=True,
    between_thoughts="",
    settings=ChatSettings(),
)
