"""The tables of the platform, one file per subject, all on one `metadata`.

Every change here comes with a migration under `migrations/versions`; a test compares the two. Times are whole seconds
since 1970 in UTC, so that SQLite and PostgreSQL store, order and compare them alike. A new subject is a new file, and
one line here: what is not imported here the migrations' test does not see.
"""

from __future__ import annotations

from musespark.accounts.tables.base import metadata
from musespark.accounts.tables.identity import keys, organisations, projects

__all__ = ["keys", "metadata", "organisations", "projects"]
