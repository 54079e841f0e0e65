"""Federated training of head-CT hemorrhage segmentation: only low-rank adapter factors leave a hospital.

``sahfl.simulate`` runs a study on this machine, and ``sahfl.load`` opens a finished run (``docs/python.md``). They are
imported when they are first used: ``import sahfl`` by itself loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sahfl.finished_run import Prediction, Run, load
    from sahfl.local_study import simulate

__version__ = "0.1.0"
__all__ = ["Prediction", "Run", "__version__", "load", "simulate"]
_MODULES = {"Prediction": "finished_run", "Run": "finished_run", "load": "finished_run", "simulate": "local_study"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
