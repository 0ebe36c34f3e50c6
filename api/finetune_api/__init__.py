"""The contract of finetune-operator: FineTuneJob, FineTuneProfile and TrainingRun. Depends on pydantic alone."""

from finetune_api.asked import Asked
from finetune_api.exits import ExitCode
from finetune_api.job import FineTuneJob, FineTuneJobSpec
from finetune_api.limits import LimitError, check_limits
from finetune_api.profile import FineTuneProfile, FineTuneProfileSpec
from finetune_api.progress import Progress, Result
from finetune_api.resolve import resolve
from finetune_api.training_run import RunIdentity, TrainingRun

__all__ = [
    "Asked",
    "ExitCode",
    "FineTuneJob",
    "FineTuneJobSpec",
    "FineTuneProfile",
    "FineTuneProfileSpec",
    "LimitError",
    "Progress",
    "Result",
    "RunIdentity",
    "TrainingRun",
    "check_limits",
    "resolve",
]
