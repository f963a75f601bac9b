"""What a `ModelAdapter` should do to a model: three steps, each with options of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tierwise.runtime.errors import ConfigError
from tierwise.runtime.units import Bytes, first_problem

Step = Literal["prune", "distill", "quantize"]
Bits = Literal[2, 4, 8]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PruneOptions(_Options):
    """What to leave out. All but `sparsity` makes the model smaller.

    Args:
        layers: Share of the layers to leave out (those that cost least go first), or their
            numbers.
        heads: Share of every layer's attention heads; whole groups where heads share keys.
        channels: Share of every layer's feed-forward channels.
        multiple: Widths that are cut stay multiples of this.
        embedding_rank: Rank of a factorised word embedding; None keeps the matrix whole.
        min_token_count: Word embeddings of tokens that the data has less often share one row;
            0 keeps them all.
        sparsity: Share of the weights of the layers to set to zero. Zeros are stored like any
            other number: this saves no bytes, and the report counts none.
        pattern: Of the zeros: anywhere in a row, or two of every four neighbours.
        gradual: Dynamic pruning: heads, channels and zeros are not cut at once but masked more
            and more while `distill` trains, chosen anew each time, so that what was masked may
            return; they are cut when it ends.
        gradual_until: Share of the training after which the masks hold all that shall go.
        gradual_every: Steps between two choices.
        batches: Of the data, to measure what each part is worth.
    """

    layers: Share | tuple[int, ...] = 0.25
    heads: Share = 0.0
    channels: Share = 0.25
    multiple: int = Field(default=8, ge=1)
    embedding_rank: int | None = Field(default=None, ge=1)
    min_token_count: int = Field(default=0, ge=0)
    sparsity: Share = 0.0
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    gradual: bool = False
    gradual_until: float = Field(default=0.7, gt=0, le=1)
    gradual_every: int = Field(default=8, ge=1)
    batches: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _pattern_fits(self) -> PruneOptions:
        if self.pattern == "2:4" and self.sparsity not in (0.0, 0.5):
            raise ValueError(
                f"sparsity {self.sparsity} does not go with the pattern 2:4, which is 0.5"
            )
        return self


class QuantizeOptions(_Options):
    """How weights are stored: small integers, and a scale for every group of them.

    Args:
        bits: Of a weight; "adaptive" chooses for every matrix, by what it costs the model's
            answers, under a budget of bytes.
        group: Weights of a row that share a scale; 0 for one scale a row.
        choices: Bits that "adaptive" may choose from.
        budget: Bytes that the whole model may have, for "adaptive": a number or "40MB". None
            for `budget_share`.
        budget_share: The same, as a share of the model's bytes before this step.
        keep: Names of modules that stay as they are; "*" stands for any text.
        batches: Of the data, to measure sensitivity with.
    """

    bits: Literal[2, 4, 8, "adaptive"] = 8
    group: int = Field(default=32, ge=0)
    choices: tuple[Bits, ...] = Field(default=(4, 8), min_length=1)
    budget: Bytes | None = None
    budget_share: float = Field(default=0.25, gt=0, le=1)
    keep: tuple[str, ...] = ()
    batches: int = Field(default=4, ge=1)


class DistillOptions(_Options):
    """How the smaller model learns from the teacher.

    Args:
        epochs: Passes over the data.
        steps: Optimizer steps instead of epochs; a stream of unknown length needs it.
        batch_size: Examples in a step.
        learning_rate: Highest one; it rises over `warmup` and falls along a cosine.
        warmup: Share of the steps.
        weight_decay: Of matrices (AdamW).
        clip: Largest norm of the gradient.
        temperature: Of both sides' soft targets.
        soft: Share of the loss that comes from the teacher; the rest is the labels'. With 0
            no teacher is asked.
        loss: Name of the distance from the teacher's distribution.
        hidden: Weight of the distance from the teacher's hidden states, over the layers left.
        hidden_kind: Of that distance.
        anchor: λ of the regularised objective L(θ) + λ‖θ − θ₀‖².
        teacher: "online" asks the teacher about each batch as it comes; "cached" asks once for
            every example, and keeps the answers in memory.
        precision: "bf16" multiplies matrices in bfloat16 (weights stay in float32).
        max_length: Tokens of a text that are read.
    """

    epochs: float = Field(default=3.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    warmup: Share = 0.1
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=2.0, gt=0)
    soft: float = Field(default=0.7, ge=0, le=1)
    loss: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl"] = "forward_kl"
    hidden: float = Field(default=0.0, ge=0)
    hidden_kind: Literal["cosine", "mse"] = "cosine"
    anchor: float = Field(default=0.0, ge=0)
    teacher: Literal["online", "cached"] = "online"
    precision: Literal["fp32", "bf16"] = "fp32"
    max_length: int = Field(default=512, ge=2)

    @model_validator(mode="after")
    def _hidden_is_online(self) -> DistillOptions:
        if self.hidden and self.teacher == "cached":
            raise ValueError("hidden states are not cached; write teacher: online, or hidden: 0")
        return self


class AdapterConfig(_Options):
    """What to do to a model, and in which order.

    Args:
        prune: Options of the step.
        quantize: Options of the step.
        distill: Options of the step.
        steps: Of `run_optimization` and `adapt_model`, in their order. After "quantize",
            "distill" trains with the weights rounded as they are stored.
        seed: Of shuffling, dropout and made-up calibration tokens.
    """

    prune: PruneOptions = PruneOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    distill: DistillOptions = DistillOptions()
    steps: tuple[Step, ...] = ("prune", "distill", "quantize")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _steps_fit(self) -> AdapterConfig:
        if len(set(self.steps)) != len(self.steps):
            raise ValueError(f"a step may be named once only in {list(self.steps)}")
        places = {step: place for place, step in enumerate(self.steps)}
        if "quantize" in places and places["quantize"] < places.get("prune", -1):
            raise ValueError("steps: a quantized model cannot be pruned; write prune first")
        return self

    @classmethod
    def make(cls, **values: Any) -> AdapterConfig:
        """The config of these values; options of a step may be a mapping.

        Raises:
            ConfigError: Where pydantic would raise its own.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(first_problem(error, "adapter option")) from error
