"""Any transformers model made smaller: prune, quantize, distil, each alone or all in a row.

::

    adapter = ModelAdapter(model, config, data=examples, tokenizer=tokenizer)
    small = adapter.prune().distill(model).quantize().model
    print(adapter.report)

`adapt_model` and `run_optimization` are the same steps as one call.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tierwise.compression.adapter.anatomy import find_stack
from tierwise.compression.adapter.batches import Batch, Batches, made_up
from tierwise.compression.adapter.config import AdapterConfig
from tierwise.compression.adapter.gradual import Gradual
from tierwise.compression.adapter.prune import prune_model
from tierwise.compression.adapter.quantize import freeze, quantize_model, thaw
from tierwise.compression.adapter.quantized import QuantizedWeight
from tierwise.compression.adapter.reporting import AdaptReport, StepReport
from tierwise.compression.adapter.size import count_bytes, count_parameters, share_of_zeros
from tierwise.compression.adapter.train import Progress, steps_of, train
from tierwise.runtime.errors import ConfigError

MADE_UP_TOKENS = 64
"""Length of the random rows that are measured with where there is no data."""


class ModelAdapter:
    """Makes a copy of a model smaller, step by step. The model that comes in is not touched.

    The methods return the adapter; `model` is the copy as it is now, `report` what was done.

    Args:
        model: Any model of transformers, in floats.
        config: What the steps do; None for the defaults.
        data: A dataset (see `batches.Batches`). Without it, pruning and quantization measure on
            random tokens, and `distill` has nothing to learn from.
        tokenizer: For a dataset of texts.
        progress: Called with what is done and the share of the step, 0..1.

    Raises:
        ConfigError: ``config`` is none.
    """

    def __init__(
        self,
        model: Any,
        config: AdapterConfig | None = None,
        *,
        data: Iterable[Any] | None = None,
        tokenizer: Any = None,
        progress: Progress | None = None,
    ) -> None:
        config = AdapterConfig() if config is None else config
        if not isinstance(config, AdapterConfig):
            raise ConfigError(
                f"config must be an AdapterConfig, not {config!r:.60}; write "
                "AdapterConfig.make(**options)"
            )
        self.config = config
        self.model: Any = copy.deepcopy(model)
        self.model.zero_grad(set_to_none=True)
        self.report = AdaptReport(count_parameters(model), count_bytes(model))
        self._tokenizer, self._progress = tokenizer, progress
        self._data = None if data is None else self._batches(data)
        self._layers: list[int] = []
        self._waiting = False

    def prune(self, data: Iterable[Any] | None = None) -> ModelAdapter:
        """Leaves out what `AdapterConfig.prune` says, least missed first.

        Raises:
            UnsupportedModelError: The parts of this model cannot be told apart.
            ConfigError: It is quantized already, the options do not fit it, or they need data and
                there is none.
        """
        options = self.config.prune
        if self._is_quantized():
            raise ConfigError("a quantized model cannot be pruned; call prune() before quantize()")
        source = self._data if data is None else self._batches(data)
        if source is None and options.min_token_count:
            raise ConfigError(
                f"min_token_count: {options.min_token_count} counts tokens of data, and there is "
                "none: pass data=…, or write min_token_count: 0"
            )
        batches = self._measured_on(data, options.batches)
        text = None
        if source is not None and not source.is_stream:
            text = (numbered.batch for numbered in source.epoch())

        def run() -> dict[str, Any]:
            told = prune_model(self.model, options, batches, text)
            if gone := told.get("layers"):
                kept = self._layers or list(range(len(find_stack(self.model).layers) + len(gone)))
                self._layers = [layer for place, layer in enumerate(kept) if place not in gone]
            self._waiting = options.gradual
            return told

        return self._step("prune", run)

    def quantize(self, data: Iterable[Any] | None = None) -> ModelAdapter:
        """Stores matrices as `AdapterConfig.quantize` says.

        Raises:
            UnsupportedModelError: There is nothing to quantize.
            ConfigError: A budget that is too small; or gradual pruning has not ended yet.
        """
        if self._waiting:
            raise ConfigError(
                "gradual pruning ends in distill(), which must come before quantize(). Write "
                "gradual: false to prune at once."
            )
        options = self.config.quantize
        batches: Sequence[Batch] = ()
        if options.bits == "adaptive":
            batches = self._measured_on(data, options.batches)
        return self._step(
            "quantize", lambda: {"bits": quantize_model(self.model, options, batches)}
        )

    def distill(self, teacher: Any, data: Iterable[Any] | None = None) -> ModelAdapter:
        """Trains the model as `AdapterConfig.distill` says, on a teacher's answers.

        A quantized model is trained with its weights rounded as they are stored, and is stored
        so again.

        Args:
            teacher: A model with the same head and tokenizer, often the original; it is not
                changed. None trains on labels alone.
            data: In place of the adapter's.

        Raises:
            ConfigError: No data, no labels, or a teacher that does not fit.
            BuildError: Training diverged; the model is that of the last good step.
        """
        source = self._data if data is None else self._batches(data)
        if source is None:
            raise ConfigError(
                "distillation learns from data, and there is none: pass data=… to ModelAdapter or "
                "to distill()"
            )
        options = self.config.distill
        teacher = teacher.model if isinstance(teacher, ModelAdapter) else teacher

        def run() -> dict[str, Any]:
            gradual = None
            if self._waiting:
                gradual = Gradual(self.model, self.config.prune, steps_of(source, options))
            frozen = thaw(self.model)
            try:
                training = train(
                    self.model,
                    source,
                    options,
                    teacher=teacher,
                    layers=self._layers if self._fits(teacher) else (),
                    after_step=None if gradual is None else gradual.step,
                    seed=self.config.seed,
                    progress=self._progress,
                )
            finally:
                freeze(self.model, frozen)
            told: dict[str, Any] = {"training": training}
            taken, wanted = training.steps + training.skipped_steps, steps_of(source, options)
            if taken < wanted:
                told["note"] = f"the data ended after {taken} of {wanted} steps"
            if gradual is not None:
                told |= gradual.finish()
                self._waiting = False
            return told

        return self._step("distill", run)

    def _step(self, name: str, run: Callable[[], dict[str, Any]]) -> ModelAdapter:
        before = (count_parameters(self.model), count_bytes(self.model))
        began = time.perf_counter()
        told = run()
        step = StepReport(
            name,
            (before[0], count_parameters(self.model)),
            (before[1], count_bytes(self.model)),
            share_of_zeros(self.model),
            time.perf_counter() - began,
            told,
        )
        self.report = AdaptReport(
            self.report.parameters, self.report.nbytes, (*self.report.steps, step)
        )
        return self

    def _fits(self, teacher: Any) -> bool:
        """Whether the layers left are numbered as the teacher's are."""
        count = getattr(getattr(teacher, "config", None), "num_hidden_layers", 0)
        return bool(self._layers) and max(self._layers) < count

    def _is_quantized(self) -> bool:
        return any(isinstance(module, QuantizedWeight) for module in self.model.modules())

    def _measured_on(self, data: Iterable[Any] | None, count: int) -> list[Batch]:
        source = self._data if data is None else self._batches(data)
        if source is not None:
            return source.first(count, self.config.seed)
        rows = min(8, self.config.distill.batch_size)
        return made_up(
            self.model, rows=rows, length=MADE_UP_TOKENS, count=count, seed=self.config.seed
        )

    def _batches(self, data: Iterable[Any]) -> Batches:
        options, config = self.config.distill, getattr(self.model, "config", None)
        pad = getattr(config, "pad_token_id", None)
        if pad is None:
            pad = getattr(self._tokenizer, "pad_token_id", None)
        return Batches(
            data,
            size=options.batch_size,
            tokenizer=self._tokenizer,
            max_length=options.max_length,
            labels=getattr(config, "label2id", None),
            pad=pad or 0,
        )


