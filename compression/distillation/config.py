"""How students are pruned and taught: one dial (`minutes`), all else derived and open to pinning.

Needs no torch, so that recipes can be read without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tierwise.runtime.errors import ConfigError

Share = Annotated[float, Field(gt=0, le=1)]


class StudentRecipe(BaseModel):
    """One student.

    Args:
        layers: How many stay: a share of the base's or their number.
        prune: The layers of the base that go, instead of a search.
        ffn: Share of the base's MLP channels that stays in every layer. At equal speed narrow
            layers lose less than missing ones (SmolLM2-135M before any training: KL 0.09 nats
            with 1,152 of 1,536 channels, 0.48 with 26 of 30 layers).
        kv_groups: How many KV heads (with their query heads) stay per layer; None for all.
        quantization_aware: Type that weights are rounded to in the last part of the training;
            None for none.
        share: Of the time (or steps) of all students, relative to the others'.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=2)] = 1.0
    prune: tuple[int, ...] | None = None
    ffn: Share = 1.0
    kv_groups: int | None = Field(default=None, ge=1)
    quantization_aware: Literal["Q4_0", "Q8_0"] | None = None
    share: float = Field(default=1.0, gt=0)

    def layers_of(self, base_layers: int) -> int:
        """How many layers of so many stay.

        Raises:
            ConfigError: More than there are.
        """
        if self.prune is not None:
            return base_layers - len(set(self.prune))
        wanted = self.layers
        count = round(base_layers * wanted) if isinstance(wanted, float) else wanted
        if not 1 <= count <= base_layers:
            raise ConfigError(f"a student cannot have {count} of the base's {base_layers} layers")
        return count


class DistillConfig(BaseModel):
    """How to recover pruned students by distillation. The defaults suit a laptop.

    Args:
        minutes: Training time of all students together. Choosing layers, the teacher's answers
            and its signal come on top (about 25 minutes for 135 M parameters on two
            cores).
        steps: Optimizer steps of all students together, instead of minutes: the same steps give
            the same weights on the same machine.
        students: From the largest to the smallest: each goes on from the one before it.
        tokens: Of teaching text, which is repeated if there is time.
        transcripts: JSONL files of LangChain conversations.
        corpus: Text files or folders of them.
        document_tokens: Of the longest document.
        answers: What the teacher answers itself: "text" where there is no one right answer,
            "all" tool calls as well (slow), "gold" nothing.
        loss: "forward_kl" (works with cached targets), or "reverse_kl", "jsd", "skew_kl".
        temperature: Of the soft targets.
        cross_entropy: Share of the token that really follows in the loss of replies that are
            known to be right (those of made conversations and of your transcripts); the rest is the
            distance from the teacher. A student learns to call better than a teacher that is often
            wrong: SmolLM2-135M with 1,152 of 1,536 channels did 52 of 120 tasks of BFCL multiple
            after 125,000 tokens of right calls alone, and its teacher 46.
        hidden: Weight of the hidden-state loss over the surviving layers.
        hidden_kind: "cosine" or "mse".
        anchor: λ of λ‖θ − θ₀‖².
        prompt_share: Share of a prompt's tokens that are learned from; of replies, all are.
        prompt_weight: Weight of such a token, where one of a reply has 1.
        shown: Share of the documents in which students, too, read the made-up conversation that
            shows a base without tools how to call them. In the others they learn what it shows
            (context distillation), from half as many tokens; with any of those, their prompts
            are written without it from then on.
        on_policy: Share of the time at the end in which the student writes and the teacher
            scores.
        aware_share: Share of the time, at the end, that is quantization-aware.
        teacher: "cached" captures its signal once, "online" runs it at every step, "auto" takes
            whichever the loss needs.
        teacher_model: Another base that teaches, as `tierwise build` takes one; it must cut text
            into the same tokens. None for the base itself.
        train_embeddings: Teach embeddings and head too (slower, rarely better).
        lora_rank: Train low-rank adapters instead of all weights; None for full fine-tuning.
        learning_rate: Peak.
        tokens_per_step: Of a batch, over all processes.
        micro_tokens: Of a part of a batch that goes through the model at once.
        gradient_checkpointing: Recompute activations in the backward pass: less memory.
        launch: Command that training is started with, such as "accelerate launch
            --num_processes 4"; empty for this process.
        seed: Of data order, sampling and generated text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float = Field(default=60.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    students: tuple[StudentRecipe, ...] = Field(
        default=(
            StudentRecipe(ffn=0.75, share=1.0),
            StudentRecipe(ffn=0.41, share=3.0, quantization_aware="Q4_0"),
        ),
        min_length=1,
    )
    tokens: int = Field(default=400_000, ge=1_000)
    transcripts: tuple[Path, ...] = ()
    corpus: tuple[Path, ...] = ()
    document_tokens: int = Field(default=768, ge=64)
    answers: Literal["text", "all", "gold"] = "text"
    loss: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl"] = "forward_kl"
    temperature: float = Field(default=1.0, gt=0)
    cross_entropy: float = Field(default=1.0, ge=0, le=1)
    hidden: float = Field(default=0.0, ge=0)
    hidden_kind: Literal["cosine", "mse"] = "cosine"
    anchor: float = Field(default=0.0, ge=0)
    prompt_share: float = Field(default=0.25, ge=0, le=1)
    prompt_weight: float = Field(default=0.5, ge=0)
    shown: float = Field(default=0.0, ge=0, le=1)
    on_policy: float = Field(default=0.05, ge=0, lt=1)
    aware_share: float = Field(default=0.4, ge=0, le=1)
    teacher: Literal["auto", "cached", "online"] = "auto"
    teacher_model: str | None = None
    train_embeddings: bool = False
    lora_rank: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    tokens_per_step: int = Field(default=2048, ge=16)
    micro_tokens: int = Field(default=2048, ge=16)
    gradient_checkpointing: bool = False
    launch: str = ""
    seed: int = 0
