"""Who teaches: the base itself, or another model that cuts text into the same tokens."""

from __future__ import annotations

from tierwise.compression.distillation.config import DistillConfig
from tierwise.compression.source import BaseSource, resolve_base
from tierwise.runtime.errors import ConfigError, UnsupportedModelError
from tierwise.runtime.llama import Model


def choose_teacher(base: BaseSource, config: DistillConfig) -> BaseSource:
    """The base, or ``config.teacher_model``.

    Raises:
        UnsupportedModelError: It cuts text differently.
        ConfigError: Hidden states cannot be compared with another model's.
    """
    if config.teacher_model is None:
        return base
    if config.hidden:
        raise ConfigError(
            "the hidden-state loss compares a student's layers with those that they came from, "
            "and teacher_model is another model: set hidden to 0"
        )
    teacher = resolve_base(config.teacher_model)
    texts = []
    for source in (base, teacher):
        with Model(source.gguf, vocab_only=True) as model:
            texts.append([model.token_text(token) for token in range(model.vocab_size)])
    ours, theirs = texts
    if ours != theirs:
        differing = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        said = [repr(one[differing]) if differing < len(one) else "nothing" for one in texts]
        raise UnsupportedModelError(
            f"the teacher {config.teacher_model!r} has another tokenizer than {base.name!r}: "
            f"{len(theirs):,} tokens against {len(ours):,}, and number {differing} is {said[1]} "
            f"where it should be {said[0]}. Distillation compares token by token: take a teacher "
            "of the same model family."
        )
    return teacher