def adapt_model(
    model: Any,
    config: AdapterConfig | None = None,
    *,
    data: Iterable[Any] | None = None,
    tokenizer: Any = None,
) -> Any:
    """A smaller copy of a model, made without training: ``config.steps`` but for "distill".

    Raises:
        TierwiseError: See `ModelAdapter.prune` and `ModelAdapter.quantize`.
    """
    config = AdapterConfig() if config is None else config
    adapter = ModelAdapter(model, config, data=data, tokenizer=tokenizer)
    if config.prune.gradual and "prune" in config.steps:
        raise ConfigError(
            "gradual pruning happens while a model is trained, and adapt_model does not train. "
            "Write gradual: false, or call run_optimization."
        )
    for step in config.steps:
        if step != "distill":
            getattr(adapter, step)()
    return adapter.model


def run_optimization(
    model: Any,
    dataset: Iterable[Any],
    config: AdapterConfig | None = None,
    *,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Any:
    """A smaller copy of a model that learned on a dataset to answer as the model does.

    Runs ``config.steps`` in their order, with the model itself as the teacher.

    Raises:
        TierwiseError: See the methods of `ModelAdapter`.
    """
    adapter = ModelAdapter(model, config, data=dataset, tokenizer=tokenizer, progress=progress)
    for step in adapter.config.steps:
        if step == "distill":
            adapter.distill(model)
        else:
            getattr(adapter, step)()
    return adapter.model
