"""From the settings and the rows of a set to the objective: which classes there are, and what each weighs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Labelled
from luthier.data.survey import Labels, labels_of
from luthier.model.heads import own_labels
from luthier.objectives.classify import Classification, Problem
from luthier.objectives.config import SeqCls
from luthier.objectives.setting import Setting
from luthier.objectives.weights import WHERE, class_weights


def classification(config: SeqCls, setting: Setting) -> Classification:
    """The objective for a set: its labels are surveyed where they were not named.

    Raises:
        ConfigError: settings that contradict each other or the data.
        DataError: a set cannot be opened, or has no label.
    """
    found = labels_of(record.label for record in setting.records("classification") if isinstance(record, Labelled))
    problem = config.problem_type or _problem(config, found)
    names = ("value",) if problem == "regression" else _names(config, found, setting)
    if problem == "regression" and config.num_labels not in (None, 1):
        raise ConfigError("a row has one number to predict", where="--num_labels", fix="Set it to 1")
    if problem == "regression" and (config.focal_gamma or config.label_smoothing):
        where = "--focal_gamma" if config.focal_gamma else "--label_smoothing"
        raise ConfigError("the labels are numbers, and only classes have such a loss", where=where, fix="Leave it out")
    weights = _class_weights(config, setting, names, problem)
    chats = setting.renderer if setting.tokenizer.chat_template is not None else None
    return Classification(config, names, problem, weights, setting.plain, chats)


def _problem(config: SeqCls, found: Labels) -> Problem:
    if config.num_labels == 1 or (found.numbers and not config.labels):
        return "regression"
    return "multi_label_classification" if found.several else "single_label_classification"


def _names(config: SeqCls, found: Labels, setting: Setting) -> tuple[str, ...]:
    """The classes in order: those named, the model's own, or those found."""
    own = own_labels(setting.model)
    count = config.num_labels
    if config.labels:
        names = config.labels
    elif own and set(found.counts) <= set(own) and count in (None, len(own)):
        names = own
    else:
        names = tuple(found.counts)
        numbers = all(name.isdigit() for name in names)
        most = max(map(int, names)) + 1 if numbers and names else 0
        if count is not None and numbers and most <= count:
            names = tuple(map(str, range(count)))
    unknown = sorted(set(found.counts) - set(names))
    if unknown:
        raise DataError(
            f"{len(unknown)} labels of the data are not among those named: {', '.join(unknown[:5])}",
            where="--labels",
            fix="Name them too, or leave --labels out",
            code="unknown_label",
        )
    if count is not None and count != len(names):
        fix = "Name all classes with --labels" if count > len(names) else "Leave it out"
        raise ConfigError(f"the data has {len(names)} labels, not {count}", where="--num_labels", fix=fix)
    if len(names) < 2:
        if not names:
            fix = (
                'Rows need a text and a label; columns of other names are named with --columns \'{"theirs": "label"}\''
            )
            what = "there is no label" + setting.first_fault("classification")
            raise DataError(what, code="no_labels", fix=fix)
        only = f"there is only one class, {names[0]!r}"
        raise DataError(only, code="one_class", fix="Give rows of at least two classes, or name them with --labels")
    return names


def _class_weights(config: SeqCls, setting: Setting, names: tuple[str, ...], problem: Problem) -> Tensor | None:
    """weights_C, or None where all classes count the same."""
    if config.class_weights and problem == "regression":
        raise ConfigError("numbers have no classes", where=WHERE, fix="Leave it out")

    def survey() -> tuple[Mapping[str, int], int]:
        records = setting.records("classification", training=True)
        rows = [record.label for record in records if isinstance(record, Labelled)]
        return labels_of(rows).counts, len(rows)

    several = problem == "multi_label_classification"
    return class_weights(config.class_weights, names, survey, several=several)
