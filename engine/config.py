"""Presets: the sizes of every stage under one name, and the lengths that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.perceptual.base import FRAMES_PER_LATENT as FRAMES_PER_LATENT
from engine.perceptual.base import frames_of
from engine.perceptual.cogvideox.vae import VAEConfig
from engine.perceptual.dit import DiTConfig
from engine.perceptual.mini.details import DetailsConfig
from engine.perceptual.mini.enlarger import SCALE, EnlargerConfig
from engine.perceptual.mini.sketch import SketchConfig
from engine.perceptual.mini.vae import TinyVAEConfig
from engine.perceptual.renderer import RendererConfig
from engine.perceptual.schedule import DiffusionSchedule, FlowSchedule
from engine.perceptual.upsampler import ConditionConfig
from engine.semantic.planner import PlannerConfig
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.sampling import SamplingConfig
from engine.semantic.theia import TheiaConfig
from engine.semantic.tokenizer import TokenizerConfig
from engine.semantic.world_maps import TWINS
from engine.text.published import PublishedTextConfig
from engine.text.reader import PromptReaderConfig
from engine.text.small_t5 import SmallT5Config
from engine.wire.settings import PICTURES


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The sizes of one preset's stages, and every length that follows from them.

    A latent stands for four video frames, or eight of large pictures, and a video's first latent for one; each latent
    has one semantic frame. Lengths
    count latents, unless a name says frames (video frames) or seconds.

    `schedule`: a rectified flow without guidance (`FlowSchedule`), or the published stochastic sampler with guidance
    (`DiffusionSchedule`, REFERENCE 3.5 to 3.8). It must suit the renderer's `prediction`.

    `motion_score`, `plan_frames`: how much motion and how many semantic frames the planner is told; None is its null.
    The release has no null: it tells 0.1, and the number of frames that it then plans. For an endless video that is
    one GOP and its `context_gops`.

    `shared_noise`: all frames of a chunk start from the same noise, so that what stands still looks the same in each
    (`mini`, trained so), or each frame from its own (the release).

    `context_mix`: share, in each new latent of a chunk, of a second rendering in one step that has the plan but no
    context. Flaws that chunks hand on then fade instead of growing over minutes. Empty for none.

    `first_chunk_length`: half a window in the paper; the release has only ever rendered whole windows. The lengths of
    later chunks follow a comment in the release (REFERENCE 6.1).
    """

    name: str
    height_px: int
    width_px: int
    fps: float
    steps: int  # denoising steps of a chunk
    text: SmallT5Config | PublishedTextConfig  # one small encoder for both stages, or the release's two
    theia: TheiaConfig
    tokenizer: TokenizerConfig
    planner: PlannerConfig
    sampling: SamplingConfig  # of the planner's tokens
    renderer: RendererConfig
    schedule: FlowSchedule | DiffusionSchedule
    vae: TinyVAEConfig | VAEConfig
    reader: PromptReaderConfig | None = None  # of prompts in whatever words, before a small text encoder
    enlarger: EnlargerConfig | None = None  # of large pictures, which a small autoencoder can have
    picture: str = "small"  # one of PICTURES; "large" is SCALE times as wide, high and many frames as the stages know
    motion_score: float | None = None
    plan_frames: int | None = None
    shared_noise: bool = False
    context_mix: tuple[float, ...] = ()
    context_length: int = 7  # latents that a chunk reads again from the chunks before
    chunk_length: int = 6  # new latents of every chunk but the first
    first_chunk_length: int = 7  # new latents of the first chunk, which has no context

    def __post_init__(self) -> None:
        if self.picture not in PICTURES or (self.picture == "large" and self.enlarger is None):
            own = ", ".join(PICTURES if self.enlarger is not None else PICTURES[1:])
            raise ValueError(f"preset {self.name!r} has no picture {self.picture!r}; it has {own}")
        self._check_lengths()
        self._check_stages()

    def _check_lengths(self) -> None:
        window = self.renderer.dit.frames
        if self.context_length + self.chunk_length != window:
            raise ValueError(
                f"context_length {self.context_length} and chunk_length {self.chunk_length} do not fill a window of "
                f"{window}"
            )
        if not self.context_length <= self.first_chunk_length <= window:
            raise ValueError(
                f"first_chunk_length {self.first_chunk_length} must be at least context_length {self.context_length} "
                f"and fit a window of {window}"
            )
        if self.renderer.condition.details is not None and self.chunk_length % 2:
            raise ValueError(
                f"chunk_length {self.chunk_length} is odd, but a renderer with a sketch begins windows at even latents"
            )
        shares = self.context_mix
        if len(shares) not in (0, self.chunk_length) or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"context_mix {shares} must be {self.chunk_length} shares from 0 to 1, or none")

    def _check_stages(self) -> None:
        made, read = self.tokenizer.feature_dim, self.renderer.condition.feature_dim
        if made != read:
            raise ValueError(f"the tokenizer makes {made} feature channels, the renderer reads {read}")
        made, read = self.vae.latent_channels, self.renderer.dit.channels
        if made != read:
            raise ValueError(f"the autoencoder has {made} latent channels, the renderer {read}")
        prediction, needed = self.renderer.prediction, "x0" if isinstance(self.schedule, FlowSchedule) else "v"
        if prediction != needed:
            raise ValueError(f"a {type(self.schedule).__name__} needs prediction {needed!r}, not {prediction!r}")
        if not self.planner.null_micro and None in (self.motion_score, self.plan_frames):
            raise ValueError(
                f"a planner without null_micro must be told motion_score {self.motion_score} and plan_frames "
                f"{self.plan_frames}"
            )

    def with_picture(self, picture: str) -> EngineConfig:
        """The same preset with small or large pictures. Raises ValueError if it has none of them."""
        scale = SCALE if picture == "large" else 1
        height_px, width_px = (scale * side // self.scale for side in (self.height_px, self.width_px))
        return replace(self, picture=picture, height_px=height_px, width_px=width_px, fps=scale * self.fps / self.scale)

    @property
    def published(self) -> bool:
        """Whether the weights are the release's, with its files, names and text encoders."""
        return isinstance(self.text, PublishedTextConfig)

    @property
    def attention_shape(self) -> tuple[int, int, int, int]:
        """[B, H, N, D] of the renderer's longest attention, over a whole window."""
        dit = self.renderer.dit
        return 1, dit.heads, dit.text_length + dit.frames * dit.frame_tokens, dit.hidden // dit.heads

    @property
    def least_steps(self) -> int:
        """The fewest denoising steps that a chunk can take."""
        return 1 if isinstance(self.schedule, FlowSchedule) else 2

    @property
    def scale(self) -> int:
        """Width, height and frame rate, over those that the stages before the autoencoder know."""
        return SCALE if self.picture == "large" else 1

    @property
    def frames_per_latent(self) -> int:
        """Video frames of every latent but the first."""
        return self.scale * FRAMES_PER_LATENT

    @property
    def latents_per_s(self) -> float:
        """Latents, and semantic frames, of a second of video."""
        return self.fps / self.frames_per_latent

    @property
    def chunk_tokens(self) -> int:
        """Tokens of the plan of a chunk that begins with a GOP."""
        return self.tokenizer.offsets[self.chunk_length]

    @property
    def chunk_frames(self) -> int:
        """Video frames of every chunk but the first."""
        return frames_of(self.chunk_length, True, self.frames_per_latent)

    @property
    def first_chunk_frames(self) -> int:
        """Video frames of the first chunk."""
        return frames_of(self.first_chunk_length, False, self.frames_per_latent)

    @property
    def chunk_s(self) -> float:
        """Seconds of video of every chunk but the first."""
        return self.chunk_frames / self.fps


def _mini() -> EngineConfig:
    grid, feature_dim, i_tokens, p_tokens, codebook_size = (8, 12), 51, 32, 8, 1024
    text = SmallT5Config(hidden=128, layers=2, heads=4, mlp=256, vocabulary=256, max_length=24)
    vae = TinyVAEConfig()
    theia = TheiaConfig(
        hidden=128, layers=4, heads=4, mlp=512, image_size=192, patch=16, canvas=192, output_shape=grid,
        feature_dim=feature_dim,
    )  # fmt: skip
    quantizer = QuantizerConfig(
        dim=128, codebook_size=codebook_size, codebook_dim=16, metric="cosine", decay=0.98, dead_threshold=0.1
    )
    tokenizer = TokenizerConfig(
        feature_dim=feature_dim, grid=grid, patch=4, width=128, layers=2, heads=4, i_tokens=i_tokens,
        p_tokens=p_tokens, learned_positions=True, quantizer=quantizer,
    )  # fmt: skip
    planner = PlannerConfig(
        hidden=256, layers=4, heads=4, mlp=704, codebook_size=codebook_size, text_dim=text.hidden, micro_freq=64,
        micro_hidden=64, i_tokens=i_tokens, p_tokens=p_tokens, context_gops=1, pooled_text=True, null_micro=True,
    )  # fmt: skip
    dit = DiTConfig(
        hidden=192, heads=3, layers=3, patch=4, frames=13, height=16, width=24, channels=vae.latent_channels,
        time_dim=128, time_scale=1000.0, text_length=text.max_length, text_dim=text.hidden, position_scale=1.0,
        half_causal=True, head="conv", head_width=96, head_blocks=3, head_details=113,
    )  # fmt: skip
    details = DetailsConfig(grid=grid, sketch=SketchConfig(twins=TWINS))
    condition = ConditionConfig(
        feature_dim=feature_dim, width=64, multipliers=(1.0, 1.0), blocks=1, out_channels=48,
        latent_channels=vae.latent_channels, groups=8, details=details,
    )  # fmt: skip
    return EngineConfig(
        name="mini",
        height_px=128,
        width_px=192,
        fps=8.0,
        steps=4,
        text=text,
        theia=theia,
        tokenizer=tokenizer,
        planner=planner,
        sampling=SamplingConfig(guidance=2.0, temperature=0.25),
        renderer=RendererConfig(dit=dit, condition=condition, control_layers=3, prediction="x0"),
        schedule=FlowSchedule(),
        vae=vae,
        reader=PromptReaderConfig(),
        enlarger=EnlargerConfig(),
        shared_noise=True,
        context_mix=(0.1, 0.2, 0.3, 0.4, 0.5, 0.5),
    )


def _landiff() -> EngineConfig:
    """The published model: every stage's defaults are its sizes.

    The planner's guidance is the release's default; its example and the paper have 6.5. One GOP of context lets a
    GOP continue the one before it, as the release's planner does when it is asked for two.
    """
    planner = PlannerConfig(context_gops=1)
    return EngineConfig(
        name="landiff",
        height_px=480,
        width_px=720,
        fps=8.0,
        steps=50,
        text=PublishedTextConfig(),
        theia=TheiaConfig(),
        tokenizer=TokenizerConfig(),
        planner=planner,
        sampling=SamplingConfig(),
        renderer=RendererConfig(),
        schedule=DiffusionSchedule(),
        vae=VAEConfig(),
        motion_score=0.1,
        plan_frames=(1 + planner.context_gops) * planner.gop_frames,
        first_chunk_length=13,
    )


PRESETS = {"mini": _mini, "landiff": _landiff}


def preset(name: str, picture: str = "small") -> EngineConfig:
    """The preset's configuration, with small or large pictures.

    Raises:
        ValueError: if there is none of that name, or without such pictures.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]().with_picture(picture)
