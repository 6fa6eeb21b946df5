"""Xing et al. 2022: distillation losses, their refinement, two training steps (CityU-AIM-Group/MultiModal-learning)."""

import re

import torch
from torch import nn

from mrmfast.tasks.xing import Distillation, FusionTeacher, PathHead, XingConfig
from mrmfast.tasks.xing.discrepancy import Pairs
from mrmfast.tasks.xing.distillation import TEACHERS, Outputs, build_adam, rate
from tests.helpers.official import Checks, fill, numeric_facts, symmetric
from tests.helpers.official.building import float64
from tests.helpers.official.checks import stat_differences
from tests.helpers.official.stated import stated

GRADIENTS, WRONG = "grad_norms of loss", "wrong_variants (loss of each step)"
KNOWLEDGE = "knowledge bank (weighted losses, in order)"
NAMES = [f"{loss} from the {teacher} teacher" for loss in ("KL", "DC-Distill") for teacher in ("fusion", "EMA")]
HEAD = {"fc_new1": "feature", "fc_new2": "classifier"}
GENE = {"path_net": "path", "omic_net": "gene", "classifier.0": "classifier"}
FUSION = {
    "linear_h": "hidden",
    "linear_z": "gates",
    "linear_o": "out",
    "encoder": "encoders",
}


def size(case, start):
    """A size by the beginning of its name, which may have an explanation."""
    return next(value for key, value in case["sizes"].items() if key.startswith(start))


def build(case):
    """Our distillation at the case's sizes; the networks are those of the case, if it has some."""
    sizes = case["sizes"]
    trains = "params_teacher" in case
    width = size(case, "D (path" if trains else "student and teacher feature")
    classes, samples = size(case, "classes C"), size(case, "training samples n")
    config = XingConfig(
        mode="official",
        width=width,
        embedding=size(case, "embedding E"),
        alpha=size(case, "alpha"),
        beta=size(case, "beta"),
        kl_temperature=size(case, "KL temperature"),
        temperature=sizes["T"],
        bank_momentum=size(case, "bank momentum"),
        positives=size(case, "positive candidates"),
        negatives=size(case, "negative candidates"),
        chosen_positives=size(case, "chosen positives"),
        chosen_negatives=size(case, "chosen negatives"),
    )
    assert size(case, "choose negatives by discrepancy")
    with float64():
        if trains:
            pooled = size(case, "pooled path feature")
            teacher = FusionTeacher(PathHead(pooled, width, classes), sizes["genes"], width, classes, sizes["dropout"])
            model = Distillation(config, PathHead(pooled, width, classes), teacher, samples)
        else:
            model = Distillation(config, Classifier(width, classes), nn.Identity(), samples)
    banks = case["inputs"]["banks before step 0"]["k"]
    scale = (3 / config.embedding) ** 0.5
    for name in TEACHERS:
        for side in ("student", "teacher"):
            bank = getattr(model.contrast[name], f"bank_{side}")
            bank.copy_(scale * symmetric(banks[f"{name} {side} bank"], case["phase"], bank.shape))
    return model


class Classifier(nn.Module):
    """A student whose feature is given."""

    def __init__(self, width, classes):
        super().__init__()
        self.classifier = nn.Linear(width, classes)

    def forward(self, feature):
        return feature, self.classifier(feature)


def published(case, model):
    """Our parameters by the published names, per section of the case."""
    heads = {}
    for name in TEACHERS:
        for short, side in (("s", "student"), ("t", "teacher")):
            linear = getattr(model.contrast[name], f"embed_{side}")
            heads |= {f"{name}.embed_{short}.linear.{kind}": p for kind, p in linear.named_parameters()}
    if "params" in case:
        classifier = {f"classifier.{kind}": p for kind, p in model.student.classifier.named_parameters()}
        return {"params": heads | classifier}
    return {
        "params_heads": heads,
        "params_student": _of_rows(case["params_student"], model.student),
        "params_ema": _of_rows(case["params_ema"], model.ema.module),
        "params_teacher": _of_rows(case["params_teacher"], model.teacher),
    }


def _of_rows(rows, module):
    return {name: module.get_parameter(_ours(name.partition(".")[2])) for _, name, _, _ in rows}


def _ours(name):
    for old, new in (GENE | HEAD).items():
        name = re.sub(rf"\b{re.escape(old)}\b", new, name)
    # Branches and encoders of the fusion count from 1.
    fusion = re.fullmatch(r"fusion\.([a-z_]+?)(\d)\.(.*)", name)
    if fusion:
        role, number, rest = fusion.groups()
        return f"fusion.{FUSION[role]}.{int(number) - 1}.{rest}"
    return name


