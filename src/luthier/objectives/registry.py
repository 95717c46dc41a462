"""From the settings of an objective to the objective; a new one adds its line here."""

from __future__ import annotations

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
