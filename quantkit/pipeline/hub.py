"""A model named by its hub id: downloaded into the hub's own cache, weights as safetensors only."""

from __future__ import annotations

import re
from pathlib import Path

from quantkit.errors import MissingDependencyError, ModelError

WANTED = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "vocab.txt")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def fetch_model(name: str) -> Path:
    """The folder of a hub model: from the hub's cache when it is there, else downloaded.

    Nothing of a model repository is executed, and nothing pickled is fetched.

    Raises:
        ModelError: the name is no hub id, the hub cannot be reached, or it has no such model.
    """
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"There is no file or folder {name}.", "Check the path, or give a hub id such as org/name.")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise MissingDependencyError("The package huggingface_hub is missing.", "pip install transformers") from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except RepositoryNotFoundError as error:
        raise ModelError(f"The hub has no model {name!r}.", "Check the name, or give a folder.") from error
    except (LocalEntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{name} is no file or folder here, and as a hub id it cannot be fetched.",
            "Check the path; or connect to the hub once, or give the folder of a downloaded model.",
        ) from error
