"""From what the user named to a model folder on this disk that is safe to open."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from luthier.base.errors import MissingExtra, ModelError
from luthier.model.config import ModelConfig
from luthier.model.nano import NAME, nano_folder

ADAPTER_SETTINGS = "adapter_config.json"

_WEIGHTS = "*.safetensors"
_WANTED = ["*.json", _WEIGHTS, "*.jinja", "*.txt", "*.model"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def local_folder(path: str) -> Path | None:
    """The folder that a model's name stands for on this machine: an existing folder, or the bundled model's."""
    folder = Path(path).expanduser()
    if not folder.exists() and path == NAME:
        return nano_folder()
    return folder if folder.is_dir() else None


def model_folder(config: ModelConfig, *, weights: bool = True) -> Path:
    """The local folder of a model; a hub id is downloaded (or found in the hub's cache) first.

    An existing folder comes before anything else of its name, and the bundled model before the hub's.

    Args:
        weights: whether they are wanted too, besides settings and tokenizer.

    Raises:
        ModelError: the folder does not exist, or the hub cannot be reached or does not have the model.
        MissingExtra: ModelScope was named and its package is not installed.
    """
    if (folder := local_folder(config.path)) is not None:
        return folder
    path = Path(config.path).expanduser()
    if path.exists():
        raise ModelError("is a file, not a model folder", where=config.path, fix="Give the folder it lies in")
    if looks_local(config.path):
        raise ModelError("no such model folder", where=config.path, code="no_model", fix=_near(path))
    wanted = _WANTED if weights else [pattern for pattern in _WANTED if pattern != _WEIGHTS]
    files = [*wanted, "*.py"] if config.trust_remote_code else wanted
    return Path(_from_modelscope(config, files) if config.hub == "ms" else _from_hugging_face(config, files))


def adapter_settings(folder: Path) -> Path:
    """The settings of the adapter that lies in a folder.

    Raises:
        ModelError: code `no_adapter`; what lies there is a whole model, or nothing of the kind.
    """
    file = folder / ADAPTER_SETTINGS
    if file.exists():
        return file
    whole = (folder / "config.json").exists()
    what = "there is a whole model here, no adapter" if whole else f"there is no {ADAPTER_SETTINGS} here"
    fix = "Give it as --model" if whole else "Give an adapter's folder"
    raise ModelError(what, where=str(folder), code="no_adapter", fix=fix)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        ModelError: it is missing, unreadable or no object.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no {path.name} here", where=str(path.parent), fix="Is this a model folder?") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {error}", where=str(path), fix="Download the file again") from error
    if not isinstance(loaded, dict):
        raise ModelError("is not a JSON object", where=str(path), fix="Download the file again")
    return loaded


def check_weights(folder: Path, name: str = "model") -> None:
    """Every weight file of `<name>.safetensors` or its index is there, is safetensors, and is whole.

    Raises:
        ModelError: code `pickle_weights`, `no_weights` or `broken_weights`, naming the file.
    """
    index = folder / f"{name}.safetensors.index.json"
    if index.exists():
        shards = sorted({str(shard) for shard in read_json(index).get("weight_map", {}).values()})
    elif (folder / f"{name}.safetensors").exists():
        shards = [f"{name}.safetensors"]
    else:
        raise _no_weights(folder, name)
    for shard in shards:
        if PurePosixPath(shard).name != shard or shard in ("", "..") or "\\" in shard:
            raise ModelError(f"names a file outside its folder: {shard!r}", where=str(index), code="broken_weights")
        _check_shard(folder / shard)


def _check_shard(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            pass
    except FileNotFoundError as error:
        raise ModelError("a weight file is missing", where=str(path), code="broken_weights", fix=_AGAIN) from error
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the weight file is damaged or cut short ({error})", where=str(path), code="broken_weights", fix=_AGAIN
        ) from error


_AGAIN = "Download or copy it again"


def _no_weights(folder: Path, name: str) -> ModelError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"only pickled weights here ({pickles[0]}), and opening those can run any code",
            where=str(folder),
            code="pickle_weights",
            fix="Use a model in safetensors format, or convert it where you trust it",
        )
    return ModelError(f"no {name}.safetensors here", where=str(folder), code="no_weights", fix=_AGAIN)


def looks_local(text: str) -> bool:
    """Whether a name that does not exist was meant as a path: hub ids are `name` or `owner/name`."""
    return text.startswith((".", "/", "~", "\\")) or text.count("/") > 1 or (os.sep != "/" and os.sep in text)


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} does not exist either; give a model folder or a hub id"
    names = sorted(below.name for below in path.parent.iterdir() if below.is_dir())
    close = difflib.get_close_matches(path.name, names, n=3)
    return f"Did you mean {', '.join(close)}?" if close else "Give a model folder or a hub id"


def _from_hugging_face(config: ModelConfig, files: list[str]) -> str:
    # Imported here: a local folder needs no hub.
    from huggingface_hub import errors, snapshot_download

    try:
        return snapshot_download(config.path, revision=config.revision, allow_patterns=files)
    except errors.HFValidationError as error:
        raise ModelError("neither a folder nor a hub id", where=config.path, code="no_model") from error
    except errors.HfHubHTTPError as error:
        raise _refused(config, "Hugging Face", error) from error
    except (errors.HTTPError, OSError) as error:
        raise _unreachable(config, "Hugging Face", error) from error


def _from_modelscope(config: ModelConfig, files: list[str]) -> str:
    try:
        from modelscope import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("modelscope", "hub", what_for=f"downloading {config.path} from ModelScope") from error
    try:
        return snapshot_download(config.path, revision=config.revision, allow_patterns=files)
    # The package documents no errors of its own and lets those of several HTTP libraries through.
    except Exception as error:
        raise _unreachable(config, "ModelScope", error) from error


def _refused(config: ModelConfig, hub: str, error: Exception) -> ModelError:
    return ModelError(
        f"{hub} did not give out this model ({first_line(error)})",
        where=config.path,
        code="no_model",
        fix="Check the id and revision; for gated models log in first. A local folder needs its full path",
    )


def _unreachable(config: ModelConfig, hub: str, error: Exception) -> ModelError:
    return ModelError(
        f"no such folder, and {hub} cannot be reached ({first_line(error)})",
        where=config.path,
        code="hub_unreachable",
        fix="Download the model where there is a network and give its folder",
    )


def first_line(error: Exception) -> str:
    """The start of a library's error, to quote in ours."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
