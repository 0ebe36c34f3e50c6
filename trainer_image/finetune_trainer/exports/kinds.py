"""Which generation of Stable Diffusion a model is, as the headers of files say it."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.families.base import Family


@dataclass(frozen=True)
class Kind:
    """One generation."""

    version: str
    """As trainers with kohya's naming write it."""
    architecture: str
    """As the Stability AI model specification names it."""
    second: bool = False
    """2.x"""


FIRST = {
    "epsilon": Kind("sd_v1", "stable-diffusion-v1"),
    "v_prediction": Kind("sd_v1_v", "stable-diffusion-v1"),
}
SECOND = {
    "epsilon": Kind("sd_v2", "stable-diffusion-v2-512", second=True),
    "v_prediction": Kind("sd_v2_v", "stable-diffusion-v2-768-v", second=True),
}
XL = Kind("sdxl_base_v1-0", "stable-diffusion-xl-v1-base")


def is_xl(family: Family) -> bool:
    """Two text encoders: SDXL."""
    return "text_encoder_2" in family.parts


def kind_of(family: Family) -> Kind:
    """2.x are those with the wide text encoder of OpenCLIP ViT-H."""
    if is_xl(family):
        return XL
    width = getattr(getattr(family.parts[family.denoiser], "config", None), "cross_attention_dim", None)
    return (SECOND if width == 1024 else FIRST)[family.prediction_type]


def modelspec(family: Family, title: str, what: str | None) -> dict[str, str]:
    """Fields of a header by the Stability AI model specification 1.0.0 (https://github.com/Stability-AI/ModelSpec).

    Args:
        what: lora or textual-inversion; None for a whole model.
    """
    architecture = kind_of(family).architecture
    # by the names of the tensors: Diffusers' for a 1.x or 2.x LoRA, the original code's everywhere else
    own = what == "lora" and not is_xl(family)
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture if what is None else f"{architecture}/{what}",
        "modelspec.implementation": "diffusers" if own else "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.prediction_type": "v" if family.prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
    }
