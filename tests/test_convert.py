"""Configs and runs of older versions: refused with the remedy, converted by one command."""

import collections
import dataclasses

import pytest
import torch
import yaml

from mrmfast import config, convert
from mrmfast.errors import UserError
from mrmfast.training.settings import TrainConfig

OLD = """
seed: 3
objective: mrm
batch_size: 32
model:
  arch: vit_tiny_patch16_224
  depth: 4
  relation_blocks: 3
  residual: cross
  decoder_width: 192
  decoder_depth: 2
  decoder_heads: 6
  genome_decoder_width: 128
  genome_decoder_layers: 1
mrm:
  tau_image: 0.5
  mask_cross: false
  match_self: false
  matching_weight: 0.5
  matched_pairs: 4
  genome_from: image
engine:
  checkpoint_activations: true
"""


@pytest.fixture
def old(tmp_path):
    (tmp_path / "old.yaml").write_text(OLD)
    return tmp_path / "old.yaml"


def test_an_old_config_is_refused_with_the_remedy(old):
    with pytest.raises(UserError) as caught:
        config.load(TrainConfig, old, [])
    assert f"convert it with: python -m mrmfast.convert {old} > NEW.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"mrm.tau_image is now objective.mask.tau_image$"):
        config.load(TrainConfig, None, ["mrm.tau_image=0.3"])


def test_an_old_config_is_converted(old, capsys, tmp_path):
    assert convert.main([str(old)]) == 0
    (tmp_path / "new.yaml").write_text(capsys.readouterr().out)
    built = config.load(TrainConfig, tmp_path / "new.yaml", [])
    mask, reconstruct, match = built.objective.mask, built.objective.reconstruct, built.objective.match
    assert (built.seed, built.batch_size, built.model.depth) == (3, 32, 4)
    assert (mask.blocks, mask.residual, mask.tau_image, mask.cross_relations) == (3, "cross", 0.5, False)
    assert (match.self_relations, match.weight, match.pairs) == (False, 0.5, 4)
    assert reconstruct.genome_from == "image"
    sizes = reconstruct.image_decoder, reconstruct.genome_decoder
    assert [vars(part) for part in sizes] == [{"width": 192, "depth": 2, "heads": 6}, {"width": 128, "layers": 1}]
    assert built.engine.activation_checkpointing
    # What is converted converts to itself.
    assert convert.main([str(tmp_path / "new.yaml")]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load((tmp_path / "new.yaml").read_text())


def test_a_mistake_in_an_old_config_is_named(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text("mrm: {tau_imag: 0.5}\n")
    assert convert.main([str(tmp_path / "old.yaml")]) == 2
    assert "mrm" in capsys.readouterr().err


def test_every_old_key_has_a_new_one():
    built = config.flatten(dataclasses.asdict(TrainConfig()))
    for new in TrainConfig.RENAMED.values():
        assert new in built, new


def test_an_old_run_is_converted_where_it_lies(tmp_path, capsys):
    run = tmp_path / "run"
    folder = run / "checkpoints/step-00000002"
    folder.mkdir(parents=True)
    (run / "config.yaml").write_text(OLD)
    shapes = collections.OrderedDict({"image.norm.weight": torch.Size([4]), "genome.x": torch.Size([2])})
    states = {
        "module": {"image.norm.weight": torch.arange(4.0), "image_decoder.norm.weight": torch.ones(2)},
        "param_shapes": [shapes],
        "ds_version": "x",
    }
    torch.save(states, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match=f"convert it with: python -m mrmfast.convert {run}$"):
        config.load(TrainConfig, run / "config.yaml", [])
    assert convert.main([str(run)]) == 0
    assert "1 files of checkpoints converted" in capsys.readouterr().err
    new = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)
    assert list(new["module"]) == ["encoder.norm.weight", "image_decoder.norm.weight"]
    assert torch.equal(new["module"]["encoder.norm.weight"], torch.arange(4.0))
    assert list(new["param_shapes"][0]) == ["encoder.norm.weight", "genome.x"]
    assert config.load(TrainConfig, run / "config.yaml", []).objective.mask.blocks == 3
    assert convert.main([str(run)]) == 0
    assert "0 files of checkpoints converted" in capsys.readouterr().err
