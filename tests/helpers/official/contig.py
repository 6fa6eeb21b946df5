"""ContIG from given image features: projections, losses with missing modalities (HealthML/ContIG)."""

from types import SimpleNamespace

import torch

from mrmfast.batch import GenomeSpec, ModalitySpec
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.objectives.contig import ContIG, ContIGConfig
from tests.helpers.official import Checks, fill, input_of
from tests.helpers.official.building import float64
from tests.helpers.official.stated import stated

FEATURES = "image features"
ROLES = {"imaging_l1": "image.0", "imaging_l2": "image.2", "genetics_l1": "genome.projection.0"} | {
    "genetics_l2": "genome.projection.2"
}
# Linear, ReLU, BatchNorm of each layer of a genome network.
NETWORK = {"hidden_1": 0, "bn1": 2, "hidden_2": 3, "bn2": 5}


def run(file, case):
    """Projections, loss of each modality, loss, gradients."""
    checks, inputs = Checks(case["expected"]), case["inputs"]
    names = [name for name in inputs if name not in (FEATURES, "missing")]
    genomes = [input_of(checks, case, name, stated(inputs[name]["value"])) for name in names]
    features = input_of(checks, case, FEATURES, stated(inputs[FEATURES]["value"])).flatten(1).requires_grad_()
    present = torch.ones(len(features), len(names), dtype=torch.bool)
    if "missing" in inputs:
        present = ~torch.tensor(inputs["missing"]["value"], dtype=torch.bool)
    for number, genome in enumerate(genomes):
        genome[~present[:, number]] = torch.nan
    model = build(case, names)
    parameters = published(case, model, names)
    fill(case, parameters)
    checks.same(sum(p.numel() for p in model.parameters()), "counts", "parameters without the image encoder")
    x = torch.cat(genomes, 1)
    for key, parts in zip(("image_projection", "genome_projection"), model.project(features, x, present), strict=True):
        for number, part in enumerate(parts):
            checks.stat(part, key, number)
    losses = model.contrast(features, x, present)
    checks.numbers(torch.stack(losses), "loss_terms_per_modality_before_weighting")
    rows = [column.nonzero().flatten().tolist() for column in present.T]
    checks.same(rows, "rows_used_per_modality")
    loss = torch.stack(losses).mean()
    checks.number(loss, "loss")
    checks.wrong(loss.item(), "wrong_variants")
    loss.backward()
    reached = {**parameters, "image features (what reaches the image encoder)": features}
    checks.gradient_norms(reached, "grad_norms")
    return checks


def build(case, names):
    sizes = case["sizes"]
    widths = [width for width in sizes["genome widths"] if width]
    network = {row[1].split(".")[-2]: row[2][0] for row in case["params"] if row[1].endswith(".weight")}
    layers = tuple(width for role, width in sorted(network.items()) if role.startswith("hidden_"))
    config = ContIGConfig(
        temperature=sizes["temperature"],
        alpha=sizes["alpha"],
        width=sizes["projection"],
        hidden=next(value for key, value in sizes.items() if key.startswith("hidden width")),
        genome_layers=layers,
    )
    modalities = tuple(ModalitySpec(name, "float", width) for name, width in zip(names, widths, strict=True))
    spec = GenomeSpec(modalities, tuple(widths), tuple(names), torch.zeros(sum(widths)))
    with float64():
        encoder = SimpleNamespace(width=sizes["image feature width F"])
        return ContIG(config, encoder, GenomeInput(spec, layers=0, alpha_dropout=0.0))


def published(case, model, names):
    """Our parameters by the published names; a single modality has no prefix."""
    modules = {}
    for number, name in enumerate(names):
        prefix = f"{name}." if any(row[1].startswith(f"{name}.") for row in case["params"]) else ""
        modules[prefix] = torch.nn.ModuleDict(
            {"image": model.image_projections[number], "genome": model.genome_projections[number]}
        )
    parameters = {}
    for _, name, _, _ in case["params"]:
        prefix = next((prefix for prefix in modules if prefix and name.startswith(prefix)), "")
        *_, role, kind = name.split(".")
        path = ROLES.get(role) or f"genome.network.{NETWORK[role]}"
        parameters[name] = modules[prefix].get_parameter(f"{path}.{kind}")
    return parameters
