"""Publishing a folder on Hugging Face or ModelScope: one interface, two hubs.

Tokens come from the environment and are handed to the hub's own client; they are never written anywhere.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from luthier.base.errors import ConfigError, MissingExtra, RunError
from luthier.base.secrets import redact

KEPT_HOME = ("MANIFEST.json", "export.json")
"""Files of an export that are not published."""

TOKENS = {"hf": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "ms": ("MODELSCOPE_API_TOKEN",)}


class Hub(Protocol):
    """Somewhere models are published."""

    def create(self, name: str, *, private: bool) -> None:
        """Make a model of that name, if there is none."""
        ...

    def upload(self, folder: Path, name: str, message: str) -> str:
        """Send the files of a folder; returns the model's address."""
        ...


class HuggingFace:
    """huggingface.co, or the server that $HF_ENDPOINT names."""

    def __init__(self, token: str):
        from huggingface_hub import HfApi

        self._api = HfApi(token=token)

    def create(self, name: str, *, private: bool) -> None:
        self._api.create_repo(name, private=private, exist_ok=True, repo_type="model")

    def upload(self, folder: Path, name: str, message: str) -> str:
        self._api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=message, ignore_patterns=list(KEPT_HOME), repo_type="model"
        )
        return f"{self._api.endpoint}/{name}"


class ModelScope:
    """modelscope.cn."""

    def __init__(self, token: str):
        try:
            library: Any = import_module("modelscope.hub.api")
        except ImportError as error:
            raise MissingExtra("modelscope", "hub", what_for="publishing on ModelScope") from error
        self._api, self._token = library.HubApi(), token

    def create(self, name: str, *, private: bool) -> None:
        self._api.create_repo(
            name, token=self._token, repo_type="model", visibility="private" if private else "public", exist_ok=True
        )

    def upload(self, folder: Path, name: str, message: str) -> str:
        self._api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            token=self._token,
            repo_type="model",
            commit_message=message,
            ignore_patterns=list(KEPT_HOME),
        )
        return f"https://modelscope.cn/models/{name}"


def open_hub(which: Literal["hf", "ms"]) -> Hub:
    """The hub, with the token of the environment.

    Raises:
        ConfigError: code `no_token`.
        MissingExtra: ModelScope's package is not installed.
    """
    token = next((os.environ[name] for name in TOKENS[which] if os.environ.get(name)), None)
    if token is None:
        raise ConfigError(
            "publishing needs a token",
            where="--push_to_hub",
            code="no_token",
            fix=f"Set {TOKENS[which][0]} in the environment to a token that may write",
        )
    return HuggingFace(token) if which == "hf" else ModelScope(token)


def publish(hub: Hub, folder: Path, name: str, message: str, *, private: bool) -> str:
    """Create the model if need be and send the folder; returns its address.

    Raises:
        RunError: code `hub_failed`, in the hub's words without secrets.
    """
    try:
        hub.create(name, private=private)
        return hub.upload(folder, name, message)
    # Both clients let errors of several HTTP libraries through and document none of them.
    except Exception as error:
        said = redact(" ".join(str(error).split()))[:300] or type(error).__name__
        raise RunError(
            f"the hub did not take the model ({said})",
            where=name,
            code="hub_failed",
            fix="What was to be published is whole and stays where it is; check name, token and network, and try again",
        ) from error
