"""M3AE with its published second modality, text with a small BERT (zhjohnchan/M3AE)."""

import re

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mrmfast.batch import ModalitySpec
from mrmfast.models.decoders import ImageDecoderConfig
from mrmfast.models.fusion import PostNormLayer
from mrmfast.objectives.genome import genome_errors
from mrmfast.objectives.losses import patch_target
from mrmfast.objectives.m3ae import M3AE, FusionConfig, M3AEConfig
from tests.helpers.official import Checks, fill, image, input_of, numeric_facts, positive
from tests.helpers.official.building import build_encoder, float64

MASK = 4
LAYER = {
    "attention.self.": "attention.",
    "attention.output.dense": "attention.proj",
    "attention.output.LayerNorm": "attention.norm",
    "crossattention.self.": "cross.",
    "crossattention.output.dense": "cross.proj",
    "crossattention.output.LayerNorm": "cross.norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}
CLIP = {
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
VISION = {"class_embedding": "cls_token", "positional_embedding": "pos_embed", "conv1": "patch_embed.proj"} | {
    "ln_pre": "norm_pre"
}
DECODER = {"mask_token": "mask_token", "decoder_embed": "embed", "decoder_norm": "norm", "decoder_pred": "head"}


class Text(nn.Module):
    """Text as the second stream: (ids, known), both (B, T)."""

    def __init__(self, sizes):
        super().__init__()
        width = self.width = sizes["text width = fusion width"]
        self.maskable = sizes["text length"]
        self.words, self.types = nn.Embedding(sizes["vocab"], width), nn.Embedding(2, width)
        self.positions = nn.Embedding(self.maskable, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        layers = (
            PostNormLayer(width, sizes["heads (text, fusion)"], 0.0, cross=False) for _ in range(sizes["text layers"])
        )
        self.layers = nn.ModuleList(layers)
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.head = nn.Linear(width, sizes["vocab"])

    def forward(self, text, masked=None):
        ids, known = text
        ids = ids if masked is None else ids.masked_fill(masked, MASK)
        x = self.norm(self.words(ids) + self.types.weight[0] + self.positions.weight)
        for layer in self.layers:
            x = layer(x, known)
        return x

    def known(self, text):
        return text[1]

    def choose_masked(self, text, noise, ratio):
        return noise < ratio

    def predict(self, tokens):
        return self.head(self.transform(tokens))

    def loss(self, predicted, text, masked):
        counted = masked & text[1]
        return cross_entropy(predicted[counted], text[0][counted])


class Published(M3AE):
    """Our M3AE with text."""

    def __init__(self, sizes, config, encoder):
        self.sizes = sizes
        super().__init__(config, encoder, None)

    def build_stream(self, genome, width):
        return Text(self.sizes)


def build(sizes, masked=0.15):
    layers, tap = sizes["fusion layers per stream"], sizes["tap"]
    tap = layers if tap == "after all fusion layers" else int(tap.split("fusion layer index ")[1].split(",")[0])
    decoder = sizes["decoder"]
    config = M3AEConfig(
        mode="official",
        image_ratio=sizes["mim ratio"],
        genome_ratio=masked,
        norm_pixels=sizes["norm_pix"],
        tap=tap,
        fusion=FusionConfig(layers, sizes["text width = fusion width"], sizes["heads (text, fusion)"], 0.0),
        decoder=ImageDecoderConfig(decoder["width"], decoder["blocks"], decoder["heads"]),
    )
    vision = {
        "width": sizes["vision width"],
        "depth": sizes["vision blocks"],
        "heads": sizes["vision heads (width/64)"],
    }
    encoder = build_encoder({**sizes, **vision, "mlp_ratio": 4}, design=M3AE.encoder_design(config))
    return Published(sizes, config, encoder)


def published(case, model):
    """Our parameters by the published names."""
    parameters = {}
    for _, name, _, _ in case["params"]:
        part, _, rest = name.partition(".")
        parameters[name] = model.get_parameter(ROLES[part](rest, model) if part in ROLES else _fusion(part, rest))
    return parameters


def _renamed(name, table):
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(name)


def _vision(rest, model):
    rest = rest.removeprefix("visual.")
    if rest.startswith("transformer.resblocks."):
        number, _, role = rest.removeprefix("transformer.resblocks.").partition(".")
        return f"encoder.blocks.{number}.{_renamed(role, CLIP)}"
    if rest.startswith("ln_post"):
        return f"encoder.norm{rest.removeprefix('ln_post')}"
    return f"encoder.tokens.{_renamed(rest, VISION)}"


def _language(rest, model):
    if rest.startswith("encoder.layer."):
        number, _, role = rest.removeprefix("encoder.layer.").partition(".")
        return f"stream.layers.{number}.{_renamed(role, LAYER)}"
    table = {"word_embeddings": "words", "position_embeddings": "positions", "token_type_embeddings": "types"}
    return f"stream.{_renamed(rest.removeprefix('embeddings.'), table | {'LayerNorm': 'norm'})}"


def _text_head(rest, model):
    if rest == "bias":
        return "stream.head.bias"
    table = {"transform.dense": "transform.0", "transform.LayerNorm": "transform.2", "decoder": "head"}
    return f"stream.{_renamed(rest, table)}"


def _decoder(rest, model):
    if rest.startswith("decoder.resblocks."):
        number, _, role = rest.removeprefix("decoder.resblocks.").partition(".")
        return f"decoder.blocks.{number}.{_renamed(role, CLIP)}"
    return f"decoder.{_renamed(rest, DECODER)}"


def _fusion(part, rest):
    """Text comes first in ours, as in the published embedding of types."""
    streams = {"language": (0, "second"), "vision": (1, "image")}
    number, stream = next(value for key, value in streams.items() if f"_{key}_" in part)
    if part.endswith("_proj"):
        return f"fusion.project.{number}.{rest}"
    if part.endswith("_pooler"):
        return f"poolers.{number}.{rest.removeprefix('dense.')}"
    layer, _, role = rest.partition(".")
    return f"fusion.{stream}.{layer}.{_renamed(role, LAYER)}"


ROLES = {
    "vision_encoder": _vision,
    "language_encoder": _language,
    "mlm_head": _text_head,
    "mim_head": _decoder,
    "itm_head": lambda rest, model: f"match.{rest.removeprefix('fc.')}",
    "modality_type_embeddings": lambda rest, model: f"fusion.types.{rest}",
}


def run(file, case):
    checks, sizes, inputs = Checks(case["expected"]), case["sizes"], case["inputs"]
    with float64():
        model = build(sizes, float(re.search(r"w < ([0-9.]+)", inputs["masked text"]["value"])[1]))
    parameters = published(case, model)
    fill(case, parameters)
    pixels, false = (input_of(checks, case, name, image) for name in ("image", "false image"))
    ids = 5 + ((sizes["vocab"] - 5) * input_of(checks, case, "token ids", positive)).floor().long()
    assert ids[0].tolist() == inputs["token ids"]["first row"]
    lengths = torch.tensor(inputs["text mask"]["lengths"])
    text = ids, torch.arange(ids.shape[1]) < lengths[:, None]
    hidden, noise = input_of(checks, case, "masked text", positive), input_of(checks, case, "patch noise")
    whole, order = model.encoder(pixels), noise.argsort(1)
    masked = model.stream.choose_masked(text, hidden, model.config.genome_ratio)
    check_counts(checks, model, parameters, masked & text[1])
    checks.same(order[:, : model.visible], "ids_keep_in_order")
    tokens, seen = model.fusion(model.stream(text, masked), text[1], whole)
    checks.stat(tokens, "text_features_after_fusion, text masked")
    checks.stat(seen, "image_features_after_fusion, text masked")
    checks.stat(model.stream.predict(tokens), "text_logits")
    checks.stat(
        model.tapped(text, model.encoder(pixels, order[:, : model.visible])), "image_features_tapped, image masked"
    )
    checks.stat(model.predict_image(text, pixels, noise)[0], "image_prediction")
    target = patch_target(pixels, sizes["patch"], sizes["norm_pix"], pixels.dtype)[0]
    checks.stat(target.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), "image_target")
    shown, partners = matching_pairs(checks, case, whole, model.encoder(false))
    pooled = model.pooled(text, shown)
    checks.stat(pooled, "pooled_pair_features (text then image), matching")
    checks.numbers(model.match(pooled), "matching_logits")
    terms = {
        "loss_text (mlm)": model.genome_term(text, whole, hidden),
        "loss_image (mim)": model.image_term(text, pixels, noise),
        "loss_matching (itm)": model.matching_term(text, shown, partners),
    }
    for name, term in terms.items():
        checks.number(term, name)
    loss = torch.stack(list(terms.values())).sum()
    checks.number(loss, "loss")
    of_text, of_image, of_matching = (term.item() for term in terms.values())
    variants = {"decoder": of_image, "image": of_image, "matching": of_matching, "text": of_text}
    checks.wrong(variants, "wrong_variants")
    loss.backward()
    checks.gradient_norms(parameters, "grad_norms")
    return checks


def check_counts(checks, model, parameters, masked):
    patches = model.encoder.grid**2
    counts = {
        "parameters used": sum(p.numel() for p in parameters.values()),
        "patches": patches,
        "kept patches": model.visible,
        "masked patches": patches - model.visible,
        "masked text tokens in the batch": int(masked.sum()),
    }
    for name, count in counts.items():
        checks.same(count, "counts", name)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == counts["parameters used"]


def matching_pairs(checks, case, whole, false):
    """The images that are shown, and whose they are; somebody else's for a false one."""
    samples = case["sizes"]["batch"]
    permutation = torch.tensor(case["inputs"]["matching permutation"]["value"])
    labels = torch.tensor([1] * (samples // 2) + [0] * (samples - samples // 2))[permutation]
    checks.same(labels, "matching_labels (1 = right partner)")
    own = torch.arange(samples)
    return torch.where(labels[:, None, None] == 1, whole, false), torch.where(labels == 1, own, (own + 1) % samples)


def facts(file):
    """Losses of uniform predictions: of matching and of bits, of genotypes."""
    checks = Checks(numeric_facts(file))
    for name, encoding, outputs in (("ln 2", "binary", 1), ("ln 3 (SNP classes)", "genotype", 3)):
        predicted, x = torch.zeros(1, outputs, dtype=torch.float64), torch.ones(1, 1)
        (error,) = genome_errors(predicted, x, x.bool(), [ModalitySpec("modality", encoding, 1)])
        checks.number(error, "uniform predictions", name)
    return checks
