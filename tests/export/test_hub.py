"""Both hubs are reached through their own clients, with the environment's token, and fail in one clear message."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from luthier.base.errors import ConfigError, MissingExtra, RunError
from luthier.export.hub import open_hub, publish

TOKEN = "hf_" + "b2" * 17


class Client:
    """Stands for HfApi or HubApi."""

    endpoint = "https://hub.example"
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __init__(self, **settings: Any):
        self.calls.append(("open", (), settings))

    def create_repo(self, *args: Any, **named: Any) -> None:
        self.calls.append(("create", args, named))

    def upload_folder(self, **named: Any) -> None:
        self.calls.append(("upload", (), named))


@pytest.mark.parametrize("which", ["hf", "ms"])
def test_create_and_upload(which: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "calls", [])
    monkeypatch.setattr("huggingface_hub.HfApi", Client)
    monkeypatch.setitem(sys.modules, "modelscope", types.ModuleType("modelscope"))
    monkeypatch.setitem(sys.modules, "modelscope.hub", types.ModuleType("modelscope.hub"))
    fake = types.ModuleType("modelscope.hub.api")
    fake.HubApi = Client  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "modelscope.hub.api", fake)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    address = publish(open_hub(which), tmp_path, "me/violin", "First", private=True)
    assert address.endswith("me/violin")
    by_name = {name: (args, named) for name, args, named in Client.calls}
    assert list(by_name) == ["open", "create", "upload"]
    assert by_name["create"][0] == ("me/violin",)
    assert by_name["create"][1].get("private", by_name["create"][1].get("visibility")) in (True, "private")
    sent = by_name["upload"][1]
    assert sent["repo_id"] == "me/violin" and sent["commit_message"] == "First"
    assert "export.json" in sent["ignore_patterns"]
    assert TOKEN in str(Client.calls)


def test_signatures_are_those_of_the_real_client() -> None:
    import inspect

    from huggingface_hub import HfApi

    create, upload = inspect.signature(HfApi.create_repo), inspect.signature(HfApi.upload_folder)
    create.bind(None, "a/b", private=True, exist_ok=True, repo_type="model")
    upload.bind(None, repo_id="a/b", folder_path=".", commit_message="m", ignore_patterns=[], repo_type="model")


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="MODELSCOPE_API_TOKEN"):
        open_hub("ms")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "modelscope.hub.api", None)
    with pytest.raises(MissingExtra, match=r"luthier\[hub\]"):
        open_hub("ms")


def test_failure_is_told_without_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Client):
        def create_repo(self, *args: Any, **named: Any) -> None:
            raise OSError(f"401 for https://user:{TOKEN}@hub with {TOKEN}")

    monkeypatch.setattr("huggingface_hub.HfApi", Broken)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(RunError, match="did not take the model") as caught:
        publish(open_hub("hf"), tmp_path, "me/violin", "First", private=True)
    assert TOKEN not in str(caught.value)
