"""The simulated data set: equal seeds give equal bytes, formats read back, and planted effects can be found."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from bed_reader import open_bed

from mrmfast.errors import UserError
from preprocess import simulate
from preprocess.simulate import build, cohort, genotypes, photographs

PARTICIPANTS, SNPS = 32, 4400


def arguments(out: Path, **changes: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    options = {"participants": PARTICIPANTS, "seed": 3, "snps": SNPS, "genes": 44, "workers": 1} | changes
    words = [f"--out={out}", *(f"--{name}={value}" for name, value in options.items())]
    return parser.parse_args(words)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulate") / "raw"
    simulate.run(arguments(out))
    return out


@pytest.fixture(scope="module")
def truth(raw: Path) -> dict:
    return json.loads((raw / "truth.json").read_text())


def table(path: Path) -> dict[str, np.ndarray]:
    header, *lines = path.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return {name: np.array([row[n] for row in rows]) for n, name in enumerate(header.split("\t"))}


def test_a_run_interrupted_or_not_gives_the_same_bytes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    again = tmp_path / "raw"
    whole = photographs.take

    def interrupted(folder: Path, seed: int, sitting: photographs.Sitting) -> None:
        if sitting.index == 5:
            raise KeyboardInterrupt
        whole(folder, seed, sitting)

    with monkeypatch.context() as patch:
        patch.setattr(photographs, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate.run(arguments(again))
    assert not (again / "truth.json").exists()
    first = next((again / "fundus").glob("*.jpg"))
    written = first.stat().st_mtime_ns
    simulate.run(arguments(again, workers=2))  # the number of processes must not matter either
    assert first.stat().st_mtime_ns == written
    assert contents(again) == contents(raw)

    capsys.readouterr()
    simulate.run(arguments(again))
    assert "complete" in capsys.readouterr().out


def test_a_participant_does_not_depend_on_the_size_of_the_cohort(raw: Path, tmp_path: Path) -> None:
    simulate.run(arguments(tmp_path / "raw", participants=3))
    fewer, more = contents(tmp_path / "raw"), contents(raw)
    names = [name for name in fewer if name.startswith("fundus/")]
    assert len(names) == 6
    assert all(fewer[name] == more[name] for name in names)
    assert set(fewer["traits.tsv"].splitlines()) <= set(more["traits.tsv"].splitlines())
    assert set(fewer["phenotypes.tsv"].splitlines()) <= set(more["phenotypes.tsv"].splitlines())


def test_other_arguments_or_a_foreign_folder_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another --out"):
        simulate.run(arguments(raw, seed=4))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="new folder"):
        simulate.run(arguments(tmp_path))
    with pytest.raises(UserError, match="--snps"):
        simulate.run(arguments(tmp_path / "raw", snps=3))


def test_snps_are_divided_as_on_the_array_of_uk_biobank() -> None:
    assert cohort.divide_snps(784_256) == list(cohort.UKB_ARRAY_COUNTS)
    assert sum(len(range(0, count, genotypes.KEEP_EVERY)) for count in cohort.UKB_ARRAY_COUNTS) == 7_854
    for total in (220, 20_000, 784_255):
        assert sum(cohort.divide_snps(total)) == total


def test_ids_are_distinct_and_have_seven_digits() -> None:
    ids = cohort.participant_ids(0, 100_000)
    assert len(np.unique(ids)) == 100_000
    assert ids.min() >= 1_000_000
    assert ids.max() <= 9_999_999


def test_genotypes_read_back(raw: Path, truth: dict) -> None:
    counts, missing, calls = [], 0, 0
    for number in range(1, 23):
        with open_bed(raw / "genotypes" / f"chr{number}.bed") as bed:
            values = bed.read(dtype="int8")
            counts.append(values.shape[1])
            assert set(bed.chromosome) == {str(number)}
            assert (np.diff(bed.bp_position) > 0).all()
            assert not (bed.allele_1 == bed.allele_2).any()
            assert set(bed.iid) == set(table(raw / "phenotypes.tsv")["eid"])
        missing += int((values == genotypes.MISSING).sum())
        calls += values.size
    assert counts == truth["sizes"]["snps_by_chromosome"] == cohort.divide_snps(SNPS)
    assert 0.008 < missing / calls < 0.012


def test_alternative_alleles_are_counted_and_neighbours_are_linked(tmp_path: Path) -> None:
    ids, snps = cohort.participant_ids(0, 600), 400
    genotypes.write_chromosome(tmp_path, 0, 7, snps, ids, {}, 0)
    with open_bed(tmp_path / "chr7.bed") as bed:
        values = bed.read(dtype="float64")
        alt = bed.allele_1
    chromosome = genotypes.make_chromosome(0, 7, snps)
    assert (alt == chromosome.alt).all()
    np.testing.assert_allclose(np.nanmean(values, axis=0) / 2, chromosome.alt_frequency, atol=0.08)
    minor = np.minimum(chromosome.alt_frequency, 1 - chromosome.alt_frequency)
    assert minor.min() >= 0.01
    assert minor.max() <= 0.5
    filled = np.where(np.isnan(values), np.nanmean(values, axis=0), values)
    squared = np.corrcoef(filled.T) ** 2
    adjacent, distant = np.diagonal(squared, 1).mean(), np.diagonal(squared, 100).mean()
    assert adjacent > 0.1
    assert distant < 0.01


def test_moments_are_those_of_a_large_sample(tmp_path: Path) -> None:
    indices, weights = np.arange(0, 200, 3), np.random.default_rng(0).standard_normal(67)
    chromosome = genotypes.make_chromosome(1, 2, 200)
    mean, variance = genotypes.moments(chromosome, indices, weights)
    table_ = {int(i): np.array([w]) for i, w in zip(indices, weights, strict=True)}
    sums = genotypes.write_chromosome(tmp_path, 1, 2, 200, cohort.participant_ids(1, 8000), table_, 1)[0]
    assert sums.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / 8000))
    assert sums.var() == pytest.approx(variance, rel=0.08)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort large enough for regressions, without photographs."""
    out = tmp_path_factory.mktemp("crowd") / "raw"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "take_all", lambda *_: None)
        simulate.run(arguments(out, participants=3000, snps=2200, genes=22, scores=3))
    return out


