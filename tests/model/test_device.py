"""Words for devices, on machines with any number of GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from luthier.base.errors import ConfigError
from luthier.cli.app import main
from luthier.model.device import device_of


def with_gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("named", "gpus", "local", "found"),
    [
        ("auto", 0, None, "cpu"),
        ("auto", 0, 3, "cpu"),
        ("cpu", 2, None, "cpu"),
        ("auto", 2, None, "cuda:0"),
        ("cuda", 2, 1, "cuda:1"),
        ("cuda:1", 2, None, "cuda:1"),
    ],
)
def test_a_name_is_a_device(
    named: str, gpus: int, local: int | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(gpus, monkeypatch)
    assert device_of(named, local) == torch.device(found)


@pytest.mark.parametrize(
    ("named", "gpus", "local", "said"),
    [
        ("gpu", 2, None, "unknown device 'gpu'"),
        ("cuda:", 2, None, "unknown device 'cuda:'"),
        ("cuda:x", 2, None, "unknown device 'cuda:x'"),
        ("cpu:0", 2, None, "unknown device 'cpu:0'"),
        ("", 2, None, "unknown device ''"),
        ("cuda", 0, None, "no CUDA device is visible"),
        ("cuda:2", 2, None, "2 CUDA devices are visible, so there is no cuda:2"),
        ("cuda:1", 1, None, "1 CUDA device is visible, so there is no cuda:1"),
        ("auto", 2, 2, "2 CUDA devices are visible, which is too few for 3 processes or more"),
    ],
)
def test_what_is_no_device_here_is_said(
    named: str, gpus: int, local: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(gpus, monkeypatch)
    with pytest.raises(ConfigError, match=f"--device: {re.escape(said)}") as caught:
        device_of(named, local)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["deploy", "--model", "nano", "--port", "0"],
        ["eval", "--model", "nano", "--eval_dataset", "rows.jsonl"],
        ["export", "--model", "nano", "--quant_method", "hqq", "--quant_bits", "4", "--output_dir", "out"],
        ["infer", "--model", "nano"],
    ],
    ids=lambda words: words[0],
)
def test_commands_that_use_a_model_say_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gpus(0, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "response": "b"}\n')
    assert main([*words, "--device", "cuda"]) == 2
    assert "--device: no CUDA device is visible" in capsys.readouterr().err
