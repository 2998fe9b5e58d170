"""The one error of this room, and what ends a lane that is asked to stop."""


class DataError(ValueError):
    """The data cannot be trained on; the message says what was found and the mend."""


class LaneStopped(Exception):
    """The stream was asked to stop while it sought a pair."""
