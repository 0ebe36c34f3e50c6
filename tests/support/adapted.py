"""Adapters with random matrices on a tiny family, as a training would leave them."""

from collections.abc import Sequence

import torch
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import AdapterWeights
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def adapt(
    family: Family,
    targets: Sequence[str] = ATTENTION,
    text: bool = False,
    rank: int = 4,
    alpha: float = 4.0,
    **settings: bool,
) -> AdapterWeights:
    """Puts live layers onto the family's parts. All matrices are random, so that each of them changes the output."""
    parts = {family.denoiser: targets} | dict.fromkeys(family.text_encoders if text else (), TEXT)
    tensors, configs = {}, {}
    numbers = torch.Generator().manual_seed(11)
    for part, modules in parts.items():
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(modules), **settings)
        network = family.parts[part]
        network.add_adapter(config)
        with torch.no_grad():
            for name, parameter in sorted(network.named_parameters()):
                if "lora_magnitude" in name:
                    parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=numbers))
                elif ".lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=numbers))
        tensors[part] = get_peft_model_state_dict(network)
        configs[part] = {
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": sorted(modules),
            "peft_type": "LORA",
            **settings,
        }
    return AdapterWeights(tensors, configs)
