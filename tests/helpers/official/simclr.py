"""SimCLR: projection head and NT-Xent of given features (google-research/simclr)."""

from types import SimpleNamespace

import torch

from mrmfast.objectives.losses import nt_xent, similarities
from mrmfast.objectives.simclr import HeadConfig, SimCLR, SimCLRConfig
from tests.helpers.official import Checks, fill, input_of, numeric_facts, symmetric
from tests.helpers.official.building import float64

GOOGLE = "loss (google: both directions summed, mean over N)"
USUAL = "loss (sthalles and most PyTorch ports: mean over 2N rows)"


def run(file, case):
    """Head, similarities, loss and gradients."""
    checks, sizes = Checks(case["expected"]), case["sizes"]
    head = HeadConfig(sizes["head layers"], sizes["hidden"], sizes["out"])
    config = SimCLRConfig(temperature=sizes["temperature"], head=head)
    with float64():
        model = SimCLR(config, SimpleNamespace(width=sizes["feature width"]), None)
    parameters = dict(model.head.named_parameters())
    fill(case, parameters)
    assert {module.eps for module in model.head if hasattr(module, "eps")} == {sizes["batch_norm_eps"]}
    entry = {"k": 1000, "shape": (2 * sizes["images N"], sizes["feature width"])} | case["inputs"]["features h"]
    features = input_of(checks, {**case, "inputs": {"features h": entry}}, "features h", _features).requires_grad_()
    projected = model.head(features)
    checks.stat(projected, "hidden z")
    logits = similarities(*projected.chunk(2), sizes["temperature"])
    checks.stat(logits, "logits_ab")
    checks.numbers(logits[0], "logits_ab_first_row")
    loss = model.contrast(features)
    checks.number(loss, GOOGLE)
    checks.number(loss / 2, USUAL)
    checks.wrong(loss.item(), "wrong_variants")
    loss.backward()
    checks.gradient_norms({**parameters, "features h": features}, "grad_norms (of the google loss)")
    return checks


def _features(k, phase, shape):
    shared = 0.8 * symmetric(k + 1, phase, (shape[0] // 2, shape[1]))
    return 1.2 * symmetric(k, phase, shape) + shared.repeat(2, 1)


def facts(file):
    """The loss of equal vectors."""
    checks = Checks(numeric_facts(file))
    same = torch.ones(16, 8, dtype=torch.float64)
    checks.number(nt_xent(same, same, 0.1), "collapsed features", "google N=16")
    checks.number(nt_xent(same, same, 0.1) / 2, "collapsed features", "mean over 2N rows")
    return checks
