"""Our models as models of lm-evaluation-harness, so that its tasks run on them."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.base.errors import ConfigError, DataError, MissingExtra
from luthier.base.records import Json, Message
from luthier.evaluate.continuations import Asked
from luthier.evaluate.likelihood import likelihood
from luthier.evaluate.subject import Subject
from luthier.evaluate.task import Score
from luthier.generate.config import SamplingConfig

_LONGEST = 256
"""Tokens of an answer whose task names no limit, as the harness's own models have it."""


def run_tasks(
    subject: Subject, tasks: Sequence[str], *, shots: int | None, limit: int | None, further: str | None
) -> tuple[list[Score], dict[str, Json]]:
    """Run tasks of the harness; every score, and its results as it gives them.

    Args:
        shots: worked examples; None leaves them to the task.
        limit: questions of each task, the first ones.
        further: folder with more tasks.

    Raises:
        ConfigError: a task is not known.
        DataError: its data cannot be had.
        MissingExtra: lm_eval is not installed.
    """
    try:
        lm_eval: Any = importlib.import_module("lm_eval")
        manager: Any = importlib.import_module("lm_eval.tasks").TaskManager(include_path=further)
    except ImportError as error:
        raise MissingExtra("lm_eval", "lm_eval", what_for="--eval_backend lm_eval") from error
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        fix = "lm_eval --tasks list shows them; --tasks_path names a folder with more"
        raise ConfigError(f"lm_eval knows no task {unknown[0]!r}", where="--eval_dataset", fix=fix)
    try:
        found: Any = lm_eval.simple_evaluate(
            model=_model(subject),
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            apply_chat_template=subject.chat,
            system_instruction=subject.system if subject.chat else None,
            fewshot_as_multiturn=subject.chat,
            bootstrap_iters=0,
            log_samples=False,
            verbosity=None,
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"the data of a task cannot be had: {error}",
            where=f"--eval_dataset {' '.join(tasks)}",
            fix="lm_eval fetches it from the Hugging Face hub once; or name a task of your own files with --tasks_path",
            code="no_data",
        ) from error
    rows: list[Score] = []
    for task, values in found["results"].items():
        count = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in values.items():
            name, _, kind = key.partition(",")
            if isinstance(value, float | int) and not name.endswith("_stderr") and kind:
                rows.append(Score(task, name, kind, count, float(value)))
    plain: dict[str, Json] = {
        task: {k: v if isinstance(v, str) else float(v) for k, v in values.items() if isinstance(v, str | int | float)}
        for task, values in found["results"].items()
    }
    return rows, plain


def _model(subject: Subject) -> Any:
    """The harness's view of a subject; its class exists only where the harness does."""
    template: Any = importlib.import_module("lm_eval.api.model").TemplateLM
    tokenizer = subject.renderer.tokenizer

    class Ours(template):
        """Likelihoods and answers of a subject."""

        @property
        def eot_token_id(self) -> int:
            return int(str(tokenizer.eos_token_id))

        @property
        def tokenizer_name(self) -> str:
            return subject.name

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            special = not subject.chat if add_special_tokens is None else add_special_tokens
            return list(tokenizer(string, add_special_tokens=special, verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                text = tokenizer.apply_chat_template(
                    chat_history, tokenize=False, continue_final_message=True, chat_template=subject.renderer.template
                )
                return str(text)
            turns = [Message(turn["role"], turn["content"]) for turn in chat_history]  # pyright: ignore[reportArgumentType]
            return tokenizer.decode(subject.renderer.prompt(turns), clean_up_tokenization_spaces=False)  # pyright: ignore[reportReturnType]

        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = False, **kwargs: Any
        ) -> list[tuple[float, bool]]:
            asked = [
                Asked(tuple(prompt) or (self.prefix_token_id,), (tuple(answer),)) for _, prompt, answer in requests
            ]
            found = subject.scorer.score(_grouped(asked))
            by_prompt: dict[tuple[Any, Any], tuple[float, bool]] = {}
            for group, one in zip(_grouped(asked), found, strict=True):
                for option, logprob, greedy in zip(group.options, one.logprobs, one.greedy, strict=True):
                    by_prompt[group.prompt, option] = logprob, greedy
            return [by_prompt[one.prompt, one.options[0]] for one in asked]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            # A first token behind nothing costs log2(vocabulary) bits here; the harness puts the end of text before it.
            texts = [request.args[0] for request in requests]
            found = [likelihood(subject.model, subject.renderer, [t], batch_tokens=subject.batch_tokens) for t in texts]
            return [-one.nats for one in found]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            # Requests that are to be answered alike are answered together.
            alike: dict[str, tuple[SamplingConfig, list[int]]] = {}
            for number, request in enumerate(requests):
                sampling = _sampling(subject, request.args[1])
                alike.setdefault(sampling.model_dump_json(), (sampling, []))[1].append(number)
            answers: dict[int, str] = {}
            for sampling, numbers in alike.values():
                room = max(1, subject.max_length - sampling.max_new_tokens)
                prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
                found = subject.sampler.generate(prompts, sampling)
                answers.update((number, one.text) for number, one in zip(numbers, found, strict=True))
            return [answers[number] for number in range(len(requests))]

    return Ours()


def _sampling(subject: Subject, wish: Mapping[str, Any]) -> SamplingConfig:
    """How the harness wants a request answered."""
    until = wish.get("until", [])
    return subject.sampling.model_copy(
        update={
            "stop": tuple(text for text in ([until] if isinstance(until, str) else until) if text),
            "max_new_tokens": int(wish.get("max_gen_toks", wish.get("max_new_tokens", _LONGEST))),
            "temperature": float(wish.get("temperature", 0.0)) if wish.get("do_sample") else 0.0,
        }
    )


def _grouped(asked: Sequence[Asked]) -> list[Asked]:
    """Requests with the same prompt as one question with several options, each option once."""
    options: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for one in asked:
        options.setdefault(one.prompt, {})[one.options[0]] = None
    return [Asked(prompt, tuple(found)) for prompt, found in options.items()]
