"""Several trainings of the benchmark's scripts in one process, one after the other: `python benchmark_child.py GIVEN`.

GIVEN is a JSON list of objects with `options` (a file), `result` (a file), and `environment`. A training that fails
leaves its error in the place of the result."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no part of what is installed

from accelerate.state import AcceleratorState, GradientState

from benchmarks.trainer.baseline import __main__ as baseline

ROOT = Path(__file__).parents[2]


def main(given: Path) -> None:
    os.chdir(ROOT)
    # the steps of the warm-up are the same as the others
    baseline.WARM_UP = 1
    for one in json.loads(given.read_text()):
        os.environ.update(one["environment"])
        if "ACCELERATE_USE_DEEPSPEED" in one["environment"]:
            import deepspeed.ops

            # on a CPU it would compile its collectives; on a GPU, where this is measured, it has none to compile
            deepspeed.ops.__dict__["__compatible_ops__"] = {}
        result = Path(one["result"])
        try:
            baseline.main(Path(one["options"]), result)
        except Exception as error:
            result.write_text(json.dumps({"error": str(error)}))
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
