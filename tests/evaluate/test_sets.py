"""Reading data sets as tasks, on real files and on small ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.base.errors import ConfigError, DataError
from luthier.evaluate.catalogue import tasks_of
from luthier.evaluate.config import SetConfig
from luthier.evaluate.mcq import mark_letters
from luthier.evaluate.task import Item

QUESTIONS = {
    "mmlu": 14042, "arc": 3548, "obqa": 500, "boolq": 3270, "gaokao": 1482, "gsm8k": 1319,
    "cmrc": 4221, "drcd": 7017, "xquad": 2380, "retrieval": 5904,
}  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_of_the_real_sets_is_read(test_data: Path, name: str) -> None:
    tasks = tasks_of(name, SetConfig(), test_data, "likelihood")
    assert sum(len(task.items) for task in tasks) == QUESTIONS[name]
    for task in tasks:
        assert len({item.key for item in task.items}) == len(task.items)
        assert all(item.references for item in task.items)
        if task.how == "choose":
            assert all(item.references[0] in item.names for item in task.items)


def test_worked_examples_stand_in_front_and_are_not_asked(test_data: Path) -> None:
    (task,) = tasks_of("mmlu", SetConfig(few_shot_num=5, limit=3, subset_list=("anatomy",)), test_data, "likelihood")
    assert len(task.items) == 3
    roles = [message.role for message in task.items[0].messages]
    assert roles == ["user", "assistant"] * 5 + ["user"]
    assert task.items[0].messages[1].content == "Answer: D"
    (squad,) = tasks_of("xquad", SetConfig(few_shot_num=2, limit=4, subset_list=("xquad.zh",)), test_data, "likelihood")
    assert len(squad.items) == 4
    assert squad.items[0].key.startswith("2:")


def test_ten_options_several_answers_and_options_as_texts(tmp_path: Path) -> None:
    header = "question,A,B,C,D,E,F,G,H,I,J,answer\n"
    (tmp_path / "ten_val.csv").write_text(header + "which?,a,b,c,d,e,f,g,h,i,j,J\n", encoding="utf-8")
    (task,) = tasks_of("general_mcq", SetConfig(local_path=str(tmp_path)), None, "likelihood")
    assert (task.how, len(task.items[0].options), task.items[0].references) == ("choose", 10, ("J",))
    texts = SetConfig(local_path=str(tmp_path), options_as="text", prompt_template="Q: {question}")
    (task,) = tasks_of("general_mcq", texts, None, "likelihood")
    assert task.items[0].messages[-1].content == "Q: which?" and task.items[0].options == tuple("abcdefghij")
    (tmp_path / "ten_val.csv").write_text(header + 'which?,a,b,c,d,e,f,g,h,i,j,"A, C"\n', encoding="utf-8")
    (task,) = tasks_of("general_mcq", SetConfig(local_path=str(tmp_path)), None, "likelihood")
    assert (task.how, task.items[0].references) == ("generate", ("AC",))  # no choice of one
    item = task.items[0]
    shares = [mark_letters(item, text)["AverageAccuracy"][0] for text in ("Answer: AC", "Answer: A", "Answer: AB", "")]
    assert shares == [1.0, 0.5, 0.0, 0.0]


def test_broken_files_are_named_with_line_and_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "q", "response": "r"}\n{"query": "q"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:2: needs query and response"):
        tasks_of(str(tmp_path), SetConfig(), None, "likelihood")
    (tmp_path / "b.json").write_text('{"data": [{"paragraphs": [{"qas": []}]}]}', encoding="utf-8")
    with pytest.raises(DataError, match="not in the layout of SQuAD: no 'context'"):
        tasks_of("squad", SetConfig(local_path=str(tmp_path / "b.json")), None, "likelihood")
    with pytest.raises(ConfigError, match="where the files of mmlu lie is not said"):
        tasks_of("mmlu", SetConfig(), None, "likelihood")
    with pytest.raises(ConfigError, match="no such file or folder"):
        tasks_of("mmlu", SetConfig(local_path=str(tmp_path / "nowhere")), None, "likelihood")


def test_an_item_without_options_names_none() -> None:
    assert mark_letters(Item("0", (), ("A",), ("x", "y")), "Answer: C")["AverageAccuracy"] == (0.0, 1.0)
