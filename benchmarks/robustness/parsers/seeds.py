"""Small valid inputs of every parser of genetics, as bytes by file name."""

from __future__ import annotations

import gzip
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np

SAMPLES, VARIANTS = 10, 8
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
CSQ = "Allele|Consequence|IMPACT|SYMBOL|Gene|BIOTYPE|SIFT|PolyPhen"
Files = dict[str, bytes]


def calls() -> np.ndarray:
    """Return copies of ALT, int8 of shape (variants, samples); -1 is missing."""
    rng = np.random.default_rng(3)
    copies = rng.integers(0, 3, (VARIANTS, SAMPLES))
    return np.where(rng.random(copies.shape) < 0.1, -1, copies).astype(np.int8)


def ids() -> list[str]:
    """Return the ids of the samples."""
    return [f"S{number}" for number in range(SAMPLES)]


def positions() -> list[int]:
    """Return the positions of the variants on chromosome 1."""
    return [1000 + 10 * number for number in range(VARIANTS)]


def bed() -> Files:
    """Return a PLINK 1 file set: A1 is ALT (G), A2 is REF (A)."""
    codes = np.array([1, 3, 2, 0], dtype=np.uint8)[calls() + 1]  # missing, 0, 1, 2 copies of A1
    padded = np.pad(codes, ((0, 0), (0, -SAMPLES % 4)))
    raw = padded[:, 0::4] | padded[:, 1::4] << 2 | padded[:, 2::4] << 4 | padded[:, 3::4] << 6
    variants = "".join(f"1\trs{number}\t0\t{position}\tG\tA\n" for number, position in enumerate(positions()))
    samples = "".join(f"{name} {name} 0 0 1 -9\n" for name in ids())
    return {"x.bed": b"\x6c\x1b\x01" + raw.tobytes(), "x.bim": variants.encode(), "x.fam": samples.encode()}


def pgen() -> Files:
    """Return a PLINK 2 file set with dosages."""
    import pgenlib

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pgen"
        options = {"variant_ct": VARIANTS, "nonref_flags": False, "dosage_present": True}
        writer = pgenlib.PgenWriter(str(path).encode(), SAMPLES, **options)
        for row in calls():
            writer.append_dosages(np.where(row < 0, -9, row).astype(np.float32))
        writer.close()
        content = path.read_bytes()
    rows = [f"1\t{position}\trs{number}\tA\tG\tPASS" for number, position in enumerate(positions())]
    variants = "\n".join(["##fileformat=PVARv1.0", "#CHROM\tPOS\tID\tREF\tALT\tFILTER", *rows]) + "\n"
    samples = "\n".join(["#FID\tIID\tSEX", *(f"{name}\t{name}\t1" for name in ids())]) + "\n"
    return {"x.pgen": content, "x.pvar": variants.encode(), "x.psam": samples.encode()}


def bgen(compression: int = 1) -> Files:
    """Return a BGEN 1.2 (layout 2, 8 bits) with embedded ids and a .sample."""
    names = b"".join(struct.pack("<H", len(name)) + name.encode() for name in ids())
    block = struct.pack("<2I", 8 + len(names), SAMPLES) + names
    header = struct.pack("<3I", 20, VARIANTS, SAMPLES) + b"bgen" + struct.pack("<I", compression | 2 << 2 | 1 << 31)
    body = b""
    for number, (position, row) in enumerate(zip(positions(), calls(), strict=True)):
        for text in (f"v{number}", f"rs{number}", "1"):
            body += struct.pack("<H", len(text)) + text.encode()
        body += struct.pack("<IH", position, 2) + b"".join(struct.pack("<I", 1) + allele for allele in (b"A", b"G"))
        ploidy = bytes(2 | 0x80 * (copies < 0) for copies in row.tolist())
        shares = b"".join(bytes((255 * (copies == 0), 255 * (copies == 1))) for copies in row.tolist())
        data = struct.pack("<IHBB", SAMPLES, 2, 2, 2) + ploidy + b"\0\x08" + shares
        packed = struct.pack("<I", len(data)) + zlib.compress(data) if compression else data
        body += struct.pack("<I", len(packed)) + packed
    lines = ["ID_1 ID_2 missing sex", "0 0 0 D", *(f"{name} {name} 0 1" for name in ids())]
    content = struct.pack("<I", len(header) + len(block)) + header + block + body
    return {"x.bgen": content, "x.sample": ("\n".join(lines) + "\n").encode()}


