"""What breaks a network: attacks, patches, corruptions. All work in pixel space, through the model's own preprocessing.

>>> from striate.stress import AdversarialPatch, fgsm, pgd
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not lazy: these two have the names of their modules, and importing a module puts its name into the package.
from striate.stress.fgsm import FGSM, fgsm, fgsm_report
from striate.stress.pgd import pgd, pgd_steps

if TYPE_CHECKING:
    from striate.stress.corruptions import CORRUPTIONS, corrupt
    from striate.stress.curve import FGSMCurve, fgsm_curve
    from striate.stress.grid import PatchGrid
    from striate.stress.normalisation import normalisation_check
    from striate.stress.patch import AdversarialPatch
    from striate.stress.patch_perturbation import PatchAttack, corrupt_patches, fooling_map, fooling_rate
    from striate.stress.patch_score import PatchScore
    from striate.stress.report import AttackRow, AttackTable, attack_report
    from striate.stress.selftest import attack_selftests

_HOMES = {
    "corruptions": ("CORRUPTIONS", "corrupt"),
    "curve": ("FGSMCurve", "fgsm_curve"),
    "grid": ("PatchGrid",),
    "normalisation": ("normalisation_check",),
    "patch": ("AdversarialPatch",),
    "patch_perturbation": ("PatchAttack", "corrupt_patches", "fooling_map", "fooling_rate"),
    "patch_score": ("PatchScore",),
    "report": ("AttackRow", "AttackTable", "attack_report"),
    "selftest": ("attack_selftests",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CORRUPTIONS",
    "FGSM",
    "AdversarialPatch",
    "AttackRow",
    "AttackTable",
    "FGSMCurve",
    "PatchAttack",
    "PatchGrid",
    "PatchScore",
    "attack_report",
    "attack_selftests",
    "corrupt",
    "corrupt_patches",
    "fgsm",
    "fgsm_curve",
    "fgsm_report",
    "fooling_map",
    "fooling_rate",
    "normalisation_check",
    "pgd",
    "pgd_steps",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'striate.stress' has no attribute '{name}'")
    return getattr(importlib.import_module(f"striate.stress.{_HOME_OF[name]}"), name)
