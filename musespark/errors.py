"""The whole error tree, drawn at the top.

    MuseSparkError                     500 internal_error
    ├── InvalidRequest                 400 invalid_request
    │   ├── UnsupportedField           400 unsupported_field
    │   ├── ContextTooLong             400 context_length_exceeded
    │   ├── InvalidImage               400 invalid_image
    │   ├── InvalidSchema              400 invalid_schema
    │   ├── RequestExceedsLimit        400 request_exceeds_limit
    │   └── RequestTooLarge            413 request_too_large
    ├── InvalidApiKey                  401 invalid_api_key
    │   ├── MalformedApiKey            401 malformed_api_key
    │   ├── ExpiredApiKey              401 expired_api_key
    │   └── RevokedApiKey              401 revoked_api_key
    ├── SignInFailed                   401 sign_in_failed
    ├── PermissionDenied               403 permission_denied
    │   ├── InsufficientScope          403 insufficient_scope
    │   ├── PlanRefused                403 plan_refused
    │   └── ModelNotReleased           403 model_not_released       (details: launch_at)
    ├── NotFound                       404 not_found
    │   └── ModelNotFound              404 model_not_found
    ├── MethodNotAllowed               405 method_not_allowed
    ├── SpendLimit                     429 spend_limit_exceeded     (held_by_others: may pass by itself)
    │   ├── CreditBalanceExhausted     402 credit_balance_exhausted
    │   ├── OrganizationSpendLimitExceeded  429 organization_spend_limit_exceeded
    │   ├── ProjectSpendLimitExceeded  429 project_spend_limit_exceeded
    │   └── KeySpendLimitExceeded      429 key_spend_limit_exceeded
    ├── Conflict                       409 conflict
    │   ├── IdempotencyConflict        409 idempotency_conflict
    │   ├── LedgerConflict             409 ledger_conflict
    │   └── MoveNotAllowed             409 move_not_allowed
    ├── ModelShutdown                  410 model_shutdown           (details: shutdown_date, replacement)
    ├── TooManySignIns                 429 too_many_sign_ins        (carries retry_after_ms)
    ├── IdempotencyStorageFull         429 idempotency_storage_full
    ├── Overloaded                     429 server_overloaded        (carries retry_after_ms)
    ├── RateLimitExceeded              429 rate_limit_exceeded      (carries retry_after_ms)
    │   └── ConcurrencyLimitExceeded   429 concurrency_limit_exceeded
    ├── DatabaseUnavailable            503 database_unavailable     (carries retry_after_ms)
    │   └── LedgerUnavailable          503 ledger_unavailable
    ├── ShuttingDown                   503 shutting_down
    ├── ModelLoading                   503 model_loading            (carries retry_after_ms)
    ├── EngineFailed                   500 engine_failed
    ├── EngineStopped                  503 engine_stopped
    └── SetupError                     the command line prints it and exits with 2
        ├── ConfigError                    invalid_config
        ├── CheckpointError                invalid_checkpoint
        ├── NotEnoughMemory                not_enough_memory
        ├── StateError                     state_not_usable
        └── DataError                      invalid_data

Every error has a stable `code`, an HTTP `status`, and a message that says what was wrong, the value, the limit and what
to do. `param` names the request field that caused it; `details` are further members of the error object, for programs.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MuseSparkError(Exception):
    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details: dict[str, Any] = {}


class InvalidRequest(MuseSparkError):
    code = "invalid_request"
    status = 400


class UnsupportedField(InvalidRequest):
    code = "unsupported_field"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class InvalidImage(InvalidRequest):
    code = "invalid_image"
    index: int | None = None  # which of a prompt's images it is, where that is known


class InvalidSchema(InvalidRequest):
    """A JSON schema that can't be held to: wrong, too large, or with a keyword that has no effect here."""

    code = "invalid_schema"


class RequestExceedsLimit(InvalidRequest):
    """A request that alone is larger than a limit of its key, project or organisation: waiting would not help."""

    code = "request_exceeds_limit"


class RequestTooLarge(InvalidRequest):
    code = "request_too_large"
    status = 413


class InvalidApiKey(MuseSparkError):
    code = "invalid_api_key"
    status = 401


class MalformedApiKey(InvalidApiKey):
    """Not a key at all: cut off, mistyped, or something else altogether."""

    code = "malformed_api_key"


