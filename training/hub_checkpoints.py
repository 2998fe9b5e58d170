"""Copies of checkpoints on the Hub, made in the background: a run goes on whatever becomes of them."""

import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from hf_clip.hub import redact
from hf_clip.hub.credentials import find_credential_in_file
from hf_clip.hub.upload import may_pass

from .recipe import load_recipe, may_change, recipe_changes
from .recipe_error import RecipeError
from .run_folder import CHECKPOINTS, RECIPE

# Seconds before another try; after the last one the push is given up. The Hub's client tries for half a minute.
RETRY_SECONDS = (5.0, 30.0, 120.0)
# A process that was asked to stop is often killed half a minute later.
PATIENCE_SECONDS = 20.0


class CheckpointPusher:
    """Pushes one checkpoint at a time to a model repository, laid out as the run's folder: it can be resumed there.

    A checkpoint that is saved while another is under way waits; of several that wait, the newest goes. Older copies
    are removed once a newer one is whole. Nothing is raised: a push that failed after its retries goes to `fail`.

    The thread is its own, and not that of `upload_folder(run_as_future=True)`: Python waits for that one at its end,
    however long an upload hangs, and a run that was asked to stop is killed before; and it takes all that it was given
    in turn, so that a slow line would fall behind by checkpoints that training has deleted.

    Args:
        repo_id: the repository; it is made, as a private one, where there is none.
        folder: the run's folder.
        fail: takes a line about a push that failed.
    """

    def __init__(self, repo_id: str, folder: Path, fail: Callable[[str], None]):
        self.repo_id, self.folder, self.fail = repo_id, folder, fail
        self.in_use: Path | None = None
        self._is_ours = False
        self._next: Path | None = None
        self._changed = threading.Condition()
        self._is_closing = threading.Event()
        # A daemon: an upload that hangs must not keep a process from its end.
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def push(self, checkpoint: Path) -> None:
        """Takes over a checkpoint; `in_use` is the one that must stay on disk for now."""
        with self._changed:
            self._next = checkpoint
            self._changed.notify()

    def close(self) -> None:
        """Ends the retries, and waits `PATIENCE_SECONDS` for what is under way and what waits."""
        with self._changed:
            self._is_closing.set()
            self._changed.notify()
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive() or self._next is not None:
            self.fail(f"The push to {self.repo_id} was not finished at the end of the run, and is given up.")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._is_closing.is_set())
                if self._next is None:
                    return
                self.in_use, self._next = self._next, None
                self._changed.notify_all()
            try:
                self._push(self.in_use)
            finally:
                self.in_use = None

    def _push(self, checkpoint: Path) -> None:
        if credential := find_credential_in_file(self.folder / RECIPE):
            self.fail(f"{checkpoint.name} was not pushed: {RECIPE} holds {credential}. Remove it from the recipe.")
            return
        for delay in (*RETRY_SECONDS, None):
            try:
                self._upload(checkpoint)
                return
            # Whatever it is: tokens, networks, quotas.
            except Exception as error:
                reason = redact(" ".join(str(error).split())) or type(error).__name__
                is_refused = not may_pass(error)
            if delay is None or is_refused or self._is_closing.wait(delay):
                break
        self.fail(f"{checkpoint.name} could not be pushed to {self.repo_id} ({reason[:300]}).")

    def _refuse_others(self, api: HfApi) -> None:
        """Raises ValueError for a repository that anyone can read, or that holds the checkpoints of another run."""
        if self._is_ours:
            return
        if not api.model_info(self.repo_id).private:
            raise ValueError("it is public: make it private on the Hub, or set checkpoints.push_to to another")
        if RECIPE in api.list_repo_files(self.repo_id):
            theirs = Path(api.hf_hub_download(self.repo_id, RECIPE))
            if not _is_of_one_run(theirs, self.folder / RECIPE):
                raise ValueError(
                    "it holds another run, of another recipe: set checkpoints.push_to to another repository"
                )
        self._is_ours = True

    def _upload(self, checkpoint: Path) -> None:
        api, copy = HfApi(), f"{CHECKPOINTS}/{checkpoint.name}"
        api.create_repo(self.repo_id, private=True, exist_ok=True)
        self._refuse_others(api)
        # The manifest is among the files: a copy that was cut short shows.
        api.upload_folder(
            repo_id=self.repo_id,
            folder_path=self.folder,
            allow_patterns=[RECIPE, f"{copy}/*"],
            commit_message=f"Checkpoint of step {checkpoint.name.rpartition('-')[2]}",
        )
        there = api.list_repo_files(self.repo_id)
        copies = {"/".join(file.split("/")[:2]) for file in there if file.startswith(f"{CHECKPOINTS}/")}
        for older in sorted(copies - {copy}):
            api.delete_folder(older, self.repo_id, commit_message=f"{copy} replaces it")


def _is_of_one_run(one: Path, other: Path) -> bool:
    """Whether two recipes are of one run, which may be resumed with other logging, evaluations and the like."""
    if one.read_bytes() == other.read_bytes():
        return True
    try:
        return all(map(may_change, recipe_changes(load_recipe(one), load_recipe(other))))
    except RecipeError:
        return False
