"""Job + profile + built-in defaults → TrainingRun. Pure; the one place where a default is chosen.

Order: what the job says, then what the profile says, then what is built in. Merging works on what was *set*
(pydantic's fields_set), so a default written in a model never hides a profile's.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TypeVar

from pydantic.alias_generators import to_camel

from finetune_api.base import Model
from finetune_api.base_model import BaseModelSpec
from finetune_api.dataset import DatasetSpec
from finetune_api.engine import CHOICE, ZERO_STAGE, EngineSpec
from finetune_api.job import FineTuneJobSpec
from finetune_api.methods import ClassImagesSpec, DreamBoothSpec, LoraSpec, MethodSpec, PriorPreservationSpec
from finetune_api.outputs import OutputSpec, ValidationSpec
from finetune_api.profile import FineTuneProfileSpec, ProfileDefaults
from finetune_api.rules import to_snake
from finetune_api.storage import Storage
from finetune_api.techniques import TECHNIQUES, TechniqueDefaults
from finetune_api.training import LossSpec, OptimizerSpec, SchedulerSpec, TrainingSpec
from finetune_api.training_run import ResolvedCheckpoints, ResolvedTraining, RunIdentity, TrainingRun

M = TypeVar("M", bound=Model)
S = TypeVar("S", BaseModelSpec, DatasetSpec, OutputSpec)


def resolve(spec: FineTuneJobSpec, profile: FineTuneProfileSpec | None, identity: RunIdentity) -> TrainingRun:
    """Puts job, profile and built-in defaults together. Whether the profile allows it is `limits.check_limits`' to
    say, before."""
    profile = profile or FineTuneProfileSpec()
    defaults = profile.defaults or ProfileDefaults()
    technique = TECHNIQUES[spec.method.name]
    training = _training(spec, defaults, technique)
    checkpoints = _merged(
        ResolvedCheckpoints,
        spec.checkpoints,
        defaults.checkpoints,
        {"everySeconds": technique.checkpoint_seconds},
    )
    method = _method(spec.method, defaults, training)
    return TrainingRun(
        identity=identity,
        base_model=_with_storage(spec.base_model, defaults.storage),
        method=method,
        dataset=_with_storage(_dataset_with_resolution(spec, defaults), defaults.storage),
        training=training,
        engine=_engine(spec.engine, defaults.engine),
        checkpoints=checkpoints,
        validation=_validation(spec, defaults, method),
        exports=spec.exports,
        judgement=spec.judgement,
        samples=spec.samples,
        output=_with_formats(_with_storage(spec.output, defaults.storage), technique),
        grace_seconds=profile.termination_grace_period_seconds or technique.grace_seconds,
    )


def _merged(cls: type[M], first: Model | None, second: Model | None, builtin: dict[str, object] | None = None) -> M:
    """`first` over `second` over `builtin`, field by field, objects within objects too."""
    values: dict[str, object] = dict(builtin or {})
    for layer in (second, first):
        if layer is not None:
            values = _overlay(values, layer.wire())
    return cls.model_validate(values)


def _overlay(below: dict[str, object], above: dict[str, object]) -> dict[str, object]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _training(spec: FineTuneJobSpec, defaults: ProfileDefaults, technique: TechniqueDefaults) -> ResolvedTraining:
    optimizer = _merged(
        OptimizerSpec, spec.training and spec.training.optimizer, defaults.training and defaults.training.optimizer
    )
    builtin: dict[str, object] = {
        # Prodigy multiplies it with a rate that it finds itself
        "learningRate": 1.0 if optimizer.name == "Prodigy" else technique.learning_rate,
        "scheduler": SchedulerSpec().model_dump(by_alias=True),
        "optimizer": OptimizerSpec().model_dump(by_alias=True),
        "loss": LossSpec().model_dump(by_alias=True, exclude_none=True),
    }
    below = defaults.training
    job = spec.training
    if job is not None and (job.steps is not None or job.epochs is not None) and below is not None:
        # steps and epochs exclude each other: the job's choice drops the profile's
        below = below.model_copy(update={"steps": None, "epochs": None})
    if job is not None and below is not None and _keeps_other_weights(job):
        below = below.model_copy(update={"weights_dtype": "fp32"})
    if (job is None or (job.steps is None and job.epochs is None)) and (
        below is None or (below.steps is None and below.epochs is None)
    ):
        builtin["steps"] = technique.steps
    return _merged(ResolvedTraining, job, below, builtin)


def _keeps_other_weights(job: TrainingSpec) -> bool:
    """Whether the job chooses what weights in bf16 do not go with: its choice drops the profile's."""
    if "weights_dtype" in job.model_fields_set:
        return False
    chosen = job.optimizer.wire().get("name", "AdamW8bit") if job.optimizer is not None else "AdamW8bit"
    return job.precision in ("fp32", "fp16") or chosen != "AdamW8bit"


