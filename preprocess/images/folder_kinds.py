"""What the name of a folder of images stands for: a person, an eye, a visit, a class, a split, or nothing known."""

from __future__ import annotations

import re
import unicodedata
from enum import Enum


class Kind(Enum):
    """What a folder stands for."""

    EYE = "an eye"
    VISIT = "a visit or date"
    YEAR = "a year or date, or a number"
    PERSON = "a person"
    SLIDE = "a slide"
    SPLIT = "training or test data"
    BATCH = "a batch or site"
    CLASS = "a class"
    GENERIC = "images"
    ID = "an identifier"
    NUMBER = "a short number"
    WORD = "unknown"


YEAR = r"(?:19|20)\d\d"
_MONTH, _DAY = r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
PLAIN_DATE = rf"{YEAR}{_MONTH}{_DAY}"
# Digits without signs may be a number of a person: six are no date, and eight only beside an identifier.
DATE = "|".join(
    rf"{YEAR}{sign}{_MONTH}(?:{sign}{_DAY})?|{_DAY}{sign}{_MONTH}{sign}{YEAR}" for sign in ("-", "_", r"\.")
)
VISIT = (
    rf"(?:{DATE})(?:[-_.t ]\d\d[-_.:h]?\d\d.*)?"
    r"|(?:visit|ses|session|study|exam|examination|instance|timepoint|tp|fu|month|week|v|t)[-_ ]?\d{1,2}"
    r"|study\d+|s\d{8}|baseline|screening|follow[-_ ]?up\d{0,2}"  # s12345678: a study of MIMIC-CXR
)
EYE = r"(?:(?:ukb|field|f)[-_. ]?)?2101[56]|(?:left|right|l|r|od|os)(?:[-_ ]?eyes?)?|eyes?[-_ ](?:left|right|l|r|od|os)"
PERSON_WORDS = "patient|pat|pt|subject|subj|sub|participant|person|proband|individual|volunteer|case|eid|pid|mrn"
PERSON = (
    rf"(?:{PERSON_WORDS})[-_. #]*(?:(?:id|no|nr)[-_. #]*)?(?:[a-z]{{0,2}}\d[\w.-]*)"
    rf"|(?:{PERSON_WORDS})[-_ ][a-z]|sub-[a-z\d]+|p\d{{3,}}"
)
SLIDE = r"(?:slide|wsi)s?(?:[-_ ]?[a-z]|[-_ ]?[a-z]{0,3}\d[\w.-]*)"
_PATTERNS = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        (Kind.EYE, EYE),
        (Kind.YEAR, rf"{YEAR}|{PLAIN_DATE}"),
        (Kind.VISIT, VISIT),
        (Kind.PERSON, PERSON),
        (Kind.SLIDE, SLIDE),
    )
]


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


SPLIT_WORDS = word_set(
    """
    train training test testing val valid validation eval evaluation dev holdout trainset testset valset
    """
)
BATCH_WORDS = word_set(
    """
    batch part base fold site set group vol volume disk hospital clinic center centre camera device cohort
    release wave round chunk shard bucket bag zip dump old new export folder dir dataset database subset run
    """
)
CLASS_NAMES = re.compile(r"(?:class|grade|stage|category|label|level|type|diagnosis)[a-z]?|classes")
CLASS_WORDS = word_set(
    """
    no non not and or of with without normal healthy abnormal disease diseased diseases positive negative pos
    neg control controls case cases benign malignant cancer tumor tumour notumor mild moderate severe
    proliferative proliferate nonproliferative npdr pdr dr nodr rdr referable nonreferable retinopathy diabetic
    glaucoma glaucomatous nonglaucoma cataract amd armd dme cnv drusen csr csc mh erm rvo crvo brvo myopia
    myopic pathologic pathological hypertensive hypertension maculopathy macular edema oedema degeneration
    retina retinal other others unknown opacity pneumonia covid tuberculosis tb effusion viral bacterial lung
    melanoma nevus nevi naevus keratosis seborrheic bkl akiec bcc scc vasc df mel nv ak stroma lymphocytes
    adenocarcinoma adenoma adi back deb lym muc mus norm str tum gbm lgg astrocytoma oligodendroglioma
    glioblastoma glioma meningioma pituitary yes true false good bad usable reject male female men women smoker
    nonsmoker suspect suspicious gradable ungradable
    """
)
GENERIC_WORDS = word_set(
    """
    image images img imgs photo photos photograph photographs fundus cfp jpg jpeg png tif tiff raw data files
    original originals color colour tiles patches slides scans crops
    """
)


def folded(text: str) -> str:
    """Return a text in which case and equivalent characters do not differ (NFKC, casefold)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()


def words(text: str) -> list[str]:
    """Return the words of a name in lower case; ``NoDR_2`` has two."""
    return re.findall(r"[^\W\d_]+", folded(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)))


def folder_kind(name: str) -> Kind:
    """Return what a folder's name stands for."""
    text = folded(name)
    for kind, pattern in _PATTERNS:
        if pattern.fullmatch(text):
            return kind
    named, digits = words(name), re.sub(r"\D", "", text)
    if any(word in SPLIT_WORDS for word in named):
        return Kind.SPLIT
    if any(word in BATCH_WORDS for word in named):
        return Kind.BATCH
    if any(map(CLASS_NAMES.fullmatch, named)) or (named and len(digits) < 2 and CLASS_WORDS.issuperset(named)):
        return Kind.CLASS
    if named and not digits and GENERIC_WORDS.issuperset(named):
        return Kind.GENERIC
    return _identifier_kind(text, digits)


def is_hash(text: str) -> bool:
    """Whether a folded text is hexadecimal with digits and letters, as of a hash or UUID."""
    return len(text) >= 8 and bool(re.fullmatch(r"(?=.*\d)(?=.*[a-f])[\da-f-]+", text))


def _identifier_kind(text: str, digits: str) -> Kind:
    letters = sum(character.isalpha() for character in text)
    if is_hash(text) or (len(digits) >= 4 and letters <= 5 and not (letters and re.fullmatch(YEAR, digits))):
        return Kind.ID
    if re.fullmatch(r"p\d{1,2}", text):  # a person, or a part: the names of the files tell
        return Kind.ID
    return Kind.NUMBER if re.fullmatch(r"[a-z]{0,2}[-_ ]?\d{1,3}[a-z]?", text) else Kind.WORD
