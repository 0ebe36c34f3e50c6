"""spec.training: how long, how fast, and with which loss."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import Int32, Model, Steps
from finetune_api.choices import ChoiceNeeds
from finetune_api.rules import AtMostOneOf, Below, OnlyWhen, Rule


class OptimizerSpec(Model):
    """The optimizer."""

    name: Literal["AdamW", "AdamW8bit", "Adafactor", "Prodigy"] = "AdamW"
    """The algorithm. AdamW8bit: AdamW with moments of a byte each. Adafactor: hardly any memory, and neither beta1,
    beta2 nor epsilon. Prodigy finds the learning rate itself: learningRate, 1 then, multiplies it."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Decoupled weight decay."""
    epsilon: Annotated[float, Field(gt=0, le=0.1)] = 1e-8
    """Added to the denominator."""


class SchedulerSpec(Model):
    """The learning rate as a function of the step."""

    name: Literal["Constant", "Linear", "Cosine"] = "Constant"
    """Shape after the warm-up; Linear and Cosine end at zero at the last step."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Steps over which the rate rises from zero; fewer than the steps of the training."""


class LossSpec(Model):
    """The loss and the noise."""

    rules: ClassVar[tuple[Rule, ...]] = (OnlyWhen("minSnrGamma", "weighting", "MinSnr"),)

    weighting: Literal["None", "MinSnr", "Debiased"] = "None"
    """Weight of each sample by its timestep."""
    min_snr_gamma: Annotated[float, Field(gt=0, le=100)] | None = None
    """Gamma of weighting: MinSnr. Default: 5."""
    noise_offset: Annotated[float, Field(ge=0, le=1)] | None = None
    """Strength of a constant added to the noise of each channel."""


class TrainingSpec(Model):
    """Steps are optimizer steps, batchSize is for one process, and no rate is ever scaled behind your back."""

    rules: ClassVar[tuple[Rule, ...]] = (
        AtMostOneOf(("steps", "epochs")),
        Below("scheduler.warmupSteps", "steps", "the learning rate would never arrive; use fewer warm-up steps"),
        ChoiceNeeds("weightsDtype", ("bf16",), (("precision", "bf16"),), "in which they compute"),
        ChoiceNeeds(
            "weightsDtype", ("bf16",), (("optimizer.name", "AdamW8bit"),), "whose rounding keeps small updates"
        ),
    )

    steps: Steps | None = None
    """Optimizer steps. Default: by technique (lora 500, dreamBooth 400, textualInversion 3000, hypernetwork 1000)."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Passes over the pictures, in place of steps."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """Pictures in a step of one process (class pictures come on top)."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1024)] = 1
    """Batches whose gradients make one step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate. Default: by technique (lora 1e-4, dreamBooth 5e-6, textualInversion 5e-4, hypernetwork 1e-5);
    with the optimizer Prodigy 1."""
    scheduler: SchedulerSpec | None = None
    """Course of the learning rate. Default: constant."""
    optimizer: OptimizerSpec | None = None
    """Default: AdamW with weight decay 0.01."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are clipped to this length."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Arithmetic of the forward pass; what is trained is kept as weightsDtype says. fp16: for GPUs without bf16; the
    loss is scaled so that small gradients do not vanish. Default: bf16 on a GPU, else fp32."""
    weights_dtype: Literal["fp32", "bf16"] = "fp32"
    """In what trained weights and their gradients are kept. bf16: half the memory, for full DreamBooth on small GPUs;
    updates are rounded by chance, so that small ones are not lost. It needs precision: bf16 and the optimizer
    AdamW8bit. A job that chooses another one of these drops the profile's."""
    gradient_checkpointing: bool = False
    """Compute activations twice to save memory."""
    clip_skip: Annotated[int, Field(ge=0, le=11)] = 0
    """Layers left out at the end of the text encoder."""
    seed: Int32 = 0
    """Seed of everything that is drawn."""
    deterministic: bool = False
    """Ask the GPU for repeatable arithmetic (slower). A CPU is always repeatable."""
    ema: bool = False
    """Keep a moving average of the weights and export that."""
    loss: LossSpec | None = None
    """Noise and loss options."""
