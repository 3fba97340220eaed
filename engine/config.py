"""Presets: one name for the sizes of every stage, and the geometry that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.perceptual.cogvideox.vae import VAEConfig
from engine.perceptual.dit import DiTConfig
from engine.perceptual.mini.details import DetailsConfig
from engine.perceptual.mini.vae import TinyVAEConfig
from engine.perceptual.renderer import RendererConfig
from engine.perceptual.schedule import DiffusionSchedule, FlowSchedule
from engine.perceptual.upsampler import ConditionConfig
from engine.semantic.planner import PlannerConfig
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.sampling import SamplingConfig
from engine.semantic.theia import TheiaConfig
from engine.semantic.tokenizer import TokenizerConfig
from engine.text.published import PublishedTextConfig
from engine.text.small_t5 import TextConfig

FRAMES_PER_LATENT = 4


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One model, whole. Frames are video frames unless a name says latent; one latent stands for four.

    What presets do differently, beyond sizes:

    `text`: one small encoder for both stages (`TextConfig`), or the release's two (`PublishedTextConfig`).

    `vae`: 2-D convolutions with memory (`TinyVAEConfig`), or the published 3-D ones (`VAEConfig`).

    `schedule`: the renderer runs a rectified flow without guidance (`FlowSchedule`), or the published stochastic
    sampler with its guidance (`DiffusionSchedule`, FACTS 3.5 to 3.8). It must suit the renderer's `prediction`.

    `prompt_half`: how the frames that are given stand before every denoising step. 'clean' is what the paper says and
    the release's losses do; 'renoised' brings them to the step's noise level with a new draw, which is an unused option
    of the release's sampler ("sdedit", FACTS 6). Which of them the published weights take better is not known.

    `shared_noise`: all frames of a hop start from the same noise, so that what stands still looks the same in each of
    them (`mini`, trained so), or each from its own (the release).

    `motion_score` and `plan_frames`, what the planner is told of motion and of the video's semantic frames; None is its
    own null. The release has no null: it tells 0.1, and the number of frames that it then plans. A video without end
    has no such number; what a planner with `context_groups` has before it is that and one group.

    `anchors`: for each new latent of a hop, the share in it of a second rendering that has the plan but no prompt half.
    Flaws that one prompt half hands on to the next then fade, where else they pile up over minutes. Empty for none.

    `reuse`: how far a step's time embedding may have moved, relative to itself, for the step to take the layers' work
    of an earlier one (`engine.perceptual.reuse`). It changes the video; 0 lets the layers run at every step.

    `first_latents`: latents of the first hop, which has no prompt half. The paper begins with half a window; the
    release has only ever rendered whole ones, so its weights begin with one. `prompt_latents` and `new_latents` of all
    other hops follow a comment in the release, 7 of 13 given.
    """

    name: str
    height_px: int
    width_px: int
    fps: float
    steps: int  # denoising steps of a hop
    text: TextConfig | PublishedTextConfig
    theia: TheiaConfig
    tokenizer: TokenizerConfig
    planner: PlannerConfig
    sampling: SamplingConfig  # of the planner's codes
    renderer: RendererConfig
    schedule: FlowSchedule | DiffusionSchedule
    vae: TinyVAEConfig | VAEConfig
    motion_score: float | None = None
    plan_frames: int | None = None
    prompt_half: str = "clean"
    shared_noise: bool = False
    anchors: tuple[float, ...] = ()
    reuse: float = 0.0
    prompt_latents: int = 7
    new_latents: int = 6
    first_latents: int = 7

    def __post_init__(self) -> None:
        dit = self.renderer.dit
        if self.prompt_latents + self.new_latents != dit.frames:
            raise ValueError(
                f"{self.prompt_latents} prompt and {self.new_latents} new latents do not fill a window of {dit.frames}"
            )
        if not self.prompt_latents <= self.first_latents <= dit.frames:
            raise ValueError(
                f"a first hop of {self.first_latents} latents gives no {self.prompt_latents} prompt latents within a "
                f"window of {dit.frames}"
            )
        if self.renderer.condition.details is not None and self.new_latents % 2:
            raise ValueError(
                f"{self.new_latents} new latents a hop are odd, but a renderer with a sketch takes windows to begin at "
                "even ones"
            )
        if self.tokenizer.feature_dim != self.renderer.condition.feature_dim:
            raise ValueError(
                f"the tokenizer makes {self.tokenizer.feature_dim} feature channels, the renderer reads "
                f"{self.renderer.condition.feature_dim}"
            )
        if self.vae.latent_channels != dit.channels:
            raise ValueError(
                f"the autoencoder has {self.vae.latent_channels} latent channels, the renderer {dit.channels}"
            )
        self._check_modes()

    def _check_modes(self) -> None:
        prediction, needed = self.renderer.prediction, "x0" if isinstance(self.schedule, FlowSchedule) else "v"
        if prediction != needed:
            raise ValueError(f"a {type(self.schedule).__name__} needs prediction {needed!r}, not {prediction!r}")
        if self.prompt_half not in ("clean", "renoised"):
            raise ValueError(f"prompt_half {self.prompt_half!r} is neither 'clean' nor 'renoised'")
        if self.prompt_half == "renoised" and self.renderer.dit.per_half_time:
            raise ValueError("prompt_half 'renoised' needs one time for all frames, but the renderer has per_half_time")
        if len(self.anchors) not in (0, self.new_latents) or not all(0 <= share <= 1 for share in self.anchors):
            raise ValueError(f"anchors {self.anchors} must be {self.new_latents} shares from 0 to 1, or none")
        if not 0 <= self.reuse < float("inf"):
            raise ValueError(f"reuse {self.reuse} is not a number from 0 on")
        if not self.planner.null_micro and None in (self.motion_score, self.plan_frames):
            raise ValueError(
                f"a planner without null_micro must be told motion_score {self.motion_score} and plan_frames "
                f"{self.plan_frames}"
            )

    @property
    def published(self) -> bool:
        """Whether the weights are the release's, with its files, names and text encoders."""
        return isinstance(self.text, PublishedTextConfig)

    @property
    def hop_frames(self) -> int:
        """Frames of every hop but the first."""
        return self.new_latents * FRAMES_PER_LATENT

    @property
    def first_hop_frames(self) -> int:
        return 1 + (self.first_latents - 1) * FRAMES_PER_LATENT

    @property
    def hop_s(self) -> float:
        """Seconds of video of every hop but the first."""
        return self.hop_frames / self.fps

    def guided(self, guidance: float | None) -> EngineConfig:
        """The same with other guidance of the planner's codes; None leaves the preset's own."""
        return self if guidance is None else replace(self, sampling=replace(self.sampling, guidance=guidance))


