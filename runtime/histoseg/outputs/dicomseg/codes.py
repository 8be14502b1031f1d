"""What a class is in SNOMED CT: a few names whose meaning is beyond doubt, tissue for all others.

Categories are of DICOM PS3.16 CID 7150, types of CID 7191 and 7194, which have no parts of cells: those are
SNOMED CT's own. Only whole names are looked up: "tumour" in "non-tumour nucleus" would be the opposite.
"""

from __future__ import annotations

TISSUE = ("85756007", "Tissue")
STRUCTURE = ("91723000", "Anatomical Structure")
ABNORMAL = ("49755003", "Morphologically Abnormal Structure")
KNOWN = (
    (("nucleus", "nuclei", "cell nucleus", "cell nuclei"), STRUCTURE, ("84640000", "Nucleus")),
    (("cell", "cells"), STRUCTURE, ("4421005", "Cell")),
    (("tumor", "tumors", "tumour", "tumours", "neoplasm"), ABNORMAL, ("108369006", "Neoplasm")),
    (("necrosis", "necrotic tissue"), ABNORMAL, ("6574001", "Necrosis")),
    (("connective tissue",), TISSUE, ("21793004", "Connective tissue")),
    (("fat", "adipose", "adipose tissue"), TISSUE, ("55603005", "Fat")),
)

Concept = tuple[str, str]


def choose_concepts(class_name: str) -> tuple[Concept, Concept]:
    """Return category and type of a class, each as SNOMED CT code and meaning."""
    name = " ".join(class_name.lower().replace("_", " ").replace("-", " ").split())
    for names, category, kind in KNOWN:
        if name in names:
            return category, kind
    return TISSUE, TISSUE
