"""mc-BEiT's tokenizer, and what its target is; ``test_official.py`` has the published code's numbers."""

import json
import math

import numpy as np
import pytest
import torch

from mrmfast.errors import UserError
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.models.tokenizer import Tokenizer, random_tokenizer, read_tokenizer, write_tokenizer
from mrmfast.objectives.base import StepInfo
from mrmfast.objectives.mcbeit import McBEiT, McBEiTConfig, TokenizerConfig
from mrmfast.training.tokenizer import choose_scale, fit_codes, nearest_codes, perplexity
from tests.helpers.common import TINY_MODEL
from tests.helpers.objectives import IMAGE, as_batch, batch


def build(**tokenizer):
    torch.manual_seed(0)
    config = McBEiTConfig(tokenizer=TokenizerConfig(**tokenizer))
    return McBEiT(config, ImageEncoder("vit_tiny_patch16_224", IMAGE, 1), None)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "book.safetensors"
    write_tokenizer(path, random_tokenizer(6, 8), {"perplexity": 5.0})
    return path


def test_logits_are_distances_to_the_codes():
    tokenizer, (image, _, _) = random_tokenizer(5, 8), batch(2)
    patches = tokenizer.patches(image)
    distance = (patches[:, :, None] - tokenizer.codes).square().sum(-1)
    p, expected = tokenizer(image).softmax(-1), (-distance / tokenizer.scale).softmax(-1)
    assert torch.allclose(p, expected, atol=1e-5)
    # A patch is at the place of the encoder's: 16 pixels a side, halved.
    pixels = (image[0, :, :16, 16:].float().unflatten(1, (8, 2)).unflatten(3, (8, 2)).mean((2, 4))).permute(1, 2, 0)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    assert torch.allclose(patches[0, 1].view(8, 8, 3), (pixels / 255 - mean) / std, atol=1e-5)


def test_a_code_of_its_own_is_the_target_of_a_patch():
    image, _, _ = batch(1)
    patches = random_tokenizer(2, 8).patches(image)[0]
    tokenizer = Tokenizer(patches, 1e-3, 8)
    assert tokenizer(image)[0].argmax(1).tolist() == [0, 1, 2, 3]


def test_the_file_is_read_back_and_stays_float32(file):
    model = build(file=str(file)).bfloat16()
    assert model.tokenizer.codes.dtype == torch.float32
    assert torch.equal(model.tokenizer.codes, random_tokenizer(6, 8).codes)
    assert not any("tokenizer" in name for name in model.state_dict())
    image, packed, present = batch(2)
    assert model.compute_loss(as_batch(image, packed, present), StepInfo(0)).loss.isfinite()


def test_another_file_is_refused(file, tmp_path):
    digest = json.loads(file.with_suffix(".json").read_text())["sha256"]
    read_tokenizer(file, digest)
    with pytest.raises(UserError, match=r"SHA-256 is .*, objective\.tokenizer\.sha256 says 00"):
        read_tokenizer(file, "00")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"SHA-256 is .*, book\.json says"):
        build(file=str(file))
    with pytest.raises(UserError, match="missing; train one with: mrmfast tokenizer"):
        build(file=str(tmp_path / "none.safetensors"))
    file.with_suffix(".json").write_text("[]")
    with pytest.raises(UserError, match="not a tokenizer"):
        build(file=str(file))


def test_a_book_for_other_patches_and_a_digest_without_file_are_refused(tmp_path):
    path = tmp_path / "small.safetensors"
    write_tokenizer(path, random_tokenizer(6, 4), {})
    with pytest.raises(UserError, match="made for patches of 8 pixels, the encoder's have 16"):
        build(file=str(path))
    with pytest.raises(UserError, match=r"set tokenizer\.file too"):
        TokenizerConfig(sha256="00")


def test_training_finds_clusters_and_perplexity_counts_them():
    centres = 10 * np.eye(4, 12, dtype=np.float32)
    noise = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)
    patches = np.repeat(centres, 100, 0) + 0.1 * noise
    codes = fit_codes(patches, 4, seed=1)
    distance = np.linalg.norm(codes[:, None] - centres, axis=-1)
    assert distance.min(0).max() < 0.2
    tokenizer = Tokenizer(torch.from_numpy(codes), 1.0, 2)
    assert perplexity(nearest_codes(tokenizer, torch.from_numpy(patches)), 4) == pytest.approx(4, rel=1e-6)
    assert perplexity(torch.tensor([0, 0, 1, 1]), 4) == pytest.approx(2, rel=1e-9)
    tokenizer.scale = choose_scale(tokenizer, torch.from_numpy(patches[::8]), 2.0)
    p = (tokenizer.logits(torch.from_numpy(patches[::8])) / 4).softmax(1)
    assert torch.special.entr(p).sum(1).mean().exp().item() == pytest.approx(2.0, rel=1e-3)


def test_the_command_trains_on_the_images_of_a_dataset(dataset, tmp_path, capsys):
    from mrmfast.cli import main

    out = tmp_path / "book.safetensors"
    options = ["--config", "demo", f"data.path={dataset}", *TINY_MODEL]
    assert main(["tokenizer", *options, "--out", str(out), "--codes", "5", "--patches", "60"]) == 0
    printed, facts = capsys.readouterr().out, json.loads(out.with_suffix(".json").read_text())
    assert f"perplexity {facts['perplexity']:.1f}" in printed
    assert 1 <= facts["perplexity"] <= 5
    assert f"objective.tokenizer.sha256={facts['sha256']}" in printed
    assert len(build(file=str(out), sha256=facts["sha256"]).tokenizer.codes) == 5
    assert main(["tokenizer", *options, "--out", str(out), "--codes", "500", "--patches", "60"]) == 2
    assert "take fewer codes, or raise --patches" in capsys.readouterr().err
    assert main(["tokenizer", *options, "--out", str(tmp_path / "book.pt")]) == 2


def test_omega_mixes_codes_of_similar_patches():
    model, rows = build(codes=7), torch.arange(4).expand(1, -1)
    features = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, -1]]])
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0))
    p = (logits / 4).softmax(-1)[0]
    weights = torch.tensor([math.e, math.e, 1, 1]) / (2 * math.e + 2)
    expected = 0.2 * weights @ p + 0.8 * p[0]
    assert torch.allclose(model.target(features, logits, rows)[0, 0], expected)