def _engine(job: EngineSpec | None, below: EngineSpec | None) -> EngineSpec:
    """A kind and its options are one choice: a job that names a kind takes none of the profile's."""
    values = below.wire() if below is not None else {}
    if job is not None and "kind" in job.model_fields_set:
        values = {key: value for key, value in values.items() if to_snake(key) not in CHOICE}
    values = _overlay(values, job.wire() if job is not None else {})
    if "Nvme" not in (values.get("offloadOptimizer"), values.get("offloadParameters")):
        # the profile's, and the job wants nothing there
        values.pop("nvmePath", None)
    if values.get("kind") == "DeepSpeed":
        values = {"zeroStage": ZERO_STAGE} | values
    return EngineSpec.model_validate(values)


def _method(method: MethodSpec, defaults: ProfileDefaults, training: ResolvedTraining) -> MethodSpec:
    """Fills in alpha, the text encoder's learning rate and the class images' settings."""
    if method.lora is not None:
        update: dict[str, object] = {
            "prior_preservation": _prior(method.lora.prior_preservation, defaults),
            "text_encoder_learning_rate": _text_rate(method.lora, training),
        }
        if method.lora.alpha is None:
            update["alpha"] = float(method.lora.rank)
        return _rebuilt(method, "lora", LoraSpec, method.lora.model_copy(update=update))
    if method.dream_booth is not None:
        update = {
            "prior_preservation": _prior(method.dream_booth.prior_preservation, defaults),
            "text_encoder_learning_rate": _text_rate(method.dream_booth, training),
        }
        return _rebuilt(method, "dream_booth", DreamBoothSpec, method.dream_booth.model_copy(update=update))
    return method


def _text_rate(technique: LoraSpec | DreamBoothSpec, training: ResolvedTraining) -> float | None:
    """The text encoder's, None where it is not trained. A tenth of the rest's: at the same rate it forgets what other
    words mean long before the denoiser has learned the subject; trainers in use set a tenth to a twentieth."""
    if not technique.train_text_encoder or technique.text_encoder_learning_rate is not None:
        return technique.text_encoder_learning_rate
    if training.optimizer.name == "Prodigy":
        # it finds one rate for all weights
        return training.learning_rate
    # in decimal: 5e-6 gives 5e-7, and not its neighbour
    return float(Decimal(str(training.learning_rate)) / 10)


def _rebuilt(method: MethodSpec, field: str, cls: type[Model], value: Model) -> MethodSpec:
    whole = cls.model_validate(value.model_dump(by_alias=True, exclude_none=True))
    return MethodSpec.model_validate({to_camel(field): whole})


def _prior(prior: PriorPreservationSpec | None, defaults: ProfileDefaults) -> PriorPreservationSpec | None:
    if prior is None:
        return None
    images = _merged(ClassImagesSpec, prior.class_images, defaults.class_images)
    whole = ClassImagesSpec.model_validate(images.model_dump(by_alias=True))
    return prior.model_copy(update={"class_images": whole})


def prompt_of(method: MethodSpec) -> str:
    """The caption of every picture, or the first placeholder of a Textual Inversion."""
    for technique in (method.lora, method.dream_booth, method.hypernetwork):
        if technique is not None:
            return technique.prompt
    assert method.textual_inversion is not None
    return method.textual_inversion.tokens[0].placeholder


def prior_of(method: MethodSpec) -> PriorPreservationSpec | None:
    """Prior preservation of whichever technique is set."""
    technique = method.lora or method.dream_booth
    return technique.prior_preservation if technique is not None else None


def _validation(spec: FineTuneJobSpec, defaults: ProfileDefaults, method: MethodSpec) -> ValidationSpec:
    merged = _merged(ValidationSpec, spec.validation, defaults.validation)
    if merged.prompts is not None:
        return merged
    prior = prior_of(method)
    prompts = (prompt_of(method),) if prior is None else (prompt_of(method), prior.class_prompt)
    return ValidationSpec.model_validate({**merged.wire(), "prompts": prompts})


def _dataset_with_resolution(spec: FineTuneJobSpec, defaults: ProfileDefaults) -> DatasetSpec:
    if spec.dataset.resolution is not None or defaults.resolution is None:
        return spec.dataset
    return DatasetSpec.model_validate({**spec.dataset.wire(), "resolution": defaults.resolution})


def _with_formats(output: OutputSpec, technique: TechniqueDefaults) -> OutputSpec:
    return OutputSpec.model_validate({"formats": list(technique.default_formats), **output.wire()})


def _with_storage(section: S, storage: Storage | None) -> S:
    """`section` (baseModel, dataset or output) with the profile's endpoint where it names none itself."""
    merged = _merged(Storage, section.storage, storage)
    values = section.wire()
    if merged.wire():
        values["storage"] = merged.wire()
    return type(section).model_validate(values)
