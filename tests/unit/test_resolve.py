"""Job, then profile, then built-in: one table for each kind of decision."""

import pytest
from bad_specs import GOOD
from finetune_api import FineTuneJobSpec, FineTuneProfileSpec, RunIdentity, TrainingRun, resolve

ME = RunIdentity(name="face", namespace="team-a", uid="0000")


def run(job: dict | None = None, profile: dict | None = None) -> TrainingRun:
    spec = FineTuneJobSpec.model_validate({**GOOD["spec"], **(job or {})})
    return resolve(spec, FineTuneProfileSpec.model_validate(profile or {}), ME)


DREAM_BOOTH = {"method": {"dreamBooth": {"prompt": "a photo of sks circle"}}}
HALF = {"training": {"weightsDtype": "bf16", "precision": "bf16", "optimizer": {"name": "AdamW8bit"}}}


@pytest.mark.parametrize(
    ("job", "profile", "path", "expected"),
    [
        ({}, {}, "training.learning_rate", 1e-4),
        (DREAM_BOOTH, {}, "training.learning_rate", 5e-6),
        ({}, {"defaults": {"training": {"learningRate": 2e-3}}}, "training.learning_rate", 2e-3),
        ({"training": {"learningRate": 3e-3}}, {"defaults": {"training": {"learningRate": 2e-3}}},
         "training.learning_rate", 3e-3),
        ({"training": {"optimizer": {"name": "Prodigy"}}}, {}, "training.learning_rate", 1.0),
        ({}, {"defaults": {"training": {"optimizer": {"name": "Prodigy"}}}}, "training.learning_rate", 1.0),
        ({"training": {"optimizer": {"name": "Adafactor"}}},
         {"defaults": {"training": {"optimizer": {"name": "Prodigy"}}}}, "training.learning_rate", 1e-4),
        ({}, {}, "training.steps", 500),
        (DREAM_BOOTH, {}, "training.steps", 400),
        ({"training": {"epochs": 7}}, {"defaults": {"training": {"steps": 9}}}, "training.steps", None),
        ({"training": {"epochs": 7}}, {"defaults": {"training": {"steps": 9}}}, "training.epochs", 7),
        # an object within an object is merged too: the job sets the name, the profile the weight decay
        ({"training": {"optimizer": {"beta1": 0.8}}}, {"defaults": {"training": {"optimizer": {"weightDecay": 0}}}},
         "training.optimizer.weight_decay", 0),
        ({"training": {"optimizer": {"beta1": 0.8}}}, {"defaults": {"training": {"optimizer": {"weightDecay": 0}}}},
         "training.optimizer.beta1", 0.8),
        # a value equal to the built-in default is still the job's choice
        ({"training": {"batchSize": 1}}, {"defaults": {"training": {"batchSize": 8}}}, "training.batch_size", 1),
        ({"training": {"optimizer": {"beta1": 0.8}}}, {"defaults": HALF}, "training.weights_dtype", "bf16"),
        # what weights in bf16 do not go with drops them, and does not end in a run that its own rules refuse
        ({"training": {"precision": "fp16"}}, {"defaults": HALF}, "training.weights_dtype", "fp32"),
        ({"training": {"optimizer": {"name": "AdamW"}}}, {"defaults": HALF}, "training.weights_dtype", "fp32"),
        ({}, {}, "checkpoints.every_seconds", 60),
        (DREAM_BOOTH, {}, "checkpoints.every_seconds", 300),
        ({}, {}, "grace_seconds", 120),
        (DREAM_BOOTH, {}, "grace_seconds", 600),
        (DREAM_BOOTH, {"terminationGracePeriodSeconds": 30}, "grace_seconds", 30),
        ({}, {"defaults": {"resolution": 64}}, "dataset.resolution", 64),
        ({}, {}, "engine.kind", "Auto"),
        ({}, {"defaults": {"engine": {"kind": "Eager"}}}, "engine.kind", "Eager"),
        ({"engine": {"kind": "Auto"}}, {"defaults": {"engine": {"kind": "Eager"}}}, "engine.kind", "Auto"),
        ({"engine": {"kind": "Replicated"}}, {"defaults": {"engine": {"processesPerNode": 4}}},
         "engine.processes_per_node", 4),
        ({}, {"defaults": {"storage": {"endpoint": "http://s3:7070"}}}, "output.storage.endpoint", "http://s3:7070"),
        ({"output": {"uri": "s3://models/x", "storage": {"endpoint": "http://mine"}}},
         {"defaults": {"storage": {"endpoint": "http://s3", "region": "eu"}}}, "output.storage.endpoint", "http://mine"),
        ({}, {}, "method.lora.alpha", 16),
        ({"method": {"lora": {"prompt": "x", "rank": 4}}}, {}, "method.lora.alpha", 4),
        ({}, {}, "method.lora.text_encoder_learning_rate", None),
        ({"method": {"lora": {"prompt": "x", "trainTextEncoder": True}}},
         {"defaults": {"training": {"learningRate": 0.5}}}, "method.lora.text_encoder_learning_rate", 0.05),
        ({"method": {"dreamBooth": {"prompt": "x", "trainTextEncoder": True}}}, {},
         "method.dream_booth.text_encoder_learning_rate", 5e-7),
        ({"method": {"dreamBooth": {"prompt": "x", "trainTextEncoder": True, "textEncoderLearningRate": 0.25}}}, {},
         "method.dream_booth.text_encoder_learning_rate", 0.25),
        ({"method": {"lora": {"prompt": "p", "trainTextEncoder": True}},
          "training": {"optimizer": {"name": "Prodigy"}}}, {}, "method.lora.text_encoder_learning_rate", 1.0),
        ({}, {}, "validation.prompts", ("a photo of sks circle",)),
        ({"method": {"lora": {"prompt": "x", "priorPreservation": {"classPrompt": "a circle"}}}}, {},
         "validation.prompts", ("x", "a circle")),
        ({"method": {"lora": {"prompt": "x", "priorPreservation": {"classPrompt": "a circle"}}}}, {},
         "method.lora.prior_preservation.class_images.count", 200),
        ({"method": {"lora": {"prompt": "x", "priorPreservation": {"classPrompt": "a circle"}}}},
         {"defaults": {"classImages": {"inferenceSteps": 20}}},
         "method.lora.prior_preservation.class_images.inference_steps", 20),
    ],
)  # fmt: skip
def test_order_of_defaults(job: dict, profile: dict, path: str, expected: object) -> None:
    value: object = run(job, profile)
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected


def test_the_document_is_canonical() -> None:
    """Its digest is compared across operators and restarts."""
    text = run(DREAM_BOOTH).to_json()
    assert TrainingRun.from_json(text).to_json() == text
