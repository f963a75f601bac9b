"""Distillation of any model: the loss is the formula, and every option does what it says."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import accuracy, batch_of, examples, logits, tiny_model

from tierwise.compression.adapter.adapter import ModelAdapter, run_optimization
from tierwise.compression.adapter.anatomy import find_widths
from tierwise.compression.adapter.batches import Batches, Numbered
from tierwise.compression.adapter.config import AdapterConfig, DistillOptions, PruneOptions
from tierwise.compression.adapter.gradual import Gradual
from tierwise.compression.adapter.size import count_bytes, count_parameters
from tierwise.compression.adapter.teacher import CachedTeacher, OnlineTeacher
from tierwise.compression.adapter.train import _Lesson, label_loss, learning_rate, train
from tierwise.runtime.errors import BuildError, ConfigError

NOTHING = {"layers": 0.0, "channels": 0.0}


def adapter(model: Any, data: Any, prune: dict[str, Any] | None = None, **distill: Any) -> Any:
    options = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3} | distill
    config = AdapterConfig.make(prune=prune or NOTHING, distill=options)
    return ModelAdapter(model, config, data=data)


def quick(model: Any, data: Any, **distill: Any) -> Any:
    """Learns in few steps."""
    return adapter(model, data, **({"learning_rate": 5e-3, "batch_size": 16} | distill))


def options(**values: Any) -> DistillOptions:
    return DistillOptions(**({"steps": 4, "batch_size": 8, "learning_rate": 1e-3} | values))


def labelled(model: Any, rows: int = 4) -> Numbered:
    batch = batch_of(model, rows)
    return Numbered(batch | {"labels": torch.arange(rows) % 3}, tuple(range(rows)))


@pytest.fixture(scope="module")
def teacher() -> Any:
    """A classifier that has learned the task."""
    model = tiny_model("bert", layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    training = options(steps=60, soft=0.0, learning_rate=3e-3, batch_size=16)
    train(model, Batches(examples(256), size=16), training)
    assert accuracy(model, examples(64, seed=9)) > 0.9
    return model.eval()


# --- the loss ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("soft", [0.0, 0.6, 1.0])
def test_the_loss_is_the_formula(temperature: float, soft: float) -> None:
    """(1 − a)·CE + a·T²·Σ p·(log p − log q), p and q the softmax of logits / T."""
    student, wise = tiny_model("bert", seed=1), tiny_model("bert", seed=2)
    numbered = labelled(student)
    lesson = _Lesson(student, options(temperature=temperature, soft=soft), wise, ())
    q = (logits(student, numbered.batch | {"labels": None}) / temperature).softmax(-1).double()
    p = (logits(wise, numbered.batch | {"labels": None}) / temperature).softmax(-1).double()
    kl = (p * (p / q).log()).sum(-1).mean() * temperature**2
    right = (q**temperature / (q**temperature).sum(-1, keepdim=True))[
        range(4), numbered.batch["labels"]
    ]
    wanted = (1 - soft) * -right.log().mean() + soft * kl
    assert float(lesson.loss(numbered).detach()) == pytest.approx(float(wanted), rel=1e-4)


def test_language_models_learn_where_there_is_text() -> None:
    """Padding counts neither in the soft targets nor in the labels."""
    student, wise = tiny_model("llama-lm", seed=1), tiny_model("llama-lm", seed=2)
    batch = batch_of(student)
    short = {key: value[-1:, :5] for key, value in batch.items()}
    lesson = _Lesson(student, options(soft=0.5), wise, ())
    one = {key: value[-1:] for key, value in batch.items()}
    wanted = lesson.loss(Numbered(short))
    assert torch.allclose(lesson.loss(Numbered(one)), wanted, rtol=1e-4)
    own = logits(student, short)[0, :-1].log_softmax(-1)
    expected = -own[range(4), short["input_ids"][0, 1:]].mean()
    found = label_loss(student, logits(student, short), short)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ConfigError, match=r"one for each token, \(1, 5\), not \(1,\)"):
        label_loss(student, logits(student, short), {**short, "labels": torch.tensor([1])})


def test_hidden_states_follow_the_layers_left(teacher: Any) -> None:
    """A pruned student is compared with the layers that it came from."""
    small = adapter(
        teacher, examples(16), {"layers": (0,), "channels": 0.0}, hidden=1.0, soft=0.0
    ).prune()
    assert small._layers == [1]
    numbered = labelled(teacher)
    lesson = _Lesson(small.model, options(hidden=1.0, soft=0.0), teacher, [1])
    plain = _Lesson(small.model, options(soft=0.0), teacher, [1]).loss(numbered)
    with torch.no_grad():
        inputs = {key: value for key, value in numbered.batch.items() if key != "labels"}
        wanted = teacher(**inputs, output_hidden_states=True).hidden_states[2]
        own = small.model(**inputs, output_hidden_states=True).hidden_states[1]
    apart = 1 - torch.cosine_similarity(own, wanted, dim=-1)
    expected = apart[inputs["attention_mask"].bool()].mean()
    assert float((lesson.loss(numbered) - plain).detach()) == pytest.approx(
        float(expected), rel=1e-3
    )
    wrong = _Lesson(small.model, options(hidden=1.0), teacher, ())
    with pytest.raises(ConfigError, match="cannot follow"):
        wrong.loss(numbered)


@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm", "bert"])
def test_without_the_last_layer_hidden_states_are_compared_before_the_last_norm(kind: str) -> None:
    """What is left does what it did, so that nothing of it is apart."""
    model = tiny_model(kind)
    small = adapter(model, examples(16), {"layers": (2,), "channels": 0.0}).prune()
    assert small._layers == [0, 1]
    numbered = Numbered(batch_of(model))
    for how in ("cosine", "mse"):
        given = options(hidden=1.0, hidden_kind=how, soft=1.0)
        whole = _Lesson(small.model, given, model, [0, 1]).loss(numbered)
        plain = _Lesson(small.model, options(soft=1.0), model, [0, 1]).loss(numbered)
        assert float((whole - plain).detach()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd", "skew_kl"])
def test_other_losses_fall_too(teacher: Any, loss: str) -> None:
    student = tiny_model("bert", layers=1, seed=5)
    student = quick(student, examples(64), loss=loss, soft=1.0, steps=30).distill(teacher)
    losses = student.report.steps[0].details["training"].losses
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


# --- what training does -----------------------------------------------------------------


def test_a_student_learns_from_the_teacher_alone(teacher: Any) -> None:
    """Without labels; the original and the teacher stay what they are."""
    unlabelled = [{"input_ids": row["input_ids"]} for row in examples(256)]
    student = tiny_model("bert", layers=1, seed=5, hidden_dropout_prob=0.0)
    before = copy.deepcopy(student.state_dict())
    taught = copy.deepcopy(teacher.state_dict())
    made = quick(student, unlabelled, soft=1.0, steps=60).distill(teacher)
    rows = examples(64, seed=9)
    assert accuracy(made.model, rows) > 0.8 > 0.6 > accuracy(student, rows)
    assert all(torch.equal(student.state_dict()[name], before[name]) for name in before)
    assert all(torch.equal(teacher.state_dict()[name], taught[name]) for name in taught)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_makes_a_difference(teacher: Any) -> None:
    """The ablation: where labels are wrong more often than not, only the teacher's answers help."""
    noise = torch.Generator().manual_seed(1)
    rows = examples(128)
    for row in rows:
        row["label"] = int(torch.randint(3, (1,), generator=noise))
    student = tiny_model("bert", layers=1, seed=5, hidden_dropout_prob=0.0)
    held_out = examples(64, seed=9)
    with_teacher, without = (
        accuracy(quick(student, rows, soft=0.9, steps=40).distill(which).model, held_out)
        for which in (teacher, None)
    )
    assert with_teacher > without + 0.2


