"""What holds for every objective, as functions of one: ``tests/objectives/test_contract.py`` runs them."""

from dataclasses import asdict, fields, is_dataclass, replace

import numpy as np
import torch

from mrmfast import config as configs
from mrmfast.batch import Batch
from mrmfast.models.config import ModelConfig
from mrmfast.models.decoders import GenomeDecoderConfig, ImageDecoderConfig
from mrmfast.models.export import export_encoder, load_encoder
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.heads import DistillationHeadConfig
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives import OBJECTIVES
from mrmfast.objectives.base import StepInfo
from mrmfast.training.memory import example_inputs, kept_bytes, step_flops
from mrmfast.training.settings import TrainConfig
from tests.helpers.common import ROOT
from tests.helpers.objectives import IMAGE, SPEC, batch

MODEL = ModelConfig("vit_tiny_patch16_224", depth=3, genome_layers=2)
SMALL = {
    ImageDecoderConfig: ImageDecoderConfig(32, 1, 2),
    GenomeDecoderConfig: GenomeDecoderConfig(32),
    DistillationHeadConfig: DistillationHeadConfig(64, 32, 64),
}


def shrink(config):
    """A config with small decoders and heads, wherever it has some."""
    if type(config) in SMALL:
        return SMALL[type(config)]
    nested = {f.name: getattr(config, f.name) for f in fields(config) if is_dataclass(getattr(config, f.name))}
    return replace(config, **{name: shrink(section) for name, section in nested.items()})


def build(cls):
    """A small objective with seeded weights, with genetics where it takes some."""
    torch.manual_seed(0)
    genome = None if cls.genetics == "unused" else GenomeInput(SPEC, MODEL.genome_layers, MODEL.alpha_dropout)
    config = shrink(cls.Config())
    return cls(config, ImageEncoder(MODEL.arch, IMAGE, MODEL.depth, cls.encoder_design(config)), genome)


def inputs(model, samples=6):
    """Views as the objective asks for them, and genetics."""
    generator = torch.Generator().manual_seed(1)
    sizes = [view.size or IMAGE for view in model.views(model.config)]
    shapes = [(samples, 3, size, size) for size in sizes]
    views = tuple(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in shapes)
    _, packed, present = batch(samples)
    return views, packed, present, None


def loss_of(model, info, samples=6):
    return model(*inputs(model, samples), info.seed, info.step, info.total_steps)


def check_loss(cls):
    """Loss and parts are finite scalars; the parts carry no graph. Also with the fewest samples of a pass."""
    for samples in (6, build(cls).min_samples_per_pass(shrink(cls.Config()))):
        loss, parts = loss_of(build(cls), StepInfo(3), samples)
        assert loss.ndim == 0
        assert loss.isfinite()
        assert parts
        assert all(value.ndim == 0 and value.isfinite() and not value.requires_grad for value in parts.values())


def check_gradients(cls):
    """A gradient reaches every trainable parameter."""
    model = build(cls)
    loss_of(model, StepInfo(3))[0].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def check_same_info_same_loss(cls):
    """The step's info decides all that is random, whatever was drawn before."""
    losses = []
    for state in (1, 2):
        model = build(cls)
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002 - an objective that draws from here is what this is about
        losses.append([loss_of(model, StepInfo(seed, 2, 9))[0].item() for seed in (3, 2**62, 3)])
    assert losses[0] == losses[1]
    assert losses[0][0] == losses[0][2]


def check_bf16(cls):
    """bfloat16 weights give nearly the same loss, in float32."""
    exact, rounded = loss_of(build(cls), StepInfo(3))[0], loss_of(build(cls).bfloat16(), StepInfo(3))[0]
    assert rounded.dtype == torch.float32
    assert abs(rounded - exact) <= 0.05 * abs(exact)


def check_averages(cls):
    """Forward and backward passes move nothing; ``after_step`` moves what is not trained, if there is any."""
    model = build(cls)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}

    def averages():
        return {name: value.clone() for name, value in model.state_dict().items() if name not in trainable}

    before = averages()
    loss_of(model, StepInfo(3))[0].backward()
    assert all(torch.equal(value, before[name]) for name, value in averages().items())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    trained = {name: value.clone() for name, value in model.named_parameters() if name in trainable}
    model.after_step(StepInfo(3, 1, 9))
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters() if name in trainable)
    moved = [name for name, value in averages().items() if not torch.equal(value, before[name])]
    assert bool(moved) == bool(before), "averages that after_step leaves where they are"
    narrow = model.bfloat16().state_dict()
    assert all(narrow[name].dtype == torch.float32 for name in moved), "averages that bfloat16 would round away"


def check_account(cls):
    """Arithmetic and memory of a pass can be counted: MFU and ``engine.micro_batch=auto`` are made of these."""
    model, cpu = build(cls), torch.device("cpu")
    forward, both = step_flops(model, example_inputs(model, SPEC, 2, cpu))
    assert 0 < 1.5 * forward < both  # a backward pass costs twice its forward pass, and a teacher has none
    one, two, four = (kept_bytes(model, example_inputs(model, SPEC, samples, cpu)) for samples in (1, 2, 4))
    assert one < two < four
    assert abs((four - two) - 2 * (two - one)) <= 0.05 * four
    model.set_activation_checkpointing()
    assert kept_bytes(model, example_inputs(model, SPEC, 4, cpu)) < 0.8 * four


def check_export(cls, folder):
    """timm loads the export strictly, and computes what the encoder computes."""
    model = build(cls).eval()
    path = folder / "encoder.safetensors"
    export_encoder(path, dict(model.encoder.named_parameters()), model.export_recipe())
    image = torch.randn(2, 3, IMAGE, IMAGE)
    with torch.no_grad():
        apart = (model.encoder(image) - load_encoder(path).eval().forward_features(image)).abs().max()
    assert apart <= 1e-5


def check_figures(cls):
    """Figures are columns of uint8 images."""
    model = build(cls).eval()
    views, packed, present, target = inputs(model, 2)
    given = Batch(views, (None,) * len(views), packed, present, target, keys=(), epochs=(), end=0)
    with torch.no_grad():
        figures = model.figures(given)
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        for column in figure.columns:
            assert column.images.dtype == torch.uint8
            assert column.images.shape[:2] == (2, 3)
            assert column.heat is None or (column.heat.ndim == 3 and column.heat.isfinite().all())


def check_yaml_and_page(name):
    """The objective has a config that loads and a page of its own."""
    assert configs.load(TrainConfig, ROOT / f"configs/objectives/{name}.yaml", []).objective.name == name
    page = (ROOT / f"docs/methods/{name}.md").read_text()
    assert OBJECTIVES[name].partition(":")[2] in page
    assert f"configs/objectives/{name}.yaml" in page


def small_overrides(name):
    """Overrides of the command line that choose the objective with small decoders and heads."""
    full = configs.build(TrainConfig, {"objective": {"name": name}}, "").objective
    before, small = (configs.flatten(asdict(section)) for section in (full, shrink(full)))
    return [f"objective={name}"] + [
        f"objective.{key}={'null' if value is None else value}" for key, value in small.items() if value != before[key]
    ]
