"""MultiMAE with its published modalities: rgb, depth, semantic segmentation (EPFL-VILAB/MultiMAE)."""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mrmfast.models.positions import sincos_positions
from mrmfast.models.task_decoder import TaskDecoderConfig
from mrmfast.objectives.losses import mean_over_samples
from mrmfast.objectives.multimae import MultiMAE, MultiMAEConfig
from mrmfast.objectives.multimae.adapters import Adapter, ImageAdapter
from mrmfast.objectives.multimae.masking import Draws, choose_visible
from mrmfast.training.optimiser import OptimiserConfig, build_optimiser
from tests.helpers.official import Checks, fill, image, input_of, numeric_facts
from tests.helpers.official.building import build_encoder, check_rates, float64
from tests.helpers.official.stated import stated

DECODER = {
    "mask_token": "mask_token.token",
    "decoder": "cross",
    "decoder_transformer": "blocks",
    "out_proj": "head",
    "proj_context": "embed",
}


class Maps(Adapter):
    """A map in the image's geometry, at 1 / stride of its resolution: depth, or classes."""

    def __init__(self, name, encoder, positions, channels, stride=1):
        super().__init__(name, encoder.grid**2, positions)
        self.cell, self.grid, self.channels = encoder.patch // stride, encoder.grid, channels
        self.register_buffer("table", sincos_positions(encoder.grid, encoder.width, "row"), persistent=False)

    def embed(self, x):
        return self.proj(x).flatten(2).transpose(1, 2) + self.table

    def heads(self, width):
        return {self.name: nn.Linear(width, self.channels * self.cell**2)}

    def as_map(self, predicted):
        """(B, tokens, channels * cell * cell) to (B, channels, side, side)."""
        cells = predicted.unflatten(2, (self.channels, self.cell, self.cell)).unflatten(1, (self.grid, self.grid))
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def loss(self, output, predicted, raw, masked):
        pixels = masked.unflatten(1, (self.grid, self.grid))
        pixels = pixels.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)
        return mean_over_samples(self.error(self.as_map(predicted), raw).flatten(1), pixels.flatten(1))


class Depth(Maps):
    def __init__(self, name, encoder, positions):
        super().__init__(name, encoder, positions, 1)
        self.proj = nn.Conv2d(1, encoder.width, self.cell, self.cell)

    def forward(self, raw):
        return self.embed(raw)

    def error(self, predicted, raw):
        return (predicted - raw).abs().mean(1)


class Segmentation(Maps):
    def __init__(self, name, encoder, positions, classes, width, stride):
        super().__init__(name, encoder, positions, classes, stride)
        self.class_emb = nn.Embedding(classes, width)
        self.proj = nn.Conv2d(width, encoder.width, self.cell, self.cell)

    def forward(self, raw):
        return self.embed(self.class_emb(raw).movedim(-1, 1))

    def error(self, predicted, raw):
        return cross_entropy(predicted, raw, reduction="none")


class Published(MultiMAE):
    """Our MultiMAE, with the adapters of the case in place of the genome's."""

    def __init__(self, sizes, config, encoder):
        self.sizes = sizes
        super().__init__(config, encoder, None)

    def build_adapters(self, genome):
        positions = sincos_positions(self.encoder.grid, self.config.decoder.width, "row")
        for name in self.sizes["modalities in order"]:
            if name == "rgb":
                yield ImageAdapter(name, self.encoder.patch, self.encoder.grid, positions)
            elif name == "depth":
                yield Depth(name, self.encoder, positions)
            else:
                options = self.sizes["semseg"]
                shape = options["classes"], options["class embedding"], options["stride"]
                yield Segmentation(name, self.encoder, positions, *shape)