def _mini() -> EngineConfig:
    quantizer = QuantizerConfig(
        dim=128, codebook_size=1024, codebook_dim=16, metric="cosine", decay=0.98, dead_threshold=0.1
    )
    tokenizer = TokenizerConfig(
        feature_dim=51,
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
        head="conv", head_width=96, head_blocks=3, head_details=113,
    )  # fmt: skip
    condition = ConditionConfig(
        feature_dim=51, width=64, multipliers=(1.0, 1.0), blocks=1, out_channels=48, latent_channels=24, groups=8,
        details=DetailsConfig(grid=(8, 12)),
    )  # fmt: skip
    return EngineConfig(
        name="mini",
        height_px=128,
        width_px=192,
        fps=8.0,
        steps=4,
        text=TextConfig(hidden=128, layers=2, heads=4, mlp=256, vocabulary=256, max_length=24),
        theia=TheiaConfig(
            hidden=128, layers=4, heads=4, mlp=512, image_size=192, patch=16, canvas=192, output_shape=(8, 12),
            feature_dim=51,
        ),
        tokenizer=tokenizer,
        planner=PlannerConfig(
            hidden=256, layers=4, heads=4, mlp=704, codebook_size=1024, text_dim=128, micro_freq=64, micro_hidden=64,
            i_tokens=32, p_tokens=8, context_groups=1, pooled_text=True, null_micro=True,
        ),
        sampling=SamplingConfig(guidance=2.0, temperature=0.25),
        renderer=RendererConfig(dit=dit, condition=condition, control_layers=3, prediction="x0"),
        schedule=FlowSchedule(),
        vae=TinyVAEConfig(),
        shared_noise=True,
        anchors=(0.1, 0.2, 0.3, 0.4, 0.5, 0.5),
    )  # fmt: skip


def _landiff() -> EngineConfig:
    """The published model: every stage's defaults are its sizes.

    The planner's guidance is the release's default; its example and the paper have 6.5. One group of context lets a
    group continue the one before it, as the release's planner does when it is asked for two.
    """
    planner = PlannerConfig(context_groups=1)
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
        plan_frames=(1 + planner.context_groups) * planner.group_frames,
        first_latents=13,
    )


def _mini_arlon() -> EngineConfig:
    """`mini` without semantic features, to compare with (paper 3.3): as in ARLON, what is planned are the
    autoencoder's own latents, quantised, 2x2 neighbours side by side so that the grid is the same."""
    mini = _mini()
    channels = 4 * mini.vae.latent_channels
    renderer = replace(mini.renderer, condition=replace(mini.renderer.condition, feature_dim=channels))
    return replace(mini, name="mini-arlon", tokenizer=replace(mini.tokenizer, feature_dim=channels), renderer=renderer)


PRESETS = {"mini": _mini, "mini-arlon": _mini_arlon, "landiff": _landiff}


def preset(name: str) -> EngineConfig:
    """The preset's configuration.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
