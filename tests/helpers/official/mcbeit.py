"""mc-BEiT from given tokenizer logits: features, similarities, target, loss, gradients (lixiaotong97/mc-BEiT)."""

from dataclasses import replace

import torch

from mrmfast.models.image_encoder import EncoderDesign
from mrmfast.objectives.mcbeit import McBEiT, McBEiTConfig, TokenizerConfig
from tests.helpers.official import Checks, fill, input_of, numeric_facts
from tests.helpers.official.building import build_encoder, float64, published_encoder
from tests.helpers.official.stated import stated

DETACHED = "grad_norms_if_the_target_is_detached (not official)"


def build(case, mode):
    """Our model with the case's weights, and its parameters by published name."""
    sizes, names = case["sizes"], {name for _, name, _, _ in case["params"]}
    config = McBEiTConfig(
        mode=mode,
        mask_ratio=sizes["mask_ratio"],
        omega=sizes["omega"],
        temperature=sizes["temperature of tokenizer"],
        similarity_temperature=sizes["temperature of similarity"],
        tokenizer=TokenizerConfig(codes=sizes["vocab"]),
    )
    design = replace(
        McBEiT.encoder_design(McBEiTConfig(mode="official")),
        positions="learned" if "pos_embed" in names else "relative",
        layer_scale=0.1 if "blocks.0.gamma_1" in names else None,
        drop_path=0.0,
    )
    assert isinstance(design, EncoderDesign)
    with float64():
        model = McBEiT(config, build_encoder(sizes, design=design), None)
    parameters = published_encoder(model.encoder) | {"mask_token": model.mask_token}
    parameters |= {f"lm_head.{name}": parameter for name, parameter in model.head.named_parameters()}
    fill(case, parameters)
    return model, parameters


def run(file, case):
    checks, inputs = Checks(case["expected"]), case["inputs"]
    image, noise = input_of(checks, case, "image"), input_of(checks, case, "mask noise")
    logits = input_of(checks, case, "tokenizer logits", stated(inputs["tokenizer logits"]["value"]))
    logits = logits.flatten(2).transpose(1, 2)
    model, parameters = build(case, "official")
    patches = noise.shape[1]
    rows, every = model.choose_masked(noise), torch.arange(patches).expand(len(noise), -1)
    checks.same(rows, "masked_patches")
    checks.same(sum(p.numel() for p in model.parameters()), "counts", "parameters")
    checks.same(patches, "counts", "patches")
    checks.same(rows.shape[1], "counts", "masked per image = int(ratio * L)")
    features = model.features(image, rows)
    codes = (logits / model.config.temperature).softmax(-1)
    checks.stat(codes, "tokenizer_probabilities")
    checks.stat(features, "features")
    checks.stat(model.similarity(features, every), "W")
    target = model.target(features, logits, every)
    checks.stat(target, "target")
    checks.number(target[0, 0].sum(), "target_row_sum")
    predicted = model.head(features)
    checks.stat(predicted, "head_logits")
    right = (predicted.argmax(-1) == logits.argmax(-1)).gather(1, rows)
    checks.number(right.float().mean(), "mlm_accuracy")
    loss = model.masked_loss(image, noise, logits)
    checks.number(loss, "loss")
    checks.wrong(loss.item(), "wrong_variants")
    loss.backward()
    checks.gradient_norms(parameters, "grad_norms")
    model, parameters = build(case, "same_settings")
    model.masked_loss(image, noise, logits).backward()
    checks.gradient_norms(parameters, DETACHED)
    return checks


def facts(file):
    """The loss of a zero head, whatever the target."""
    checks = Checks(numeric_facts(file))
    with float64():
        sizes = {"img_size": 32, "patch": 16, "width": 16, "depth": 1, "heads": 2, "mlp_ratio": 2}
        model = McBEiT(McBEiTConfig(), build_encoder(sizes), None)
    torch.nn.init.zeros_(model.head.weight)
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = model.masked_loss(image, model.draw_noise(2, 0), model.tokenizer(image).double())
    checks.number(loss, "zero head", "ln 8192")
    return checks
