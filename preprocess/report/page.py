"""``python -m preprocess report DATASET``: what is in the genetics of a dataset, on one self-contained HTML page.

Numbers come from the stored rows themselves, and beside them from the reports and ledgers that the preprocessors left
(``reports/*.json`` and the ledgers beside them): allele frequencies of the two are drawn against each other.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.genetics import MODALITY_ORDER
from mrmfast.formats.manifest import NAME, read_manifest
from preprocess.report import figures as figures
from preprocess.report.statistics import Statistics, collect

LISTED = 200  # rows of a list; the rest is in the ledger
COUNTED = ("kept", "kept_all_missing", "counted", "not_picked")
FREQUENCY = "alt_frequency_train"  # column of the SNP ledger, counted from the source's own calls
# The command whose report and ledger describe a modality.
COMMAND = {"rna": "expression", "cnv": "expression", "mutations": "expression"}
LEDGERS = dict.fromkeys(COMMAND, "expression_features")  # one for the three; the others are NAME_variants


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``report``."""
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="dataset folder")
    parser.add_argument("--html", metavar="FILE", type=Path, help="default: DATASET/reports/genetics.html")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises
    ------
    UserError
        The dataset holds no genetics.
    """
    dataset: Path = arguments.dataset
    manifest = read_manifest(dataset)
    if not manifest.genetics:
        raise UserError(
            f"{dataset / NAME}: lists no genetics; run python -m preprocess snps|pgs|burden|expression first"
        )
    names = sorted(manifest.genetics, key=lambda name: (*(n for n, m in enumerate(MODALITY_ORDER) if m == name), 99))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        dataset=dataset.resolve().name,
        splits=manifest.splits,
        pseudonyms=manifest.pseudonyms,
        modalities=[_section(dataset, collect(dataset, name)) for name in names],
    )
    path = arguments.html or dataset / "reports" / "genetics.html"
    with write_aside(path) as file:
        file.write(page)
    print(f"report: {len(names)} modalities, {path.stat().st_size / 1e6:.1f} MB: {path}")
    return 0


def _section(dataset: Path, found: Statistics) -> dict[str, Any]:
    report, ledger = _report(dataset, found.name), _ledger(dataset, found.name)
    section: dict[str, Any] = {
        "name": found.name,
        "encoding": found.encoding,
        "participants": found.participants,
        "n_features": len(found.features),
        "missing": found.missing_per_feature.sum() / (found.participants * len(found.features)),
        "warnings": [],
        "wide": [],
        "small": [],
        "tables": [],
        "lists": [],
    }
    groups = found.features.groups()
    section["wide"].append(figures.bars([g for g, _ in groups], [n for _, n in groups], "Features per group"))
    {"genotype": _genotypes, "binary": _bits, "float": _numbers}[found.encoding](section, found, ledger)
    for key in ("participants", "variants", "alleles", "genes", "files", "settings"):
        if isinstance(report.get(key), dict):
            section["tables"].append((key, [(_words(k), _shown(v)) for k, v in report[key].items()]))
    if ledger is not None:
        section["lists"].append(_excluded(ledger, found.name))
    fates = Counter(ledger["fate"]) if ledger is not None else _row_fates(dataset, found.name)
    if fates:
        counts = [(_words(str(fate)), f"{count:,}") for fate, count in fates.most_common()]
        section["tables"].append(("ledger: fates", counts))
    if "scores" in report:
        section["lists"] += _scores(report["scores"])
    return section


def _genotypes(section: dict[str, Any], found: Statistics, ledger: pd.DataFrame | None) -> None:
    share = found.missing_per_feature / found.participants
    section["small"] += [
        figures.histogram(found.missing_per_feature, "Missing calls per SNP", "participants", "SNPs", log=True),
        figures.histogram(found.missing_per_participant, "Missing per participant", "SNPs", "participants", log=True),
        figures.histogram(found.frequency, "Frequency, counted allele", "frequency", "SNPs"),
    ]
    all_missing = int((share == 1).sum())
    if all_missing:
        section["warnings"].append(f"{all_missing} SNPs are missing in every participant.")
    if ledger is None:
        return
    if "swapped" in ledger:
        turned_over = int(ledger.loc[ledger["fate"].isin(COUNTED[:2]), "swapped"].sum())
        section["tables"].append(
            ("flips", [("SNPs kept whose alleles were turned to the reference", f"{turned_over:,}")])
        )
    if FREQUENCY not in ledger:
        return
    theirs = ledger.drop_duplicates("id").set_index("id")[FREQUENCY].reindex(found.features.name).to_numpy(float)
    section["small"].append(
        figures.agreement(theirs, found.frequency, "as read from the source, training split", "in the store, everyone")
    )
    difference = np.abs(theirs - found.frequency)
    turned = int((np.abs(theirs - (1 - found.frequency)) + 0.1 < difference).sum())
    section["tables"].append(
        (
            "frequencies, store against source",
            [
                ("SNPs compared", f"{int(np.isfinite(difference).sum()):,}"),
                ("largest difference", f"{np.nanmax(difference, initial=0):.4f}"),
                ("look flipped", f"{turned:,}"),
            ],
        )
    )
    if turned:
        section["warnings"].append(f"{turned} SNPs have the frequency of the other allele: check --reference.")


def _bits(section: dict[str, Any], found: Statistics, ledger: pd.DataFrame | None) -> None:
    carriers = found.sum_per_feature.astype(np.int64)
    section["small"] += [
        figures.histogram(found.sum_per_participant, "Set per participant", "features", "participants"),
        figures.histogram(carriers, "Carriers per feature", "participants", "features", log=True),
    ]
    top = np.argsort(-carriers, kind="stable")[:20]
    section["lists"].append(
        {
            "title": "Features with the most carriers",
            "columns": ("feature", "group", "carriers", "share"),
            "rows": [
                (found.features.name[i], found.features.group[i], f"{carriers[i]:,}", f"{found.frequency[i]:.3%}")
                for i in top
            ],
            "more": 0,
            "file": "",
        }
    )
    common = int((found.frequency > 0.5).sum())
    if common and found.name == "burden":
        section["warnings"].append(f"{common} genes are set in most participants: rare variants cannot do that.")


def _numbers(section: dict[str, Any], found: Statistics, ledger: pd.DataFrame | None) -> None:
    section["wide"].append(figures.distributions(found))
    if found.missing_per_feature.any():
        missing = found.missing_per_feature
        section["small"].append(figures.histogram(missing, "Missing values", "participants", "features"))


def _excluded(ledger: pd.DataFrame, name: str) -> dict[str, Any]:
    """List what was excluded for a reason other than the stride."""
    left_out = ledger[~ledger["fate"].isin(COUNTED)]
    columns = [column for column in ledger.columns if column not in ("fill", "weight", "missing_train")]
    return {
        "title": f"Left out: {len(left_out):,} of {len(ledger):,} lines of the ledger",
        "columns": [_words(column) for column in columns],
        "rows": left_out[columns].head(LISTED).astype(object).fillna("").to_numpy().tolist(),
        "more": max(0, len(left_out) - LISTED),
        "file": f"reports/{_ledger_path(Path(), name).name}",
    }


def _scores(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    left_out = [(e["score"], e["file"], e["reason"]) for e in entries if e["status"] != "used"]
    used = [
        (e["score"], *(f"{e.get(k, 0):,}" for k in ("rows", "matched", "matched_flipped", "absent", "alleles_differ")))
        for e in entries
        if e["status"] == "used"
    ]
    columns = ("score", "rows", "matched", "matched, flipped", "absent", "other alleles")
    return [
        {"title": f"Scores left out: {len(left_out)}", "columns": ("score", "file", "reason"), "rows": left_out}
        | {"more": 0, "file": ""},
        {"title": f"Scores used: {len(used)}", "columns": columns, "rows": used, "more": 0, "file": ""},
    ]


def _report(dataset: Path, name: str) -> dict[str, Any]:
    path = dataset / "reports" / f"{COMMAND.get(name, name)}.json"
    try:
        return dict(json.loads(path.read_bytes())) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not JSON; run its preprocessor again") from error


def _ledger_path(dataset: Path, name: str) -> Path:
    return dataset / "reports" / f"{LEDGERS.get(name, f'{name}_variants')}.tsv.gz"


def _ledger(dataset: Path, name: str) -> pd.DataFrame | None:
    """Read the lines of a modality's ledger; None where its command left none of text."""
    path = _ledger_path(dataset, name)
    if not path.exists():
        return None
    try:
        ledger = pd.read_csv(path, sep="\t", dtype={"id": str}, keep_default_na=False, na_values={FREQUENCY: [""]})
        return ledger[ledger["modality"] == name].drop(columns="modality") if name in LEDGERS else ledger
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}); run its preprocessor again") from error


def _row_fates(dataset: Path, name: str) -> Counter[str]:
    """Count the fates in a ledger of rows, group by group: those of ``pgs`` have tens of millions."""
    path = dataset / "reports" / f"{name}_variants.parquet"
    fates: Counter[str] = Counter()
    if not path.exists():
        return fates
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["fate"]):
                for entry in pc.value_counts(batch.column("fate")).to_pylist():
                    fates[entry["values"]] += entry["counts"]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}); run its preprocessor again") from error
    return fates


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
