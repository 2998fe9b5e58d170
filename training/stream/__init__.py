"""The training pairs, in an order that is a function of the seed alone.

Sources are dealt in lanes (`order.py`), lanes are read in blocks of undecoded samples (`reading.py`), samples become
images in workers (`decoding.py`), and each rank makes its part of every batch from its own lanes (`batches.py`).
A lane is a logical shard, fixed for a run, that one process reads.
"""

from .batches import Batch, PairStream
from .coordination import Position, merge_positions
from .data import TrainingData, open_training_source
from .errors import DataError
from .prefetch import prefetch

__all__ = [
    "Batch",
    "DataError",
    "PairStream",
    "Position",
    "TrainingData",
    "merge_positions",
    "open_training_source",
    "prefetch",
]