def test_the_same_seed_gives_the_same_model() -> None:
    student = tiny_model("bert")  # with dropout
    made = [adapter(student, examples(32)).distill(None).model for _ in range(2)]
    torch.manual_seed(99)
    states = [one.state_dict() for one in made]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_disturbs_nobodys_dice() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    adapter(tiny_model("bert"), examples(16)).distill(None)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), wanted)


def test_the_anchor_holds_the_weights_back() -> None:
    """L(θ) + λ‖θ − θ₀‖²: the larger λ, the nearer the weights stay to where they began."""
    student = tiny_model("bert", layers=1)
    start = torch.cat([p.detach().flatten() for p in student.parameters()])
    moved = []
    for anchor in (0.0, 1.0, 100.0):
        made = adapter(
            student, examples(64), anchor=anchor, steps=25, weight_decay=0.0, learning_rate=1e-2
        ).distill(None)
        end = torch.cat([p.detach().flatten() for p in made.model.parameters()])
        moved.append(float((end - start).norm()))
    assert moved[0] > 1.3 * moved[1] > 1.3 * moved[2] > 0


def test_bfloat16_keeps_weights_in_float32(teacher: Any) -> None:
    student = tiny_model("bert", layers=1, seed=5)
    kinds = set()
    dense = student.bert.pooler.dense
    made = adapter(student, examples(32), precision="bf16")
    made.model.bert.pooler.dense.register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    made.distill(teacher)
    assert kinds == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in made.model.parameters())
    assert not torch.equal(made.model.bert.pooler.dense.weight, dense.weight)


