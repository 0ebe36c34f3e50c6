"""The UNet's two naming schemes: Diffusers' blocks, and the flat block lists of LDM and sgm that web UIs know.

One step of LDM's input_blocks is a ResNet with or without attention behind it, or a downsampler; output_blocks is the
same upwards. Facts from the original model's code (https://github.com/CompVis/latent-diffusion).
"""

from __future__ import annotations

import re

OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
INNER = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn")
"""The kinds that the original model has; Diffusers knows more."""
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


class UnetNames:
    """Names of one UNet's modules."""

    def __init__(self, layers_per_block: int, attention_up: tuple[bool, ...]) -> None:
        """
        Args:
            layers_per_block: ResNets in a block of the way down; the way up has one more.
            attention_up: for each block of the way up, whether it has attention.
        """
        self._step, self._attention_up = layers_per_block + 1, attention_up

    @classmethod
    def of(cls, config: object) -> UnetNames:
        """Of a UNet2DConditionModel's configuration.

        Raises:
            ValueError: LDM's scheme has no names for such blocks.
        """
        layers, up = getattr(config, "layers_per_block", None), tuple(getattr(config, "up_block_types", ()))
        if not isinstance(layers, int):
            raise ValueError(f"a UNet with layers_per_block {layers} has no names in LDM's scheme")
        for block in (*getattr(config, "down_block_types", ()), getattr(config, "mid_block_type", BLOCKS[-1]), *up):
            if block not in BLOCKS:
                raise ValueError(f"a UNet with {block} has no names in LDM's scheme")
        return cls(layers, tuple("CrossAttn" in block for block in up))

    def ldm(self, name: str) -> str:
        """LDM's name of the module, or of the parameter, that Diffusers calls `name`.

        Raises:
            ValueError: there is none.
        """
        for outer, theirs in OUTER.items():
            if name == outer or name.startswith(f"{outer}."):
                return theirs + name[len(outer) :]
        middle = MIDDLE.fullmatch(name)
        if middle is not None:
            kind, index, rest = middle.groups()
            # a ResNet, attention, a ResNet
            return f"middle_block.{int(index) * 2 if kind == 'resnets' else 1}.{_resnet(kind, rest)}"
        inner = INNER.fullmatch(name)
        if inner is None:
            raise ValueError(f"{name} has no name in LDM's scheme")
        way, block, kind, index, rest = inner.groups()
        first = int(block) * self._step
        if kind == "downsamplers":
            return f"input_blocks.{first + self._step}.0.{rest.replace('conv', 'op', 1)}"
        if kind == "upsamplers":
            # the last in its step: behind the ResNet, and behind the attention where there is one
            return f"output_blocks.{first + self._step - 1}.{2 if self._attention_up[int(block)] else 1}.{rest}"
        place = (
            f"input_blocks.{1 + first + int(index)}" if way == "down_blocks" else f"output_blocks.{first + int(index)}"
        )
        return f"{place}.{0 if kind == 'resnets' else 1}.{_resnet(kind, rest)}"


def _resnet(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    head, dot, tail = rest.partition(".")
    if head not in RESNET:
        raise ValueError(f"{rest} of a ResNet has no name in LDM's scheme")
    return RESNET[head] + dot + tail
