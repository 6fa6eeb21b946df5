"""Forms and statistics of ``benchmarks/quality``: what a decoder must not see it does not see."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import benchmarks.quality.__main__ as learns
from benchmarks.harness import Bench
from benchmarks.quality.__main__ import report
from benchmarks.quality.cohort import Cohort
from benchmarks.quality.forms import FORMS, build_model, genome_alone
from benchmarks.quality.probe import probe, retrieval, shuffled
from benchmarks.quality.report import Results, interval, markdown
from benchmarks.quality.run import MODEL
from mrmfast.batch import GenomeSpec, ModalitySpec
from tests.helpers.objectives import loss_of

SPEC = GenomeSpec((ModalitySpec("pgs", "float", 3),), (2, 1), ("pgs/0", "pgs/1"), torch.zeros(3))


def _predictions(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Genome predictions of one model for the same photographs and two genomes."""
    torch.manual_seed(0)
    model = build_model(FORMS[name], MODEL, 16, SPEC).eval()
    seen: list[torch.Tensor] = []
    model.genome_decoder.register_forward_hook(lambda *call: seen.append(call[2]))
    image = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    for genome in torch.randn(2, 4, 3):
        loss_of(model, image, (genome,), torch.ones(4, 1, dtype=torch.bool))
    return seen[0], seen[1]


@pytest.mark.parametrize(("name", "leaks"), [("all", True), ("hidden", True), ("apart", False), ("prediction", False)])
def test_whether_the_genome_reaches_its_own_prediction(name: str, leaks: bool) -> None:
    first, second = _predictions(name)
    assert torch.equal(first, second) != leaks


def test_apart_teaches_the_image_encoder() -> None:
    model = build_model(FORMS["prediction"], MODEL, 16, SPEC)
    image = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    loss, _ = loss_of(model, image, (torch.randn(4, 3),), torch.ones(4, 1, dtype=torch.bool))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.blocks[0].attn.parameters())


@pytest.mark.parametrize("name", ["all", "none"])
def test_genome_alone_has_one_vector_a_person(name: str) -> None:
    model = build_model(FORMS[name], MODEL, 16, SPEC).eval()
    genome = torch.randn(5, 3)
    pooled = genome_alone(model, genome)
    assert pooled.shape == (5, model.encoder.width)
    torch.testing.assert_close(genome_alone(model, genome[2:3]), pooled[2:3], rtol=1e-5, atol=1e-6)


@pytest.fixture
def cohort() -> Cohort:
    generator = np.random.default_rng(0)
    people, eyes = 300, 2
    genome = generator.standard_normal((people, 4)).astype(np.float32)
    person = np.repeat(np.arange(people), eyes)
    part = np.where(person < 200, "train", np.where(person < 230, "choose", "test"))
    return Cohort(torch.empty(0), genome[person], genome[person, :2].astype(float), ["a", "b"], person, part)


def test_probe_finds_what_features_hold_and_nothing_else(cohort: Cohort) -> None:
    noise = np.random.default_rng(1).standard_normal((len(cohort.person), 5))
    features = np.column_stack([cohort.traits_PT[:, 0] * 3 + 1, noise])
    found = probe(features, cohort, "test")
    assert found[0] > 0.99
    assert abs(found[1]) < 0.1
    assert abs(shuffled(features, cohort, "test")[0]) < 0.1


def test_retrieval_of_known_genomes_and_of_noise(cohort: Cohort) -> None:
    noise = np.random.default_rng(1).standard_normal((len(cohort.person), 5))
    right = retrieval({"image": cohort.genome_PF, "genome": cohort.genome_PF}, cohort.genome_PF, cohort, "test")
    assert right["ridge"] > 0.99
    assert right["cosine"] > 0.99
    wrong = retrieval({"image": noise, "genome": noise[::-1].copy()}, cohort.genome_PF, cohort, "test")
    assert right["chance"] == pytest.approx(10 / 70)
    assert wrong["ridge"] == pytest.approx(10 / 70, abs=0.1)


def test_interval_is_students() -> None:
    low, high = interval(np.array([1.0, 2.0, 3.0]))
    # t(2, 0.975) = 4.303, standard error 1 / sqrt(3)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)


def test_some_forms_and_other_seeds_are_reported_and_the_compared_form_is_fixed(tmp_path) -> None:
    """`--forms all,none --seeds 4,5`: without the reference, and a better form that was not named is no bar."""
    (tmp_path / "runs").mkdir()
    for form in ("all", "none", "untrained"):
        for seed in (4, 5):
            (tmp_path / f"runs/{form}-{seed}.json").write_text('{"last_losses": {}}')
    traits = np.array([[[0.3], [0.31]], [[0.9], [0.91]], [[0.1], [0.1]]])
    flat = np.zeros((3, 2))
    values = {"traits": traits, "few": traits, "ridge": flat, "cosine": flat + np.nan, "chance": flat}
    bench = Bench("a")
    report(bench, Results(["all", "none", "untrained"], ["a"], values), tmp_path, [4, 5], "# Head", tmp_path)
    assert [bar["name"] for bar in bench.bars] == ["as published (all) less untrained, lower end of 95 %"]
    assert "| `none` |" in (tmp_path / "learns.md").read_text()
    assert (tmp_path / "learns.png").stat().st_size > 0


def test_the_gate_reads_a_seed_that_was_trained(tmp_path, cohort, monkeypatch) -> None:
    (tmp_path / "runs").mkdir()
    np.savez(tmp_path / "runs/all-3.npz", image=cohort.genome_PF)
    monkeypatch.setattr(learns, "declared_shares", lambda _: dict.fromkeys(cohort.trait_names, 0.5))
    bench = Bench("a")
    learns.gates(bench, tmp_path, "all", 3, cohort, "test")
    assert all(gate["holds"] for gate in bench.gates)


def test_page_shows_the_paired_difference() -> None:
    traits = np.array([[[0.1], [0.2]], [[0.3], [0.41]]])
    flat = np.zeros((2, 2))
    values = {"traits": traits, "few": traits, "ridge": flat, "cosine": flat + np.nan, "chance": flat}
    page = markdown(Results(["image_only", "all"], ["a"], values), "# Head", {"image_only": {}, "all": {"genome": 0.5}})
    assert "| 0.355 ± 0.078 | +0.205 (+0.141 to +0.269)" in page
