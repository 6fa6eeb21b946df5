"""What frozen features tell of planted traits and of the genome: linear probes and retrieval (scikit-learn)."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.cohort import Cohort

FEW = 400  # labelled photographs of the second probe
DRAWS = 5  # of those, averaged
NEAREST = 10  # k of recall@k


def _ridge() -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 15)))


def probe(features_PD: np.ndarray, cohort: Cohort, part: str, labels: int | None = None, seed: int = 0) -> np.ndarray:
    """Fit a ridge probe for each trait on training participants; return R^2 on `part`, float64, shape (T,).

    Parameters
    ----------
    features_PD : ndarray
        One row a photograph.
    part : {"choose", "test"}
    labels : int, optional
        Fit on this many training photographs, drawn with `seed`; all by default.
    """
    training, judged = np.flatnonzero(cohort.part == "train"), cohort.part == part
    if labels is not None:
        training = np.random.default_rng(seed).permutation(training)[:labels]
    scores = []
    for values in cohort.traits_PT.T:
        model = _ridge().fit(features_PD[training], values[training])
        scores.append(model.score(features_PD[judged], values[judged]))
    return np.array(scores)


def few_labels(features_PD: np.ndarray, cohort: Cohort, part: str) -> np.ndarray:
    """Average :func:`probe` with few labels over draws; shape (T,)."""
    return np.mean([probe(features_PD, cohort, part, FEW, draw) for draw in range(DRAWS)], 0)


def shuffled(features_PD: np.ndarray, cohort: Cohort, part: str) -> np.ndarray:
    """Probe traits that were dealt to other participants: R^2 must be near 0; shape (T,)."""
    people = cohort.person.max() + 1
    first = np.zeros(people, dtype=int)
    first[cohort.person] = np.arange(len(cohort.person))
    dealt = np.random.default_rng(0).permutation(people)
    wrong = Cohort(**{**vars(cohort), "traits_PT": cohort.traits_PT[first[dealt[cohort.person]]]})
    return probe(features_PD, wrong, part)


def _recall(query_QD: np.ndarray, gallery_GD: np.ndarray, answer_Q: np.ndarray) -> float:
    """Share of queries whose answer is among the NEAREST of the gallery by cosine."""
    query = query_QD / np.linalg.norm(query_QD, axis=1, keepdims=True).clip(1e-12)
    gallery = gallery_GD / np.linalg.norm(gallery_GD, axis=1, keepdims=True).clip(1e-12)
    similarity = query @ gallery.T
    own = similarity[np.arange(len(query)), answer_Q]
    return float(((similarity > own[:, None]).sum(1) < NEAREST).mean())


def retrieval(features: dict[str, np.ndarray], genome_PF: np.ndarray, cohort: Cohort, part: str) -> dict[str, float]:
    """Find a participant's genome from a photograph among all participants of `part`.

    Returns
    -------
    dict
        recall@NEAREST: ``ridge`` by the genome that a ridge map predicts from the image features; ``cosine`` directly
        between pooled z_I and z_G, each less its mean (only with a genome encoder); ``chance``.
    """
    training, judged = cohort.part == "train", np.flatnonzero(cohort.part == part)
    people, first, answer = np.unique(cohort.person[judged], return_index=True, return_inverse=True)
    scaler = StandardScaler().fit(genome_PF[training])
    genome = scaler.transform(genome_PF)
    predicted = _ridge().fit(features["image"][training], genome[training]).predict(features["image"][judged])
    recall = {"ridge": _recall(predicted, genome[judged[first]], answer), "chance": NEAREST / len(people)}
    if "genome" in features:
        z_image, z_genome = (z - z[training].mean(0) for z in (features["image"], features["genome"]))
        recall["cosine"] = _recall(z_image[judged], z_genome[judged[first]], answer)
    return recall
