"""The command `luthier studio`: refused where it must be, fast where nothing is served."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.base.console import Console
from luthier.base.errors import ConfigError, MissingExtra
from luthier.cli.app import main
from luthier.studio import app
from luthier.studio.config import StudioConfig


def test_a_public_address_without_a_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LUTHIER_API_KEY", raising=False)
    assert main(["studio", "--host", "0.0.0.0"]) == 2
    assert "without a key" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(app, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"'nicegui'.*pip install 'luthier\[studio\]'"):
        app.studio(StudioConfig(), Console(quiet=True))


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        app.studio(StudioConfig(root=(str(tmp_path / "none"),)), Console(quiet=True))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_who_asks_it_to_end_gets_exit_code_0(signum: signal.Signals, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "luthier", "studio", "--port", "0", "--root", str(tmp_path), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["url"].startswith("http://127.0.0.1:")
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["text"] == "Stopped"


def test_help_and_pages_load_no_tensors() -> None:
    code = (
        "import sys; from luthier.cli.app import main; main(['studio', '-h']); assert 'nicegui' not in sys.modules; "
        "import luthier.studio.pages; assert not {'torch', 'transformers', 'daft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--root" in done.stdout
