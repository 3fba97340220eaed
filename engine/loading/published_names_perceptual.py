"""Names of the published weights against ours, for the perceptual half; rules as in `published_names_semantic`."""

from __future__ import annotations

import re

from engine.loading.published_names_semantic import TOKENIZER, Rules


def _under(published: str, ours: str, rules: Rules) -> Rules:
    """`rules` for what stands behind a prefix: a pattern that may hold groups, and our name with their numbers."""
    groups = published.count("(")

    def shifted(replacement: str) -> str:
        return re.sub(r"\\(\d)", lambda number: f"\\{int(number[1]) + groups}", replacement)

    return tuple((published + pattern, ours + shifted(replacement)) for pattern, replacement in rules)


_TRUNK: Rules = (
    (r"mixins\.pos_embed\.pos_embedding", r"positions"),
    (r"mixins\.patch_embed\.proj\.(weight|bias)", r"patch.\1"),
    (r"mixins\.patch_embed\.text_proj\.(weight|bias)", r"text.\1"),
    (r"mixins\.adaln_layer\.adaLN_modulations\.(\d+)\.1\.(weight|bias)", r"blocks.\1.modulation.\2"),
    (r"mixins\.adaln_layer\.query_layernorm_list\.(\d+)\.(weight|bias)", r"blocks.\1.query_norm.\2"),
    (r"mixins\.adaln_layer\.key_layernorm_list\.(\d+)\.(weight|bias)", r"blocks.\1.key_norm.\2"),
    (r"transformer\.layers\.(\d+)\.input_layernorm\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"transformer\.layers\.(\d+)\.attention\.query_key_value\.(weight|bias)", r"blocks.\1.qkv.\2"),
    (r"transformer\.layers\.(\d+)\.attention\.dense\.(weight|bias)", r"blocks.\1.out.\2"),
    (r"transformer\.layers\.(\d+)\.post_attention_layernorm\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (r"transformer\.layers\.(\d+)\.mlp\.dense_h_to_4h\.(weight|bias)", r"blocks.\1.mlp_in.\2"),
    (r"transformer\.layers\.(\d+)\.mlp\.dense_4h_to_h\.(weight|bias)", r"blocks.\1.mlp_out.\2"),
    (r"transformer\.final_layernorm\.(weight|bias)", r"final_norm.\1"),
    (r"time_embed\.(0|2)\.(weight|bias)", r"time.\1.\2"),
)

_HEAD: Rules = (
    (r"mixins\.final_layer\.norm_final\.(weight|bias)", r"head.norm.norm.\1"),
    (r"mixins\.final_layer\.adaLN_modulation\.1\.(weight|bias)", r"head.norm.modulation.\1"),
    (r"mixins\.final_layer\.linear\.(weight|bias)", r"head.linear.\1"),
)

_ZEROS: Rules = ((r"mixins\.adaln_layer\.zero_linears\.(\d+)\.weight", r"zeros.\1.weight"),)

_PLAIN_BLOCK: Rules = (
    (r"(norm1|norm2|conv1|conv2)\.(weight|bias)", r"\1.\2"),
    (r"nin_shortcut\.(weight|bias)", r"shortcut.\1"),
)

CONDITION: Rules = (
    (r"upsample_model\.(conv_in|norm_out|conv_out)\.(weight|bias)", r"upsampler.\1.\2"),
    *_under(r"upsample_model\.mid\.block_1\.", "upsampler.middle.0.", _PLAIN_BLOCK),
    *_under(r"upsample_model\.mid\.block_2\.", "upsampler.middle.1.", _PLAIN_BLOCK),
    *_under(r"upsample_model\.up\.(\d+)\.block\.(\d+)\.", r"upsampler.levels.\1.blocks.\2.", _PLAIN_BLOCK),
    (r"upsample_model\.up\.(\d+)\.upsample\.conv\.(weight|bias)", r"upsampler.levels.\1.upsample.\2"),
    (r"conv_out\.(weight|bias)", r"project.\1"),
)
"""The condition module on its own."""

BASE: Rules = _under(r"model\.diffusion_model\.", "base.", _TRUNK + _HEAD)
"""The CogVideoX transformer file -> `DiTRenderer`."""

_CONTROL_PREFIX = r"model\.control_model\.diffusion_model\."
_SEMANTIC_PREFIX = _CONTROL_PREFIX + r"semantic_conditioner\."

DIFFUSION: Rules = (
    *_under(_CONTROL_PREFIX, "control.", _TRUNK + _ZEROS),
    *_under(_SEMANTIC_PREFIX, "condition.", CONDITION),
    *_under(_SEMANTIC_PREFIX + r"semantic_model\.model\.", "tokenizer.", TOKENIZER),
)
"""The diffusion file -> `DiTRenderer` and, under `tokenizer.`, the copy of the tokenizer that it holds."""

_SPATIAL_NORM: Rules = (
    (r"norm_layer\.(weight|bias)", r"norm.\1"),
    (r"conv_y\.conv\.(weight|bias)", r"scale.\1"),
    (r"conv_b\.conv\.(weight|bias)", r"shift.\1"),
)

_CAUSAL_BLOCK: Rules = (
    (r"(conv1|conv2)\.conv\.(weight|bias)", r"\1.\2"),
    (r"(norm1|norm2)\.(weight|bias)", r"\1.\2"),
    *_under(r"(norm1|norm2)\.", r"\1.", _SPATIAL_NORM),
    (r"nin_shortcut\.(weight|bias)", r"shortcut.\1"),
)

_VAE_HALF: Rules = (
    (r"(conv_in|conv_out)\.conv\.(weight|bias)", r"\1.\2"),
    *_under(r"mid\.block_1\.", "middle.0.", _CAUSAL_BLOCK),
    *_under(r"mid\.block_2\.", "middle.1.", _CAUSAL_BLOCK),
)

VAE: Rules = (
    *_under(r"(encoder|decoder)\.", r"\1.", _VAE_HALF),
    *_under(r"encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.levels.\1.blocks.\2.", _CAUSAL_BLOCK),
    (r"encoder\.down\.(\d+)\.downsample\.conv\.(weight|bias)", r"encoder.levels.\1.downsample.\2"),
    (r"encoder\.norm_out\.(weight|bias)", r"encoder.norm_out.\1"),
    *_under(r"decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.levels.\1.blocks.\2.", _CAUSAL_BLOCK),
    (r"decoder\.up\.(\d+)\.upsample\.conv\.(weight|bias)", r"decoder.levels.\1.upsample.\2"),
    *_under(r"decoder\.norm_out\.", "decoder.norm_out.", _SPATIAL_NORM),
)
"""The VAE file, both halves."""