def test_what_is_not_finite_is_skipped_and_counted() -> None:
    """A batch that breaks the loss changes nothing; the others go on."""
    student = tiny_model("bert", layers=1)
    made = adapter(student, examples(16), soft=0.0, steps=6, batch_size=4)
    calls = 0

    def spoil(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return output * float("nan") if calls in (2, 5) else output

    made.model.classifier.register_forward_hook(spoil)
    made.distill(None)
    training = made.report.steps[0].details["training"]
    assert (training.steps, training.skipped_steps) == (4, 2)
    assert all(bool(parameter.isfinite().all()) for parameter in made.model.parameters())


def test_a_run_that_diverges_stops_with_good_weights() -> None:
    made = adapter(tiny_model("bert", layers=1), examples(16), soft=0.0, steps=40, batch_size=4)
    made.model.classifier.register_forward_hook(lambda *args: args[2] * float("inf"))
    with pytest.raises(BuildError, match="20 steps in a row"):
        made.distill(None)
    assert all(bool(parameter.isfinite().all()) for parameter in made.model.parameters())


def test_the_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, options(learning_rate=1.0)) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_progress_is_told() -> None:
    told: list[tuple[str, float]] = []
    config = AdapterConfig.make(prune=NOTHING, distill={"steps": 5, "batch_size": 8})
    model = ModelAdapter(
        tiny_model("bert"), config, data=examples(16), progress=lambda *args: told.append(args)
    )
    model.distill(None)
    assert [share for _, share in told] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert "step 5 of 5" in told[-1][0]


# --- where the teacher's answers come from ----------------------------------------------


def test_cached_answers_are_the_same_answers(teacher: Any) -> None:
    online, cached = OnlineTeacher(teacher), CachedTeacher(OnlineTeacher(teacher))
    batches = Batches(examples(20), size=8)
    for seed in (1, 2):
        for numbered in batches.epoch(seed):
            wanted = online(numbered).logits
            assert torch.allclose(cached(numbered).logits, wanted, atol=1e-4)
    assert online.asked == 6 and cached.online.asked == 3 and len(cached.kept) == 20


def test_cached_answers_of_language_models() -> None:
    wise = tiny_model("llama-lm")
    online, cached = OnlineTeacher(wise), CachedTeacher(OnlineTeacher(wise))
    batches = Batches(examples(12), size=4)
    for seed in (1, 2):
        for numbered in batches.epoch(seed):
            mask = numbered.batch["attention_mask"].bool()
            wanted = online(numbered).logits[mask]
            assert torch.allclose(cached(numbered).logits[mask], wanted, atol=1e-4)
    assert cached.online.asked == 3


def test_online_distillation_from_a_stream(teacher: Any) -> None:
    """The student updates as examples come; none is asked for before it is needed."""
    came = 0

    def stream() -> Iterator[dict[str, Any]]:
        nonlocal came
        for row in examples(10_000):
            came += 1
            yield row

    made = adapter(tiny_model("bert", layers=1), stream(), steps=5).distill(teacher)
    training = made.report.steps[0].details["training"]
    assert (training.steps, training.examples, came) == (5, 40, 40)
    with pytest.raises(ConfigError, match=r"distill\.steps"):
        adapter(tiny_model("bert"), stream(), steps=None).distill(teacher)
    with pytest.raises(ConfigError, match="cannot be cached"):
        adapter(tiny_model("bert"), stream(), teacher="cached").distill(teacher)
    with pytest.raises(ConfigError, match="gave no examples"):
        adapter(tiny_model("bert"), iter([])).distill(teacher)


