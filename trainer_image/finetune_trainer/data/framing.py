"""What of a picture is trained, and how large: pure arithmetic on sizes."""

from __future__ import annotations

from dataclasses import dataclass

CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Frame:
    """A box of a picture, and the size that it is scaled to. All in pixels."""

    left: int
    top: int
    width: int
    """Of the box, in the picture."""
    height: int
    target_height: int
    target_width: int
    flip: bool
    """Mirrored after it was cut out."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom, as Pillow takes them."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def enlarges(self) -> bool:
        """Whether the picture has fewer pixels than are trained."""
        return self.width < self.target_width or self.height < self.target_height

    def sizes(self, picture_height: int, picture_width: int) -> tuple[float, float, float, float, float, float]:
        """The size conditioning of SDXL (https://arxiv.org/abs/2307.01952, section 2.2): height and width of the
        picture as it came, top and left of the crop, height and width of the target.

        The crop's place is in pixels of the picture scaled so that the box has the target's size, and mirrored
        together with it, as Diffusers' and sd-scripts' SDXL scripts have it.
        """
        left = picture_width - self.left - self.width if self.flip else self.left
        return (
            float(picture_height),
            float(picture_width),
            float(round(self.top * self.target_height / self.height)),
            float(round(left * self.target_width / self.width)),
            float(self.target_height),
            float(self.target_width),
        )


def frame(
    picture_height: int, picture_width: int, target: tuple[int, int], offsets: tuple[float, float], flip: bool
) -> Frame:
    """The largest box of the target's aspect.

    Args:
        target: height and width in pixels.
        offsets: shares in [0, 1] of the room left to the box, horizontal and vertical; 0.5 is the middle.
    """
    height, width = target
    scale = min(picture_width / width, picture_height / height)
    box_width = min(max(round(width * scale), 1), picture_width)
    box_height = min(max(round(height * scale), 1), picture_height)
    return Frame(
        left=round(offsets[0] * (picture_width - box_width)),
        top=round(offsets[1] * (picture_height - box_height)),
        width=box_width,
        height=box_height,
        target_height=height,
        target_width=width,
        flip=flip,
    )
