"""DC-Distill: contrast of student and teacher, its pairs chosen by how much the two disagree about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Rule = Literal["mid", "hard", "random", "curriculum"]
# Of 300 ranks, from and to (exclusive), per stage of the training.
RANGES: dict[Rule, tuple[tuple[int, int], ...]] = {
    "mid": ((30, 100),),
    "random": ((0, 300),),
    "curriculum": ((100, 150), (50, 100), (0, 50)),
}
_EPSILON = 1e-7


@dataclass(frozen=True)
class Pairs:
    """Candidates of a batch, and which of them become pairs.

    Attributes
    ----------
    ids_B : Tensor of int64, (B,)
        The samples' rows in the memory banks.
    positives_BP, negatives_BK : Tensor of int64, (B, P) and (B, K)
        Rows of the same class, the sample itself first, and of other classes.
    ranks : Tensor of int64, (chosen positives,)
        Ranks of the positives by discrepancy that are chosen, the same for the whole batch; see :func:`draw_ranks`.
    """

    ids_B: Tensor
    positives_BP: Tensor
    negatives_BK: Tensor
    ranks: Tensor


@dataclass(frozen=True)
class Contrast:
    """What the loss of one teacher is made of.

    Attributes
    ----------
    loss, student_part, teacher_part : Tensor, scalar
        Their sum; the part with the student's vectors as anchors, which alone trains the student; the other one.
    discrepancy : Tensor, (B, P + K)
    positives, negatives : Tensor of int64
        Positions of the chosen ones among the candidates, (B, chosen).
    scores : tuple of Tensor, (B, chosen positives + negatives) each
        Of both anchors, over their constants.
    constants : Tensor, (2,)
        Z of both anchors.
    embedded : tuple of Tensor, (B, E) each
        Normalised vectors of student and teacher.
    """

    loss: Tensor
    student_part: Tensor
    teacher_part: Tensor
    discrepancy: Tensor
    positives: Tensor
    negatives: Tensor
    scores: tuple[Tensor, Tensor]
    constants: Tensor
    embedded: tuple[Tensor, Tensor]


def draw_ranks(rule: Rule, chosen: int, candidates: int, progress: float, generator: torch.Generator) -> Tensor:
    """Draw which ranks of the positives are chosen.

    Parameters
    ----------
    rule : {"mid", "hard", "random", "curriculum"}
        mid: of 30 to 99. hard: the first. random: of all, with repetition. curriculum: of 100 to 149, then 50 to 99,
        then 0 to 49, with repetition. As published for 300 candidates; with fewer, the bounds shrink in proportion.
    chosen, candidates : int
    progress : float
        Share of the training that is done, for ``curriculum``.
    generator : torch.Generator
    """
    if rule == "hard":
        return torch.arange(chosen)
    stages = RANGES[rule]
    low, high = stages[min(len(stages) - 1, int(len(stages) * progress))]
    if candidates < 300:
        low, high = low * candidates // 300, max(high * candidates // 300, low * candidates // 300 + 1)
    if rule == "mid" and high - low >= chosen:
        return low + torch.randperm(high - low, generator=generator)[:chosen]
    return torch.randint(low, high, (chosen,), generator=generator)


def draw_candidates(
    ids_B: Tensor, labels_B: Tensor, classes_N: Tensor, positives: int, negatives: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw candidates of each sample: of its class, itself first, and of the other classes.

    Without repetition, as published, where there are as many; else with repetition.

    Parameters
    ----------
    ids_B, labels_B : Tensor of int64, (B,)
    classes_N : Tensor of int64, (training images,)
        The class of each.
    positives, negatives : int
    generator : torch.Generator

    Returns
    -------
    Tensor of int64, (B, positives), and Tensor of int64, (B, negatives)
    """

    def draw(rows: Tensor, count: int) -> Tensor:
        if len(rows) >= count:
            return rows[torch.randperm(len(rows), generator=generator)[:count]]
        return rows[torch.randint(len(rows), (count,), generator=generator)]

    same = [draw((classes_N == label).nonzero().flatten(), positives) for label in labels_B]
    others = [draw((classes_N != label).nonzero().flatten(), negatives) for label in labels_B]
    positives_BP = torch.stack(same)
    positives_BP[:, 0] = ids_B
    return positives_BP, torch.stack(others)


