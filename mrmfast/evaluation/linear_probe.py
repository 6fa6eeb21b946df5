"""A linear probe of the frozen encoder, by scikit-learn: ridge regression for values, logistic regression for classes.

The regularisation is chosen by cross-validation inside the training participants, with all images of a participant in
one fold. Held-out participants are looked at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mrmfast.config import PositiveInt
from mrmfast.data.dataset import DataConfig
from mrmfast.data.labels import LabelsConfig
from mrmfast.errors import UserError
from mrmfast.evaluation.base import Evaluation, Scores
from mrmfast.evaluation.embed import Embedding, Pool, embed

FOLDS = 5


@dataclass(frozen=True)
class LinearProbeConfig:
    """Settings of the linear probe.

    Attributes
    ----------
    labels : LabelsConfig
        What is predicted: ``values`` (the score is R2), ``class`` or ``multi_hot`` (ROC-AUC).
    pool : {"mean", "class"}
        The feature of an image: the mean of its patch tokens, or the class token.
    images : int, optional
        Fit on this many training images, drawn with `seed`; all by default.
    seed : int
    """

    name: Literal["linear_probe"] = "linear_probe"
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    pool: Pool = "mean"
    images: PositiveInt | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.labels.kind in (None, "mask"):
            raise UserError(f"labels.kind={self.labels.kind}: a linear probe predicts values, class or multi_hot")


class LinearProbe(Evaluation):
    """Fit on training participants, score on held-out ones."""

    Config = LinearProbeConfig
    config: LinearProbeConfig

    def evaluate(self, encoder: Path, data: DataConfig) -> Scores:
        """Embed all labelled images and probe them."""
        config = self.config
        return probe(embed(encoder, data, config.labels, config.pool), config.images, config.seed)


def probe(embedding: Embedding, images: int | None = None, seed: int = 0) -> Scores:
    """Fit a probe per label on training participants and score it on the others.

    Parameters
    ----------
    embedding : Embedding
    images : int, optional
        Number of training images, drawn with `seed`; all by default.
    seed : int

    Returns
    -------
    Scores
        R2 per column for values; ROC-AUC per class (one against the rest) or per column otherwise.

    Raises
    ------
    UserError
        A part of the split has no image, too few participants, or only one class.
    """
    training, judged = np.flatnonzero(embedding.training), np.flatnonzero(~embedding.training)
    if images is not None:
        training = np.sort(np.random.default_rng(seed).permutation(training)[:images])
    if not len(judged) or len(np.unique(embedding.participant[training])) < FOLDS:
        raise UserError(
            f"linear probe: {len(training)} labelled training images and {len(judged)} held out; it needs images of "
            f"{FOLDS} training participants and some held out: preprocess with a larger --test-fraction, or add labels"
        )
    kind, names = embedding.labels.kind, embedding.labels.names
    columns = embedding.targets
    if kind == "class":
        columns = np.eye(len(names), dtype=np.float32)[embedding.targets]
        if len(names) == 2:
            columns, names = columns[:, 1:], names[1:]
    score = _r2 if kind == "values" else _auc
    values = {}
    for name, column in zip(names, columns.T, strict=True):
        fit, test = training[~np.isnan(column[training])], judged[~np.isnan(column[judged])]
        values[name] = score(embedding, column, fit, test, name)
    counts = {
        "training images": len(training),
        "training participants": len(np.unique(embedding.participant[training])),
        "held-out images": len(judged),
        "held-out participants": len(np.unique(embedding.participant[judged])),
    }
    mean = float(np.mean(list(values.values())))
    return Scores("R2" if kind == "values" else "ROC-AUC", {"mean": mean, **values}, counts)


def _r2(embedding: Embedding, column: np.ndarray, fit: np.ndarray, test: np.ndarray, name: str) -> float:
    people = len(np.unique(embedding.participant[fit]))
    if len(test) < 2 or people < 2:
        raise UserError(
            f"linear probe: label {name!r} has values of {people} training participants and {len(test)} held-out "
            "images; it needs at least two of both"
        )
    folds = GroupKFold(min(FOLDS, people)).split(fit, groups=embedding.participant[fit])
    model = _best(Ridge(), {"ridge__alpha": np.logspace(-2, 5, 15)}, "r2", folds)
    features = embedding.features_PD.astype(np.float64)
    model.fit(features[fit], column[fit])
    return float(r2_score(column[test], model.predict(features[test])))


def _auc(embedding: Embedding, column: np.ndarray, fit: np.ndarray, test: np.ndarray, name: str) -> float:
    for part, rows in (("training", fit), ("held-out", test)):
        if len(np.unique(column[rows])) < 2:
            raise UserError(f"linear probe: the {part} images are all of one class of label {name!r}; add others")
    groups = embedding.participant[fit]
    people = min(len(np.unique(groups[column[fit] == value])) for value in (0, 1))
    strengths = np.logspace(-5, 2, 8)
    folds: Any = None
    if people < 2:
        strengths = np.ones(1)  # nothing to choose by: scikit-learn's default
    else:
        splitter = StratifiedGroupKFold(min(FOLDS, people), shuffle=True, random_state=0)
        folds = splitter.split(fit, column[fit], groups=groups)
    model = _best(LogisticRegression(max_iter=2000), {"logisticregression__C": strengths}, "neg_log_loss", folds)
    features = embedding.features_PD.astype(np.float64)
    model.fit(features[fit], column[fit])
    return float(roc_auc_score(column[test], model.decision_function(features[test])))


def _best(estimator: Any, choices: dict[str, np.ndarray], scoring: str, folds: Any) -> Any:
    """Return standardisation and estimator; the choice is made by cross-validation where there are several."""
    pipeline = make_pipeline(StandardScaler(), estimator)
    ((name, values),) = choices.items()
    if len(values) == 1:
        return pipeline.set_params(**{name: values[0]})
    return GridSearchCV(pipeline, choices, scoring=scoring, cv=list(folds))
