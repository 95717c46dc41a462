"""Answers that fit a JSON schema, a regular expression or a grammar, through llguidance."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from luthier.base.errors import DataError, MissingExtra
from luthier.generate.request import Form

_MOST_TEXT = 2**16
"""Characters of a schema or pattern; larger ones take long to compile."""


class Matcher:
    """Follows one answer, and says which tokens may come next."""

    def __init__(self, matcher: Any, vocabulary: int):
        self._matcher = matcher
        self._bits = torch.zeros((vocabulary + 31) // 32, dtype=torch.int32)
        self._shift = torch.arange(32, dtype=torch.int32)
        self._vocabulary = vocabulary

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed_V(self) -> Tensor:
        """bool [V]: the tokens that may come next."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.nbytes)
        spread = (self._bits[:, None] >> self._shift) & 1
        return spread.flatten()[: self._vocabulary].bool()

    def take(self, token: int) -> None:
        """Follow the answer over one token."""
        self._matcher.consume_token(token)


class Forms:
    """Compiles forms for one tokenizer.

    Raises (each method):
        MissingExtra: llguidance is not installed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, stop_ids: Collection[int]):
        self._made_of = tokenizer, vocabulary, sorted(stop_ids)
        self._tokenizer: Any = None

    def matcher(self, form: Form) -> Matcher:
        """A follower for one answer.

        Raises:
            DataError: the schema, expression or grammar is wrong, or not supported.
        """
        try:
            from llguidance import JsonCompiler, LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise MissingExtra("llguidance", "structured", what_for="Structured output") from error
        if len(form.text) > _MOST_TEXT:
            raise DataError(f"longer than {_MOST_TEXT:,} characters", where=form.kind, code="bad_form")
        tokenizer, vocabulary, stop_ids = self._made_of
        try:
            if self._tokenizer is None:
                self._tokenizer = from_tokenizer(tokenizer, vocabulary, stop_ids or None)
            if form.kind == "json":
                # Compact, since a model that may write blanks for ever sometimes does.
                schema = json.loads(form.text)
                grammar = JsonCompiler(separators=(", ", ": "), whitespace_flexible=False).compile(json.dumps(schema))
            elif form.kind == "regex":
                grammar = LLMatcher.grammar_from_regex(form.text)
            else:
                grammar = LLMatcher.grammar_from_lark(form.text)
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        except (ValueError, RuntimeError, RecursionError) as error:
            raise _wrong(form, str(error)) from error
        if matcher.is_error():
            raise _wrong(form, matcher.get_error())
        return Matcher(matcher, vocabulary)


def _wrong(form: Form, why: str) -> DataError:
    kind = {"json": "JSON schema", "regex": "regular expression", "lark": "grammar"}[form.kind]
    return DataError(f"the {kind} cannot be used: {' '.join(why.split())[:300]}", code="bad_form")
