"""Settings that complete and contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.model.config import Quant


@pytest.mark.parametrize(
    ("given", "method", "bits"),
    [
        ({}, None, None),
        ({"bits": 8}, "bnb", 8),
        ({"method": "bnb"}, "bnb", 4),
        ({"method": "hqq", "bits": None}, "hqq", 4),
        ({"method": "eetq"}, "eetq", 8),
        ({"method": "none", "bits": 4}, "none", 4),
    ],
)
def test_half_a_setting_is_completed(given: dict[str, Any], method: str | None, bits: int | None) -> None:
    quant = Quant.model_validate(given)
    assert (quant.method, quant.bits) == (method, bits)
    assert quant.on is (method in ("bnb", "hqq", "eetq"))
    assert Quant.model_validate(quant.model_dump()) == quant


@pytest.mark.parametrize(("method", "bits"), [("bnb", 3), ("bnb", 2), ("hqq", 1), ("eetq", 4), (None, 16)])
def test_bits_that_a_library_does_not_have(method: str | None, bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits, not in {bits}"):
        Quant.model_validate({"method": method, "bits": bits})
