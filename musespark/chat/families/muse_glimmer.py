"""Muse Glimmer: a strength instead of an effort, a dated system message, answers that may lack a recipient.

As in the template of the published checkpoint, which wins over this where a folder brings it.
"""

from __future__ import annotations

from musespark.chat.dialect import Dialect
from musespark.chat.settings import ChatSettings

_EFFORT = ("Reasoning effort", "reasoning effort", "Reasoning Effort", "REASONING EFFORT")
_STRENGTH = ("Reasoning strength", "reasoning strength", "Reasoning Strength", "REASONING STRENGTH")

DIALECT = Dialect(
    effort_word="strength",
    own_effort="reasoning strength",
    comments_on_calls=False,
    thinks_without_recipient=False,
    between_thoughts="\n",
    settings=ChatSettings(knowledge_cutoff="2026-01-04", include_date=True),
    effort_aliases=tuple(zip(_EFFORT, _STRENGTH, strict=True)),
)
