"""From a model that does not talk to the engine that serves it."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.base.errors import ConfigError
from luthier.generate.embed import embed
from luthier.model.device import device_of
from luthier.run.predict import answered, open_predictor, token_chances
from luthier.run.result import Usable
from luthier.run.specialist import open_embedder, open_ranker, skill_of
from luthier.serve.labelling import Row
from luthier.serve.specialists import Abilities, SpecialistEngine
from luthier.serve.vectors import Kind
from luthier.serve.voices import Mute


def specialist(usable: Usable, device: str, slots: int) -> tuple[SpecialistEngine, Mute]:
    """The engine of a model that does not talk, and how it reads texts.

    Raises:
        ModelError: it cannot be loaded.
        ConfigError: there is no route for what it does.
    """
    skill = skill_of(usable)
    if skill.kind == "vectors":
        embedder = open_embedder(usable, device_of(device))

        def ids(text: str, kind: Kind = None) -> Sequence[int]:
            front = {"query": embedder.query_prompt, "document": embedder.text_prompt, None: ""}[kind]
            return embedder.ids(front + text)

        able = Abilities(embed=lambda texts: embed(embedder.model, texts, embedder.pooling), ids=ids)
        plain = embedder.plain
        return SpecialistEngine(able, skill.words, plain.max_length, slots), Mute(plain.tokenizer, ids, skill.words)
    if skill.kind == "pairs":
        ranker = open_ranker(usable, device_of(device))
        able = Abilities(score=ranker.scores, size=lambda pairs: sum(len(group) for group in ranker.groups(pairs)))
        longest, tokenizer = ranker.judge.plain.max_length, ranker.model.tokenizer
        mute = Mute(tokenizer, lambda text: ranker.judge.plain.words(text).ids.tolist(), skill.words)
        return SpecialistEngine(able, skill.words, longest, slots), mute
    if skill.kind == "targets":
        raise ConfigError(
            f"this model {skill.words}, for which there is no route",
            where="--model",
            fix="Give luthier infer a file: --val_dataset and --result_path",
            code="other_skill",
        )
    assert skill.kind != "language", "a model that talks has an engine of its own"
    predictor = open_predictor(usable, device_of(device))
    plain = predictor.objective.plain
    mute = Mute(plain.tokenizer, lambda text: plain.words(text).ids.tolist(), skill.words)

    def label(rows: Sequence[Row]) -> list[tuple[Row, int]]:
        return answered(rows, predictor)

    if skill.kind == "classes":
        return SpecialistEngine(Abilities(classes=label), skill.words, plain.max_length, slots), mute
    able = Abilities(tags=label, token_chances=lambda texts: token_chances(texts, predictor))
    return SpecialistEngine(able, skill.words, plain.max_length, slots), mute