class DiscrepancyLoss(nn.Module):
    """Contrastive distillation from one teacher.

    Parameters
    ----------
    samples : int
        n, training images: rows of the banks.
    width, embedding : int
        Of the features, which student and teacher share, and of what is compared.
    temperature, momentum : float
    negatives : int
        Negatives that are chosen.
    as_published : bool
        Rank by student minus teacher, the opposite of the paper's figure.
    """

    bank_student: Tensor
    bank_teacher: Tensor
    constants: Tensor

    def __init__(
        self,
        samples: int,
        width: int,
        embedding: int,
        temperature: float,
        momentum: float,
        negatives: int,
        as_published: bool,
    ) -> None:
        super().__init__()
        self.temperature, self.momentum, self.negatives = temperature, momentum, negatives
        self.sign = 1 if as_published else -1
        self.embed_student, self.embed_teacher = nn.Linear(width, embedding), nn.Linear(width, embedding)
        bound = (3 / embedding) ** 0.5
        for name in ("bank_student", "bank_teacher"):
            self.register_buffer(name, torch.empty(samples, embedding).uniform_(-bound, bound))
        self.register_buffer("constants", torch.zeros(2))  # 0: not set yet

    def forward(self, student_BD: Tensor, teacher_BD: Tensor, pairs: Pairs) -> Contrast:
        """Compare; nothing is changed before :meth:`update`."""
        student = normalize(self.embed_student(student_BD), dim=1)
        teacher = normalize(self.embed_teacher(teacher_BD), dim=1)
        candidates = torch.cat([pairs.positives_BP, pairs.negatives_BK], 1)
        rows_student, rows_teacher = self.bank_student[candidates], self.bank_teacher[candidates]
        with torch.no_grad():
            own = _products(normalize(rows_student, dim=-1), student)
            other = _products(normalize(rows_teacher, dim=-1), teacher)
            discrepancy = self.sign * (own - other)
            count = pairs.positives_BP.shape[1]
            ranked = discrepancy[:, :count].argsort(1, descending=True)
            positives = ranked[:, pairs.ranks]
            positives[:, 0] = 0  # the sample itself
            negatives = count + discrepancy[:, count:].argsort(1)[:, : self.negatives]
            chosen = torch.cat([positives, negatives], 1)[..., None].expand(-1, -1, rows_student.shape[-1])
        # The student's vector is compared with rows of the teacher, and the other way round.
        scores = [
            (_products(rows.gather(1, chosen), anchor) / self.temperature).exp()
            for rows, anchor in ((rows_teacher, student), (rows_student, teacher))
        ]
        constants = self._constants(scores)
        shares = [score / constant for score, constant in zip(scores, constants, strict=True)]
        student_part, teacher_part = (self._loss(share, positives.shape[1]) for share in shares)
        return Contrast(
            student_part + teacher_part,
            student_part,
            teacher_part,
            discrepancy,
            positives,
            negatives - count,
            (shares[0], shares[1]),
            constants,
            (student.detach(), teacher.detach()),
        )

    def _constants(self, scores: list[Tensor]) -> Tensor:
        """Return Z of both anchors: fixed by the first batch."""
        fresh = torch.stack([score.detach().mean() * len(self.bank_student) for score in scores])
        return torch.where(self.constants == 0, fresh, self.constants)

    def _loss(self, share: Tensor, positives: int) -> Tensor:
        """Return the loss of one anchor: noise-contrastive, with the number of chosen negatives."""
        noise = self.negatives / len(self.bank_student)
        right = (share / (share + noise + _EPSILON)).log()[:, :positives].mean(1)
        wrong = (noise / (share + noise + _EPSILON)).log()[:, positives:].sum(1)
        return -(right + wrong).mean()

    @torch.no_grad()
    def update(self, pairs: Pairs, contrast: Contrast) -> None:
        """Keep the constants, and move the samples' rows of the banks."""
        self.constants.copy_(contrast.constants)
        for bank, embedded in zip((self.bank_student, self.bank_teacher), contrast.embedded, strict=True):
            mean = self.momentum * bank[pairs.ids_B] + (1 - self.momentum) * embedded
            bank[pairs.ids_B] = normalize(mean, dim=1)


def _products(rows_BKE: Tensor, anchor_BE: Tensor) -> Tensor:
    return (rows_BKE @ anchor_BE[..., None])[..., 0]
