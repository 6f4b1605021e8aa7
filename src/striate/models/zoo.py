"""Every network of a published paper, registered with timm by importing this module.

>>> import striate.models.zoo
"""

from __future__ import annotations

import importlib

from striate.models.variant import FAMILIES

for _family in FAMILIES:
    importlib.import_module(f"striate.models.{_family}")