def build(sizes):
    decoder = TaskDecoderConfig(sizes["decoder width"], sizes["decoder self-attention blocks"], sizes["decoder heads"])
    visible = (sizes["kept tokens in all"] + 0.5) / (sizes["img_size"] // sizes["patch"]) ** 2
    config = MultiMAEConfig(mode="official", visible=visible, decoder=decoder)
    return Published(sizes, config, build_encoder(sizes, design=MultiMAE.encoder_design(config)))


def published(model):
    """Our trainable parameters by the published names."""
    encoder, adapters, parameters = model.encoder, model.each_adapter(), {}
    parameters["global_tokens"] = encoder.tokens.cls_token
    parameters |= _named(encoder.blocks, "encoder")
    for adapter in adapters:
        if isinstance(adapter, ImageAdapter):
            parameters |= _named(encoder.tokens.patch_embed.proj, f"input_adapters.{adapter.name}.proj")
        else:
            parameters |= _named(adapter, f"input_adapters.{adapter.name}")
    ours = {new: old for old, new in DECODER.items()}
    for (output, _), decoder in zip(model.outputs, model.decoders, strict=True):
        for name, parameter in decoder.named_parameters():
            role, _, rest = name.partition(".")
            if role == "embeddings":
                role, rest = f"task_embeddings.{adapters[int(rest.split('.')[0])].name}", ""
            elif role == "mask_token":
                rest = ""
            parameters[".".join(filter(None, ("output_adapters", output, ours.get(role, role), rest)))] = parameter
    return parameters


def _named(module, prefix):
    return {f"{prefix}.{name}": p for name, p in module.named_parameters() if p.requires_grad}


def read_inputs(checks, case):
    names, inputs = case["sizes"]["modalities in order"], case["inputs"]
    raw = {}
    for name in names:
        make = stated(inputs[name]["value"]) if name == "semseg" else image
        raw[name] = input_of(checks, case, name, make)
    if "semseg" in raw:
        raw["semseg"] = raw["semseg"].long()
    noises = tuple(input_of(checks, case, f"noise {name}") for name in names)
    shares = torch.tensor(inputs["shares"]["value"], dtype=torch.float64)
    return raw, Draws(shares, noises, input_of(checks, case, "final noise"))


def run(file, case):
    checks, sizes = Checks(case["expected"]), case["sizes"]
    with float64():
        model = build(sizes)
    parameters = published(model)
    fill(case, parameters)
    raw, draws = read_inputs(checks, case)
    check_sizes(checks, model, sizes)
    check_masking(checks, model, draws)
    kept, restore = choose_visible(draws, model.kept)
    checks.stat(model.visible_tokens(raw, kept), "encoder_input")
    encoded = model.encode(raw, kept)
    checks.stat(encoded, "encoder_output")
    checks.stat(encoded[0, -1], "encoder_output_global_token_of_sample_0")
    predictions = model.predict(encoded, kept, restore)
    for output, adapter in model.outputs:
        as_map = Maps.as_map if isinstance(adapter, Maps) else rgb_map
        checks.stat(as_map(adapter, predictions[output]), "predictions", output)
    losses = model.losses(raw, None, draws)
    for output, value in losses.items():
        checks.number(value, "losses", output)
    loss = torch.stack(list(losses.values())).sum()
    checks.number(loss, "loss")
    variants = case["expected"]["wrong_variants"]
    for name, wrong in variants.items():
        if isinstance(wrong, dict):
            checks.wrong({output: value.item() for output, value in losses.items()}, "wrong_variants", name)
        else:
            assert not math.isclose(loss.item(), checks.at("wrong_variants", name), rel_tol=1e-9)
    loss.backward()
    checks.gradient_norms(parameters, "grad_norms")
    check_decay(checks, model, parameters)
    return checks


def rgb_map(adapter, predicted):
    """(B, patches, 3 * patch * patch) to (B, 3, S, S)."""
    side = math.isqrt(predicted.shape[1])
    cells = predicted.unflatten(2, (3, adapter.patch, adapter.patch)).unflatten(1, (side, side))
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def count(model):
    """Trainable parameters, and all with the fixed tables: one per modality in the encoder, one per decoder."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    patches = model.encoder.grid**2
    tables = len(model.tokens) * model.encoder.width + len(model.outputs) * model.config.decoder.width
    return trainable, trainable + patches * tables


def check_sizes(checks, model, sizes):
    trainable, everything = count(model)
    checks.same(trainable, "counts", "trainable")
    checks.same(everything, "counts", "all (with sin-cos tables)")
    checks.same(model.encoder.grid**2, "counts", "tokens per modality")
    checks.same(sum(model.tokens.values()), "counts", "tokens in all")
    checks.same(model.kept + 1, "counts", "encoder tokens")
    checks.stat(model.encoder.tokens.pos_embed[0, 2], "pos_emb", "encoder row of patch 1")
    checks.stat(model.decoders[0].embeddings[0].fixed[1], "pos_emb", "decoder row of patch 1")
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {sizes["layer_norm_eps"]}


def check_masking(checks, model, draws):
    kept, restore = choose_visible(draws, model.kept)
    checks.same((draws.shares * model.kept).round().int(), "asked_per_modality = round(share * kept)")
    checks.same(kept, "ids_keep_in_order")
    visible = (restore < model.kept).split(list(model.tokens.values()), 1)
    for name, part in zip(model.tokens, visible, strict=True):
        checks.same(part.sum(1), "kept_per_modality", name)
    for output, adapter in model.outputs:
        part = visible[list(model.tokens).index(adapter.name)]
        checks.same(part.all(1).nonzero().flatten(), "samples without masked tokens", output)


def check_decay(checks, model, parameters):
    """Groups of the optimiser: mask and global tokens are not decayed, task and class embeddings are."""
    names = {id(p): name for name, p in parameters.items()}
    groups = build_optimiser(model, OptimiserConfig(), torch.device("cpu")).param_groups
    decayed, free = ({names[id(p)]: p for p in group["params"]} for group in groups)
    checks.same(len(free), "no_weight_decay", "tensors not decayed")
    checks.same(len(decayed), "no_weight_decay", "tensors decayed")
    matrices = [name for name, p in free.items() if p.ndim > 1]
    checks.same(set(matrices), "no_weight_decay", "not decayed, besides biases and 1-D tensors", convert=set)
    embeddings = [name for name in decayed if "task_embeddings" in name or "class_emb" in name]
    checks.same(set(embeddings), "no_weight_decay", "decayed embeddings", convert=set)


def facts(file):
    """Sizes of the published model, and its schedule."""
    checks = Checks(numeric_facts(file))
    sizes = {"img_size": 224, "patch": 16, "width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4} | {
        "modalities in order": ["rgb", "depth", "semseg"],
        "semseg": {"classes": 133, "class embedding": 64, "stride": 4},
        "kept tokens in all": 98,
        "decoder width": 256,
        "decoder self-attention blocks": 2,
        "decoder heads": 8,
    }
    with torch.device("meta"):
        model = build(sizes)
    assert (MultiMAEConfig().decoder, MultiMAEConfig().visible * 196) == (model.config.decoder, 98)
    trainable, everything = count(model)
    path = "counts ViT-B rgb-depth-semseg with norm_rgb"
    checks.same(trainable, path, "trainable")
    checks.same(everything, path, "all")
    checks.same(sum(p.numel() for p in model.encoder.blocks.parameters()), path, "encoder blocks")
    checks.same(sum(p.numel() for p in model.decoders[0].parameters()), path, "one rgb decoder (trainable)")
    check_rates(checks, OptimiserConfig(lr=1e-4 * 2048 / 256, schedule="dino", warmup=0.1, final=0), steps=4000)
    return checks
