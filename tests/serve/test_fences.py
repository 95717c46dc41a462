"""Who gets in: keys, names of the host, paths (X1), and what never gets out (X3)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from serving import Kitchen, ask, run

from luthier.base.errors import ConfigError
from luthier.serve.keys import read_keys
from luthier.serve.server import build

KEY = "violin-secret-0123456789"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 1}
ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/score"),
    ("POST", "/classify"),
    ("POST", "/v1/classify"),
    ("POST", "/v1/tag"),
    ("POST", "/pooling"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/v1/adapters"),
    ("GET", "/v1/adapters"),
    ("DELETE", "/v1/adapters/x"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def kitchen(tiny_model_dir: Callable[..., Path]) -> Kitchen:
    return Kitchen(tiny_model_dir("qwen2"))


def test_every_route_needs_the_key(kitchen: Kitchen) -> None:
    app = kitchen.app(api_key=KEY)
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong-key-0123456789"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": "Bearer é\udcff"},
        {"x-api-key": KEY},
    ]
    for method, path in ROUTES:
        for headers in wrong:
            reply = run(lambda: ask(app, method, path, CHAT, headers))  # noqa: B023
            assert reply.status == 401 and reply.error["code"] == "invalid_api_key", (path, headers)
            assert KEY.encode() not in reply.body
    right = {"authorization": f"Bearer {KEY}"}
    assert run(lambda: ask(app, "POST", "/v1/chat/completions", CHAT, right)).status == 200
    for path in ("/health/live", "/health/ready"):
        assert run(lambda: ask(app, "GET", path)).status == 200  # noqa: B023


def test_other_paths_lead_nowhere(kitchen: Kitchen) -> None:
    for app, headers, expected in (
        (kitchen.app(api_key=KEY), {}, 401),
        (kitchen.app(api_key=KEY), {"authorization": f"Bearer {KEY}"}, 404),
        (kitchen.app(), {}, 404),
    ):
        for path in ("//v1/models", "/v1/../metrics", "/v1/models/", "/health/live/../../metrics", "/health/ready/", "/V1/models", "/docs", "/openapi.json", "/", "", "/v1/%2e%2e/metrics", "/health/live%00", "/../etc/passwd"):  # noqa: E501  # fmt: skip
            reply = run(lambda: ask(app, "GET", path, headers=headers))  # noqa: B023
            assert reply.status == expected and reply.error, path
    assert run(lambda: ask(kitchen.app(), "PUT", "/v1/models")).status == 405


def test_only_the_servers_own_names_in_the_host_header(kitchen: Kitchen) -> None:
    app = kitchen.app()
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost@evil",
        "",
        "[::2]:80",
        "127.0.0.1, x",
    ):
        reply = run(lambda: ask(app, "GET", "/health/live", host=host))  # noqa: B023
        assert reply.status == 403 and reply.error["code"] == "bad_host", host
    for host in ("127.0.0.1", "127.0.0.1:8000", "LocalHost:1", "[::1]:8000", "[::1]"):
        assert run(lambda: ask(app, "GET", "/health/live", host=host)).status == 200, host  # noqa: B023
    named = kitchen.app(allowed_hosts=("models.example",))
    assert run(lambda: ask(named, "GET", "/health/live", host="models.example:443")).status == 200
    assert run(lambda: ask(named, "GET", "/health/live", host="localhost")).status == 403


def test_keys_have_scopes_and_are_held_as_hashes(kitchen: Kitchen, tmp_path: Path) -> None:
    def digest(key: str) -> str:
        return hashlib.sha256(key.encode()).hexdigest()

    file = tmp_path / "keys"
    file.write_text(
        f"# who may\n{digest('user-key')} use alice\n{digest('admin-key')} use,admin\n{digest('watch-key')} metrics\n"
    )
    app = kitchen.app(api_keys=str(file))

    def status(key: str, method: str, path: str, body: Any = b"") -> int:
        return run(lambda: ask(app, method, path, body, {"authorization": f"Bearer {key}"})).status

    assert status("user-key", "POST", "/v1/chat/completions", CHAT) == 200
    assert status("user-key", "GET", "/metrics") == 403
    assert status("user-key", "POST", "/v1/adapters", {"name": "x"}) == 403
    assert status("user-key", "DELETE", "/v1/adapters/x") == 403
    assert status("watch-key", "GET", "/metrics") == 200
    assert status("watch-key", "POST", "/v1/chat/completions", CHAT) == 403
    assert status("admin-key", "POST", "/v1/adapters", {"name": "x"}) == 404
    assert status(digest("user-key"), "GET", "/v1/models") == 401
    for text in ("plain-key use", f"{digest('x')} root", "# none"):
        file.write_text(text)
        with pytest.raises(ConfigError):
            read_keys("127.0.0.1", None, str(file), {})


def test_a_public_address_needs_a_key(kitchen: Kitchen) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="without a key"):
            read_keys(host, None, None, {})
        assert read_keys(host, KEY, None, {}).needed
        assert read_keys(host, None, None, {"LUTHIER_API_KEY": KEY}).needed
    for key in ("short", " padded-key "):
        with pytest.raises(ConfigError, match="8 characters"):
            read_keys("127.0.0.1", key, None, {})


def test_what_nobody_foresaw_tells_nothing(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    app = kitchen.app(api_key=KEY, log_requests=True)

    def listed(*_: Any) -> Any:
        raise ValueError(f"the secret is {KEY}")

    monkeypatch.setattr(type(kitchen.voices), "listed", listed)
    reply = run(
        lambda: ask(app, "GET", "/v1/models", headers={"authorization": f"Bearer {KEY}", "x-request-id": "mine-1"})
    )
    assert reply.status == 500 and reply.error["code"] == "bug" and reply.headers["x-request-id"] == "mine-1"
    said = capfd.readouterr()
    assert "mine-1: ValueError at" in said.err and "mine-1 GET /v1/models 500" in said.err
    assert KEY not in said.err + said.out + reply.body.decode()
    evil = run(lambda: ask(app, "GET", "/health/live", headers={"x-request-id": "a\nb"}))
    assert evil.headers["x-request-id"].startswith("req-")


def test_names_of_adapters_are_names(kitchen: Kitchen, tmp_path: Path) -> None:
    from luthier.cli.deploy import adapters_in
    from luthier.serve.voices import Voices

    (tmp_path / "adapters" / "poet").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "adapters" / "escape").symlink_to(tmp_path / "outside")
    assert list(adapters_in(str(tmp_path / "adapters"))) == ["poet"]
    base = (kitchen.voices.base, kitchen.voices.find("tiny")[0])
    for name in ("../x", "", ".hidden", "a b", "x" * 200, "tiny"):
        with pytest.raises(ConfigError):
            Voices(kitchen.engine, base, {name: tmp_path}, lambda path: base[1])


def test_the_whole_application_needs_no_network(kitchen: Kitchen) -> None:
    with pytest.raises(ConfigError, match="without a key"):
        from luthier.generate.config import SamplingConfig
        from luthier.serve.config import ServerConfig

        build(kitchen.engine, kitchen.voices, ServerConfig(host="0.0.0.0"), SamplingConfig())
