"""hf://owner/name: a model of the Hugging Face Hub, at a commit, and only files that are data: never pickles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from finetune_api.base_model import BaseModelSpec
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from finetune_trainer.credentials import Credentials
from finetune_trainer.errors import ConfigurationError, DataError, RunError
from finetune_trainer.sources.kinds import ENCODER, ModelKind

DOWNLOADS = 4


def fetch_from_hub(
    kind: ModelKind,
    spec: BaseModelSpec,
    credentials: Credentials,
    cache: Path,
    on_progress: Callable[[int, int], None],
) -> tuple[Path, str]:
    """Downloads what is not in the cache yet. Returns the folder and the commit that `spec.revision` stands for.

    Raises:
        ConfigurationError: no such model or revision, or it may not be read with this token.
        DataError: the model has no safetensors, or another layout.
        RunError: the Hub does not answer.
    """
    disable_progress_bars()
    repo = spec.uri.removeprefix("hf://")
    if credentials.secret_name is not None and kind is not ENCODER:
        # an encoder is read with the base model's Secret, which may be that of an S3 store
        credentials.require("HF_TOKEN")
    # None lets the library look for the token of `hf auth login`; False is none at all
    token = credentials.values.get("HF_TOKEN") or (None if credentials.ambient else False)
    with _errors_explained(kind, spec, credentials):
        info = HfApi(token=token).model_info(repo, revision=spec.revision)
        assert info.sha is not None, "the Hub names the commit of every model"
        commit = info.sha
        try:
            names = kind.wanted([sibling.rfilename for sibling in info.siblings or []])
        except DataError as error:
            raise DataError(f"{kind.uri_field} is {spec.uri} (commit {commit}): {error}") from error

        def fetch(name: str) -> str:
            return hf_hub_download(repo, name, revision=commit, cache_dir=cache, token=token)

        pool = ThreadPoolExecutor(DOWNLOADS)
        try:
            paths: list[str] = []
            for path in pool.map(fetch, names):
                paths.append(path)
                on_progress(len(paths), len(names))
        finally:
            pool.shutdown(cancel_futures=True)
    return Path(paths[names.index(kind.index)]).parent, commit


@contextmanager
def _errors_explained(kind: ModelKind, spec: BaseModelSpec, credentials: Credentials) -> Iterator[None]:
    has_token = credentials.secret_name is not None and credentials.values.get("HF_TOKEN")
    where = f"spec.baseModel.secretRef.name {credentials.secret_name}" if has_token else None
    try:
        yield
    except GatedRepoError as error:
        remedy = f"with the account of {where}" if where else "and name a Secret with HF_TOKEN in its secretRef"
        raise ConfigurationError(
            f"{kind.uri_field} is {spec.uri}, a gated model: accept its terms on the Hub {remedy}"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigurationError(
            f"{kind.revision_field} is {spec.revision}, but {spec.uri} has no such branch, tag or commit; correct it"
        ) from error
    except RepositoryNotFoundError as error:
        token = f"HF_TOKEN in {where} may not read it" if where else "it is private: then name a Secret with HF_TOKEN"
        raise ConfigurationError(
            f"{kind.uri_field} is {spec.uri}, but the Hub shows no such model; correct the name, unless {token}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigurationError(
                f"the Hub does not let {where or 'an anonymous reader'} read {spec.uri} ({status}); "
                "correct HF_TOKEN, or spec.baseModel.secretRef"
            ) from error
        raise RunError(f"the Hub failed on {spec.uri} ({status})") from error
    except (LocalEntryNotFoundError, httpx.HTTPError) as error:
        raise RunError(f"the Hub cannot be reached for {spec.uri} ({type(error).__name__})") from error
