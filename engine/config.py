"""Presets: one name for the sizes of every stage, and the geometry that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.perceptual.dit import DiTConfig
from engine.perceptual.renderer import RendererConfig
from engine.perceptual.tiny_vae import TinyVAEConfig
from engine.perceptual.upsampler import ConditionConfig
from engine.semantic.planner import PlannerConfig
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.theia import TheiaConfig
from engine.semantic.tokenizer import TokenizerConfig
from engine.text import TextConfig

FRAMES_PER_LATENT = 4


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One model, whole. Frames are video frames unless a name says latent; one latent stands for four."""

    name: str
    height_px: int
    width_px: int
    fps: float
    steps: int  # denoising steps of a hop
    text: TextConfig
    theia: TheiaConfig
    tokenizer: TokenizerConfig
    planner: PlannerConfig
    renderer: RendererConfig
    vae: TinyVAEConfig
    motion_score: float | None = None  # None: the planner's own null
    guidance: float = 1.0  # of the planner; 1: none
    temperature: float = 1.0
    top_p: float = 1.0
    prompt_latents: int = 7
    new_latents: int = 6
    slices: tuple[int, ...] = field(default=(3, 2, 2))  # latents decoded at a time in the first hop; later hops by 2

    def __post_init__(self) -> None:
        dit = self.renderer.dit
        if self.prompt_latents + self.new_latents != dit.frames:
            raise ValueError(
                f"{self.prompt_latents} prompt and {self.new_latents} new latents do not fill a window of {dit.frames}"
            )
        if sum(self.slices) != self.prompt_latents:
            raise ValueError(f"slices {self.slices} do not add up to the first hop's {self.prompt_latents} latents")
        if self.tokenizer.feature_dim != self.renderer.condition.feature_dim:
            raise ValueError(
                f"the tokenizer makes {self.tokenizer.feature_dim} feature channels, the renderer reads "
                f"{self.renderer.condition.feature_dim}"
            )
        if self.vae.latent_channels != dit.channels:
            raise ValueError(
                f"the autoencoder has {self.vae.latent_channels} latent channels, the renderer {dit.channels}"
            )

    @property
    def hop_frames(self) -> int:
        """Frames of every hop but the first."""
        return self.new_latents * FRAMES_PER_LATENT

    @property
    def first_hop_frames(self) -> int:
        return 1 + (self.prompt_latents - 1) * FRAMES_PER_LATENT

    @property
    def hop_s(self) -> float:
        """Seconds of video of every hop but the first."""
        return self.hop_frames / self.fps


def _mini() -> EngineConfig:
    quantizer = QuantizerConfig(
        dim=128, codebook_size=1024, codebook_dim=16, metric="cosine", decay=0.98, dead_threshold=0.1
    )
    tokenizer = TokenizerConfig(
        feature_dim=30,
        grid=(8, 12),
        patch=4,
        width=128,
        layers=2,
        heads=4,
        i_tokens=32,
        p_tokens=8,
        learned_positions=True,
        quantizer=quantizer,
    )
    dit = DiTConfig(
        hidden=192, heads=3, layers=3, patch=4, frames=13, height=16, width=24, channels=24, time_dim=128,
        time_scale=1000.0, text_length=24, text_dim=128, position_scale=1.0, per_half_time=True, half_causal=True,
        head="conv", head_width=96, head_blocks=4,
    )  # fmt: skip
    condition = ConditionConfig(
        feature_dim=30, width=64, multipliers=(1.0, 1.0), blocks=1, out_channels=48, latent_channels=24, groups=8
    )
    return EngineConfig(
        name="mini",
        height_px=128,
        width_px=192,
        fps=8.0,
        steps=4,
        guidance=1.5,
        temperature=0.8,
        text=TextConfig(hidden=128, layers=2, heads=4, mlp=256, vocabulary=256, max_length=24),
        theia=TheiaConfig(
            hidden=128, layers=4, heads=4, mlp=512, image_size=192, patch=16, canvas=192, output_shape=(8, 12),
            feature_dim=30,
        ),
        tokenizer=tokenizer,
        planner=PlannerConfig(
            hidden=256, layers=4, heads=4, mlp=704, codebook_size=1024, text_dim=128, micro_freq=64, micro_hidden=64,
            i_tokens=32, p_tokens=8, context_groups=1, pooled_text=True, null_micro=True,
        ),
        renderer=RendererConfig(dit=dit, condition=condition, control_layers=1, prediction="x0"),
        vae=TinyVAEConfig(),
    )  # fmt: skip


PRESETS = {"mini": _mini}


def preset(name: str) -> EngineConfig:
    """The preset's configuration.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
