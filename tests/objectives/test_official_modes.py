"""The official modes train and export as the default ones do."""

from dataclasses import replace

import pytest
import torch

from mrmfast.models.export import export_encoder, load_encoder
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives import load_objective
from mrmfast.objectives.base import StepInfo
from tests.helpers import contract
from tests.helpers.objectives import IMAGE, SPEC


@pytest.mark.parametrize("name", ["multimae", "m3ae", "mcbeit"])
def test_the_official_form_trains_and_exports(name, tmp_path):
    cls = load_objective(name)
    config = replace(contract.shrink(cls.Config()), mode="official")
    torch.manual_seed(0)
    encoder = ImageEncoder("vit_tiny_patch16_224", IMAGE, 2, cls.encoder_design(config))
    genome = None if cls.genetics == "unused" else GenomeInput(SPEC, 1, 0.0)
    model = cls(config, encoder, genome)
    loss, _ = contract.loss_of(model, StepInfo(3), samples=4)
    loss.backward()
    assert loss.isfinite()
    for parameter_name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, parameter_name
    path = tmp_path / "encoder.safetensors"
    export_encoder(path, dict(model.encoder.named_parameters()), model.export_recipe())
    # Bytes, which training sees, and normalised pixels, which timm takes.
    image = torch.randint(0, 256, (2, 3, IMAGE, IMAGE), dtype=torch.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    normalised = (image / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        features = load_encoder(path).eval().forward_features(normalised)
        assert torch.allclose(model.eval().encoder(image), features, atol=1e-4)
