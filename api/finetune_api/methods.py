"""spec.method: what is trained. Exactly one technique, with all its settings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import Model, Prompt, Token
from finetune_api.rules import AtMostOneOf, ExactlyOneOf, Form, NotInCluster, OnlyWhen, Rule

Rate = Annotated[float, Field(gt=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
FILE_FORM = r"^(s3://[a-z0-9][a-z0-9.-]+/.+|file://.+)$"


class ClassImagesSpec(Model):
    """Pictures of the class, drawn by the base model itself before training and kept in the cache."""

    count: Annotated[int, Field(ge=1, le=10_000)] = 200
    """How many."""
    negative_prompt: Annotated[str, Field(max_length=1000)] = ""
    """What the class pictures should not show."""
    inference_steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Denoising steps for each picture."""
    guidance_scale: Annotated[float, Field(ge=1, le=50)] = 7.5
    """Classifier-free guidance; 1 is none."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 4
    """Pictures drawn at once. It changes the speed, and the pictures by no more than rounding."""


class PriorPreservationSpec(Model):
    """Keeps the base model's idea of the class: the loss on class pictures is added to the loss on yours, so that
    "a dog" does not become *your* dog (https://arxiv.org/abs/2208.12242)."""

    class_prompt: Prompt
    """The prompt without the rare word, such as "a photo of a dog"."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Weight of the class loss beside the loss on your pictures."""
    class_images: ClassImagesSpec | None = None
    """How the class pictures are made. Default: 200 pictures, 50 steps, guidance 7.5."""


class TokenSpec(Model):
    """A new word and the vectors behind it. They start from an initializer, an existing embedding, or else the mean of
    the vocabulary."""

    rules: ClassVar[tuple[Rule, ...]] = (
        AtMostOneOf(("initializer", "initialEmbeddingUri")),
        Form("initialEmbeddingUri", FILE_FORM, "s3://bucket/path/file"),
        NotInCluster("initialEmbeddingUri", "file://", "use s3://"),
    )

    placeholder: Token
    """The new word, as it will stand in prompts; it must not be in the tokenizer's vocabulary."""
    vectors: Annotated[int, Field(ge=1, le=64)] = 1
    """How many embedding vectors the word stands for."""
    initializer: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Word or words whose embeddings the new ones start from; of several words the n-th starts the n-th vector."""
    initial_embedding_uri: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """An existing embedding to start from (.safetensors, .pt or .bin), s3://bucket/path/file, read with the
    credentials of output."""


class LoraSpec(Model):
    """Low-rank matrices beside the frozen weights (https://arxiv.org/abs/2106.09685): fast, a few MB."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Form("continueFrom", FILE_FORM, "s3://bucket/path/file.safetensors"),
        NotInCluster("continueFrom", "file://", "use s3://"),
        OnlyWhen("textEncoderLearningRate", "trainTextEncoder", True),
    )

    prompt: Prompt
    """The caption of every picture, with a rare word for the subject: "a photo of sks dog"."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the matrices. Larger learns more detail and makes larger files."""
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Scale: the update is multiplied by alpha / rank. Default: the rank, so that the scale is 1."""
    dropout: Dropout | None = None
    """Share of the LoRA inputs dropped in training."""
    targets: Annotated[
        tuple[Literal["attention", "feedForward", "convolution"], ...], Field(min_length=1, max_length=3)
    ] = ("attention",)
    """Which layers get matrices. Attention is enough for large models; small ones need the others too."""
    use_dora: bool = False
    """Weight-decomposed LoRA (DoRA)."""
    use_rslora: bool = False
    """Rank-stabilised scale, alpha / sqrt(rank)."""
    train_text_encoder: bool = False
    """Put matrices into the text encoder too."""
    text_encoder_learning_rate: Rate | None = None
    """Learning rate of the text encoder's matrices. Default: a tenth of training.learningRate, with
    Prodigy the same."""
    prior_preservation: PriorPreservationSpec | None = None
    """Keeps the class from turning into the subject. Default: off."""
    continue_from: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """A LoRA file to go on from (Diffusers' or kohya's naming), s3://bucket/path/file.safetensors, read with the
    credentials of output. Its rank and layers must be those of this job."""
    tokens: Annotated[tuple[TokenSpec, ...], Field(min_length=1, max_length=8)] | None = None
    """New words trained together with the matrices (pivotal tuning)."""


class DreamBoothSpec(Model):
    """All weights of the UNet are trained (https://arxiv.org/abs/2208.12242): the best likeness, a full model."""

    rules: ClassVar[tuple[Rule, ...]] = (OnlyWhen("textEncoderLearningRate", "trainTextEncoder", True),)

    prompt: Prompt
    """The caption of every picture, with a rare word for the subject: "a photo of sks dog"."""
    prior_preservation: PriorPreservationSpec | None = None
    """Keeps the class from turning into the subject. Strongly recommended. Default: off."""
    train_text_encoder: bool = False
    """Train the text encoder too."""
    text_encoder_learning_rate: Rate | None = None
    """Learning rate of the text encoder. Default: a tenth of training.learningRate, with
    Prodigy the same."""


class TextualInversionSpec(Model):
    """New words for a frozen model (https://arxiv.org/abs/2208.01618): files of a few kB."""

    tokens: Annotated[tuple[TokenSpec, ...], Field(min_length=1, max_length=8)]
    """The new words."""
    property: Literal["Object", "Style"] = "Object"
    """What the pictures have in common; it chooses the caption templates."""
    normalize_embeddings: bool = True
    """Keep the length of the new vectors near the vocabulary's own."""


class HypernetworkSpec(Model):
    """Small networks on what the keys and values of attention are computed from, in AUTOMATIC1111's format."""

    prompt: Prompt
    """The caption of every picture."""
    layer_structure: Annotated[tuple[Annotated[float, Field(gt=0, le=16)], ...], Field(min_length=2, max_length=8)] = (
        1,
        2,
        1,
    )
    """Widths of the layers as multiples of the input."""
    activation: Literal["Linear", "ReLU", "LeakyReLU", "ELU", "Swish", "Tanh", "Sigmoid", "Softsign", "Mish"] = "Linear"
    """Activation between the layers."""
    layer_norm: bool = False
    """Normalise after each layer."""
    dropout: Dropout | None = None
    """Dropout between the layers."""
    sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=8)] | None = None
    """Widths of the attention inputs that get a network. Default: those of cross-attention."""


class MethodSpec(Model):
    """The technique. Set exactly one."""

    rules: ClassVar[tuple[Rule, ...]] = (ExactlyOneOf(("dreamBooth", "lora", "textualInversion", "hypernetwork")),)

    dream_booth: DreamBoothSpec | None = None
    """Train the whole UNet on a few pictures of a subject."""
    lora: LoraSpec | None = None
    """Train low-rank matrices: the fastest, a few MB."""
    textual_inversion: TextualInversionSpec | None = None
    """Train a new word, all weights frozen."""
    hypernetwork: HypernetworkSpec | None = None
    """Train small networks on what the keys and values of attention are computed from."""

    @property
    def name(self) -> str:
        """The technique's name as it stands in YAML."""
        if self.lora is not None:
            return "lora"
        if self.dream_booth is not None:
            return "dreamBooth"
        return "textualInversion" if self.textual_inversion is not None else "hypernetwork"
