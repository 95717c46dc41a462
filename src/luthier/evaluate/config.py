"""Settings of evaluation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.base.config import Config, Named
from luthier.base.endpoint import EndpointConfig
from luthier.generate.config import Backend, EngineConfig, SamplingConfig
from luthier.model.config import ModelConfig

Method = Literal["likelihood", "generation"]


class SetConfig(Config):
    """How one data set is read and asked, as `--dataset_args` gives it."""

    local_path: Named | None = None
    """File or folder. Unset: the set's usual place below --data_root."""
    subset_list: tuple[str, ...] = ()
    """Parts to evaluate. Unset: all that are there."""
    split: str | None = None
    """Part of the data by its name in files, for example test. Unset: the usual one."""
    few_shot_num: int = Field(default=0, ge=0)
    """Worked examples in front of each question."""
    limit: int | None = Field(default=None, ge=1)
    """Questions of each subset, the first ones. Unset: --eval_limit."""
    method: Method | None = None
    """How options are chosen: by their likelihood, or read from a generated answer. Unset: --method."""
    options_as: Literal["letter", "text"] = "letter"
    """The options are shown and their letters scored, or not shown and their texts scored."""
    prompt_template: str | None = None
    """Text around the question, with {question}, {choices}, {letters}, {context} where the set has them."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a generated answer. Unset: what the set needs."""
    metric_list: tuple[str, ...] = ()
    """Metrics to report. Unset: all."""


class JudgeConfig(Config):
    """A model behind an endpoint that judges generated answers."""

    by: Literal["none", "rubric", "pairwise"] = "none"
    """Give each answer a score from 1 to 10, or say which of two answers is better: that of --compare, else the
    reference."""
    rubric: str = "correct, complete, clear, and no longer than it needs to be"
    """What a good answer is."""
    endpoint: EndpointConfig = EndpointConfig()
    """The judge."""


class EvalConfig(Config):
    """Evaluating a model."""

    model: ModelConfig = ModelConfig()
    """The model; with adapters of a run its base, template and system message come from the run."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are chosen."""
    judge: JudgeConfig = JudgeConfig()
    """A model behind an endpoint that judges generated answers."""
    eval_dataset: tuple[Named, ...] = ()
    """Data sets: general_mcq, general_qa, classification, perplexity, retrieval, similarity, reranking, mmlu, arc,
    obqa, boolq, gaokao, gsm8k, cmrc, drcd, xquad, squad; or a file or folder; with lm_eval its tasks. A model that was
    trained to classify, tag, embed or rerank takes rows as for training: classification, tagging, similarity,
    reranking."""
    dataset_args: dict[str, Any] = {}
    """Settings by data set: local_path, subset_list, split, few_shot_num, limit, method (likelihood, generation),
    options_as (letter, text), prompt_template, max_new_tokens, metric_list."""
    data_root: Named | None = None
    """Folder in which the known sets lie in their usual places."""
    eval_limit: int | None = Field(default=None, ge=1)
    """Questions of each subset, the first ones. Unset: all."""
    few_shot_num: int = Field(default=0, ge=0)
    """Worked examples in front of each question."""
    method: Method = "likelihood"
    """How options are chosen: by their likelihood, or read from a generated answer."""
    apply_chat_template: bool | None = None
    """Ask through the chat template, or as plain text. Unset: through it where the model brings one."""
    system: str | None = None
    """System message. Unset: the one the model was trained with, if any."""
    compare: Named | None = None
    """A second model to compare with, as it was before: a folder, hub id or run; base means without the adapters."""
    eval_backend: Literal["Native", "lm_eval"] = "Native"
    """Luthier's own evaluation, or tasks of lm-evaluation-harness."""
    tasks_path: Named | None = None
    """Folder with further tasks for lm_eval."""
    backend: Backend = "transformers"
    """What runs the model; pt is another name for transformers, the others are started as processes and answer
    questions: multiple choice with --method generation."""
    engine: EngineConfig = EngineConfig()
    """With --infer_backend vllm, sglang or lmdeploy: its process."""
    eval_url: Named | None = None
    """Address of an OpenAI-compatible server, like http://127.0.0.1:8000/v1, whose model is asked in place of one that
    is opened here; --model and --compare are names of its models."""
    eval_key_env: str = "OPENAI_API_KEY"
    """With --eval_url: environment variable with its key; a server without keys needs none."""
    eval_batch_size: int = Field(default=16, ge=1, le=256)
    """Answers generated at once; with --eval_url, requests under way."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens scored at once."""
    output_dir: Named = "eval_output"
    """Folder for results; what is there already is not computed again."""
    device: str = "auto"
    """cpu, cuda, or auto."""
