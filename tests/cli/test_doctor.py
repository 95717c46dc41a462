import json

import pytest

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.cli import doctor as room
from luthier.cli.doctor import DoctorConfig, Finding, doctor, machine, versions


def test_doctor_reports_versions_and_devices(capsys):
    doctor(DoctorConfig(), Console())
    out = capsys.readouterr().out
    for word in ("torch", "transformers", "memory", "cpu", "cache", "bitsandbytes"):
        assert word in out


def test_doctor_for_programs(capsys):
    doctor(DoctorConfig(), Console(json=True))
    facts = json.loads(capsys.readouterr().out)
    assert facts["healthy"] is True
    assert {finding["about"] for finding in facts["versions"]} >= {"python", "torch", "peft"}


def test_a_missing_or_untested_package_is_named_with_its_command(monkeypatch):
    real = room.metadata.version

    def version(name):
        if name == "peft":
            raise room.metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    monkeypatch.setattr(room.metadata, "version", version)
    found = {finding.about: finding for finding in versions()}
    assert found["peft"].verdict == "problem"
    assert found["peft"].fix.startswith("pip install 'peft")
    assert "1.0, tested with" in found["torch"].found
    assert found["transformers"].verdict == "ok"
    with pytest.raises(ConfigError, match="peft: not installed") as caught:
        doctor(DoctorConfig(), Console(quiet=True))
    assert caught.value.code == "unhealthy"


def test_an_unwritable_cache_is_a_problem(monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", "/proc/luthier")
    monkeypatch.setattr(room.os, "access", lambda path, mode: "proc" not in str(path))
    cache = next(finding for finding in machine() if finding.about == "cache")
    assert cache.verdict == "problem"
    assert "LUTHIER_CACHE" in cache.fix


def test_hubs_are_asked_only_when_wanted(monkeypatch, capsys):
    monkeypatch.setattr(room, "hubs", lambda: [Finding("modelscope", "cannot be reached", "optional")])
    doctor(DoctorConfig(), Console())
    assert "modelscope  " not in capsys.readouterr().out.split("Optional")[0]
    doctor(DoctorConfig(online=True), Console())
    assert "Hubs" in capsys.readouterr().out


def test_an_unreachable_hub_is_no_problem(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(room.urllib.request, "urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    assert {finding.verdict for finding in room.hubs()} == {"optional"}
