"""What differs between the families that speak ATEM; `templates` and `parser` are what they share."""

from __future__ import annotations

from dataclasses import dataclass

from musespark.chat.settings import ChatSettings


@dataclass(frozen=True, slots=True)
class Dialect:
    """One family's way with the format.

    effort_word: the line says `Reasoning {effort_word}: high.`.
    own_effort: a system message with these words (in lower case) sets the effort itself and keeps its own line.
    effort_aliases: words in system messages that the family's own template replaces, and by what.
    comments_on_calls: whether text beside a tool call is a message of its own to the user; otherwise the family has no
        place for it, and its history goes without.
    thinks_without_recipient: whether a message to nobody is reasoning; otherwise it is content.
    between_thoughts: what joins the reasoning of several messages.
    settings: those of a checkpoint that brings none.
    """

    effort_word: str
    own_effort: str
    comments_on_calls: bool
    thinks_without_recipient: bool
    between_thoughts: str
    settings: ChatSettings
    effort_aliases: tuple[tuple[str, str], ...] = ()
