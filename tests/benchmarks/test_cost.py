"""The account of a config: counts by hand, what autograd keeps, the shares of ZeRO."""

import sys

import pytest
import torch

from benchmarks.training.cost import main, parameters_by_part, vit_flops
from benchmarks.training.ukb_genome import ukb_batch, ukb_genome
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.training.memory import count_flops, example_inputs, kept_bytes, state_bytes, step_flops
from tests.helpers.common import ROOT
from tests.helpers.objectives import build_mrm


def test_the_default_genome_has_48_tokens_and_26909_features():
    spec = ukb_genome()
    assert len(spec.groups) == 48
    assert spec.n_features == 26_909
    assert sum(spec.groups[:22]) == 7_854
    assert spec.groups[22:26] == (120, 120, 120, 121)
    assert [part.shape[1] for part in ukb_batch(2, 32)[1]] == [1964, 481, 2322]


def test_flops_of_a_vit_equal_a_hand_count():
    assert vit_flops(768, 12, 3072, 197, 768) == pytest.approx(35.1e9, rel=0.01)  # ViT-B/16: 17.6 G multiply-adds
    encoder = ImageEncoder("vit_tiny_patch16_224", 64).to("meta")
    image = torch.empty(1, 3, 64, 64, device="meta")
    assert count_flops(lambda: encoder(image)) == vit_flops(192, 12, 768, 17, 768)


def test_a_config_that_does_not_fit_the_ranks_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["model", "--config", str(ROOT / "configs/demo.yaml"), "--ranks", "7"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "does not divide over 7 ranks" in capsys.readouterr().err.splitlines()[-1]


def test_a_models_account():
    spec, cpu = ukb_genome(), torch.device("cpu")
    model = build_mrm(genome=spec)

    def inputs(samples):
        return example_inputs(model, spec, samples, cpu)

    assert sum(parameters_by_part(model).values()) == sum(p.numel() for p in model.parameters())
    one, two = (kept_bytes(model, inputs(samples)) for samples in (1, 2))
    assert one < two < 2.1 * one
    model.set_activation_checkpointing()
    assert kept_bytes(model, inputs(2)) < two
    forward, both = step_flops(model, inputs(1))
    assert 3.5 * forward < both < 4 * forward  # blocks run twice
    model.set_activation_checkpointing(False)
    forward, both = step_flops(model, inputs(1))
    assert 2.5 * forward < both < 3 * forward  # no gradient of pixels and features


def test_zero_divides_states_then_gradients_then_weights():
    totals = [sum(state_bytes(1000, True, stage, 4).values()) for stage in range(4)]
    assert totals == [20_000, 4_000 + 3_000, 2_000 + 500 + 3_000, 4_000]
    assert sum(state_bytes(1000, False, 0, 4).values()) == 20_000
