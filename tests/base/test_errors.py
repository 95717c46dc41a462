import pytest

from luthier.base.errors import ConfigError, DataError, DoesNotFit, LuthierError, MissingExtra, RunError, Stopped


@pytest.mark.parametrize(
    ("error", "exit_code", "stdlib"),
    [
        (ConfigError("x"), 2, ValueError),
        (MissingExtra("wandb", "track", what_for="--report_to wandb"), 2, ImportError),
        (DataError("x"), 3, ValueError),
        (DoesNotFit("x"), 4, MemoryError),
        (RunError("x"), 1, RuntimeError),
        (Stopped("x"), 75, InterruptedError),
    ],
)
def test_each_error_has_an_exit_code_and_a_stdlib_parent(error, exit_code, stdlib):
    assert error.exit_code == exit_code
    assert isinstance(error, stdlib)
    assert isinstance(error, LuthierError)


def test_a_message_says_where_what_and_what_to_do():
    error = DataError("row without text", where="a.jsonl:3", fix="Remove it", code="no_text")
    assert str(error) == "a.jsonl:3: row without text. Remove it"
    assert (error.code, DataError.code) == ("no_text", "bad_data")


def test_a_missing_package_names_the_command_that_brings_it():
    assert "pip install 'luthier[track]'" in str(MissingExtra("wandb", "track", what_for="--report_to wandb"))
