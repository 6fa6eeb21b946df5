"""AttMask on iBOT: attention, masks, logits, losses, centres, gradients, one step and the average after it."""

import torch

from mrmfast.models.ema import rising_momentum
from mrmfast.models.heads import DistillationHeadConfig
from mrmfast.objectives.attmask import (
    AttMask,
    AttMaskConfig,
    CropsConfig,
    Draws,
    MaskConfig,
    TeacherConfig,
)
from mrmfast.objectives.base import StepInfo
from mrmfast.training.optimiser import OptimiserConfig
from tests.helpers.official import Checks, fill, input_of, numeric_facts, symmetric
from tests.helpers.official.building import (
    build_encoder,
    check_rates,
    check_step,
    clip_of,
    float64,
    published_encoder,
    watch,
)

HEAD = {
    "mlp.": "head.mlp.",
    "class_layer.length": "head.last_layer.weight_g",
    "class_layer.direction": "head.last_layer.weight_v",
    "patch_layer.length": "head.last_layer2.weight_g",
    "patch_layer.direction": "head.last_layer2.weight_v",
}


def config_of(sizes):
    """Our settings of a case."""
    head, crops = sizes["head"], sizes["local crops"]
    return AttMaskConfig(
        mode="official",
        temperature=sizes["student temp"],
        epochs=sizes["epochs"],
        mask=MaskConfig(sizes["mode"].removeprefix("attmask_"), (0, 1), sizes["masking_prob"], sizes["show_max"]),
        head=DistillationHeadConfig(
            head["hidden"], head["bottleneck"], head["class out"], None if head["shared"] else head["patch out"]
        ),
        teacher=TeacherConfig(
            sizes["ema momentum"],
            tuple(sizes["teacher temp"]),
            tuple(sizes["teacher patch temp"]),
            sizes["warmup_teacher_temp_epochs"],
            sizes["center momentum"],
        ),
        crops=CropsConfig(locals=crops, local_size=sizes["local size"] or 96),
    )


def build(case):
    """Our model with the case's weights and centres; its parameters by published name: student, teacher."""
    sizes, inputs = case["sizes"], case["inputs"]
    assert sizes["head"]["layers"] == 3
    with float64():
        model = AttMask(config_of(sizes), build_encoder(sizes), None)
    student = all_of(model.encoder, model.head) | {"masked_embed": model.mask_token}
    teacher = all_of(model.teacher_encoder.module, model.teacher_head.module)
    fill(case, student, "params_student")
    fill(case, teacher, "params_teacher")
    for name, centre in (("center", model.class_centre), ("center2", model.patch_centre)):
        assert inputs[name]["value"] == "0.1*u"
        values = 0.1 * symmetric(inputs[name]["k"], case["phase"], inputs[name]["shape"])
        centre.mean.copy_(values.flatten())
    return model, student, teacher


def all_of(encoder, head):
    """Encoder and head."""
    parameters = published_encoder(encoder, frozen=True)
    for name, parameter in head.named_parameters():
        start = next(start for start in HEAD if name.startswith(start))
        parameters[HEAD[start] + name.removeprefix(start)] = parameter
    return parameters


def run(file, case):
    """Compare in the order of the computation."""
    checks, sizes = Checks(case["expected"]), case["sizes"]
    views = [input_of(checks, case, name) for name in case["inputs"] if name.startswith("view ")]
    gate, pick = input_of(checks, case, "gate"), input_of(checks, case, "hint pick")
    model, student, teacher = build(case)
    draws = Draws(sizes["mask_ratio"], sizes["mask_ratio"], gate, pick)
    checks.numbers(gate, "gate")
    images = torch.cat(views[:2])
    _, attention = model.teacher_encoder.module.forward_with_attention(images)
    checks.stat(attention, "class_attention")
    masked = model.mask(attention, draws)
    checks.same([row.nonzero().flatten().tolist() for row in masked], "masked_patches_per_image")
    checks.same([number for number, row in enumerate(masked) if not row.any()], "images_without_mask")
    hints = model.hints(attention.argsort(1, descending=True), draws)
    checks.same(hints, "hint_indices_revealed")
    info = StepInfo(0, sizes["epoch"], sizes["epochs"])
    for part, name in (("class", "temperature"), ("patch", "patch_temperature")):
        used = model.temperature_at(sizes["epoch"], getattr(model.config.teacher, name))
        checks.number(used, "teacher_temperatures_used", part)
    seen = watch(student=model.head, teacher=model.teacher_head.module)
    local = watch(local=model.encoder)
    class_loss, patch_loss = model.distil(images, views[2:], draws, info)
    for name in ("teacher", "student"):
        for part, logits in zip(("class", "patch"), seen[name][1], strict=True):
            checks.stat(logits, f"{name}_{part}_logits")
    if views[2:]:
        checks.stat(model.head.of_class(local["local"][1]), "student_local_class_logits")
    checks.number(class_loss, "loss_class")
    checks.number(patch_loss, "loss_patch")
    checks.number(class_loss + patch_loss, "loss")
    checks.wrong({"patch": patch_loss, "class": class_loss, "": class_loss + patch_loss}, "wrong_variants")
    (class_loss + patch_loss).backward()
    checks.gradient_norms(student, "grad_norms")
    counts = {
        "student parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "teacher parameters": sum(p.numel() for p in teacher.values()),
        "patches": attention.shape[1],
        "N = int(L * ratio)": int(attention.shape[1] * draws.ratio),
        "top tokens for hints = int(L * show_max)": int(attention.shape[1] * sizes["show_max"]),
        "revealed = int(show_max * ratio * L)": hints.shape[1],
    }
    for name, count in counts.items():
        checks.same(count, "counts", name)
    before = {name: parameter.clone() for name, parameter in teacher.items()}
    model.update_teacher(sizes["ema momentum"])
    for centre, part in ((model.class_centre, "class"), (model.patch_centre, "patch")):
        centre.update(sizes["center momentum"], info)
        shape = [1] * (1 if part == "class" else 2)
        checks.stat(centre.mean.view(*shape, -1), "center_after_update", part)
    for name in checks.section("teacher_after_ema"):
        checks.stat(teacher[name], "teacher_after_ema", name)
    if "optimizer_step" in checks.expected:
        settings = OptimiserConfig(weight_decay=0.04, clip=clip_of(case), clip_by="tensor")
        check_step(checks, model, student, settings, step=info.step, steps=info.total_steps)
        for name, parameter in teacher.items():
            parameter.copy_(before[name])
        model.update_teacher(sizes["ema momentum"])
        for name in checks.section("optimizer_step", "teacher_after_step_and_ema"):
            checks.stat(teacher[name], "optimizer_step", "teacher_after_step_and_ema", name)
    return checks


def facts(file):
    """Rate, weight decay and momentum of the average by iteration."""
    checks = Checks(numeric_facts(file))
    settings = OptimiserConfig(
        lr=5e-4 * 240 / 256,
        schedule="dino",
        warmup=0.1,
        final=1e-6 / (5e-4 * 240 / 256),
        weight_decay=0.04,
        weight_decay_end=0.4,
    )
    momentum = TeacherConfig().momentum
    check_rates(
        checks, settings, 1000, lambda step: rising_momentum(momentum, step / 1000), keys=("lr", "weight_decay")
    )
    return checks
