"""A folder to a repository on the Hub: retried, without sending a file twice, and with no secret in errors."""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from .credentials import hide_credentials

# Seconds before another try. The Hub's client tries requests that send something several times, within half a minute,
# and those that ask or make a repository once: a Hub that is away for two minutes ends a push of hours by neither.
RETRY_SECONDS = (5.0, 30.0, 120.0)
# Answers that another try may change, besides the Hub's own trouble: timeouts, others' commits, quotas.
PASSING = (408, 409, 412, 429)
# Errors that no other try fixes, whatever they inherit from.
LASTING = (LocalTokenNotFoundError, OfflineModeIsEnabled, FileNotFoundError, PermissionError, TypeError, ValueError)

TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")

logger = logging.getLogger(__name__)


class PushError(ValueError):
    """A push that did not come to its end; the message has no secret in it."""


class PushArgumentError(PushError):
    """An argument that cannot be used, found before any work."""


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
    space_sdk: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> str:
    """Uploads a folder's files in one commit, and returns its URL.

    Files whose content the Hub has, from a try before, are not sent again.

    Args:
        folder: every file in it is sent.
        repo_id: owner/name; it is made where there is none.
        private: whether a new repository is private; one that exists must be, then.
        revision: branch, made where there is none.
        message: of the commit.
        space_sdk: what runs it, where it is a Space and no model.
        wait: waits so many seconds.

    Returns:
        The URL of the repository or branch.

    Raises:
        PushArgumentError: if `private` is asked of a public repository.
        PushError: if it fails for good, or after its retries.
    """
    for delay in (*RETRY_SECONDS, None):
        try:
            return _upload(folder, repo_id, private, revision, message, space_sdk)
        except PushError:
            raise
        # Whatever it is: networks, servers, quotas.
        except Exception as error:
            reason = _reason(error)
            if delay is None or not may_pass(error):
                # Without the cause: its text may hold what is hidden here.
                raise PushError(f"{repo_id}: {reason}") from None
        logger.warning(f"{repo_id}: {reason} Trying again in {delay:g} s.")
        wait(delay)
    raise AssertionError("the last try returns or raises")


def _upload(
    folder: Path, repo_id: str, private: bool, revision: str | None, message: str, space_sdk: str | None
) -> str:
    api = HfApi()
    kind = "model" if space_sdk is None else "space"
    made = api.create_repo(repo_id, repo_type=kind, space_sdk=space_sdk, private=private or None, exist_ok=True)
    repo_id = made.repo_id
    if private and not api.repo_info(repo_id, repo_type=kind).private:
        raise PushArgumentError(f"{repo_id} exists and is public: make it private on the Hub, or leave `private` out.")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)
    api.upload_folder(repo_id=repo_id, repo_type=kind, folder_path=folder, revision=revision, commit_message=message)
    place = f"{api.endpoint}/{'' if space_sdk is None else 'spaces/'}{repo_id}"
    return place + (f"/tree/{revision}" if revision else "")


def _answer_of(error: Exception) -> HfHubHTTPError | None:
    """The Hub's answer behind an error; uploads of large files wrap it."""
    cause = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return cause


def _reason(error: Exception) -> str:
    said = dict.fromkeys(" ".join(str(one).split()) for one in (error, _answer_of(error)) if one is not None)
    return redact(" ".join(filter(None, said)) or type(error).__name__)[:500]


def may_pass(error: Exception) -> bool:
    """Whether another try may change an error: not where the Hub refuses, and nothing was sent."""
    if (answer := _answer_of(error)) is not None:
        return answer.response.status_code >= 500 or answer.response.status_code in PASSING
    return not isinstance(error, LASTING)


def redact(text: str) -> str:
    """`text` without credentials, without passwords in URLs, and without what signed URLs have after their `?`."""
    if token := get_token():
        text = text.replace(token, "***")
    text = TOKEN.sub("hf_***", text)
    text = re.sub(r"(?i)\bbearer\s+\S+", "Bearer ***", text)
    text = re.sub(r"(https?://)[^\s/@'\"]+@", r"\1***@", text)
    return hide_credentials(re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1?***", text))
