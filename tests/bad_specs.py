"""Specs that must be refused, each with the words a person needs.

One table for two judges: the API server (tests/contract) and pydantic on a laptop (tests/unit). Where only the API
server can judge, `cluster_only` says so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

GOOD: dict = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "good"},
    "spec": {
        "baseModel": {"uri": "builtin://tiny-shapes"},
        "method": {"lora": {"prompt": "a photo of sks circle"}},
        "dataset": {"uri": "s3://pictures/face/"},
        "output": {"uri": "s3://models/face/"},
    },
}
REMOVE = object()


@dataclass(frozen=True)
class Bad:
    path: str  # dotted, below the object
    value: object
    says: str  # part of the API server's answer
    cluster_only: bool = False
    laptop_says: str | None = None  # where pydantic's own wording differs

    @property
    def id(self) -> str:
        shown = "removed" if self.value is REMOVE else str(self.value)[:40]
        return f"{self.path}={shown}"

    def object(self) -> dict:
        thing = copy.deepcopy(GOOD)
        *parents, last = self.path.split(".")
        target = thing
        for key in parents:
            target = target.setdefault(key, {})
        if self.value is REMOVE:
            del target[last]
        else:
            target[last] = self.value
        return thing


def lora(field: str, value: object, says: str, laptop_says: str | None = None) -> Bad:
    return Bad(f"spec.method.lora.{field}", value, says, laptop_says=laptop_says)


ABOVE = "should be less than or equal to"
BELOW = "should be greater than or equal to"
ENUM = "Unsupported value"

BAD_SPECS = [
    # --- what is there, and what is not
    Bad("spec.baseModel", REMOVE, "spec.baseModel: Required value", laptop_says="Field required"),
    Bad("spec.method", REMOVE, "spec.method: Required value", laptop_says="Field required"),
    Bad("spec.dataset", REMOVE, "spec.dataset: Required value", laptop_says="Field required"),
    Bad("spec.output", REMOVE, "spec.output: Required value", laptop_says="Field required"),
    Bad("spec.baseModel.uri", REMOVE, "spec.baseModel.uri: Required value", laptop_says="Field required"),
    Bad("spec.learningRate", 1e-4, 'unknown field "spec.learningRate"', laptop_says="Extra inputs"),
    lora("rnk", 4, 'unknown field "spec.method.lora.rnk"', "Extra inputs"),
    # --- names
    Bad("metadata.name", "a" * 41, "at most 40 characters", cluster_only=True),
    Bad("metadata.name", "1abc", "beginning with a letter", cluster_only=True),
    Bad("metadata.name", "a.b", "lower-case letters, digits and '-'", cluster_only=True),
    Bad("spec.profileName", "Not_A_Name", "spec.profileName", laptop_says="pattern"),
    Bad("spec.dataset.secretRef", {"name": ""}, "spec.dataset.secretRef.name", laptop_says="at least 1 character"),
    # --- where things are
    Bad("spec.baseModel.uri", "stable-diffusion", "uri must be hf://owner/name, s3://bucket/prefix"),
    Bad("spec.baseModel.uri", "hf://only-owner", "uri must be hf://owner/name"),
    Bad("spec.baseModel.uri", "https://example.com/model.ckpt", "uri must be hf://owner/name"),
    Bad("spec.baseModel.uri", "file:///models/sd15", "is for `finetune run` on your own machine", cluster_only=True),
    Bad("spec.baseModel.vaeUri", "hf://a/vae", "vaeUri is not carried out yet"),
    Bad("spec.baseModel.revision", "-main", "spec.baseModel.revision", laptop_says="pattern"),
    Bad("spec.dataset.uri", "s3://Bad_Bucket/x", "uri must be s3://bucket/prefix/ or pvc://claim/path"),
    Bad("spec.dataset.uri", "/pictures", "uri must be s3://bucket/prefix/ or pvc://claim/path"),
    Bad("spec.dataset.uri", "file:///pictures", "use s3:// or pvc://", cluster_only=True),
    Bad("spec.dataset.storage", {"endpoint": "minio:9000"}, "spec.dataset.storage.endpoint", laptop_says="pattern"),
    Bad("spec.dataset.storage", {"endpoint": "http://user:key@minio"}, "storage.endpoint", laptop_says="pattern"),
    Bad("spec.output.uri", "models/face", "uri must be s3://bucket/prefix/"),
    Bad("spec.output.uri", "pvc://claim/x", "uri must be s3://bucket/prefix/"),
    Bad("spec.output.uri", "file:///tmp/out", "is for `finetune run` on your own machine", cluster_only=True),
    Bad(
        "spec.output.formats",
        ["Automatic1111"],
        "formats of lora can only be Diffusers or Kohya or SingleFile or Merged",
    ),
    Bad("spec.output.formats", [], "spec.output.formats", laptop_says="at least 1 item"),
    # --- the technique
    Bad("spec.method", {}, "set exactly one of dreamBooth, lora, textualInversion, hypernetwork"),
    Bad("spec.method.dreamBooth", {"prompt": "sks"}, "set exactly one of dreamBooth, lora"),
    Bad(
        "spec.method",
        {
            "textualInversion": {
                "tokens": [{"placeholder": "sks", "initializer": "a", "initialEmbeddingUri": "s3://a/b"}]
            }
        },
        "set at most one of initializer, initialEmbeddingUri",
    ),
    Bad(
        "spec.method",
        {"textualInversion": {"tokens": [{"placeholder": "sks", "initialEmbeddingUri": "hf://a/b"}]}},
        "initialEmbeddingUri must be s3://bucket/path/file",
    ),
    Bad("spec.method", {"hypernetwork": {"prompt": "sks", "activation": "GELU"}}, "Linear", laptop_says="Linear"),
    lora("prompt", "", "spec.method.lora.prompt", "at least 1 character"),
    lora("rank", 0, BELOW + " 1", "greater than or equal to 1"),
    lora("rank", 5000, ABOVE + " 1024", "less than or equal to 1024"),
    lora("rank", "sixteen", "must be of type integer", "valid integer"),
    lora("alpha", 0, "should be greater than 0", "greater than 0"),
    lora("targets", [], "spec.method.lora.targets", "at least 1 item"),
    lora("targets", ["everything"], ENUM, "Input should be 'attention'"),
    lora("textEncoderLearningRate", 0.001, "textEncoderLearningRate can only be set with trainTextEncoder: true"),
    lora("continueFrom", "hf://a/b", "continueFrom must be s3://bucket/path/file.safetensors"),
    lora("priorPreservation", {}, "classPrompt: Required value", "Field required"),
    lora("priorPreservation", {"classPrompt": "a circle", "weight": -1}, "should be greater than 0", "greater than 0"),
    lora("priorPreservation", {"classPrompt": "a", "classImages": {"count": 0}}, BELOW, "greater than or equal to 1"),
    Bad(
        "spec.method",
        {"dreamBooth": {"prompt": "sks", "textEncoderLearningRate": 0.1}},
        "textEncoderLearningRate can only be set with trainTextEncoder: true",
    ),
    # --- the pictures
    Bad("spec.dataset.resolution", 100, "resolution must be a multiple of 8"),
    Bad("spec.dataset.resolution", 32, BELOW + " 64", laptop_says="greater than or equal to 64"),
    Bad("spec.dataset.buckets", {"minResolution": 512, "maxResolution": 256}, "minResolution must not be above"),
    Bad("spec.dataset.buckets", {"step": 12}, "step must be a multiple of 8"),
    Bad("spec.dataset.captions", {"maxTokens": 100}, "maxTokens must be a multiple of 75"),
    Bad("spec.dataset.cropsPerPicture", 3, "cropsPerPicture above 1 needs crop: Random, Center has only one crop"),
    Bad("spec.dataset.crop", "center", ENUM, laptop_says="Input should be 'Center'"),
    # --- the training
    Bad("spec.training", {"steps": 0}, BELOW + " 1", laptop_says="greater than or equal to 1"),
    Bad("spec.training", {"steps": 100, "epochs": 2}, "set at most one of steps, epochs"),
    Bad("spec.training", {"batchSize": 5000}, ABOVE, laptop_says="less than or equal to 1024"),
    Bad("spec.training", {"learningRate": 0}, "should be greater than 0", laptop_says="greater than 0"),
    Bad("spec.training", {"learningRate": 3}, ABOVE + " 1", laptop_says="less than or equal to 1"),
    Bad("spec.training", {"learningRate": "fast"}, "must be of type number", laptop_says="valid number"),
    Bad("spec.training", {"precision": "fp8"}, ENUM, laptop_says="Input should be 'fp32'"),
    Bad("spec.training", {"seed": -1}, BELOW + " 0", laptop_says="greater than or equal to 0"),
    Bad("spec.training", {"weightsDtype": "fp16"}, ENUM, laptop_says="Input should be 'fp32'"),
    Bad("spec.training", {"weightsDtype": "bf16"}, "weightsDtype: bf16 needs precision: bf16, in which they compute"),
    Bad(
        "spec.training",
        {"weightsDtype": "bf16", "precision": "bf16"},
        "weightsDtype: bf16 needs optimizer.name: AdamW8bit, whose rounding keeps small updates",
    ),
    Bad("spec.training", {"optimizer": {"name": "SGD"}}, ENUM, laptop_says="Input should be 'AdamW'"),
    Bad("spec.training", {"scheduler": {"name": "Step"}}, ENUM, laptop_says="Input should be 'Constant'"),
    Bad("spec.training", {"loss": {"minSnrGamma": 5}}, "minSnrGamma can only be set with weighting: MinSnr"),
    Bad(
        "spec.training",
        {"steps": 10, "scheduler": {"warmupSteps": 10}},
        "scheduler.warmupSteps must be below steps: the learning rate would never arrive; use fewer warm-up steps",
    ),
    # --- the rest
    Bad("spec.engine", {"nodes": 65}, "should be less than or equal to 64", laptop_says="less than or equal to 64"),
    Bad("spec.engine", {"offloadOptimizer": "Cpu"}, "offloadOptimizer: Cpu or Nvme needs kind: DeepSpeed, since"),
    Bad("spec.engine", {"offloadParameters": "Cpu"}, "offloadParameters: Cpu or Nvme needs zeroStage: 3 or kind: Sha"),
    Bad("spec.engine", {"offloadParameters": "Nvme"}, "offloadParameters: Nvme needs zeroStage: 3, as DeepSpeed has"),
    Bad("spec.engine", {"offloadOptimizer": "Nvme"}, "offloadOptimizer: Nvme needs zeroStage: 3, as DeepSpeed has"),
    Bad("spec.engine", {"offloadOptimizer": "Nvme"}, "offloadOptimizer: Nvme needs nvmePath, a folder on the disk"),
    Bad("spec.engine", {"nvmePath": "/fast"}, "nvmePath can only be set with offloadOptimizer: Nvme or offloadPar"),
    Bad("spec.engine", {"offloadOptimizer": "Nvme", "nvmePath": "fast"}, "nvmePath must be an absolute path"),
    Bad("spec.engine", {"offloadOptimizer": "Nvme", "nvmePath": "/fast/../etc"}, "nvmePath must be an absolute path"),
    Bad("spec.engine", {"offloadOptimizer": "Nvme", "nvmePath": "/etc/finetune"}, "nvmePath must not be a folder of"),
    Bad("spec.engine", {"kind": "Fast"}, ENUM, laptop_says="Input should be 'Auto'"),
    Bad("spec.engine", {"zeroStage": 2}, "zeroStage can only be set with kind: DeepSpeed"),
    Bad("spec.engine", {"kind": "Eager", "nodes": 2}, "nodes above 1 cannot be used with kind: Eager or Captured or"),
    Bad("spec.engine", {"kind": "Eager", "processesPerNode": 2}, "processesPerNode above 1 cannot be used with kind"),
    Bad("spec.checkpoints", {"everySeconds": 1}, BELOW + " 5", laptop_says="greater than or equal to 5"),
    Bad("spec.judgement", {"patience": 3}, "patience needs everySteps"),
    Bad("spec.judgement", {"encoderUri": "pvc://claim/dino"}, "encoderUri must be hf://owner/name, s3://"),
    Bad("spec.validation", {"prompts": ["x"] * 17}, "must have at most 16 items", laptop_says="at most 16 items"),
    Bad("spec.runPolicy", {"retries": -1}, BELOW + " 0", laptop_says="greater than or equal to 0"),
    Bad("spec.runPolicy", {"priorityClass": "high"}, "priorityClass needs queueName"),
    Bad("spec.runPolicy", {"activeDeadlineSeconds": 0}, BELOW, laptop_says="greater than or equal to 1"),
]