def candidates(checks, case, step):
    """Labels and pairs of a step, by the stated formula."""
    classes, samples = size(case, "classes C"), size(case, "training samples n")
    count, others = size(case, "positive candidates"), size(case, "negative candidates")
    inputs, groups = case["inputs"], samples // classes
    offset = int(re.search(r"off = (\d+)", inputs["ids"])[1])
    b = torch.arange(case["sizes"]["batch"])[:, None]
    labels = (b[:, 0] + step + offset) % classes
    ids = classes * ((11 * b[:, 0] + 5 * step + offset) % groups) + labels
    j, k = torch.arange(count), torch.arange(others)
    positives = classes * ((13 * b + 1 + step + 7 * j) % groups) + labels[:, None]
    positives[:, 0] = ids
    negatives = classes * ((17 * k + 5 * b + step) % groups) + (labels[:, None] + 1 + k % (classes - 1)) % classes
    stated_step = inputs[f"step {step}"]
    assert labels.tolist() == stated_step["labels"]
    assert ids.tolist() == stated_step["sample ids"]
    pairs = {}
    for number, name in enumerate(TEACHERS):
        # Without stated ranks, the first.
        ranks = torch.arange(size(case, "chosen positives"))
        if bounds := re.search(r"lo = (\d+), hi = (\d+)", str(inputs.get("ranks"))):
            low, high = map(int, bounds.groups())
            ranks = low + (17 * ranks + 3 * step + 29 * number) % (high - low)
        if "ranks" in stated_step:
            ranks = torch.tensor(stated_step["ranks"][name])
        pairs[name] = Pairs(ids, positives, negatives, ranks)
    return labels, pairs


def read(checks, case, step):
    """Inputs of a step by name, compared with their summaries."""
    values = {}
    for name, entry in case["inputs"][f"step {step}"].items():
        if not isinstance(entry, dict) or "k" not in entry:
            continue
        text, where = entry["value"], (entry["k"], case["phase"], entry["shape"])
        if text == "the one above + 0.2*u":
            value = next(reversed(values.values())) + 0.2 * symmetric(*where)
        elif text == "max(0, 0.8*u + student feature)":
            value = (0.8 * symmetric(*where) + values["student feature (after ReLU)"]).clamp(min=0)
        else:
            value = stated(text)(*where)
        checks.failures += [f"step {step}, {name}: {line}" for line in stat_differences(value, entry["stat"])]
        values[name] = value
    return values


def run(file, case):
    checks = Checks(case["expected"])
    model = build(case)
    sections = published(case, model)
    for section, parameters in sections.items():
        fill(case, parameters, section)
    trained = {name: p for parameters in sections.values() for name, p in parameters.items() if p.requires_grad}
    step_of = train_step if "params_teacher" in case else loss_step
    optimiser = None
    if "Adam" in case["sizes"]:
        options = case["sizes"]["Adam"]
        optimiser = build_adam(model.trained(), rate(1, options["epochs in the options"], options["lr in the options"]))
        (group,) = optimiser.param_groups
        assert [group["lr"], list(group["betas"]), group["eps"], group["weight_decay"]] == [
            value for key, value in options.items() if not key.endswith("in the options")
        ]
        assert {id(p) for p in group["params"]} == {id(p) for p in trained.values()}
    totals = []
    for step in range(len(case["expected"]["steps"])):
        model.zero_grad()
        labels, pairs = candidates(checks, case, step)
        refined = step_of(checks, case, model, trained, labels, pairs, step)
        totals.append(refined.loss.item())
        if optimiser is not None:
            optimiser.step()
            check_tensors(checks, trained, ("steps", step, "after the optimiser step"))
        model.after_step(step, pairs, refined)
        if optimiser is not None:
            check_tensors(checks, sections["params_ema"], ("steps", step, "after the EMA update"))
        else:
            check_banks(checks, model, ("steps", step, "DC-Distill"))
    checks.numbers(totals, "loss")
    check_variants(checks, totals)
    if "after all steps" in case["expected"]:
        check_end(checks, model)
    return checks


def check_variants(checks, totals):
    """A mistake gives another loss in one of the steps, at least."""
    for name, values in checks.expected[WRONG].items():
        checks.at(WRONG, name)
        if all(abs(ours - wrong) <= 1e-9 * abs(wrong) for ours, wrong in zip(totals, values, strict=True)):
            checks.failures.append(f"{name}: equals the mistake")
    if "variants without effect here" in checks.expected:
        checks.at("variants without effect here")


def check_refined(checks, refined, path):
    checks.number(refined.cross_entropy, *path, "cross entropy")
    for name, value in zip(NAMES, refined.bank, strict=True):
        checks.number(value, *path, KNOWLEDGE, name)
    checks.numbers(refined.norms, *path, _key(checks, path, "gradient norm"))
    checks.numbers(refined.cosines, *path, _key(checks, path, "gradient cosines"))
    checks.numbers(refined.weights, *path, _key(checks, path, "weights"))
    checks.number(refined.distillation, *path, "refined distillation loss")
    checks.number(refined.loss, *path, "loss")


