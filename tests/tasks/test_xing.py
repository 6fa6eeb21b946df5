"""Xing et al.: what the default changes, and what is drawn; ``test_official.py`` has the published code's numbers."""

import pytest
import torch

from mrmfast.tasks.xing import Distillation, FusionTeacher, PathHead, XingConfig
from mrmfast.tasks.xing.discrepancy import DiscrepancyLoss, Pairs, draw_candidates, draw_ranks
from mrmfast.tasks.xing.distillation import TEACHERS, divergence
from mrmfast.tasks.xing.refinement import gradient_cosines, refinement_weights

SIZES = {"width": 8, "embedding": 6, "positives": 10, "negatives": 9, "chosen_positives": 3, "chosen_negatives": 4}
CLASSES = torch.arange(60) % 3


def build(mode):
    torch.manual_seed(0)
    teacher = FusionTeacher(PathHead(5, 8, 3), genes=7, width=8, classes=3)
    return Distillation(XingConfig(mode=mode, **SIZES), PathHead(5, 8, 3), teacher, samples=60)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(60, generator=generator)[:6]
    pairs = {}
    for name in TEACHERS:
        positives, negatives = draw_candidates(ids, CLASSES[ids], CLASSES, 10, 9, generator)
        pairs[name] = Pairs(ids, positives, negatives, draw_ranks("mid", 3, 10, 0.0, generator))
    images = torch.randn(2, 6, 5, generator=generator)
    return images, torch.randn(6, 7, generator=generator), CLASSES[ids], pairs


def test_candidates_are_of_the_right_classes_and_begin_with_the_sample():
    ids = torch.tensor([4, 8])
    positives, negatives = draw_candidates(ids, CLASSES[ids], CLASSES, 10, 9, torch.Generator().manual_seed(0))
    assert positives[:, 0].tolist() == [4, 8]
    assert (CLASSES[positives] == CLASSES[ids][:, None]).all()
    assert (CLASSES[negatives] != CLASSES[ids][:, None]).all()
    assert len(negatives[0].unique()) == 9
    # Fewer in the class than asked for: with repetition.
    assert draw_candidates(ids, CLASSES[ids], CLASSES, 30, 9, torch.Generator())[0].shape == (2, 30)


@pytest.mark.parametrize(("rule", "progress", "low", "high"), [("mid", 0, 30, 99), ("curriculum", 0.1, 100, 149)])
def test_ranks_are_drawn_from_the_published_range(rule, progress, low, high):
    generator = torch.Generator().manual_seed(0)
    ranks = torch.cat([draw_ranks(rule, 20, 300, progress, generator) for _ in range(200)])
    assert (ranks.min().item(), ranks.max().item()) == (low, high)


def test_ranks_of_few_candidates_exist():
    for rule in ("mid", "random", "hard", "curriculum"):
        for progress in (0.0, 0.5, 0.99):
            ranks = draw_ranks(rule, 3, 10, progress, torch.Generator())
            assert ranks.shape == (3,)
            assert ranks.max() < 10


def test_the_sign_of_the_discrepancy_is_the_papers():
    """By default a positive is chosen where the teacher is closer; the published code does the opposite."""
    student, teacher = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    pairs = inputs()[-1]["fusion"]
    results = []
    for published in (False, True):
        torch.manual_seed(0)
        results.append(DiscrepancyLoss(60, 8, 6, 0.07, 0.5, 4, published)(student, teacher, pairs).discrepancy)
    assert torch.equal(results[0], -results[1])


def test_only_the_published_form_moves_the_frozen_teacher():
    images, genes, _, _ = inputs()
    for mode, moves in (("same_settings", False), ("official", True)):
        model = build(mode).train()
        before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
        model.outputs(*images, genes)
        assert moves != all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
        assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_the_moving_average_begins_as_the_student_and_follows_it():
    images, genes, labels, pairs = inputs()
    for mode in ("same_settings", "official"):
        model = build(mode)
        student, mean = model.student.classifier.weight, model.ema.module.classifier.weight
        assert torch.equal(student, mean) == (mode == "same_settings")
        refined = model.losses(model.outputs(*images, genes), labels, pairs)
        with torch.no_grad():
            student += 1
        start = mean.clone()
        model.after_step(0, pairs, refined)
        expected = student if mode == "official" else 0.99 * start + 0.01 * student
        assert torch.allclose(mean, expected, atol=1e-6)


def test_a_step_trains_student_and_embeddings_and_moves_banks_after_it():
    images, genes, labels, pairs = inputs()
    model = build("same_settings")
    before = {name: value.clone() for name, value in model.contrast.state_dict().items()}
    refined = model.losses(model.outputs(*images, genes), labels, pairs)
    assert all(parameter.grad is None for parameter in model.parameters()), "the refinement adds to no gradient"
    refined.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.trained())
    assert all(torch.equal(value, before[name]) for name, value in model.contrast.state_dict().items())
    model.after_step(0, pairs, refined)
    constants, rows = model.contrast["ema"].constants.clone(), pairs["ema"].ids_B
    bank = model.contrast["ema"].bank_student
    assert torch.allclose(bank[rows].norm(dim=1), torch.ones(6))
    untouched = torch.ones(60, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(bank[untouched], before["ema.bank_student"][untouched])
    again = model.losses(model.outputs(*images, genes), labels, pairs)
    assert torch.equal(again.contrasts["ema"].constants, constants), "Z is that of the first batch"


def test_weights_are_means_and_never_negative_but_for_the_published_form():
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    losses = [x.sum(), 2 * x.sum(), -x.sum(), x[0, 0], x.sum()]
    cosines, norms = gradient_cosines(losses, x)
    assert x.grad is None
    assert norms.tolist() == pytest.approx([2**0.5, 8**0.5, 2**0.5, 1, 2**0.5])
    half = 0.5**0.5
    assert cosines[0].tolist() == pytest.approx([1, 1, -1, half, 1])
    assert refinement_weights(cosines, True)[0].item() == pytest.approx(4 * (2 + half))
    assert refinement_weights(cosines, True)[2].item() < 0
    assert refinement_weights(cosines, False)[0].item() == pytest.approx((2 + half) / 5)
    assert refinement_weights(cosines, False)[2].item() == 0


def test_divergence_of_equal_classes_is_zero_and_the_teacher_gets_no_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    assert divergence(logits, logits.detach(), 2.0).item() == pytest.approx(0, abs=1e-6)
    teacher = torch.randn(4, 3, requires_grad=True)
    divergence(logits, teacher, 2.0).backward()
    assert teacher.grad is None
    p, q = (teacher / 2).softmax(1), (logits / 2).softmax(1)
    assert divergence(logits, teacher, 2.0).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
