"""A signal asks a run to stop: it finishes its step and saves. A second interrupt stops it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopNow(BaseException):
    """The signal's name. Like KeyboardInterrupt, it is no Exception: whoever copes with those lets it pass."""


# Ctrl-C, a scheduler's kill, a terminal that closes, and what Slurm sends by `--signal`.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """Within `with StopRequest() as stop:`, `stop.signal` is None until one of `STOPPING` comes, then its name."""

    def __init__(self):
        self.signal: str | None = None
        self._is_at_once = False

    def __enter__(self) -> "StopRequest":
        self._before = {}
        # Python takes signals in its main thread only; a run inside another thread is stopped by its caller.
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                # What `nohup` has ignored stays ignored.
                if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_asked(self) -> bool:
        return self.signal is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For what can be done again from the last checkpoint: a signal, before or within, raises StopNow."""
        self._is_at_once = True
        try:
            if self.signal is not None:
                raise StopNow(self.signal)
            yield
        finally:
            self._is_at_once = False

    def _take(self, number: int, _frame) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if self._is_at_once:
            # Another signal must not disturb what cleans up behind this one.
            self._is_at_once = False
            raise StopNow(self.signal)