def alt_counts(raw: Path) -> tuple[np.ndarray, dict[tuple[str, int], int], np.ndarray, list[str]]:
    """All genotypes with mean for missing (N, S), (chromosome, position) -> column, (ALT, REF) and people."""
    columns, places, alleles = [], {}, []
    for number in range(1, 23):
        with open_bed(raw / "genotypes" / f"chr{number}.bed") as bed:
            values = bed.read(dtype="float64")
            columns.append(np.where(np.isnan(values), np.nanmean(values, axis=0), values))
            for position, pair in zip(bed.bp_position, zip(bed.allele_1, bed.allele_2, strict=True), strict=True):
                places[str(number), int(position)] = len(places)
                alleles.append(pair)
            people = list(bed.iid)
    return np.hstack(columns), places, np.array(alleles), people


def read_vcf(path: Path) -> tuple[list[str], list[dict], list[str]]:
    """Samples, rows (fields of each annotation under "csq", calls under "gt") and the header's CSQ fields."""
    rows, fields, samples = [], [], []
    with gzip.open(path, "rt") as handle:
        for line in handle:
            if line.startswith("##INFO=<ID=CSQ"):
                fields = line.split("Format: ")[1].split('"')[0].split("|")
            elif line.startswith("#CHROM"):
                samples = line.rstrip("\n").split("\t")[9:]
            elif not line.startswith("#"):
                cells = line.rstrip("\n").split("\t")
                annotations = cells[7].removeprefix("CSQ=").split(",")
                csq = [dict(zip(fields, text.split("|"), strict=True)) for text in annotations]
                rows.append({"chromosome": int(cells[0]), "position": int(cells[1]), "csq": csq, "gt": cells[9:]})
    return samples, rows, fields


