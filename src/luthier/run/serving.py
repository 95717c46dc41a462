"""From a model that does not talk to the engine that serves it."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.base.errors import ConfigError
from luthier.generate.embed import embed
from luthier.run.opening import device_of
from luthier.run.result import Usable
from luthier.run.specialist import open_embedder, open_ranker, skill_of
from luthier.serve.specialists import Abilities, SpecialistEngine
from luthier.serve.vectors import Kind
from luthier.serve.voices import Mute


def specialist(usable: Usable, device: str, slots: int) -> tuple[SpecialistEngine, Mute]:
    """The engine of a model that makes vectors or scores pairs, and how it reads texts.

    Raises:
        ConfigError: it does something else, for which there is no route.
        ModelError: it cannot be loaded.
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
    raise ConfigError(
        f"this model {skill.words}, for which the server has no route",
        where="--model",
        fix="luthier infer --val_dataset FILE --result_path FILE labels a file",
        code="other_skill",
    )
