"""The one error of this room."""


class DataError(ValueError):
    """The data cannot be trained on; the message says what was found and the mend."""
