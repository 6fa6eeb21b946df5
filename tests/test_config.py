from dataclasses import dataclass, field

import pytest

from mrmfast import config
from mrmfast.errors import UserError
from mrmfast.objectives import OBJECTIVES
from mrmfast.training.settings import TrainConfig
from tests.helpers.common import ROOT, launch


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    names: list[str] | None = None


@dataclass(frozen=True)
class Outer:
    steps: int = 1
    inner: Inner = field(default_factory=Inner)


def load(*overrides):
    return config.load(Outer, None, list(overrides))


def test_overrides_reach_nested_keys():
    built = load("steps=7", "inner.rate=1e-3", "inner.names=[a, b]")
    assert built == Outer(7, Inner(0.001, ["a", "b"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "unknown key 'stepz'; did you mean steps?"),
        ("inner.rat=3", "unknown key 'inner.rat'; did you mean inner.rate?"),
        ("inner.qqqqq=3", "unknown key 'inner.qqqqq'; valid keys here: rate, names"),
        ("inner=3", "inner is a section"),
        ("steps=many", "steps: input should be a valid integer"),
        ("steps", "has no '='"),
        ("steps=[", "not valid YAML"),
    ],
)
def test_mistakes_are_named_with_a_remedy(override, message):
    with pytest.raises(UserError) as caught:
        load(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_non_mapping(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        config.load(Outer, tmp_path / "none.yaml", [])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="mapping"):
        config.load(Outer, tmp_path / "list.yaml", [])


# configs/compare holds plans of comparisons: tests/compare.
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "compare")


def test_yaml_cannot_run_code(tmp_path):
    (tmp_path / "evil.yaml").write_text("steps: !!python/object/apply:os.getpid []\n")
    with pytest.raises(UserError, match="not valid YAML"):
        config.load(Outer, tmp_path / "evil.yaml", [])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(path, tmp_path):
    built = config.load(TrainConfig, path, [])
    (tmp_path / "dumped.yaml").write_text(config.dump(built))
    assert config.load(TrainConfig, tmp_path / "dumped.yaml", []) == built


def test_paper_settings_are_the_defaults_of_ukb_base():
    built = config.load(TrainConfig, ROOT / "configs/ukb_base.yaml", [])
    assert (built.batch_size, built.epochs, built.optimiser.lr) == (256, 50, 1e-3)
    mask, match = built.objective.mask, built.objective.match
    assert (mask.tau_image, mask.tau_genome, match.weight, match.pairs) == (0.75, 0.5, 1.0, 8)
    assert (built.data.rotation, built.data.flip, built.data.image_size) == (20, 0.5, 224)
    assert config.load(TrainConfig, ROOT / "configs/tcga.yaml", []).batch_size == 8


@pytest.mark.parametrize(
    "override",
    [
        "objective.mask.tau_image=1.5",
        "objective.match.weight=.nan",
        "data.unreadable=-1",
        "data.unreadable=.nan",
        "data.fetch.requests=0",
        "data.rotation=181",
        "data.threads=0",
        "batch_size=0",
        "engine.zero_stage=4",
        "run.keep=0",
        "epochs=.nan",
        "optimiser.lr=-1",
        "optimiser.betas=[1, 1]",
        "objective.reconstruct.image_decoder.heads=0",
        "seed=-1",
        "run.name=../elsewhere",
        "run.name=..",
        "run.name=''",
    ],
)
def test_values_out_of_range_are_refused(override):
    with pytest.raises(UserError, match=override.split("=")[0]):
        config.load(TrainConfig, None, [override])


@pytest.mark.parametrize("overrides", [["objective=simclr"], ["objective.name=simclr"], ["objective={name: simclr}"]])
@pytest.mark.parametrize("path", [None, ROOT / "configs/demo.yaml"])
def test_the_command_line_chooses_another_objective(path, overrides):
    built = config.load(TrainConfig, path, [*overrides, "objective.temperature=0.2"])
    assert (built.objective.name, built.objective.temperature) == ("simclr", 0.2)
    early = config.load(TrainConfig, path, ["objective.temperature=0.2", *overrides[:1]])
    assert early == built or "{" in overrides[0]


