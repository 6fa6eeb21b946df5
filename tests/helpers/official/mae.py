"""MAE: masking, positions, tokens, both losses, gradients, one optimiser step (facebookresearch/mae)."""

from dataclasses import replace

from mrmfast.models.decoders import ImageDecoderConfig
from mrmfast.objectives.losses import patch_target
from mrmfast.objectives.mae import MAE, MAEConfig
from mrmfast.training.optimiser import OptimiserConfig
from tests.helpers.official import Checks, fill, input_of, numeric_facts
from tests.helpers.official.building import build_encoder, check_rates, check_step, float64, published_encoder, watch

DECODER = {
    "mask_token": "mask_token",
    "embed.": "decoder_embed.",
    "blocks.": "decoder_blocks.",
    "norm.": "decoder_norm.",
    "head.": "decoder_pred.",
}


def build(case):
    """Our model with the case's weights, and its trainable parameters by published name."""
    sizes = case["sizes"]
    decoder = ImageDecoderConfig(sizes["decoder_width"], sizes["decoder_depth"], sizes["decoder_heads"])
    config = MAEConfig(mode="official", mask_ratio=sizes["mask_ratio"], decoder=decoder)
    with float64():
        model = MAE(config, build_encoder(sizes, design=MAE.encoder_design(config)), None)
    parameters = published_encoder(model.encoder)
    for name, parameter in model.decoder.named_parameters():
        start = next(start for start in DECODER if name.startswith(start))
        parameters[DECODER[start] + name.removeprefix(start)] = parameter
    fill(case, parameters)
    return model, parameters


def run(file, case):
    """Compare in the order of the computation."""
    checks = Checks(case["expected"])
    image, noise = input_of(checks, case, "image"), input_of(checks, case, "noise")
    model, parameters = build(case)
    encoder, patch = model.encoder, model.encoder.patch
    tables = {"pos_embed": encoder.tokens.pos_embed, "decoder_pos_embed": model.decoder.positions[None]}
    for name, table in tables.items():
        checks.stat(table, name)
    checks.stat(encoder.tokens.pos_embed[0, 2], "pos_embed_row_of_patch_1")
    rounding = (encoder.tokens.pos_embed - encoder.tokens.pos_embed.float()).abs().max()
    checks.number(rounding, "pos_embed_float32_rounding", tolerance=1e-6)
    seen = watch(encoder=model.encoder, decoder=model.decoder)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counts = {
        "trainable parameters": trainable,
        "all parameters": trainable + sum(table.numel() for table in tables.values()),
        "patches": encoder.grid**2,
        "kept per image": model.visible,
        "masked per image": encoder.grid**2 - model.visible,
        "decoder tokens": model.decoder.positions.shape[0],
    }
    for part, norm_pixels in (("raw_pix", False), ("norm_pix", True)):
        model.config = replace(model.config, norm_pixels=norm_pixels)
        model.zero_grad()
        loss = model.reconstruction_loss(image, noise)
        checks.number(loss, part, "loss")
        target = patch_target(image, patch, norm_pixels, image.dtype)[0]
        checks.stat(target.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), part, "target")
        loss.backward()
        checks.gradient_norms(parameters, part, "grad_norms")
        checks.wrong(loss, part, "wrong_variants")
    (_, kept), latent = seen["encoder"]
    (_, restore), predicted = seen["decoder"]
    checks.same(kept, "ids_keep_in_order")
    checks.same((restore >= model.visible).int(), "mask")
    checks.stat(latent, "latent")
    checks.stat(latent[0, 0], "latent_class_token_of_sample_0")
    checks.stat(predicted, "pred")
    counts["encoder tokens"] = latent.shape[1]
    for name, count in counts.items():
        checks.same(count, "counts", name)
    if "optimizer_step" in checks.expected:  # from the gradients with normalised pixels
        check_step(checks, model, parameters, OptimiserConfig(weight_decay=0.05, clip=0))
    return checks


def facts(file):
    """Rates at fractional epochs."""
    checks = Checks(numeric_facts(file))
    config = OptimiserConfig(lr=1.5e-4 * 4096 / 256, schedule="mae", warmup=40 / 800, final=0)
    check_rates(checks, config, steps=800)
    return checks
