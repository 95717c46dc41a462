"""From the settings of an objective to the objective; a new one adds its line here."""

from __future__ import annotations

from luthier.objectives import config as kinds
from luthier.objectives.config import Objective, Pretrain, SeqCls, Sft, TokenCls
from luthier.objectives.setting import Learnable, Setting


def build(config: Objective, setting: Setting) -> Learnable:
    """The objective that the settings name.

    Raises:
        ConfigError, DataError, ModelError: settings, data and model do not go together.
    """
    match config:
        case Pretrain() | Sft():
            from luthier.objectives.language import Language

            return Language(config, setting.renderer)
        case SeqCls():
            from luthier.objectives.classify import classification

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