def vcf() -> Files:
    """Return a VCF with GT, DS and VEP's annotations."""
    lines = [
        "##fileformat=VCFv4.2",
        "##contig=<ID=1>",
        '##FILTER=<ID=q10,Description="low quality">',
        f'##INFO=<ID=CSQ,Number=.,Type=String,Description="Annotations from VEP. Format: {CSQ}">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        '##FORMAT=<ID=DS,Number=A,Type=Float,Description="Dosage">',
        "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *ids()]),
    ]
    for number, (position, row) in enumerate(zip(positions(), calls(), strict=True)):
        csq = f"CSQ=G|stop_gained|HIGH|gene{number}|ENSG{number}|protein_coding||"
        cells = [("./.:.", "0/0:0", "0/1:1", "1/1:2")[copies + 1] for copies in row.tolist()]
        fixed = ["1", str(position), f"rs{number}", "A", "G", "50", "PASS", csq, "GT:DS"]
        lines.append("\t".join([*fixed, *cells]))
    return {"x.vcf": ("\n".join(lines) + "\n").encode()}


def vcf_gz() -> Files:
    """Return the VCF packed by gzip."""
    return {"x.vcf.gz": gzip.compress(vcf()["x.vcf"], mtime=0)}


def vcf_bgzf() -> Files:
    """Return the VCF packed by bgzip."""
    return {"x.vcf.gz": bgzf(vcf()["x.vcf"])}


def bgzf(text: bytes) -> bytes:
    """Pack a text as bgzip does, in blocks of 400 bytes."""
    return b"".join(_block(text[at : at + 400]) for at in range(0, len(text), 400)) + BGZF_END


def _block(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(data) + packer.flush()
    size = struct.pack("<H", len(packed) + 25)
    return BGZF_END[:16] + size + packed + struct.pack("<2I", zlib.crc32(data), len(data))


def scoring() -> Files:
    """Return a scoring file of the PGS Catalog."""
    names = "rsID chr_name chr_position effect_allele other_allele effect_weight hm_chr hm_pos hm_inferOtherAllele"
    rows = [f"rs{n}\t1\t{position}\tG\tA\t0.{n}5\t1\t{position}\t" for n, position in enumerate(positions())]
    header = ["#format_version=2.0", "#pgs_id=PGS1", "#genome_build=GRCh38", "#HmPOS_build=GRCh38"]
    return {"s.txt": "\n".join([*header, names.replace(" ", "\t"), *rows]).encode() + b"\n"}


def tables() -> Files:
    """Return the lists and annotation tables: --keep, --variants, regenie's annotations, sets and masks."""
    numbered = list(enumerate(positions()))
    texts = {
        "keep.txt": "#FID\tIID\tSEX\n" + "".join(f"0\t{name}\t1\n" for name in ids()),
        "variants.txt": "#CHROM\tPOS\tID\n" + "".join(f"1\t{position}\trs{n}\n" for n, position in numbered),
        "annotations.txt": "".join(f"rs{n} GENE{n % 2} LoF\n" for n, _ in numbered),
        "sets.txt": "".join(f"GENE{n} 1 1000 " + ",".join(f"rs{k}" for k, _ in numbered) + "\n" for n in range(2)),
        "masks.txt": "M1 LoF,missense\n",
    }
    return {name: text.encode() for name, text in texts.items()}
