"""One training as a script does it, in this process: `python -m benchmarks.trainer.baseline OPTIONS.json RESULT.json`.
OPTIONS holds the fields of `Options`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.trainer.baseline.options import Options
from benchmarks.trainer.cases import WARM_UP
from benchmarks.trainer.device import held, hold_at_most
from benchmarks.trainer.watch import Watch, leave

MODULES = {"lora": "lora", "dreamBooth": "dreambooth", "textualInversion": "textual_inversion"}
FOLDERS = ("model", "pictures", "classes", "output")


def main(options_file: Path, result_file: Path) -> None:
    given = json.loads(options_file.read_text())
    options = Options(**{name: Path(value) if name in FOLDERS else value for name, value in given.items()})
    # what a script imports is a part of its start
    script = importlib.import_module(f"benchmarks.trainer.baseline.{MODULES[options.technique]}")
    import torch

    if options.hold_at_most:
        hold_at_most(options.hold_at_most)
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    watch = Watch(WARM_UP, options.steps, synchronize, each=options.checkpoint_every > 0)
    skipped = script.train(options, watch)
    leave(watch.done(held(), skipped=skipped), result_file)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
