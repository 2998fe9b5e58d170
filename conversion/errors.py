"""The one error of this room."""


class ConversionError(ValueError):
    """A checkpoint that cannot be read, or not be expressed in the format asked for. The message says the mend."""
