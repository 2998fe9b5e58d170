"""Files of repositories on the Hub: asked for once, within bounded time, and one line of why where there are none."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    # Of the HTTP library that huggingface_hub itself uses, which changes with its versions.
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import ConversionError, near_name, short_reason

logger = logging.getLogger(__name__)

# Long enough for a slow line; without one, an answer comes within milliseconds.
HUB_TIMEOUT_SECONDS = 10
# Small files that stand beside weights and are read: configs, tokenizers, indexes of shards.
SETTINGS = re.compile(
    r"([\w.-]*config|tokenizer[\w-]*|special_tokens_map|added_tokens|vocab[\w-]*|merges|.*\.index)\.(json|txt)"
    r"|[\w.-]+\.model"
)

# One of these is in the cache where something of a repository is.
_SIGNS = ("config.json", "open_clip_config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")


@dataclass(frozen=True)
class HubOptions:
    """How repositories are read: arguments of `huggingface_hub` of these names."""

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @property
    def is_offline(self) -> bool:
        return self.local_files_only or constants.HF_HUB_OFFLINE

    def without_revision(self) -> "HubOptions":
        """For another repository than the one whose revision was asked for."""
        return replace(self, revision=None)


@dataclass(frozen=True)
class Repository:
    """A repository as of one commit.

    Attributes:
        name: owner/name.
        files: all names in it, or those in the cache where the Hub is not asked.
        commit: None where the Hub is not asked.
        folder: the cache's folder of the commit; None until something is fetched.
    """

    name: str
    files: frozenset[str]
    options: HubOptions
    commit: str | None = None
    folder: Path | None = None

    def fetch_settings(self) -> Path:
        """The folder with all small files that stand beside weights: configs, vocabularies, indexes."""
        return self.fetch(name for name in self.files if SETTINGS.fullmatch(name))

    def fetch(self, names: Iterable[str]) -> Path:
        """The folder with these files, fetched where the cache lacks them.

        Raises:
            ConversionError: if one is missing, cannot be fetched, or cannot be written to the cache.
        """
        folder, is_noted = self.folder, self._is_noted()
        for name in sorted(names):
            if name not in self.files:
                where = "in the Hub's cache" if self.commit is None else "in the repository"
                raise ConversionError(f"{self.name}: the file {ascii(name[:80])} is not {where}.")
            if self.commit is not None:
                # A commit needs no question to the Hub where the cache has the file. Asked for by the revision's name,
                # the first file makes the cache note its commit, by which it is found without a connection.
                path = self._fetch(name, self.commit if is_noted else self.options.revision)
                folder, is_noted = path.parents[name.count("/")], True
        if folder is None:
            raise ConversionError(f"{self.name}: the repository holds no settings (config.json) and no vocabulary.")
        return folder

    def _is_noted(self) -> bool:
        """Whether the cache knows that the revision is this commit."""
        options = self.options
        for name in self.files:
            path = try_to_load_from_cache(self.name, name, cache_dir=options.cache_dir, revision=options.revision)
            if isinstance(path, str):
                return self.commit in Path(path).parts
        return False

    def _fetch(self, name: str, revision: str | None) -> Path:
        options = self.options
        try:
            path = hf_hub_download(
                self.name,
                name,
                revision=revision,
                cache_dir=options.cache_dir,
                token=options.token,
                etag_timeout=HUB_TIMEOUT_SECONDS,
            )
        except (HfHubHTTPError, HTTPError, HFValidationError) as error:
            raise ConversionError(f"{self.name}: {name} cannot be fetched. {_explain(error)}") from None
        except OSError as error:
            # Without a connection hf_hub_download says that the file is not here, because of that.
            if isinstance(error.__cause__, HfHubHTTPError | HTTPError):
                raise ConversionError(f"{self.name}: {name} cannot be fetched. {_explain(error.__cause__)}") from None
            raise ConversionError(f"{self.name}: {name} cannot be kept. {_explain_disk(error, options)}") from None
        return Path(path)


def open_repository(name: str, options: HubOptions) -> Repository:
    """A repository's files, after one question to the Hub; without an answer, what an earlier call left in the cache.

    Raises:
        ConversionError: if neither has it; one line says why.
    """
    if options.is_offline:
        return _open_cache(name, options, "HF_HUB_OFFLINE or `local_files_only` is set: unset it to ask the Hub.")
    try:
        info = HfApi(token=options.token).model_info(name, revision=options.revision, timeout=HUB_TIMEOUT_SECONDS)
    # Of the Hub; of the network; of a name that is none.
    except (HfHubHTTPError, HTTPError, HFValidationError, OSError) as error:
        problem = _explain(error)
        try:
            cached = _open_cache(name, options, problem)
        except ConversionError as missing:
            raise missing from None
        logger.warning("%s is taken from the cache: %s", name, problem)
        return cached
    files = frozenset(item.rfilename for item in info.siblings or ())
    return Repository(name, files, options, commit=info.sha)


def fetch_settings(name: str, options: HubOptions) -> Path:
    """The folder of a repository's small files: a tokenizer's, or a config."""
    return open_repository(name, options).fetch_settings()


def _open_cache(name: str, options: HubOptions, problem: str) -> Repository:
    try:
        for file in _SIGNS:
            found = try_to_load_from_cache(name, file, cache_dir=options.cache_dir, revision=options.revision)
            if isinstance(found, str):
                folder = Path(found).parent
                files = frozenset(item.name for item in folder.iterdir())
                return Repository(name, files, options, folder=folder)
    except (HFValidationError, OSError) as error:
        problem = short_reason(error) + "."
    raise ConversionError(f"{name!r} is no file or folder here and not in the Hub's cache.{near_name(name)} {problem}")


def _explain(error: Exception) -> str:
    """Why the Hub does not give something, and what to do."""
    match error:
        case GatedRepoError():
            return "Its owner must grant access first: ask for it on its page, and log in with `hf auth login`."
        case RevisionNotFoundError():
            return "The repository has no such `revision`: check the branch, tag or commit."
        case RepositoryNotFoundError():
            return "The Hub has no such model that may be seen: check the name, or log in with `hf auth login`."
        case HfHubHTTPError():
            return f"The Hub answers with an error ({short_reason(error)[:160]}): try again later."
        case HFValidationError():
            return f"That is no name of a repository ({short_reason(error)[:160]}): write owner/name."
    return (
        f"The Hub cannot be reached ({short_reason(error)[:160]}): check the network (HF_ENDPOINT, proxies), or set "
        "HF_HUB_OFFLINE=1 to use only what is here."
    )


def _explain_disk(error: OSError, options: HubOptions) -> str:
    folder = options.cache_dir or constants.HF_HUB_CACHE
    return (
        f"The cache {folder} cannot be written ({short_reason(error)[:160]}): free space there, or set HF_HOME or "
        "`cache_dir` to a folder that can be written."
    )
