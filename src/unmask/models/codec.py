"""The convolutional halves of an image tokenizer, under neutral names: pixels to latents, and latents to pixels.

MAGVIT-v2 and diffusers' VQModel are this one network with other names, widths and quantisers: residual blocks of two
3x3 convolutions, each behind a group norm and SiLU, on several resolutions. Between two of them the picture is halved
or doubled.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """Shape of one half.

    Args:
        inputs, outputs: channels.
        widths: channels of each resolution, in the order they are walked.
        blocks: residual blocks on each resolution.
        first: channels of the first convolution.
        attention: self-attention between the two blocks of the middle.
        groups: of the group norms.
    """

    inputs: int
    outputs: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    first: int
    attention: bool
    groups: int = 32


class Encoder(nn.Module):
    """Pixels to latents; each resolution but the last is halved after its blocks."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(config.inputs, config.first, 3, padding=1)
        self.stages, width = _stages(config, Halve)
        self.middle = Middle(width, config)
        self.norm_out = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.outputs, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Float[Tensor, "b z h w"]:
        x = self.conv_in(x)
        for stage in self.stages:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Latents to pixels; each resolution but the last is doubled after its blocks."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(config.inputs, config.first, 3, padding=1)
        self.middle = Middle(config.first, config)
        self.stages, width = _stages(config, Double)
        self.norm_out = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.outputs, 3, padding=1)

    def forward(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c height width"]:
        x = self.middle(self.conv_in(z))
        for stage in self.stages:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Stage(nn.Module):
    """The blocks of one resolution, and what leads to the next."""

    def __init__(self, blocks: list[nn.Module], resample: nn.Module | None):
        super().__init__()
        self.blocks, self.resample = nn.ModuleList(blocks), resample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.resample is None else self.resample(x)


class Halve(nn.Conv2d):
    """A convolution of stride 2 over the picture with one more column on the right and one more row below."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, stride=2)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class Double(nn.Conv2d):
    """A convolution over the picture with every pixel doubled along both sides."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))


def _stages(config: CodecConfig, resample: Callable[[int], nn.Module]) -> tuple[nn.ModuleList, int]:
    """All resolutions, and the channels of the last."""
    stages, width = nn.ModuleList(), config.first
    for number, (outputs, count) in enumerate(zip(config.widths, config.blocks, strict=True), 1):
        blocks: list[nn.Module] = []
        for _ in range(count):
            blocks.append(Residual(width, outputs, config.groups))
            width = outputs
        stages.append(Stage(blocks, resample(width) if number < len(config.widths) else None))
    return stages, width


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); where the channels change, x goes through a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(groups, c, eps=1e-6) for c in (inputs, outputs))
        self.conv1, self.conv2 = (nn.Conv2d(c, outputs, 3, padding=1) for c in (inputs, outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them where the config says so."""

    def __init__(self, width: int, config: CodecConfig):
        super().__init__()
        self.block1, self.block2 = (Residual(width, width, config.groups) for _ in range(2))
        self.attention = Attention(width, config.groups) if config.attention else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        return self.block2(x if self.attention is None else self.attention(x))


class Attention(nn.Module):
    """x + self-attention of one head over all places of the picture."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (one(h)[:, None] for one in (self.q, self.k, self.v))
        attended = self.o(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + attended.transpose(1, 2).reshape(x.shape)


@dataclass(frozen=True, slots=True)
class CodecNames:
    """How a checkpoint names the parts of an encoder and a decoder; pairs are (encoder's, decoder's).

    Args:
        stages, resample: of a resolution, by its number, and of the convolution behind it.
        reverse: the decoder numbers its resolutions from the last one walked.
        block, shortcut: a residual block, by its number, and its 1x1 convolution.
        middle: the two blocks, and the attention between them.
        attention: norm, q, k, v and output projection.
        norm_out: the last norm.
    """

    stages: tuple[str, str]
    resample: tuple[str, str]
    reverse: bool
    block: str
    shortcut: str
    middle: tuple[str, str, str]
    attention: tuple[str, str, str, str, str]
    norm_out: str

    def of(self, half: Encoder | Decoder) -> dict[str, str]:
        """Official name -> neutral name of every module with a weight and a bias, below the half."""
        decoder = isinstance(half, Decoder)
        count = len(half.stages)
        names = {"conv_in": "conv_in", self.norm_out: "norm_out", "conv_out": "conv_out"}
        blocks = {
            self.middle[0]: ("middle.block1", half.middle.block1),
            self.middle[1]: ("middle.block2", half.middle.block2),
        }
        for number, stage in enumerate(cast(Iterable[Stage], half.stages)):
            theirs = self.stages[decoder].format(count - 1 - number if decoder and self.reverse else number)
            for index, block in enumerate(cast(Iterable[Residual], stage.blocks)):
                blocks[f"{theirs}.{self.block.format(index)}"] = f"stages.{number}.blocks.{index}", block
            if stage.resample is not None:
                names[f"{theirs}.{self.resample[decoder]}"] = f"stages.{number}.resample"
        for theirs, (ours, block) in blocks.items():
            names |= {f"{theirs}.{one}": f"{ours}.{one}" for one in ("norm1", "conv1", "norm2", "conv2")}
            if block.shortcut is not None:
                names[f"{theirs}.{self.shortcut}"] = f"{ours}.shortcut"
        if half.middle.attention is not None:
            for theirs, ours in zip(self.attention, ("norm", "q", "k", "v", "o"), strict=True):
                names[f"{self.middle[2]}.{theirs}"] = f"middle.attention.{ours}"
        return names