def test_several_classes_at_once_are_learned() -> None:
    model = tiny_model("bert", problem_type="multi_label_classification")
    rows = [
        {"input_ids": row["input_ids"], "labels": [int(row["label"] == one) for one in range(3)]}
        for row in examples(64)
    ]
    losses = quick(model, rows, soft=0.0, steps=30).distill(None).report.steps[0].details
    assert sum(losses["training"].losses[-5:]) < 0.75 * sum(losses["training"].losses[:5])


def test_models_with_a_decoder_of_their_own_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=48, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    model, rows = T5ForConditionalGeneration(config), examples(8)
    with pytest.raises(ConfigError, match="has an encoder and a decoder"):
        adapter(model, rows).distill(model)
    adaptive = AdapterConfig.make(
        quantize={"bits": "adaptive", "budget_share": 0.9}, steps=("quantize",)
    )
    with pytest.raises(ConfigError, match="has an encoder and a decoder"):
        ModelAdapter(model, adaptive, data=rows).quantize()
    plain = AdapterConfig.make(quantize={"bits": 8}, steps=("quantize",))
    ModelAdapter(model, plain).quantize()


def test_teachers_that_do_not_fit(teacher: Any) -> None:
    rows = examples(16)
    with pytest.raises(ConfigError, match="same tokenizer"):
        adapter(tiny_model("llama-lm", vocab_size=64), rows).distill(tiny_model("llama-lm"))
    with pytest.raises(ConfigError, match="no logits"):
        adapter(teacher, rows).distill(teacher.bert)
    score = tiny_model("bert", num_labels=1, problem_type="regression")
    with pytest.raises(ConfigError, match="soft: 0"):
        adapter(score, rows).distill(score)
    with pytest.raises(ConfigError, match="no labels"):
        adapter(teacher, [{"input_ids": [3, 4]}]).distill(None)
    with pytest.raises(ConfigError, match="there is none"):
        ModelAdapter(teacher).distill(teacher)


# --- dynamic pruning --------------------------------------------------------------------


def test_gradual_pruning_reaches_its_share_and_cuts(teacher: Any) -> None:
    prune = {"layers": 0.0, "heads": 0.5, "channels": 0.5, "gradual": True, "gradual_every": 3}
    made = adapter(teacher, examples(64), prune, steps=20).prune()
    assert count_parameters(made.model) == count_parameters(teacher)
    with pytest.raises(ConfigError, match="gradual pruning ends in distill"):
        made.quantize()
    made.distill(teacher)
    assert all(width.units == 32 for width in find_widths(made.model, "channels"))
    assert all(width.units == 2 for width in find_widths(made.model, "heads"))
    step = made.report.steps[-1]
    assert step.parameters[1] == count_parameters(made.model) < 0.8 * step.parameters[0]
    assert step.nbytes[1] == count_bytes(made.model)
    assert step.zeros < 0.05  # cut, not zero
    made.quantize()


def test_masks_follow_the_schedule_and_may_be_lifted() -> None:
    """A channel that was masked comes back once training makes it larger than others."""
    model = tiny_model("bert", layers=1)
    plan = PruneOptions(
        layers=0.0, channels=0.5, gradual=True, gradual_every=1, gradual_until=1.0, multiple=1
    )
    weight = find_widths(model, "channels")[0].out_of.weight
    with torch.no_grad():
        weight.copy_(torch.arange(1, 65).float().expand_as(weight))
    gradual = Gradual(model, plan, steps=10)
    gone = []
    for step in range(10):
        if step == 5:  # as the optimizer would: masked columns are zero, and take their update
            with torch.no_grad():
                weight[:, 0] += 100
        gradual.step()
        gone.append({place for place in range(64) if bool((weight[:, place] == 0).all())})
    sizes = [len(one) for one in gone]
    wanted = [round(32 * (1 - (1 - (step + 1) / 10) ** 3)) for step in range(10)]
    assert sizes == wanted == sorted(wanted)
    assert 0 in gone[4] and not any(0 in one for one in gone[5:])
    gradual.finish()
    assert find_widths(model, "channels")[0].out_of.in_features == 32
    assert float(find_widths(model, "channels")[0].out_of.weight[0, 0].detach()) == 101


