"""Personal data: what is found, and what looks like it and is not."""

from __future__ import annotations

import pytest

from luthier.prepare.personal import find, is_chinese_id, luhn, mask


def kinds(text: str) -> list[tuple[str, str]]:
    return [(finding.kind, text[finding.start : finding.end]) for finding in find(text)]


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("write to li.wei+x@mail.example.com.cn, please", "email", "li.wei+x@mail.example.com.cn"),
        ("邮箱是zhang_san@163.com谢谢", "email", "zhang_san@163.com"),
        ("打13812345678找我", "phone", "13812345678"),
        ("+86 138-1234-5678", "phone", "+86 138-1234-5678"),
        ("电话010-62345678。", "phone", "010-62345678"),
        ("call (415) 555-2671 now", "phone", "(415) 555-2671"),
        ("call +44 20 7946 0958", "phone", "+44 20 7946 0958"),
        ("text 08452810075over18's", "phone", "08452810075"),
        ("身份证11010519491231002X号", "id_number", "11010519491231002X"),
        ("SSN 219-09-9999", "id_number", "219-09-9999"),
        ("card 4111 1111 1111 1111.", "card", "4111 1111 1111 1111"),
        ("卡号6222600260001072444", "card", "6222600260001072444"),
        ("from 203.0.113.7x or 93.184.216.34:80", "ip", "93.184.216.34"),
        ("at 2606:4700:4700::1111 today", "ip", "2606:4700:4700::1111"),
        ("see https://example.com/a_(b)?q=1, then", "url", "https://example.com/a_(b)?q=1"),
        ("访问www.example.cn。再见", "url", "www.example.cn"),
        ("key sk-abcdefghijklmnop1234", "secret", "sk-abcdefghijklmnop1234"),
        ("AKIAIOSFODNN7EXAMPLE", "secret", "AKIAIOSFODNN7EXAMPLE"),
    ],
)
def test_found(text: str, kind: str, found: str) -> None:
    assert kinds(text) == [(kind, found)]


@pytest.mark.parametrize(
    "text",
    [
        "110105194912310021",  # wrong checksum
        "11010519491331002X",  # a thirteenth month
        "4111 1111 1111 1112",  # fails Luhn
        "0000 0000 0000 0000",
        "pi is 3.14159265358979 and 13812345678.5",
        "version 1.2.3.4, local 192.168.0.1 and 127.0.0.1, 999.1.1.10",
        "order 1234567890123, year 2024-01-15, 12:30:45",
        "user@localhost, a@b, @name",
        "std::vector<int>::iterator",
        "100 200 300 400",
    ],
)
def test_not_found(text: str) -> None:
    assert kinds(text) == []


def test_checksums() -> None:
    assert luhn("79927398713") and not luhn("79927398710")  # the example of ISO/IEC 7812-1
    assert is_chinese_id("11010519491231002X") and is_chinese_id("11010519491231002x")  # the example of GB 11643


def test_masking() -> None:
    text = "邮箱a@b.com，电话13812345678"
    assert mask(text, find(text)) == "邮箱<EMAIL>，电话<PHONE>"
    assert mask(text, find(text, ("phone",)), "[{kind}]") == "邮箱a@b.com，电话[PHONE]"
    assert mask(
        "https://user:pass1234word@example.com/x", find("https://user:pass1234word@example.com/x", ("secret",))
    ) == ("https://<SECRET>@example.com/x")


def test_long_runs_take_no_long_time() -> None:
    for text in ("a" * 200_000 + "@", "1" * 200_000, "1 " * 100_000, ":" * 200_000, "a." * 100_000, "(0" * 100_000):
        find(text)