def harmful(csq: dict[str, str]) -> bool:
    if csq["BIOTYPE"] != "protein_coding":
        return False
    return csq["IMPACT"] == "HIGH" or (bool(csq["PolyPhen"]) and float(csq["PolyPhen"].split("(")[1][:-1]) >= 0.8)


def burden(raw: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    samples, rows, _ = read_vcf(raw / "burden" / "rare.vep.vcf.gz")
    flags: dict[str, np.ndarray] = {}
    for row in rows:
        counts = np.array([call.count("1") for call in row["gt"]])
        called = sum(call != "./." for call in row["gt"])
        if counts.sum() / (2 * called) < 0.01:
            for csq in filter(harmful, row["csq"]):
                flags.setdefault(csq["Gene"], np.zeros(len(samples), bool))
                flags[csq["Gene"]] |= counts > 0
    return samples, flags


def test_planted_effects_can_be_found_in_the_files(crowd: Path) -> None:
    """Regress each trait on the SNPs, score and genes that truth.json names, read from the files alone."""
    told = json.loads((crowd / "truth.json").read_text())
    counts, places, alleles, people = alt_counts(crowd)
    samples, flags = burden(crowd)
    values = table(crowd / "traits.tsv")
    assert samples == values["eid"].tolist() == sorted(samples) != people
    order = np.argsort(np.array(people, int))
    for entry in told["traits"]:
        predictors = [np.ones(len(people))]
        predictors += [counts[order, places[str(s["chromosome"]), s["position"]]] for s in entry["snps"]]
        assert all(s["index"] % told["keep_every"] == 0 for s in entry["snps"])
        predictors += [flags[gene["gene"]] for gene in entry["genes"]]
        if entry["score"]:
            name = crowd / "pgs" / f"{entry['score']['pgs_id']}_hmPOS_GRCh38.txt.gz"
            text = gzip.decompress(name.read_bytes()).decode()
            lines = [line for line in text.splitlines() if not line.startswith("#")]
            header, total, matched = lines[0].split("\t"), np.zeros(len(people)), 0
            for row in (dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:]):
                column = places.get((row["hm_chr"], int(row["hm_pos"])))
                if column is not None:
                    alt, ref = alleles[column]
                    assert {row["effect_allele"], row["other_allele"]} == {alt, ref}
                    dosage = counts[order, column]
                    total += float(row["effect_weight"]) * (dosage if row["effect_allele"] == alt else 2 - dosage)
                    matched += 1
            assert matched == told["scores"][entry["score"]["pgs_id"]]["matched_rows"] < len(lines) - 1
            assert total.mean() == pytest.approx(
                entry["score"]["population_mean"], abs=0.1 * entry["score"]["population_sd"]
            )
            assert total.std() == pytest.approx(entry["score"]["population_sd"], rel=0.08)
            predictors.append(total)
        for gene in entry["genes"]:
            assert flags[gene["gene"]].mean() == pytest.approx(gene["carrier_share"], abs=0.025)
        design, trait = np.column_stack(predictors).astype(float), values[entry["name"]].astype(float)
        coefficients = np.linalg.lstsq(design, trait, rcond=None)[0]
        explained = 1 - (trait - design @ coefficients).var() / trait.var()
        stated = sum(entry["variance_shares"][kind] for kind in ("snps", "score", "genes"))
        assert 0.4 <= stated <= 0.7
        assert explained == pytest.approx(stated, abs=0.06), entry["name"]
        if entry["snps"]:
            effects = [s["effect"] for s in entry["snps"]]
            assert np.corrcoef(coefficients[1 : len(effects) + 1], effects)[0, 1] > 0.95


