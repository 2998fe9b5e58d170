"""The training pairs, in an order that is a function of the seed alone.

Sources are dealt in lanes (`order.py`), lanes are read in blocks of undecoded samples (`reading.py`), samples become
images in workers (`decoding.py`), and each rank makes its part of every batch of its own lanes (`batches.py`).
"""

from .batches import Batch, PairStream
from .coordination import Position, merge_positions
from .data import TrainingData, open_training_source
from .errors import DataError
from .prefetch import read_ahead

__all__ = [
    "Batch",
    "DataError",
    "PairStream",
    "Position",
    "TrainingData",
    "merge_positions",
    "open_training_source",
    "read_ahead",
]
