"""Secrets are hidden where text is written, and found in settings without taking ordinary words for them."""

from __future__ import annotations

import pytest

from luthier.base.secrets import redact, secrets_in

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        ({"a": {"b": TOKEN}}, ["a.b"]),
        ({"sets": ["x", "https://me:pw@host/x"]}, ["sets"]),
        ({"args": {"api_key": "0123456789abcdef"}}, ["args.api_key"]),
        ({"columns": {"key": "question", "token": "answer"}}, []),
        ({"sets": ["sk-learn-questions-and-answers", "hf_datasets_of_2026", "git@host:a/b"]}, []),
        ({"n": 3, "none": None, "path": "/data/token"}, []),
    ],
)
def test_what_is_a_secret_in_settings(tree: dict[str, object], found: list[str]) -> None:
    assert secrets_in(tree) == found


def test_values_of_the_environment_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets_in({"a": ["say open sesame now"]}) == []
    monkeypatch.setenv("DOOR_PASSWORD", "open sesame now")
    assert secrets_in({"a": ["say open sesame now"]}) == ["a"]
    assert redact("say open sesame now") == "say ***"
    assert redact(f"with {TOKEN} at https://me:pw@host/x") == "with *** at https://***@host/x"
