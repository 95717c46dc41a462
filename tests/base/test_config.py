import pytest

from luthier.base.config import assign, merge, nearest, read_yaml, to_yaml, validate
from luthier.base.errors import ConfigError
from luthier.model.config import Freeze
from luthier.run.config import RunConfig
from luthier.run.resolve import resolve

MINIMAL = {"model": {"path": "m"}, "data": {"datasets": ["d.jsonl"]}}


def test_yaml_gives_the_same_tree_back(tmp_path):
    config = resolve(validate(RunConfig, merge(MINIMAL, {"method": {"type": "freeze", "last_layers": 2}})))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert validate(RunConfig, read_yaml(path)) == config
    assert isinstance(config.method, Freeze)


def test_yaml_cannot_build_objects(tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "evil.yaml"
    path.write_text(f"model: !!python/object/apply:os.system ['touch {canary}']")
    with pytest.raises(ConfigError, match="not plain YAML"):
        read_yaml(path)
    assert not canary.exists()


@pytest.mark.parametrize(("text", "message"), [("- a\n- b", "must be a mapping"), ("a: [", "not plain YAML")])
def test_wrong_yaml_is_named(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_unreadable_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        read_yaml(tmp_path / "none.yaml")


def test_a_changed_type_drops_its_siblings():
    under = {"method": {"type": "lora", "rank": 8}, "seed": 1}
    assert merge(under, {"method": {"type": "full"}}) == {"method": {"type": "full"}, "seed": 1}
    assert merge(under, {"method": {"alpha": 2}})["method"] == {"type": "lora", "rank": 8, "alpha": 2}
    assert under == {"method": {"type": "lora", "rank": 8}, "seed": 1}


def test_assign_makes_the_levels_between():
    tree = {"a": 1}
    assign(tree, "a.b.c", 2)
    assert tree == {"a": {"b": {"c": 2}}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"modl": {}}, "modl: unknown setting (did you mean 'model'?)"),
        ({"method": {"type": "lora", "rnk": 8}}, "method.rnk: unknown setting (did you mean 'rank'?)"),
        ({"method": {"type": "full", "rank": 8}}, "method.rank: not a setting of 'full'; it has none"),
        ({"objective": {"type": "mlm", "loss": "x"}}, "objective.loss: not a setting of 'mlm'; its settings are proba"),
        ({"method": {"type": "lora", "rank": "x"}}, "method.rank: "),
        ({"optim": {"learning_rate": -1}}, "optim.learning_rate: "),
        ({"method": {"type": "lara"}}, "method.type: expected one of full, freeze, "),
        ({"objective": {"type": "multi", "tasks": {"a": {}}}}, "objective.tasks.a.datasets: a value is needed"),
        (
            {"objective": {"type": "multi", "tasks": {"a": {"datasets": ["x"], "objective": {"masked": 0.5}}}}},
            "objective.tasks.a.objective: give its type too",
        ),
        ({"method": {"type": "freeze"}}, "method: freeze leaves nothing to train"),
    ],
)
def test_wrong_settings_are_named_by_path(tree, message):
    with pytest.raises(ConfigError) as caught:
        validate(RunConfig, tree)
    assert str(caught.value).startswith(message)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        validate(RunConfig, {"seed": "x", "train": {"epochs": 0}})
    assert "seed: " in str(caught.value)
    assert "train.epochs: " in str(caught.value)


def test_nearest_is_silent_when_nothing_is_close():
    assert nearest("lern_rate", ["learning_rate", "rank"]) == "learning_rate"
    assert nearest("zzz", ["learning_rate", "rank"]) is None


def test_every_setting_is_documented():
    undocumented = []

    def walk(kind, prefix):
        from luthier.base.config import config_classes

        for name, field in kind.model_fields.items():
            if name != "type" and not field.description:
                undocumented.append(prefix + name)
            for below in config_classes(field.annotation):
                walk(below, f"{prefix}{name}.")

    walk(RunConfig, "")
    assert undocumented == []
