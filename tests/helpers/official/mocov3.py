"""MoCo v3: features, queries, updated average, keys, loss, gradients, one optimiser step (facebookresearch/moco-v3)."""

from dataclasses import replace
from functools import partial

import torch
from torch.nn.functional import normalize

from mrmfast.models.ema import rising_momentum
from mrmfast.objectives.mocov3 import MoCoV3, MoCoV3Config
from mrmfast.training.optimiser import OptimiserConfig
from tests.helpers.official import Checks, fill, input_of, numeric_facts, symmetric
from tests.helpers.official.building import build_encoder, check_rates, check_step, float64, published_encoder


def build(case):
    """Our model with the case's weights, and its parameters by published name: base, predictor, momentum."""
    sizes = case["sizes"]
    config = MoCoV3Config(
        mode="official",
        temperature=sizes["temperature"],
        momentum=sizes["momentum m"],
        hidden=sizes["mlp_dim"],
        width=sizes["dim"],
    )
    design = replace(MoCoV3.encoder_design(config), frozen_patches=sizes["patch embedding frozen"])
    with float64():
        model = MoCoV3(config, build_encoder(sizes, design=design), None)
    base = all_of(model.encoder, model.projector)
    predictor = {f"predictor.{name}": p for name, p in model.predictor.named_parameters()}
    momentum = all_of(model.key_encoder.module, model.key_projector.module)
    for rows, parameters in (("params_base", base), ("params_predictor", predictor), ("params_momentum", momentum)):
        fill(case, parameters, rows)
    return model, base, predictor, momentum


def all_of(encoder, projector):
    """Encoder and projector, the frozen patch embedding too, but not the fixed positions."""
    parameters = published_encoder(encoder, frozen=True)
    del parameters["pos_embed"]
    return parameters | {f"head.{name}": p for name, p in projector.named_parameters()}


def run(file, case):
    """Compare in the order of the computation."""
    checks = Checks(case["expected"])
    views = input_of(checks, case, "view 1"), input_of(checks, case, "view 2")
    model, base, predictor, momentum = build(case)
    positions = model.encoder.tokens.pos_embed
    checks.stat(positions, "pos_embed")
    checks.stat(positions[0, 2], "pos_embed_row_of_patch_1")
    model.update_keys(rising_momentum(model.config.momentum, 0.0))
    for name in checks.section("momentum_after_update"):
        checks.stat(momentum[name], "momentum_after_update", name)
    heads = {"base": model.projector, "predictor": model.predictor, "momentum": model.key_projector.module}
    seen = watch_all(**heads, **{f"{name} norm": head[1] for name, head in heads.items()})
    loss = model.contrast_views(*views)
    checks.stat(seen["base"][0][0], "class_feature_of_view_1")
    queries, keys = ([output for _, output in seen[name]] for name in ("predictor", "momentum"))
    for name, tensor in zip(("q1", "q2", "k1", "k2"), (*queries, *keys), strict=True):
        checks.stat(tensor, name)
    checks.numbers(normalize(queries[0], dim=1) @ normalize(keys[1], dim=1).T, "cosine_q1_k2")
    for name in checks.section("running_mean_after_forward"):
        inputs = [given for given, _ in seen[f"{name.split()[0].partition('.')[0]} norm"]]
        checks.stat(running_mean(inputs), "running_mean_after_forward", name)
    everything = slice(0, len(views[0]))
    checks.number(model.contrast(queries[0], keys[1], everything), "loss_q1_k2")
    checks.number(model.contrast(queries[1], keys[0], everything), "loss_q2_k1")
    checks.number(loss, "loss")
    checks.wrong(loss, "wrong_variants")
    loss.backward()
    checks.gradient_norms(base | predictor, "grad_norms")
    sizes = {name: [p.numel() for p in part.values()] for name, part in (("base", base), ("predictor", predictor))}
    whole = sum(sizes["base"]) + positions.numel()
    counts = {
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "base encoder incl. projector (all)": whole,
        "predictor": sum(sizes["predictor"]),
        "all": 2 * whole + sum(sizes["predictor"]),
    }
    for name, count in counts.items():
        checks.same(count, "counts", name)
    if "optimizer_step" in checks.expected:
        others = [p.numel() for p in model.parameters() if not p.requires_grad]
        check_step(checks, model, base | predictor, OptimiserConfig(weight_decay=0.1, clip=0), others=others)
    return checks


def running_mean(inputs):
    """What PyTorch's running mean would be after passes with these inputs; ours keeps none."""
    mean = torch.zeros(inputs[0].shape[1], dtype=torch.float64)
    for x in inputs:
        mean = 0.9 * mean + 0.1 * x.mean(0)
    return mean


def watch_all(**modules):
    """As :func:`watch`, but every call: lists of (first input, output)."""
    seen = {name: [] for name in modules}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, given, out, name=name: seen[name].append((given[0], out)))
    return seen


def facts(file):
    """Momentum and rates over the run, sizes of ViT-B, and the loss of two ranks."""
    checks = Checks(numeric_facts(file))
    with torch.device("meta"):
        model = MoCoV3(MoCoV3Config(mode="official"), build_encoder(VIT_B, design=DESIGN), None)
    momentum = partial(rising_momentum, model.config.momentum)
    for epoch in checks.expected["momentum schedule (E=300)"]:
        checks.number(momentum(int(epoch) / 300), "momentum schedule (E=300)", epoch)
    rates = OptimiserConfig(lr=1.5e-4 * 4096 / 256, schedule="mae", warmup=40 / 300, final=0)
    check_rates(checks, rates, 300, lambda epoch: momentum(epoch / 300))
    count = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())  # noqa: E731
    counts = {
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "base encoder + projector": count(model.encoder, model.projector),
        "predictor": count(model.predictor),
        "all": count(model),
    }
    for name, value in counts.items():
        checks.same(value, "counts ViT-B", name)
    name = "loss over two ranks"
    phase = checks.at(name, "phase")
    queries = [symmetric(100 + r, phase, (4, 10)) for r in range(2)]
    keys = torch.cat([symmetric(200 + r, phase, (4, 10)) + 0.3 * queries[r] for r in range(2)])
    for r, query in enumerate(queries):
        query.requires_grad_()
        loss = model.contrast(query, keys, slice(4 * r, 4 * r + 4))
        loss.backward()
        checks.same(r, name, "values", r, "rank")
        checks.number(loss, name, "values", r, "loss")
        checks.number(query.grad.norm(), name, "values", r, "grad norm of q")
    return checks


VIT_B = {"img_size": 224, "depth": 12, "patch": 16, "width": 768, "heads": 12, "mlp_ratio": 4}
DESIGN = MoCoV3.encoder_design(MoCoV3Config(mode="official"))
