"""Rare coding variants: one VCF with annotations like Ensembl VEP's and the genotypes of all participants.

A burden score flags carriers of probably harmful rare variants (loss of function on a protein-coding transcript, or
missense predicted to be harmful; minor allele frequency below 1 %). The file also has variants that must not count:
benign missense and synonymous variants, transcripts subject to nonsense-mediated decay, common alleles, and ALT alleles
that nearly everyone carries (a rare REF allele is not a rare ALT allele).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.simulate.cohort import CHROMOSOME_LENGTHS, Settings, sparse_hits, stream
from preprocess.simulate.files import write_gzip

# Planted genes have many very rare harmful alleles: 1 - (1 - 0.001)**(2 * 60) = 11 % of participants are carriers.
PLANTED_GENES = 3
_PLANTED_HARMFUL = 60
_PLANTED_FREQUENCY = 0.001
_MISSING_CHANCE = 0.005
_ALT_MAJOR_FREQUENCY = 0.995
_COMMON_FREQUENCY = 0.05

_CSQ_FIELDS = (
    "Allele", "Consequence", "IMPACT", "SYMBOL", "Gene", "Feature_type", "Feature", "BIOTYPE", "EXON", "INTRON",
    "HGVSc", "HGVSp", "cDNA_position", "CDS_position", "Protein_position", "Amino_acids", "Codons",
    "Existing_variation", "DISTANCE", "STRAND", "FLAGS", "VARIANT_CLASS", "SYMBOL_SOURCE", "HGNC_ID", "CANONICAL",
    "SIFT", "PolyPhen",
)  # fmt: skip

# kind: (consequences to draw from, IMPACT, BIOTYPE). More harmful variants have lower SIFT and higher PolyPhen.
_KINDS = {
    "lof": (("stop_gained", "frameshift_variant", "splice_donor_variant"), "HIGH", "protein_coding"),
    "missense_harmful": (("missense_variant",), "MODERATE", "protein_coding"),
    "missense_benign": (("missense_variant",), "MODERATE", "protein_coding"),
    "synonymous": (("synonymous_variant",), "LOW", "protein_coding"),
    "nmd": (("stop_gained&NMD_transcript_variant",), "HIGH", "nonsense_mediated_decay"),
    "alt_major_lof": (("stop_gained",), "HIGH", "protein_coding"),
    "common_lof": (("stop_gained",), "HIGH", "protein_coding"),
}
HARMFUL = ("lof", "missense_harmful")


@dataclass(frozen=True)
class Variant:
    """One row of the VCF."""

    position: int
    ref: str
    alt: str
    kind: str
    alt_frequency: float
    csq: str


@dataclass(frozen=True)
class Gene:
    """A gene and its variants in order of position; ``number`` counts genes in genome order from 0."""

    number: int
    symbol: str
    ensembl: str
    chromosome: int
    variants: tuple[Variant, ...]

    @property
    def carrier_share(self) -> float:
        """Population fraction of carriers of at least one harmful rare allele."""
        non_carriers = [(1 - v.alt_frequency) ** 2 for v in self.variants if v.kind in HARMFUL]
        return 1 - float(np.prod(non_carriers))


def _kinds_of(number: int, planted: bool, rng: np.random.Generator) -> list[str]:
    if planted:
        lof = _PLANTED_HARMFUL // 3
        kinds = ["lof"] * lof + ["missense_harmful"] * (_PLANTED_HARMFUL - lof) + ["alt_major_lof"]
    else:
        kinds = ["lof"] * int(rng.integers(1, 3)) + ["missense_harmful"] * int(rng.integers(1, 4))
        kinds += ["alt_major_lof"] * (number % 20 == 3) + ["common_lof"] * (number % 15 == 7)
    return kinds + ["missense_benign"] * 2 + ["synonymous"] * 2 + ["nmd"]


def _frequency(kind: str, planted: bool, rng: np.random.Generator) -> float:
    if kind == "alt_major_lof":
        return _ALT_MAJOR_FREQUENCY
    if kind == "common_lof":
        return _COMMON_FREQUENCY
    if planted and kind in HARMFUL:
        return _PLANTED_FREQUENCY
    return float(np.exp(rng.uniform(np.log(2e-4), np.log(3e-3))))


def _csq(kind: str, allele: str, consequence: str, symbol: str, ensembl: str, rng: np.random.Generator) -> str:
    _, impact, biotype = _KINDS[kind]
    transcript = ensembl.replace("ENSG", "ENST")
    fields = dict.fromkeys(_CSQ_FIELDS, "") | {
        "Allele": allele, "Consequence": consequence, "IMPACT": impact, "SYMBOL": symbol, "Gene": ensembl,
        "Feature_type": "Transcript", "Feature": transcript, "BIOTYPE": biotype, "EXON": f"{rng.integers(1, 12)}/12",
        "Protein_position": str(rng.integers(2, 900)), "STRAND": "1", "SYMBOL_SOURCE": "HGNC", "CANONICAL": "YES",
        "VARIANT_CLASS": "deletion" if allele == "-" else "SNV",
    }  # fmt: skip
    if kind == "missense_harmful":
        fields["SIFT"] = f"deleterious({rng.uniform(0, 0.04):.2f})"
        fields["PolyPhen"] = f"probably_damaging({rng.uniform(0.92, 1):.3f})"
    elif kind == "missense_benign":
        fields["SIFT"] = f"tolerated({rng.uniform(0.2, 0.75):.2f})"
        fields["PolyPhen"] = f"benign({rng.uniform(0, 0.3):.3f})"
    elif kind == "nmd":
        fields |= {"Feature": transcript.replace("ENST0000", "ENST0001"), "CANONICAL": ""}
    annotations = ["|".join(fields.values())]
    if rng.random() < 0.5:  # VEP lists other transcripts too, the chosen one not always first
        other = dict.fromkeys(_CSQ_FIELDS, "") | {
            "Allele": allele, "Consequence": "intron_variant&non_coding_transcript_variant", "IMPACT": "MODIFIER",
            "SYMBOL": symbol, "Gene": ensembl, "Feature_type": "Transcript", "STRAND": "1", "SYMBOL_SOURCE": "HGNC",
            "Feature": transcript.replace("ENST0000", "ENST0002"), "BIOTYPE": "retained_intron", "INTRON": "3/5",
            "VARIANT_CLASS": fields["VARIANT_CLASS"],
        }  # fmt: skip
        annotations.insert(int(rng.integers(0, 2)), "|".join(other.values()))
    return ",".join(annotations)


def make_genes(settings: Settings) -> tuple[list[Gene], list[int]]:
    """Draw genes and variants.

    Returns
    -------
    genes
        In genome order, spread evenly over the autosomes.
    planted
        Numbers of the PLANTED_GENES genes that affect visible traits.
    """
    planted = sorted(stream(settings.seed, "planted genes").permutation(settings.genes)[:PLANTED_GENES].tolist())
    chromosomes = sorted(gene % 22 for gene in range(settings.genes))
    genes = []
    for number, chromosome in enumerate(chromosomes):
        rng = stream(settings.seed, "gene", number)
        symbol, ensembl = f"SIMG{number + 1:04d}", f"ENSG00009{number + 1:06d}"
        rank = number - chromosomes.index(chromosome)
        spacing = CHROMOSOME_LENGTHS[chromosome] // (chromosomes.count(chromosome) + 1)
        kinds = _kinds_of(number, number in planted, rng)
        positions = (rank + 1) * spacing + np.sort(rng.choice(5000, len(kinds), replace=False)) * 4
        variants = []
        for position, kind in zip(positions.tolist(), rng.permutation(kinds).tolist(), strict=True):
            consequence = str(rng.choice(_KINDS[kind][0]))
            ref, alt = rng.permutation(list("ACGT"))[:2].tolist()
            allele = alt
            if consequence == "frameshift_variant":
                ref, alt, allele = ref + alt, ref, "-"
            csq = _csq(kind, allele, consequence, symbol, ensembl, rng)
            frequency = _frequency(kind, number in planted, rng)
            variants.append(Variant(position, ref, alt, kind, frequency, csq))
        genes.append(Gene(number, symbol, ensembl, chromosome + 1, tuple(variants)))
    return genes, planted


def _header(names: list[str]) -> bytes:
    contigs = "".join(f"##contig=<ID={n + 1},length={size}>\n" for n, size in enumerate(CHROMOSOME_LENGTHS))
    return (
        "##fileformat=VCFv4.2\n##reference=GRCh38\n"
        f"{contigs}"
        '##FILTER=<ID=PASS,Description="All filters passed">\n'
        '##INFO=<ID=CSQ,Number=.,Type=String,Description="Consequence annotations from Ensembl VEP. Format: '
        f'{"|".join(_CSQ_FIELDS)}">\n'
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t" + "\t".join(names) + "\n"
    ).encode()


def write_vcf(path: Path, seed: int, genes: list[Gene], planted: list[int], ids: np.ndarray) -> np.ndarray:
    """Write the VCF; its samples are in ascending order of id, which differs from the order of the .fam files.

    Parameters
    ----------
    ids
        Participant ids in cohort order, shape (N,).

    Returns
    -------
    carriers
        Carriers of a harmful rare allele of each planted gene, from the true genotypes, bool, shape (len(planted), N),
        in cohort order.
    """
    people = len(ids)
    column_of = np.empty(people, dtype=np.int64)
    column_of[np.argsort(ids)] = np.arange(people)
    carriers = np.zeros((len(planted), people), dtype=bool)
    with write_gzip(path) as handle:
        handle.write(_header([str(i) for i in np.sort(ids)]))
        for gene in genes:
            for index, variant in enumerate(gene.variants):
                rng = stream(seed, "rare genotypes", gene.number, index)
                alt_major = variant.alt_frequency > 0.5
                minor_frequency = 1 - variant.alt_frequency if alt_major else variant.alt_frequency
                haplotypes, _ = sparse_hits(rng, minor_frequency, 2 * people)
                minor, copies = np.unique(haplotypes // 2, return_counts=True)
                if variant.kind in HARMFUL and gene.number in planted:
                    carriers[planted.index(gene.number), minor] = True
                calls = np.full(people, b"\t1/1" if alt_major else b"\t0/0", dtype="S4")
                homozygous = b"\t0/0" if alt_major else b"\t1/1"
                calls[column_of[minor]] = np.where(copies == 2, homozygous, b"\t0/1")
                missing, _ = sparse_hits(stream(seed, "rare missing", gene.number, index), _MISSING_CHANCE, people)
                calls[column_of[missing]] = b"\t./."
                name = f"{gene.chromosome}:{variant.position}:{variant.ref}:{variant.alt}"
                fixed = (gene.chromosome, variant.position, name, variant.ref, variant.alt, 100, "PASS")
                handle.write(("\t".join(map(str, fixed)) + f"\tCSQ={variant.csq}\tGT").encode())
                handle.write(calls.tobytes() + b"\n")
    return carriers