def test_photographs_read_back_and_bad_ones_are_told(raw: Path, truth: dict) -> None:
    bad = {entry["file"]: entry["kind"] for entry in truth["bad_images"]}
    assert sorted(bad.values()) == sorted(cohort.BAD_KINDS)
    files = sorted((raw / "fundus").iterdir())
    assert len(files) == truth["sizes"]["photographs"] == 2 * PARTICIPANTS
    assert {path.name.split("_")[0] for path in files} == set(table(raw / "traits.tsv")["eid"])
    shapes = set()
    for path in files:
        image = cv2.imread(str(path))
        assert image is not None
        shapes.add(image.shape)
        kind, brightness = bad.get(path.name), image.mean()
        if kind == "black":
            assert brightness < 8
        elif kind == "overexposed":
            assert brightness > 160
        elif kind is None:
            assert 15 < brightness < 140
            assert image[:8, :8].max() < 20  # black outside the field
            red, blue = image[..., 2].mean(), image[..., 0].mean()
            assert red > 1.5 * blue
    assert len(shapes) >= 3


def test_the_disc_is_on_the_nasal_side(raw: Path, truth: dict) -> None:
    bad = {entry["file"] for entry in truth["bad_images"]}
    right_sided = []
    for path in sorted((raw / "fundus").iterdir()):
        if path.name not in bad:
            green = cv2.GaussianBlur(cv2.imread(str(path))[..., 1], (0, 0), 12)
            inner = green[:, green.shape[1] // 8 : -green.shape[1] // 8]
            on_right = inner.argmax() % inner.shape[1] > inner.shape[1] / 2
            right_sided.append(on_right == ("_right_" in path.name))
    assert np.mean(right_sided) > 0.9


def test_rare_variants_hold_every_kind(raw: Path, truth: dict) -> None:
    samples, rows, fields = read_vcf(raw / "burden" / "rare.vep.vcf.gz")
    assert fields[:4] == ["Allele", "Consequence", "IMPACT", "SYMBOL"]
    assert len(rows) == truth["sizes"]["rare_variants"]
    places = [(row["chromosome"], row["position"]) for row in rows]
    assert places == sorted(set(places))
    assert {chromosome for chromosome, _ in places} == set(range(1, 23))
    annotations = [csq for row in rows for csq in row["csq"]]
    assert len({csq["Gene"] for csq in annotations}) == truth["sizes"]["genes"] == 44
    assert {csq["IMPACT"] for csq in annotations} == {"HIGH", "MODERATE", "LOW", "MODIFIER"}
    assert "nonsense_mediated_decay" in {csq["BIOTYPE"] for csq in annotations}
    calls = [call for row in rows for call in row["gt"]]
    assert set(calls) == {"0/0", "0/1", "1/1", "./."}
    assert any(row["gt"].count("1/1") > 0.9 * len(samples) for row in rows)


def test_phenotypes_look_like_uk_biobank(crowd: Path) -> None:
    fields = table(crowd / "phenotypes.tsv")
    values = {name: np.array([float(v) if v else np.nan for v in column]) for name, column in fields.items()}
    assert list(values) == [
        "eid", "31-0.0", "21022-0.0", "4079-0.0", "4079-0.1", "4080-0.0", "4080-0.1", "20116-0.0", "21001-0.0",
    ]  # fmt: skip
    assert values["21022-0.0"].min() >= 40
    assert values["21022-0.0"].max() <= 70
    assert {-3.0, 0.0, 1.0, 2.0} == set(values["20116-0.0"][~np.isnan(values["20116-0.0"])])
    assert 0.04 < np.isnan(values["4080-0.0"]).mean() < 0.08
    width = table(crowd / "traits.tsv")["vessel_width"].astype(float)
    seen = ~np.isnan(values["4080-0.0"])
    assert np.corrcoef(width[seen], values["4080-0.0"][seen])[0, 1] < -0.15
    assert np.corrcoef(values["21022-0.0"][seen], values["4080-0.0"][seen])[0, 1] > 0.2


def test_the_estimate_of_bytes_is_of_the_right_size(raw: Path) -> None:
    settings = cohort.Settings(PARTICIPANTS, 3, SNPS, 12, 44)
    written = sum(len(content) for content in contents(raw).values())
    assert 0.5 < build.estimate_bytes(settings) / written < 2