def test_naming_the_same_objective_keeps_its_keys():
    plain, named = (config.load(TrainConfig, ROOT / "configs/demo.yaml", more) for more in ([], ["objective=mrm"]))
    assert plain == named
    assert plain.objective.reconstruct.image_decoder.width == 192


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective=simcrl", "objective.name=simcrl: no such objective; did you mean simclr?"),
        ("objective.mask.tau_imag=0.5", "did you mean objective.mask.tau_image?"),
        ("objective.mask=3", "objective.mask is a section with keys, not the value 3"),
        ("objective=3", "objective is a section with keys, not the value 3"),
        ("objective.match.pairs=1", "objective.match.pairs=1: relation matching compares samples"),
        ("data.fetch.requests=0", "overrides: data.fetch.requests=0: must be at least 1"),
        ("data.unreadable=-1", "data.unreadable=-1: must be at least 0"),
        ("data.unreadable=.nan", "data.unreadable=nan: must be a finite number"),
        ("seed=" + "9" * 500, "must be at most 9223372036854775807"),
    ],
)
def test_mistakes_in_sections_are_named_with_a_remedy(override, message):
    with pytest.raises(UserError) as caught:
        config.load(TrainConfig, None, [override])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_stage_that_an_objective_does_not_support_is_refused(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "toy", "tests.helpers.toys:Toy")
    with pytest.raises(UserError, match=r"engine.zero_stage=3: objective.name=toy needs .* at most 2"):
        config.load(TrainConfig, None, ["objective=toy", "engine.zero_stage=3"])
    assert config.load(TrainConfig, None, ["objective=toy", "engine.zero_stage=2"]).engine.zero_stage == 2


def test_batch_must_divide_over_ranks_and_micro_batches_fit_themselves():
    built = config.load(TrainConfig, None, ["batch_size=12", "engine.micro_batch=5"])
    assert built.micro_batch(1) == 4
    assert built.micro_batch(2) == 3
    with pytest.raises(UserError, match="multiple of 5"):
        built.micro_batch(5)


def test_a_pass_of_one_sample_is_refused_where_samples_are_compared():
    built = config.load(TrainConfig, None, ["batch_size=262", "engine.micro_batch=64"])
    with pytest.raises(UserError, match=r"131 samples a rank, in passes of 1 .* needs 2"):
        built.micro_batch(2)
    with pytest.raises(UserError, match=r"objective.match.pairs=1: .* needs 2"):
        config.load(TrainConfig, None, ["objective.match.pairs=1"])
    alone = config.load(TrainConfig, ROOT / "configs/tcga.yaml", ["objective.match.self_relations=false"])
    assert alone.micro_batch(8) == 1
    with pytest.raises(UserError, match="passes of 1 "):
        config.load(TrainConfig, ROOT / "configs/tcga.yaml", []).micro_batch(8)


def test_many_small_passes_are_said():
    built = config.load(TrainConfig, None, ["batch_size=254", "engine.micro_batch=64"])
    assert "the largest divisor of 254 samples a rank up to that is 2: 127 passes" in built.small_passes(1)
    assert built.small_passes(127) is None
    assert config.load(TrainConfig, None, ["batch_size=12", "engine.micro_batch=5"]).small_passes(1) is None


def test_print_config_refuses_what_a_run_would(capsys):
    from mrmfast.train import main

    assert main(["--config", str(ROOT / "configs/demo.yaml"), "batch_size=0", "--print-config"]) == 2
    assert "batch_size=0: must be at least 1" in capsys.readouterr().err


def test_print_config_shows_the_resolved_config(tmp_path):
    done = launch("--config", "configs/demo.yaml", "optimiser.lr=0.5", "--print-config")
    assert done.returncode == 0, done.stderr
    (tmp_path / "printed.yaml").write_text(done.stdout)
    assert config.load(TrainConfig, tmp_path / "printed.yaml", []).optimiser.lr == 0.5
