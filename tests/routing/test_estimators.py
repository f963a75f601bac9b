"""Estimators: closed forms, planted signals, missing outcomes, and files that cannot be trusted."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_factory import described_family as family
from family_factory import make_quality

from tierwise.evaluation.task_generator import generate_tasks
from tierwise.routing import estimators_linear
from tierwise.routing.difficulty import GRADE_AT, structural_difficulty
from tierwise.routing.estimators import Estimator, SuccessPredictor, within_chances
from tierwise.routing.estimators_linear import (
    PENALTIES,
    Logistic,
    RidgeGain,
    _sigmoid,
    logistic,
    ridge,
)
from tierwise.routing.estimators_neighbours import GuardedKNN
from tierwise.routing.estimators_prior import StructuralPrior
from tierwise.routing.estimators_store import KINDS, load_predictor, save_predictor
from tierwise.routing.features import PLAIN_SPEC, Features, FeatureSpec, text_features
from tierwise.routing.metrics import apgr
from tierwise.routing.representation import Representation
from tierwise.routing.success import SuccessModel
from tierwise.runtime.errors import (
    CalibrationError,
    ConfigError,
    TierwiseError,
)

LEARNERS: list[Estimator] = [RidgeGain(), RidgeGain(over="neighbour"), Logistic(), GuardedKNN()]


def gaining(n: int, seed: int, columns: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Two tiers. Column 0 decides whether the large one gains anything, column 1 fails both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, columns))
    hopeless = rng.random(n) < _sigmoid(2 * x[:, 1])
    large = ~hopeless
    small = large & (rng.random(n) < _sigmoid(-3 * x[:, 0]))
    return x, np.stack((small, large), axis=1).astype(float)


def area(predictor: SuccessPredictor, x: np.ndarray, y: np.ndarray) -> float:
    predicted = predictor.predict(x)
    return apgr(predicted[:, 1] - predicted[:, 0], y[:, 0], y[:, 1])


# --- Representation -------------------------------------------------------------------------------


def test_counts_are_standardised_and_balanced() -> None:
    x = np.random.default_rng(0).normal(size=(300, 3)) * (1, 100, 0) + (5, -3, 7)
    made = Representation.fit(x)
    z = made(x)
    assert z.shape == (300, 3) and made.width == 3
    assert z.mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-6)
    assert z[:, 0].std() == pytest.approx(z[:, 1].std(), rel=1e-5) and not z[:, 2].any()
    assert np.linalg.svd(z, compute_uv=False)[0] ** 2 / 300 == pytest.approx(1, rel=1e-4)


def test_a_wild_count_is_cut() -> None:
    x = np.random.default_rng(0).normal(size=(300, 2))
    made = Representation.fit(x)
    far, further = made(np.array([[50.0, 0]])), made(np.array([[1e9, 0]]))
    assert np.array_equal(far, further) and np.abs(far).max() < 6


def texts(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vocabulary = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(400)]
    return np.array(
        [text_features(" ".join(rng.choice(vocabulary, 12))) for _ in range(n)], np.float32
    )


def test_text_is_projected_on_what_differs_most() -> None:
    x = texts(150, 0)
    made = Representation.fit(x, PLAIN_SPEC.hashed, dimensions=20)
    z = made(x)
    assert z.shape == (150, PLAIN_SPEC.counts + 20)
    text = z[:, PLAIN_SPEC.counts :]
    assert np.linalg.svd(text - text.mean(0), compute_uv=False)[0] ** 2 / 150 == pytest.approx(
        1, rel=1e-3
    )
    # The random projection finds what the full decomposition does.
    tfidf = x[:, PLAIN_SPEC.counts :] * made.idf
    for block in (slice(0, 1024), slice(1024, 2048)):
        tfidf[:, block] /= np.linalg.norm(tfidf[:, block], axis=1, keepdims=True)
    exact = np.linalg.svd(tfidf, full_matrices=False)[2][:20].T
    found = made.components / np.linalg.norm(made.components, axis=0)
    kept = [np.linalg.norm(tfidf @ d) for d in (exact, found)]
    assert kept[1] > 0.97 * kept[0]
    assert np.array_equal(Representation.fit(x, PLAIN_SPEC.hashed, dimensions=20)(x), z)


def test_few_texts_have_few_dimensions_and_words_of_one_text_do_not_count() -> None:
    x = texts(5, 1)
    made = Representation.fit(x, PLAIN_SPEC.hashed)
    assert made.width <= PLAIN_SPEC.counts + 5 and np.isfinite(made(x)).all()
    once = (x[:, PLAIN_SPEC.counts :] != 0).sum(axis=0) == 1
    assert once.any() and not made.idf[once].any()
    alone = Representation.fit(x[:1], PLAIN_SPEC.hashed)
    assert np.isfinite(alone(x)).all()


def test_of_an_empty_text_only_counts_are_known() -> None:
    x = texts(50, 2)
    z = Representation.fit(x, PLAIN_SPEC.hashed)(text_features("")[None])
    assert not z[:, PLAIN_SPEC.counts :].any() and np.isfinite(z).all()


def test_weights_are_as_good_as_copies() -> None:
    x = np.random.default_rng(3).normal(size=(40, 4))
    weights = np.random.default_rng(4).integers(1, 4, 40).astype(float)
    weighted = Representation.fit(x, weights=weights)(x)
    assert weighted == pytest.approx(
        Representation.fit(np.repeat(x, weights.astype(int), axis=0))(x)
    )


def test_features_of_another_width_are_refused() -> None:
    made = Representation.fit(np.random.default_rng(0).normal(size=(9, 3)))
    for shape in ((2, 4), (3,)):
        with pytest.raises(ConfigError, match=r"must have the shape \(rows, 3\)"):
            made(np.zeros(shape))
    with pytest.raises(ConfigError, match="at least 5 columns"):
        Representation.fit(np.zeros((4, 3)), (5,))


# --- Closed forms ---------------------------------------------------------------------------------


def ridge_by_hand(
    z: np.ndarray, y: np.ndarray, w: np.ndarray, penalty: float, total: float
) -> np.ndarray:
    ones = np.hstack((z, np.ones((len(z), 1))))
    shrink = np.diag([*[penalty * total] * z.shape[1], 0.0])
    return np.linalg.solve((ones * w[:, None]).T @ ones + shrink, ones.T @ (w * y))


@pytest.mark.parametrize("seed", range(4))
def test_ridge_takes_the_penalty_that_leaving_each_row_out_would(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(25, 8))
    y = z @ rng.normal(size=8) * 0.3 + rng.normal(size=25)
    w = rng.uniform(0.2, 3, 25)
    errors = []
    for penalty in PENALTIES:
        squares = []
        for out in range(25):
            rest = np.arange(25) != out
            beta = ridge_by_hand(z[rest], y[rest], w[rest], penalty, w.sum())
            squares.append(w[out] * (y[out] - z[out] @ beta[:-1] - beta[-1]) ** 2)
        errors.append(sum(squares))
    slopes, intercept, penalty = ridge(z, y, w)
    assert penalty == PENALTIES[int(np.argmin(errors))]
    wanted = ridge_by_hand(z, y, w, penalty, w.sum())
    assert [*slopes, intercept] == pytest.approx(wanted)


def test_ridge_shrinks_noise_to_nothing_and_lets_signal_be() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(200, 20))
    assert ridge(z, rng.normal(size=200), np.ones(200))[2] >= 3
    slopes, _, penalty = ridge(z, 2 * z[:, 0] + 0.01 * rng.normal(size=200), np.ones(200))
    assert penalty == PENALTIES[-1] and slopes[0] == pytest.approx(2, rel=0.01)
    assert not ridge(z, np.full(200, 0.25), np.ones(200))[0].any()


def test_the_logistic_is_where_its_slope_is_zero() -> None:
    rng = np.random.default_rng(2)
    z, w = rng.normal(size=(300, 5)), rng.uniform(0.5, 2, 300)
    y = (rng.random(300) < _sigmoid(2 * z[:, 0] - 1)).astype(float)
    slopes, intercept, penalty = logistic(z, y, w)
    off = w * (_sigmoid(z @ slopes + intercept) - y)
    assert off.sum() == pytest.approx(0, abs=1e-3)
    assert z.T @ off + penalty * w.sum() / 4 * slopes == pytest.approx(np.zeros(5), abs=1e-3)
    assert slopes[0] == pytest.approx(2, abs=0.5) and intercept == pytest.approx(-1, abs=0.4)


def test_the_logistic_takes_about_the_penalty_of_leaving_each_row_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=(40, 10))
    y = (rng.random(40) < _sigmoid(1.5 * z[:, 0])).astype(float)
    found = logistic(z, y, np.ones(40))[2]
    losses = []
    for penalty in PENALTIES:
        loss = 0.0
        for out in range(40):
            rest = np.arange(40) != out
            monkeypatch.setattr(estimators_linear, "PENALTIES", (penalty * 40 / 39,))
            slopes, intercept, _ = logistic(z[rest], y[rest], np.ones(39))
            at = z[out] @ slopes + intercept
            loss += np.logaddexp(0, at) - y[out] * at
        losses.append(loss)
    assert losses[PENALTIES.index(found)] <= min(losses) * 1.02


def test_separable_data_do_not_run_away() -> None:
    z = np.linspace(-1, 1, 40)[:, None]
    slopes, intercept, _ = logistic(z, (z[:, 0] > 0).astype(float), np.ones(40))
    assert np.isfinite(slopes).all() and np.isfinite(intercept) and slopes[0] > 5


def test_rows_that_stick_out_keep_their_differences() -> None:
    raw = np.array([[0.2, 0.7], [0.8, 1.3], [-0.4, 0.1], [-0.5, 1.0], [-1.0, 2.0]])
    found = within_chances(raw)
    assert found[:3] == pytest.approx(np.array([[0.2, 0.7], [0.5, 1.0], [0.0, 0.5]]))
    assert found.min() == 0 and found.max() == 1


# --- Learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
def test_a_planted_gain_is_found(learner: Estimator) -> None:
    predictor = learner.fit(*gaining(800, 0))
    x, y = gaining(2000, 1)
    predicted = predictor.predict(x)
    assert predictor.tiers == 2 and predicted.shape == (2000, 2)
    assert predicted.min() >= 0 and predicted.max() <= 1
    assert area(predictor, x, y) > 0.7


def test_ridge_on_the_gain_is_not_misled_by_what_fails_all() -> None:
    """Predicting only that the small tier fails sends hopeless calls to the large one."""
    x, y = gaining(400, 2)
    test_x, test_y = gaining(4000, 3)
    gain = area(RidgeGain().fit(x, y), test_x, test_y)
    weak = RidgeGain().fit(x, np.stack((y[:, 0], np.ones(400)), axis=1))
    assert gain > area(weak, test_x, test_y) + 0.03


@pytest.mark.parametrize("learner", [RidgeGain(), Logistic()], ids=repr)
def test_chances_are_about_right(learner: Estimator) -> None:
    predictor = learner.fit(*gaining(1500, 4))
    x, y = gaining(3000, 5)
    predicted = predictor.predict(x)
    assert predicted.mean(axis=0) == pytest.approx(y.mean(axis=0), abs=0.04)
    assert ((predicted - y) ** 2).mean() < 0.85 * y.var(axis=0).mean()


@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
def test_noise_is_not_taken_for_signal(learner: Estimator) -> None:
    rng = np.random.default_rng(6)
    y = (rng.random((300, 2)) < (0.4, 0.8)).astype(float)
    predicted = learner.fit(rng.normal(size=(300, 10)), y).predict(rng.normal(size=(500, 10)))
    assert predicted.std(axis=0).max() < 0.12
    assert (predicted.argmax(axis=1) == 1).mean() > 0.99


@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
def test_unknown_outcomes_cost_little(learner: Estimator) -> None:
    x, y = gaining(1200, 7)
    y[np.random.default_rng(8).random(1200) < 0.3, 1] = np.nan
    assert area(learner.fit(x, y), *gaining(2000, 9)) > 0.68


@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
def test_rows_without_weight_do_not_count(learner: Estimator) -> None:
    x, y = gaining(300, 10)
    wrong_x, wrong_y = x.copy(), 1 - y
    both = np.vstack((x, wrong_x)), np.vstack((y, wrong_y))
    weights = np.repeat([1.0, 0.0], 300)
    found = learner.fit(*both, weights)
    test = gaining(1000, 11)
    if isinstance(learner, GuardedKNN):
        assert area(found, *test) > 0.6  # of its neighbours half are dead wood
    else:
        wanted = learner.fit(x, y).predict(test[0])
        assert found.predict(test[0]) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
def test_one_class(learner: Estimator, value: float) -> None:
    x, y = gaining(100, 12)
    predicted = learner.fit(x, np.full_like(y, value)).predict(x)
    assert np.isfinite(predicted).all()
    if isinstance(learner, GuardedKNN):
        predicted = predicted[:, :1]  # its fallback; others are judged lower
    assert predicted == pytest.approx(np.full_like(predicted, value), abs=0.02)


@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
def test_ten_rows_and_even_one(learner: Estimator) -> None:
    x, y = gaining(10, 13)
    for n in (10, 2, 1):
        predicted = learner.fit(x[:n], y[:n]).predict(x)
        assert predicted.shape == (10, 2) and np.isfinite(predicted).all()


@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
def test_no_rows_are_predicted_as_none(learner: Estimator) -> None:
    x, y = gaining(30, 13)
    assert learner.fit(x, y).predict(x[:0]).shape == (0, 2)


@pytest.mark.parametrize("over", ["smallest", "neighbour"])
def test_three_tiers(over: Any) -> None:
    rng = np.random.default_rng(14)
    x = rng.normal(size=(1500, 5))
    truth = np.stack((0.3 + 0 * x[:, 0], 0.3 + 0.4 * (x[:, 0] > 0), 0.8 + 0 * x[:, 0]), axis=1)
    y = (rng.random((1500, 3)) < truth).astype(float)
    predicted = RidgeGain(over=over).fit(x[:1000], y[:1000]).predict(x[1000:])
    gains = predicted - predicted[:, :1]
    right = np.corrcoef(gains[:, 1], x[1000:, 0] > 0)[0, 1]
    assert right > 0.7 and abs(np.corrcoef(gains[:, 2], x[1000:, 0])[0, 1]) < 0.75
    assert predicted.mean(axis=0) == pytest.approx([0.3, 0.5, 0.8], abs=0.05)


def test_tiers_that_share_no_call_differ_by_their_means() -> None:
    x, y = gaining(200, 15)
    y[:100, 0] = np.nan
    y[100:, 1] = np.nan
    predicted = RidgeGain().fit(x, y).predict(x)
    gain = np.nanmean(y[:, 1]) - np.nanmean(y[:, 0])
    assert predicted[:, 1] - predicted[:, 0] == pytest.approx(np.full(200, gain), abs=1e-5)


def test_words_are_learned_from() -> None:
    rng = np.random.default_rng(16)
    filler = ["the", "shop", "sells", "bread", "for", "some", "coins", "each", "day"]

    def prompt(hard: bool) -> str:
        words = [*rng.choice(filler, 10), "integral" if hard else "sum"]
        return " ".join(rng.permutation(words))

    hard = rng.random(500) < 0.5
    x = np.array([text_features(prompt(h)) for h in hard])
    y = np.stack((~hard & (rng.random(500) < 0.9), rng.random(500) < 0.9), axis=1).astype(float)
    for learner in (RidgeGain, Logistic, GuardedKNN):
        predictor = learner(PLAIN_SPEC.hashed).fit(x[:300], y[:300])
        gain = np.diff(predictor.predict(x[300:]))[:, 0]
        assert gain[hard[300:]].mean() > gain[~hard[300:]].mean() + 0.3, learner


# --- Guarded neighbours ---------------------------------------------------------------------------


def test_the_fallback_is_left_only_on_evidence() -> None:
    """Two tiers that are alike but in one corner, where the large one is far better."""
    rng = np.random.default_rng(17)
    x = rng.uniform(-1, 1, size=(2000, 2))
    corner = (x > 0.2).all(axis=1)
    y = rng.random((2000, 2)) < np.stack((np.where(corner, 0.1, 0.7), np.full(2000, 0.7)), axis=1)
    predictor = GuardedKNN(fallback=0, evidence=2.5).fit(x[:1500], y[:1500].astype(float))
    left = predictor.predict(x[1500:]).argmax(axis=1) == 1
    assert predictor.fallback == 0
    assert left[corner[1500:]].mean() > 0.8 and left[~corner[1500:]].mean() < 0.12
    bold = GuardedKNN(fallback=0, evidence=0).fit(x[:1500], y[:1500].astype(float))
    assert (bold.predict(x[1500:]).argmax(axis=1) == 1)[~corner[1500:]].mean() > 0.3


def test_the_fallback_is_the_best_tier_and_of_equals_the_cheapest() -> None:
    x = np.random.default_rng(0).normal(size=(4, 2))
    assert GuardedKNN().fit(x, np.tile([0.0, 1.0, 0.0], (4, 1))).fallback == 1
    assert GuardedKNN().fit(x, np.tile([1.0, 1.0, 0.0], (4, 1))).fallback == 0


def test_a_handful_that_agree_prove_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(3, 2))
    y = np.tile([0.0, 1.0], (3, 1))
    predicted = GuardedKNN(fallback=0, evidence=3).fit(x, y).predict(x)
    assert (predicted.argmax(axis=1) == 0).all()
    y = np.array([[0.0, np.nan]] * 3 + [[np.nan, 1.0]])
    x = np.vstack((x, x[:1] + 9))
    near = GuardedKNN(fallback=0, neighbours=3).fit(x, y).predict(x[:1])
    assert near[0, 1] == 0  # no pair among the neighbours


# --- Bad data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x[:-1], y, None), "same n > 0"),
        (lambda x, y: (x[:0], y[:0], None), "same n > 0"),
        (lambda x, y: (x, y[:, 0], None), "same n > 0"),
        (lambda x, y: (np.where(x > 1, np.nan, x), y, None), "must be finite"),
        (lambda x, y: (x, y * 2 - 1, None), "lie in 0..1"),
        (lambda x, y: (x, np.where([True, False], y, np.nan), None), "tier 1 has no outcome"),
        (lambda x, y: (x, y, np.zeros(len(x))), "no outcome"),
        (lambda x, y: (x, y, -np.ones(len(x))), "at least 0"),
        (lambda x, y: (x, y, np.ones(3)), "weights must be 30 numbers"),
    ],
)
def test_data_that_make_no_sense(
    learner: Estimator, change: Callable[..., tuple[Any, ...]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        learner.fit(*change(*gaining(30, 0)))


# --- The prior ------------------------------------------------------------------------------------


def prior() -> tuple[StructuralPrior, SuccessModel]:
    def same(share: float) -> dict[str, float]:
        return dict.fromkeys(GRADE_AT, share)

    made = family(
        ("small", 1, make_quality(0.4, same(0.5))), ("base", 2, make_quality(0.0, same(0.9)))
    )
    return StructuralPrior.of(made, ["small", "base"]), SuccessModel(made)


def test_the_prior_is_the_success_model_at_the_structural_difficulty() -> None:
    predictor, model = prior()
    calls = [task.call for task in generate_tasks(24, seed=1)]
    x = Features().rows(calls)
    for call, chances in zip(calls, predictor.fit(x, np.ones((24, 2))).predict(x), strict=True):
        wanted = model(structural_difficulty(call))
        assert chances.tolist() == pytest.approx([wanted["small"], wanted["base"]], abs=1e-6)


def test_a_prior_of_other_tiers_is_refused() -> None:
    predictor, _ = prior()
    with pytest.raises(ConfigError, match="of 2 tiers"):
        predictor.fit(np.zeros((3, 1)), np.zeros((3, 3)))
    with pytest.raises(ConfigError, match="at least one tier"):
        StructuralPrior.of(family(("a", 1, make_quality(0.0))), [])
    with pytest.raises(TierwiseError, match="nobody"):
        StructuralPrior.of(family(("a", 1, make_quality(0.0))), ["nobody"])


# --- Files ----------------------------------------------------------------------------------------

SPEC = FeatureSpec("tests", 6, ())


def fitted(kind: str) -> SuccessPredictor:
    x, y = gaining(60, 20)
    y[:5, 1] = np.nan
    made: dict[str, Callable[[], SuccessPredictor]] = {
        "structural_prior": lambda: prior()[0],
        "ridge_gain": lambda: RidgeGain().fit(x, y),
        "logistic": lambda: Logistic().fit(x, y),
        "guarded_knn": lambda: GuardedKNN(neighbours=7).fit(x, y),
    }
    return made[kind]()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_saved_predicts_the_same(kind: str, tmp_path: Path) -> None:
    predictor, path = fitted(kind), tmp_path / "deep" / "success.npz"
    save_predictor(path, predictor, SPEC, ("small", "large"))
    loaded = load_predictor(path)
    assert loaded.spec == SPEC and loaded.tiers == ("small", "large")
    assert loaded.predictor.kind == kind and type(loaded.predictor) is type(predictor)
    x, _ = gaining(40, 21)
    assert np.array_equal(loaded.predictor.predict(x), predictor.predict(x))
    assert [p.name for p in path.parent.iterdir()] == ["success.npz"]
    again = tmp_path / "again.npz"
    save_predictor(again, loaded.predictor, SPEC, ("small", "large"))
    assert again.read_bytes() == path.read_bytes()


def test_text_blocks_are_saved_too(tmp_path: Path) -> None:
    x = texts(40, 5)
    y = (np.random.default_rng(0).random((40, 2)) < 0.5).astype(float)
    predictor = RidgeGain(PLAIN_SPEC.hashed).fit(x, y)
    save_predictor(tmp_path / "s.npz", predictor, PLAIN_SPEC, ("a", "b"))
    loaded = load_predictor(tmp_path / "s.npz")
    loaded.spec.check(PLAIN_SPEC)
    assert np.array_equal(loaded.predictor.predict(x), predictor.predict(x))


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", "b", "c")])
def test_names_must_fit(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as many names"):
        save_predictor(tmp_path / "s.npz", fitted("ridge_gain"), SPEC, names)


def saved(folder: Path, kind: str = "ridge_gain") -> Path:
    path = folder / "success.npz"
    save_predictor(path, fitted(kind), SPEC, ("small", "large"))
    return path


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no calibration"):
        load_predictor(tmp_path / "none.npz")
    with pytest.raises(CalibrationError, match="Calibrate the family again"):
        load_predictor(tmp_path)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_truncated_file_is_read(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path, kind)
    whole = path.read_bytes()
    for cut in {0, 1, 20, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        path.write_bytes(whole[:cut])
        with pytest.raises(CalibrationError, match="no calibration that this Tierwise can read"):
            load_predictor(path)


def test_flipped_bits_are_refused_or_change_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    x, _ = gaining(20, 21)
    wanted = load_predictor(path).predictor.predict(x)
    rng = np.random.default_rng(22)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            loaded = load_predictor(path)
        except CalibrationError:
            refused += 1
        else:
            assert np.array_equal(loaded.predictor.predict(x), wanted)
    assert refused > 150


def rewritten(path: Path, changes: dict[str, Any]) -> None:
    """The file with other arrays; None leaves one out, and ``about`` is merged."""
    with np.load(path) as packed:
        arrays = dict(packed)
    about = json.loads(arrays["about"].tobytes()) | changes.pop("about", {})
    arrays |= changes
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ridge_gain", {"about": {"format": "tierwise-success-2"}}),
        ("ridge_gain", {"about": {"kind": "oracle"}}),
        ("ridge_gain", {"about": {"kind": "guarded_knn"}}),
        ("ridge_gain", {"about": {"kind": ["ridge_gain"]}}),
        ("ridge_gain", {"about": {"tiers": ["one"]}}),
        ("ridge_gain", {"about": {"tiers": None}}),
        ("ridge_gain", {"about": {"features": {}}}),
        ("ridge_gain", {"about": {"features": [1]}}),
        ("ridge_gain", {"slopes": np.zeros((5, 2))}),
        ("ridge_gain", {"slopes": None}),
        ("ridge_gain", {"slopes": np.full((6, 2), np.nan)}),
        ("ridge_gain", {"slopes": np.full((6, 2), "a")}),
        ("ridge_gain", {"slopes": np.array([[{}] * 2] * 6, object)}),
        ("ridge_gain", {"intercepts": np.zeros(3)}),
        ("ridge_gain", {"intercepts": np.array(1.0)}),
        ("ridge_gain", {"mean": np.zeros(5)}),
        ("ridge_gain", {"hashed": np.array([7])}),
        ("ridge_gain", {"balance": np.zeros(2)}),
        ("guarded_knn", {"points": np.zeros((3, 6))}),
        ("guarded_knn", {"settings": np.array([7, 1, 2.0])}),
        ("guarded_knn", {"settings": np.array([7, 1.0])}),
        ("guarded_knn", {"weights": np.zeros(3)}),
        ("structural_prior", {"at": np.zeros(2)}),
        ("structural_prior", {"chances": np.zeros(3)}),
    ],
)
def test_foreign_and_wrong_contents_are_refused(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(tmp_path, kind)
    rewritten(path, dict(changes))
    with pytest.raises(CalibrationError):
        load_predictor(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    for content in (b"", b"GGUF", b"{}", b"PK\x05\x06" + bytes(18), np.arange(9).tobytes()):
        path.write_bytes(content)
        with pytest.raises(CalibrationError):
            load_predictor(path)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("about.npy", "no array")
    with pytest.raises(CalibrationError):
        load_predictor(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    path = saved(tmp_path)
    array = np.empty(1, object)
    array[0] = Bomb()
    rewritten(path, {"penalties": array})
    with pytest.raises(CalibrationError):
        load_predictor(path)
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_unpacks_to_more_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("about.npy", header.getvalue())
    with pytest.raises(CalibrationError):
        load_predictor(path)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("slopes.npy", "w", force_zip64=True) as entry,
    ):
        for _ in range(1100):
            entry.write(bytes(1_000_000))
    assert path.stat().st_size < 10_000_000
    with pytest.raises(CalibrationError, match="would take 1,100,000,000 bytes"):
        load_predictor(path)