class ExpiredApiKey(InvalidApiKey):
    code = "expired_api_key"


class RevokedApiKey(InvalidApiKey):
    """The key, its service account, its project or its organisation was ended."""

    code = "revoked_api_key"


class SignInFailed(MuseSparkError):
    """Wrong email, password, session or invitation; the message never says which of two was wrong."""

    code = "sign_in_failed"
    status = 401


class PermissionDenied(MuseSparkError):
    code = "permission_denied"
    status = 403


class InsufficientScope(PermissionDenied):
    """The key or the person is known, and may not do this."""

    code = "insufficient_scope"


class ModelNotReleased(PermissionDenied):
    """`details`: launch_at, an ISO time or None where no date is committed yet."""

    code = "model_not_released"


class PlanRefused(PermissionDenied):
    """The organisation's plan does not include this."""

    code = "plan_refused"


class NotFound(MuseSparkError):
    code = "not_found"
    status = 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(MuseSparkError):
    code = "method_not_allowed"
    status = 405


class Conflict(MuseSparkError):
    """What is asked for does not go with what is there already."""

    code = "conflict"
    status = 409


class LedgerConflict(Conflict):
    """A hold is resolved already, and differently: what is asked now contradicts it."""

    code = "ledger_conflict"


class MoveNotAllowed(Conflict):
    """A release can't go from its stage to this one, or not yet."""

    code = "move_not_allowed"


class ModelShutdown(MuseSparkError):
    """`details`: shutdown_date, an ISO time, and replacement, a model or None."""

    code = "model_shutdown"
    status = 410


class TooManySignIns(MuseSparkError):
    code = "too_many_sign_ins"
    status = 429

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Overloaded(MuseSparkError):
    code = "server_overloaded"
    status = 429

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class SpendLimit(MuseSparkError):
    """There is no money left for this under one of the limits; the subclass says which.

    `held_by_others`: some of it is only held by requests in flight and may come free.
    """

    code = "spend_limit_exceeded"
    status = 429

    def __init__(self, message: str, *, held_by_others: bool = False) -> None:
        super().__init__(message)
        self.held_by_others = held_by_others


class CreditBalanceExhausted(SpendLimit):
    code = "credit_balance_exhausted"
    status = 402


class OrganizationSpendLimitExceeded(SpendLimit):
    code = "organization_spend_limit_exceeded"


class ProjectSpendLimitExceeded(SpendLimit):
    code = "project_spend_limit_exceeded"


class KeySpendLimitExceeded(SpendLimit):
    code = "key_spend_limit_exceeded"


class RateLimitExceeded(MuseSparkError):
    code = "rate_limit_exceeded"
    status = 429

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class ConcurrencyLimitExceeded(RateLimitExceeded):
    code = "concurrency_limit_exceeded"


class DatabaseUnavailable(MuseSparkError):
    """The database can't be reached, and nothing remembered says who is calling."""

    code = "database_unavailable"
    status = 503

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class LedgerUnavailable(DatabaseUnavailable):
    """The ledger's database is away, and the organisation's plan does not let requests in meanwhile."""

    code = "ledger_unavailable"


class IdempotencyConflict(Conflict):
    """An Idempotency-Key that came before with another body."""

    code = "idempotency_conflict"


class IdempotencyStorageFull(MuseSparkError):
    code = "idempotency_storage_full"
    status = 429


class ShuttingDown(MuseSparkError):
    code = "shutting_down"
    status = 503


class ModelLoading(MuseSparkError):
    code = "model_loading"
    status = 503

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class EngineFailed(MuseSparkError):
    code = "engine_failed"


class EngineStopped(MuseSparkError):
    """The engine has failed for good: only a restart of the server helps."""

    code = "engine_stopped"
    status = 503


class SetupError(MuseSparkError):
    """Something on this machine must change before the command can run; never the client's fault."""

    code = "setup_error"


class ConfigError(SetupError):
    code = "invalid_config"


class CheckpointError(SetupError):
    code = "invalid_checkpoint"


class NotEnoughMemory(SetupError):
    code = "not_enough_memory"


class StateError(SetupError):
    code = "state_not_usable"


class DataError(SetupError):
    code = "invalid_data"
