"""``python -m preprocess report DATASET``: a self-contained HTML page about the genetics of a dataset.

The numbers come from two sources: the stored rows, and the reports and ledgers of the preprocessors in ``reports/``.
The page plots the allele frequencies of both sources against each other.
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
from mrmfast.formats.records import recording
from preprocess.report import figures
from preprocess.report.statistics import Statistics, collect

LISTED = 200  # maximum number of rows of a list; the ledger has all rows
COUNTED = ("kept", "kept_all_missing", "counted", "not_picked")
FREQUENCY = "alt_frequency_train"  # column of the SNP ledger, computed from the calls of the source
# The command whose report and ledger describe a modality.
COMMAND = {"rna": "expression", "cnv": "expression", "mutations": "expression"}
# The ledger of three modalities; the ledger of any other modality is NAME_variants.
LEDGERS = dict.fromkeys(COMMAND, "expression_features")
# The meaning of a ledger row; a variant for any other modality.
LEDGER_ROW = {"pgs": "row", **dict.fromkeys(COMMAND, "feature")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``report``."""
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="dataset folder")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="output file (default: DATASET/reports/genetics.html)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises
    ------
    UserError
        The dataset has no genetics.
    """
    dataset: Path = arguments.dataset
    manifest = read_manifest(dataset)
    if not manifest.genetics:
        raise UserError(
            f"{dataset / NAME}: has no genetics; run python -m preprocess snps, pgs, burden or expression first"
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
    with recording(dataset), write_aside(path) as file:
        file.write(page)
    count = f"{len(names)} {'modality' if len(names) == 1 else 'modalities'}"
    print(f"report: {count}, {path.stat().st_size / 1e6:.1f} MB: {path}")
    return 0


def _section(dataset: Path, statistics: Statistics) -> dict[str, Any]:
    report, ledger = _report(dataset, statistics.name), _ledger(dataset, statistics.name)
    section: dict[str, Any] = {
        "name": statistics.name,
        "encoding": statistics.encoding,
        "participants": statistics.participants,
        "n_features": len(statistics.features),
        "missing": statistics.missing_per_feature.sum() / (statistics.participants * len(statistics.features)),
        "warnings": [],
        "wide": [],
        "small": [],
        "tables": [],
        "lists": [],
    }
    groups = statistics.features.groups()
    section["wide"].append(figures.bars([g for g, _ in groups], [n for _, n in groups], "Features per group"))
    {"genotype": _genotypes, "binary": _bits, "float": _numbers}[statistics.encoding](section, statistics, ledger)
    for key in ("participants", "variants", "alleles", "genes", "files", "settings"):
        if isinstance(report.get(key), dict):
            section["tables"].append((key, [(_words(k), _shown(v)) for k, v in report[key].items()]))
    if ledger is not None:
        section["lists"].append(_excluded(ledger, statistics.name))
    fates = Counter(ledger["fate"]) if ledger is not None else _row_fates(dataset, statistics.name)
    if fates:
        counts = [(_words(str(fate)), f"{count:,}") for fate, count in fates.most_common()]
        section["tables"].append((f"What happened to each {LEDGER_ROW.get(statistics.name, 'variant')}", counts))
    if "scores" in report:
        section["lists"] += _scores(report["scores"])
    return section


def _genotypes(section: dict[str, Any], statistics: Statistics, ledger: pd.DataFrame | None) -> None:
    share = statistics.missing_per_feature / statistics.participants
    section["small"] += [
        figures.histogram(statistics.missing_per_feature, "Missing calls per SNP", "participants", "SNPs", log=True),
        figures.histogram(
            statistics.missing_per_participant, "Missing calls per participant", "SNPs", "participants", log=True
        ),
        figures.histogram(statistics.frequency, "Frequency, counted allele", "frequency", "SNPs"),
    ]
    all_missing = int((share == 1).sum())
    if all_missing:
        section["warnings"].append(f"{all_missing} SNPs are missing in every participant.")
    if ledger is None:
        return
    if "swapped" in ledger:
        swapped = int(ledger.loc[ledger["fate"].isin(COUNTED[:2]), "swapped"].sum())
        section["tables"].append(("Allele swaps", [("kept SNPs with swapped alleles", f"{swapped:,}")]))
    if FREQUENCY not in ledger:
        return
    source = ledger.drop_duplicates("id").set_index("id")[FREQUENCY].reindex(statistics.features.name).to_numpy(float)
    section["small"].append(
        figures.agreement(source, statistics.frequency, "source, training split", "store, all participants")
    )
    difference = np.abs(source - statistics.frequency)
    flipped = int((np.abs(source - (1 - statistics.frequency)) + 0.1 < difference).sum())
    section["tables"].append(
        (
            "Allele frequencies, store against source",
            [
                ("SNPs compared", f"{int(np.isfinite(difference).sum()):,}"),
                ("largest difference", f"{np.nanmax(difference, initial=0):.4f}"),
                ("possibly flipped", f"{flipped:,}"),
            ],
        )
    )
    if flipped:
        section["warnings"].append(f"{flipped} SNPs have the frequency of the other allele: check --reference.")


def _bits(section: dict[str, Any], statistics: Statistics, ledger: pd.DataFrame | None) -> None:
    carriers = statistics.sum_per_feature.astype(np.int64)
    title = "Burden genes per participant" if statistics.name == "burden" else "Features set per participant"
    section["small"] += [
        figures.histogram(statistics.sum_per_participant, title, "features", "participants"),
        figures.histogram(carriers, "Carriers per feature", "participants", "features", log=True),
    ]
    top = np.argsort(-carriers, kind="stable")[:20]
    section["lists"].append(
        {
            "title": "Features with the most carriers",
            "columns": ("feature", "group", "carriers", "share"),
            "rows": [
                (
                    statistics.features.name[i],
                    statistics.features.group[i],
                    f"{carriers[i]:,}",
                    f"{statistics.frequency[i]:.3%}",
                )
                for i in top
            ],
            "more": 0,
            "file": "",
        }
    )
    common = int((statistics.frequency > 0.5).sum())
    if common and statistics.name == "burden":
        section["warnings"].append(f"{common} genes are set in most participants: check that the variants are rare.")


def _numbers(section: dict[str, Any], statistics: Statistics, ledger: pd.DataFrame | None) -> None:
    section["wide"].append(figures.distributions(statistics))
    if statistics.missing_per_feature.any():
        missing = statistics.missing_per_feature
        section["small"].append(figures.histogram(missing, "Missing values", "participants", "features"))


def _excluded(ledger: pd.DataFrame, name: str) -> dict[str, Any]:
    """List the rows excluded for a reason other than the stride."""
    excluded = ledger[~ledger["fate"].isin(COUNTED)]
    columns = [column for column in ledger.columns if column not in ("fill", "weight", "missing_train")]
    return {
        "title": f"Excluded: {len(excluded):,} of {len(ledger):,} rows of the ledger",
        "columns": [_words(column) for column in columns],
        "rows": excluded[columns].head(LISTED).astype(object).fillna("").to_numpy().tolist(),
        "more": max(0, len(excluded) - LISTED),
        "file": f"reports/{_ledger_path(Path(), name).name}",
    }


def _scores(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    excluded = [(e["score"], e["file"], e["reason"]) for e in entries if e["status"] != "used"]
    used = [
        (e["score"], *(f"{e.get(k, 0):,}" for k in ("rows", "matched", "matched_flipped", "absent", "alleles_differ")))
        for e in entries
        if e["status"] == "used"
    ]
    columns = ("score", "rows", "matched", "matched by strand flip", "absent", "other alleles")
    return [
        {"title": f"Excluded scores: {len(excluded)}", "columns": ("score", "file", "reason"), "rows": excluded}
        | {"more": 0, "file": ""},
        {"title": f"Used scores: {len(used)}", "columns": columns, "rows": used, "more": 0, "file": ""},
    ]


def _report(dataset: Path, name: str) -> dict[str, Any]:
    path = dataset / "reports" / f"{COMMAND.get(name, name)}.json"
    try:
        return dict(json.loads(path.read_bytes())) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not JSON; run its command again") from error


def _ledger_path(dataset: Path, name: str) -> Path:
    return dataset / "reports" / f"{LEDGERS.get(name, f'{name}_variants')}.tsv.gz"


def _ledger(dataset: Path, name: str) -> pd.DataFrame | None:
    """Read a modality's ledger; None if its command writes no text ledger."""
    path = _ledger_path(dataset, name)
    if not path.exists():
        return None
    try:
        ledger = pd.read_csv(path, sep="\t", dtype={"id": str}, keep_default_na=False, na_values={FREQUENCY: [""]})
        return ledger[ledger["modality"] == name].drop(columns="modality") if name in LEDGERS else ledger
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}); run its command again") from error


def _row_fates(dataset: Path, name: str) -> Counter[str]:
    """Count the fates in a Parquet ledger in batches: the ledger of ``pgs`` has tens of millions of rows."""
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
        raise UserError(f"{path}: is damaged ({type(error).__name__}); run its command again") from error
    return fates


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
