"""The parts of MONAI that sahfl uses, imported without what MONAI imports for parts that sahfl does not use.

MONAI imports all of its own modules at once, and with them transformers, where it is installed, for one network; that
takes longer than all the rest. Here it finds none, so that each process starts seconds earlier. There, MONAI's
``Transchex`` reports transformers as missing; all else of MONAI, and transformers itself, work as always. A process in
which only sahfl uses MONAI also spares what MONAI plots, reads tables and tracks experiments with.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

from sahfl.process import is_own

SPARED = ("transformers", *(("matplotlib", "mlflow", "pandas", "scipy.signal") if is_own() else ()))
hidden = [] if "monai" in sys.modules else [name for name in SPARED if name not in sys.modules]
for name in hidden:
    sys.modules[name] = cast("ModuleType", None)  # Python's sign for a module that cannot be imported
try:
    from monai.losses import DiceCELoss
    from monai.metrics.utils import get_surface_distance
finally:
    for name in hidden:
        del sys.modules[name]

__all__ = ["DiceCELoss", "get_surface_distance"]
