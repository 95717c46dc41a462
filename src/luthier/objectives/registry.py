"""From the settings of an objective to the objective; a new one adds its line here."""

from __future__ import annotations

from dataclasses import replace

from luthier.model.architecture import check_head
from luthier.objectives import config as kinds
from luthier.objectives.config import Objective, One, Pretrain, SeqCls, Sft, TokenCls, overlong
from luthier.objectives.setting import Learnable, Part, Setting, Whole


def parts_of(config: Objective, setting: Setting) -> tuple[Part, ...]:
    """The objectives that the settings name, each with its data: one without a name, or several.

    Raises:
        ConfigError, DataError, ModelError: settings, data and model do not go together.
    """
    if not isinstance(config, kinds.Multi):
        return (Part("", build(config, setting), setting.data),)
    parts: list[Part] = []
    for name, task in config.tasks.items():
        assert task.objective is not None, "what the rows are for is found out when the config is read"
        cut = setting.data.overlong or overlong(task.objective)
        own = {"datasets": task.datasets, "validation": task.validation, "overlong": cut}
        data = setting.data.model_copy(update=own)
        parts.append(Part(name, build(task.objective, replace(setting, data=data)), data, task.ratio))
    return tuple(parts)


def whole(config: Objective, parts: tuple[Part, ...]) -> Whole:
    """What a run learns: its only part, or all of them."""
    if not isinstance(config, kinds.Multi):
        return parts[0].objective
    from luthier.objectives.multi import Multi

    return Multi(parts, tuple(task.weight for task in config.tasks.values()))


def build(config: One, setting: Setting) -> Learnable:
    """The objective that the settings name.

    Raises:
        ConfigError, DataError, ModelError: settings, data and model do not go together.
    """
    if isinstance(config, Pretrain | Sft | kinds.Distill | kinds.GenerativeRerank):
        check_head(setting.model, "causal")  # before its template is looked for, which only language models have
    match config:
        case Pretrain() | Sft():
            from luthier.objectives.language import Language

            return Language(config, setting.renderer)
        case SeqCls():
            from luthier.objectives.classes import classification

            return classification(config, setting)
        case TokenCls():
            from luthier.objectives.tag import tagging

            return tagging(config, setting)
        case kinds.Mlm():
            from luthier.objectives.masked import masked

            return masked(config, setting)
        case kinds.SpanCorruption():
            from luthier.objectives.spans import spans

            return spans(config, setting)
        case kinds.Seq2Seq():
            from luthier.objectives.seq2seq import seq2seq

            return seq2seq(config, setting)
        case kinds.Embed():
            from luthier.objectives.embedding import embedding

            return embedding(config, setting)
        case kinds.Rerank():
            from luthier.objectives.reranking import reranking

            return reranking(config, setting)
        case kinds.GenerativeRerank():
            from luthier.objectives.reranking import yes_or_no

            return yes_or_no(config, setting)
        case kinds.Distill():
            from luthier.objectives.distil import distillation

            return distillation(config, setting)
