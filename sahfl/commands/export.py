"""``sahfl export``: a run's network for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sahfl.errors import ConfigError


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    method: Annotated[str, typer.Option(help="Id of the method, as in the report.")],
    to: Annotated[Path, typer.Option(help="Folder of the export.")],
    fold: Annotated[str, typer.Option(help="One fold's network, or each.", metavar="K|all")] = "all",
    form: Annotated[
        list[str] | None,
        typer.Option("--format", help="safetensors, bundle (MONAI), onnx or adapter; several times for several."),
    ] = None,
) -> None:
    """Write a run's networks, merged, in other programs' forms; each is read back and compared.

    The largest difference of logits is printed; exit code 3 if it is above 0.001.

    Example: sahfl export runs/a --method cp_lora-r8 --to export --format safetensors --format bundle

    Example: sahfl export runs/a --method cp_lora-r8 --fold 0 --to export --format onnx
    """
    from sahfl.commands.program import read_fold
    from sahfl.export.folders import FORMS
    from sahfl.export.folders import export as write
    from sahfl.export.parity import MOST_DIFFERENCE

    wanted = form or ["safetensors"]
    if odd := [name for name in wanted if name not in FORMS]:
        raise ConfigError(f"--format: got {odd[0]!r}, expected {', '.join(FORMS)}")
    forms = [name for name in FORMS if name in wanted]
    for written in write(run, to, forms, method=method, fold=read_fold(fold)):
        print(f"{written.folder}: largest difference of logits {written.difference:.2g} (at most {MOST_DIFFERENCE:g})")
