"""The error of a command that was called wrongly."""


class UsageError(ValueError):
    """Arguments that cannot be meant, or not together."""

    exit_code = 2
