"""`luthier infer` with a model that does not talk: rows of a file get their labels, or what is written for them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.base.records import BadRow, Json

if TYPE_CHECKING:
    from luthier.cli.infer import InferConfig
    from luthier.data.row import Row
    from luthier.run.result import Usable
    from luthier.run.targets import Writer


def predicts(usable: Usable, columns: Mapping[str, str], options: InferConfig, console: Console) -> bool:
    """Classify the rows of a file, or write their targets, if the model is one that does; whether it is.

    Args:
        columns: what columns of the file mean.

    Raises:
        ConfigError: it is, and no file was named.
    """
    from luthier.model.device import device_of
    from luthier.run.predict import open_predictor, predict, predict_file, read_row
    from luthier.run.specialist import skill_of

    skill = skill_of(usable)
    if skill.kind == "language":
        return False
    if skill.kind in ("vectors", "pairs"):
        raise ConfigError(
            f"this model {skill.words} and does not talk",
            where="--model",
            fix="luthier deploy serves it (/v1/embeddings, /v1/rerank, /v1/score), luthier eval judges it",
            code="other_skill",
        )
    if options.val_dataset is None or options.result_path is None:
        raise ConfigError(
            f"this model {skill.words} and does not talk",
            where="--val_dataset",
            fix="Give a file of texts as --val_dataset, and --result_path for what is made of them",
        )
    device = device_of(options.device)
    if skill.kind == "targets":
        from luthier.run.targets import open_writer

        asked = options.sampling.model_fields_set & {"max_new_tokens"}
        writer = open_writer(usable, device, options.sampling.max_new_tokens if asked else None)
        answer = partial(_targets, writer=writer, columns=columns)
        read = partial(_asked, columns=columns)
    else:
        predictor = open_predictor(usable, device)
        answer = partial(predict, predictor=predictor, columns=columns)
        read = partial(read_row, predictor=predictor, columns=columns)
    with console.progress("Reading rows") as bar:
        done = predict_file(options.val_dataset, Path(options.result_path), answer, bar.advance, read)
    console.result(done, summary=done, result_path=options.result_path)
    return True


def _asked(row: Row, *, columns: Mapping[str, str]) -> dict[str, Json]:
    """What is asked by a row, as its line tells it.  Raises BadRow."""
    from luthier.cli.answers import line_of, question_of

    return {"messages": line_of(question_of(row, None, columns), "")["messages"]}


def _targets(rows: list[Row], *, writer: Writer, columns: Mapping[str, str]) -> list[dict[str, Json]]:
    """What is written for each row, beside what the data has."""
    from luthier.cli.answers import Question, line_of, question_of

    lines: list[dict[str, Json]] = [{} for _ in rows]
    questions: dict[int, Question] = {}
    for number, row in enumerate(rows):
        try:
            questions[number] = question_of(row, None, columns)
        except BadRow as error:
            lines[number] = {"error": str(error)}
    written = writer.write([question.messages for question in questions.values()])
    for (number, question), text in zip(questions.items(), written, strict=True):
        lines[number] = line_of(question, text)
    return lines
