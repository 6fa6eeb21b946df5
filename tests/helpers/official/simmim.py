"""SimMIM: masked cells, encoder, prediction, loss, gradients, one optimiser step (microsoft/SimMIM)."""

from mrmfast.models.image_encoder import EncoderDesign
from mrmfast.objectives.simmim import SimMIM, SimMIMConfig
from mrmfast.training.optimiser import OptimiserConfig
from tests.helpers.official import Checks, fill, input_of, numeric_facts
from tests.helpers.official.building import (
    build_encoder,
    check_rates,
    check_step,
    clip_of,
    float64,
    published_encoder,
    watch,
)


def build(case):
    """Our model with the case's weights, and its parameters by published name."""
    sizes, names = case["sizes"], {name for _, name, _, _ in case["params"]}
    published = SimMIM.encoder_design(SimMIMConfig(mode="official"))
    design = EncoderDesign(
        blocks=published.blocks,
        positions="learned" if "pos_embed" in names else published.positions,
        layer_scale=published.layer_scale if "blocks.0.gamma_1" in names else None,
    )
    config = SimMIMConfig(mode="official", mask_ratio=sizes["mask_ratio"], cell=sizes["mask_cell"])
    with float64():
        model = SimMIM(config, build_encoder(sizes, design=design), None)
    parameters = published_encoder(model.encoder) | {"mask_token": model.mask_token}
    parameters |= {f"decoder.{name}": parameter for name, parameter in model.head.named_parameters()}
    fill(case, parameters)
    return model, parameters


def run(file, case):
    """Compare in the order of the computation."""
    checks = Checks(case["expected"])
    image, noise = input_of(checks, case, "image"), input_of(checks, case, "cell noise")
    model, parameters = build(case)
    encoder, grid = model.encoder, model.encoder.grid
    checks.same(noise.argsort(1), "cell_permutations")
    masked = model.mask(noise)
    checks.same(masked.int(), "patch_mask")
    if encoder.rel_pos_bias is not None:
        index, path = encoder.rel_pos_bias.relative_position_index, ("relative_position_index",)
        checks.same(index[:2], *path, "rows 0 and 1")
        checks.same(int(index.sum()), *path, "sum")
        checks.same(len(encoder.rel_pos_bias.relative_position_bias_table), *path, "table rows")
    seen = watch(encoder=encoder, head=model.head)
    loss = model.reconstruction_loss(image, noise)
    tokens = seen["encoder"][1]
    checks.stat(tokens[:, 1:].transpose(1, 2).unflatten(2, (grid, grid)), "encoder_output")
    reconstruction = seen["head"][1].unflatten(2, (3, encoder.patch, encoder.patch)).unflatten(1, (grid, grid))
    checks.stat(reconstruction.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3), "reconstruction")
    checks.number(loss, "loss")
    checks.wrong(loss, "wrong_variants")
    loss.backward()
    checks.gradient_norms(parameters, "grad_norms")
    counts = {
        "parameters (all trainable)": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "cells": model.cells**2,
        "masked cells per image": model.masked_cells,
        "masked patches per image": int(masked[0].sum()),
        "patches": grid**2,
        "encoder tokens (all are encoded)": tokens.shape[1],
        "masked pixels in the batch (one channel)": int(model.as_pixels(masked).sum()),
    }
    for name, count in counts.items():
        checks.same(count, "counts", name)
    if "optimizer_step" in checks.expected:
        check_step(checks, model, parameters, OptimiserConfig(weight_decay=0.05, clip=clip_of(case)))
    return checks


def facts(file):
    """Rates after a step; those of a step of ours are the ones after the step before."""
    checks = Checks(numeric_facts(file))
    config = OptimiserConfig(lr=1e-4 * 2048 / 512, schedule="simmim", warmup=10 / 800, final=0.1)
    check_rates(checks, config, steps=800 * 100, shift=1)
    return checks
