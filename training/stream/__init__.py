"""The training pairs, in an order that is a function of the seed alone.

Sources are dealt in lanes (`order.py`), lanes are read in blocks of undecoded samples (`reading.py`), samples become
pictures in workers (`decoding.py`), and each rank makes its part of every batch of its own lanes (`batches.py`).
"""

from .agreement import Position, merge_positions
from .ahead import read_ahead
from .batches import Batch, PairStream
from .data import TrainingData, open_training_source
from .errors import DataError

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
