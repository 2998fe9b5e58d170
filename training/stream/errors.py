"""The one error of this package, and what ends a lane that is asked to stop."""


class DataError(ValueError):
    """The data cannot be trained on. The message says what was found, and the fix."""


class LaneStopped(Exception):
    """The stream was asked to stop while it sought a pair."""