def _key(checks, path, start):
    entry = checks.expected
    for key in path:
        entry = entry[key]
    return next(key for key in entry if key.startswith(start))


def loss_step(checks, case, model, trained, labels, pairs, step):
    """Losses of given features and logits."""
    path, values = ("steps", step), read(checks, case, step)
    feature = values["student feature (after ReLU)"].requires_grad_()
    _, logits = model.student(feature)
    outputs = Outputs(
        (feature, logits),
        (values["fusion feature"], values["fusion logits"]),
        (values["EMA feature"], values["EMA logits"]),
    )
    refined = model.losses(outputs, labels, pairs)
    checks.stat(logits, *path, "student logits")
    for name, value in zip(NAMES[:2], refined.bank / model.config.alpha, strict=False):
        checks.number(value, *path, name)
    check_refined(checks, refined, path)
    agreeing = (refined.bank * (refined.cosines[:-1, -1] > 0)).sum()
    checks.number(agreeing, *path, _key(checks, path, "alternative in the code"))
    for name in TEACHERS:
        check_contrast(checks, refined.contrasts[name], pairs[name], (*path, "DC-Distill", name))
    logits.retain_grad()  # not earlier: the gradients of the refinement would be added
    refined.loss.backward()
    checks.gradient_norms({**trained, "student feature": feature, "student logits": logits}, *path, GRADIENTS)
    checks.stat(feature.grad, *path, "gradient student feature")
    checks.stat(logits.grad, *path, "gradient student logits")
    return refined


def check_contrast(checks, contrast, pairs, path):
    checks.number(contrast.loss, *path, "loss")
    parts = {"student": contrast.student_part, "teacher": contrast.teacher_part}
    for side, part in parts.items():
        checks.number(part, *path, _key(checks, path, f"{side}-anchor part"))
    for side, constant, scores in zip(parts, contrast.constants, contrast.scores, strict=True):
        checks.number(constant, *path, f"Z {side}-anchor")
        checks.stat(scores, *path, f"scores/Z of the chosen, {side} anchor")
    # Equal ids have equal discrepancies: ids are compared, and positions where they are not equal to another's.
    positives = pairs.positives_BP.gather(1, contrast.positives)
    checks.same(positives, *path, "chosen positive ids")
    golden = torch.tensor(checks.at(*path, "chosen positive positions (0..P-1)"))
    if not torch.equal(pairs.positives_BP.gather(1, golden), positives):
        checks.failures.append(f"{path}: chosen positive positions")
    negatives = contrast.negatives
    checks.same(negatives[0, :8], *path, "chosen negative positions - P, row 0, first 8 in order")
    checks.same(negatives.sum(1), *path, "chosen negative positions - P, sum per row")
    checks.same(pairs.negatives_BK.gather(1, negatives).sum(1), *path, "chosen negative ids, sum per row")
    checks.stat(contrast.discrepancy, *path, _key(checks, path, "discrepancy"))


def check_banks(checks, model, path):
    for name in TEACHERS:
        for side in ("student", "teacher"):
            checks.stat(getattr(model.contrast[name], f"bank_{side}"), *path, name, f"bank {side} after")


def train_step(checks, case, model, trained, labels, pairs, step):
    """One step of the training function."""
    path, values = ("steps", step), list(read(checks, case, step).values())
    outputs = model.outputs(*values)
    refined = model.losses(outputs, labels, pairs)
    checks.stat(outputs.student[0], *path, "student feature")
    for name, part in (("fusion", outputs.fusion), ("EMA", outputs.ema)):
        checks.stat(part[0], *path, f"{name} feature")
        checks.stat(part[1], *path, f"{name} logits")
    for name in TEACHERS:
        checks.number(refined.contrasts[name].loss, *path, "DC-Distill losses without beta", name)
    check_refined(checks, refined, path)
    refined.loss.backward()
    checks.gradient_norms(trained, *path, GRADIENTS)
    return refined


def check_tensors(checks, parameters, path):
    entry = checks.expected
    for key in path:
        entry = entry[key]
    for name in entry:
        checks.stat(parameters[name], *path, name)


def check_end(checks, model):
    path = ("after all steps",)
    for name in TEACHERS:
        loss = model.contrast[name]
        checks.numbers(loss.constants, *path, "Z (student anchor, teacher anchor)", name)
        for side in ("student", "teacher"):
            checks.stat(getattr(loss, f"bank_{side}"), *path, "banks", name, side)
    norms = {"student": model.student.feature[1], "teacher": model.teacher.fusion.encoders[1][1]}
    for name, norm in (norms | {"EMA": model.ema.module.feature[1]}).items():
        checks.stat(norm.running_mean, *path, _key(checks, path, f"{name} running mean"))


def facts(file):
    """Rates of the published schedule."""
    checks = Checks(numeric_facts(file))
    for name in checks.expected["schedule values"]:
        checks.number(rate(int(name.split()[1]), 30), "schedule values", name)
    return checks
