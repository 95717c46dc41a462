"""What is no adapter is said in the same words wherever one is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.base.errors import ModelError
from luthier.model.adapterfile import adapter_folder
from luthier.model.config import ModelConfig
from luthier.run.result import find


def test_what_is_no_adapter(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    whole = str(tiny_model_dir())
    for folder, told in ((whole, "a whole model here, no adapter"), (str(tmp_path), r"no adapter_config\.json here")):
        with pytest.raises(ModelError, match=told) as trained:
            adapter_folder(ModelConfig(path=whole), folder)
        with pytest.raises(ModelError, match=told) as used:
            find(ModelConfig(adapters=(folder,)))
        assert str(trained.value) == str(used.value) and used.value.code == "no_adapter"


def test_an_adapter_that_is_not_there_or_names_no_base(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such adapter or run"):
        find(ModelConfig(adapters=(str(tmp_path / "nowhere"),)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError, match="names no base model"):
        find(ModelConfig(adapters=(str(tmp_path),)))