def test_gradual_zeros() -> None:
    prune = {"layers": 0.0, "channels": 0.0, "sparsity": 0.5, "pattern": "2:4", "gradual": True}
    made = adapter(tiny_model("bert"), examples(32), prune, steps=10).prune().distill(None)
    weight = made.model.bert.encoder.layer[0].output.dense.weight
    assert bool(((weight.reshape(-1, 4) != 0).sum(1) == 2).all())
    assert made.report.bytes_saved == 0
    assert 0.3 < made.report.steps[-1].zeros < 0.5


def test_gradual_zeros_of_a_stream_that_ends_early() -> None:
    """The share that was reached is told, not the one that was asked for."""
    prune = {"layers": 0.0, "channels": 0.0, "sparsity": 0.5, "gradual": True, "gradual_every": 1}
    made = adapter(tiny_model("bert"), iter(examples(112)), prune, steps=50).prune()
    model = made.distill(None).model
    step = made.report.steps[-1]
    linears = [m for m in model.bert.encoder.modules() if isinstance(m, torch.nn.Linear)]
    zeros = sum(int((linear.weight == 0).sum()) for linear in linears)
    reached = zeros / sum(linear.weight.numel() for linear in linears)
    assert step.details["sparsity"] == pytest.approx(reached) and 0.05 < reached < 0.4
    ended = f"the data ended after {step.details['training'].steps} of 50 steps"
    assert step.details["note"] == ended and str(step).endswith(ended)


def test_a_stream_that_was_read_measures_nothing(teacher: Any) -> None:
    config = AdapterConfig.make(
        quantize={"bits": "adaptive"}, distill={"steps": 2, "batch_size": 8}
    )
    made = ModelAdapter(teacher, config, data=iter(examples(16))).distill(teacher)
    with pytest.raises(ConfigError, match="a generator can be read only once"):
        made.quantize()
    made.quantize(examples(16))


# --- after quantization -----------------------------------------------------------------


def test_training_a_quantized_model_helps_it_and_keeps_its_size(teacher: Any) -> None:
    config = AdapterConfig.make(
        quantize={"bits": 2, "group": 16},
        distill={"steps": 30, "batch_size": 16, "learning_rate": 3e-3, "soft": 1.0},
    )
    made = ModelAdapter(teacher, config, data=examples(256)).quantize()
    held_out = [{"input_ids": torch.tensor([r["input_ids"]])} for r in examples(48, seed=9)]

    def apart() -> float:
        pairs = [(logits(made.model, one), logits(teacher, one)) for one in held_out]
        return sum(float((own - wanted).square().sum()) for own, wanted in pairs)

    size, before = count_bytes(made.model), apart()
    made.distill(teacher)
    assert count_bytes(made.model) == size < 0.25 * count_bytes(teacher)
    assert apart() < 0.7 * before


def test_all_steps_at_once(teacher: Any) -> None:
    rows = examples(256)
    for steps in (("prune", "distill", "quantize"), ("prune", "quantize", "distill")):
        config = AdapterConfig.make(
            prune={"layers": 0.5, "heads": 0.5, "channels": 0.5},
            quantize={"bits": 4, "group": 16},
            distill={"steps": 30, "batch_size": 16, "learning_rate": 5e-3},
            steps=steps,
        )
        small = run_optimization(teacher, rows, config)
        assert count_bytes(small) < 0.2 * count_bytes(teacher)
        assert accuracy(small, examples(64, seed=9)) > 0.75


def test_the_readme_s_steps_run_as_they_stand(teacher: Any) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = [
        part for part in re.findall(r"```python\n(.*?)```", readme, re.S) if "adapt_" in part
    ]
    config = AdapterConfig.make(distill={"steps": 2, "batch_size": 8})
    names = {"model": tiny_model("bert"), "teacher": teacher, "dataset": examples(16)}
    before = count_bytes(names["model"])
    exec(code, names | {"config": config}, found := dict[str, Any]())
    assert count_bytes(found["small"]) < before
