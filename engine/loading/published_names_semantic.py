"""Names of the published weights against ours, for the semantic half.

A rule is (pattern that matches a whole published name, our name with \\1, \\2, ... for the pattern's groups). Patterns
are plain text with escaped dots and unnested groups, each used once on the other side, so a rule also reads backwards.
"""

from __future__ import annotations

import re
from functools import lru_cache

Rules = tuple[tuple[str, str], ...]

_GROUP = re.compile(r"\([^()]*\)")
_REFERENCE = re.compile(r"\\(\d)")

TOKENIZER: Rules = (
    (r"(mean|std)", r"\1"),
    (r"encoder\.IFrame_latent_tokens", r"encoder.i_queries"),
    (r"encoder\.PFrame_latent_tokens", r"encoder.p_queries"),
    (r"encoder\.proj_out\.(weight|bias)", r"encoder.project.\1"),
    (r"encoder\.patch_embed\.(weight|bias)", r"encoder.patch_embed.\1"),
    (r"decoder\.mask_token", r"decoder.mask_token"),
    (r"decoder\.decoder_embed\.(weight|bias)", r"decoder.embed.\1"),
    (r"decoder\.ffn\.0\.(weight|bias)", r"decoder.head_in.\1"),
    (r"decoder\.ffn\.2\.(weight|bias)", r"decoder.head_out.\1"),
    (r"(encoder|decoder)\.ln_pre\.(weight|bias)", r"\1.norm_in.\2"),
    (r"(encoder|decoder)\.ln_post\.(weight|bias)", r"\1.norm_out.\2"),
    (r"(encoder|decoder)\.transformer\.(\d+)\.ln_1\.(weight|bias)", r"\1.blocks.\2.attention_norm.\3"),
    (r"(encoder|decoder)\.transformer\.(\d+)\.ln_2\.(weight|bias)", r"\1.blocks.\2.mlp_norm.\3"),
    (r"(encoder|decoder)\.transformer\.(\d+)\.attn\.wq\.weight", r"\1.blocks.\2.attention.query.weight"),
    (r"(encoder|decoder)\.transformer\.(\d+)\.attn\.wk\.weight", r"\1.blocks.\2.attention.key.weight"),
    (r"(encoder|decoder)\.transformer\.(\d+)\.attn\.wv\.weight", r"\1.blocks.\2.attention.value.weight"),
    (r"(encoder|decoder)\.transformer\.(\d+)\.attn\.wo\.weight", r"\1.blocks.\2.attention.out.weight"),
    (r"(encoder|decoder)\.transformer\.(\d+)\.mlp\.c_fc\.(weight|bias)", r"\1.blocks.\2.up.\3"),
    (r"(encoder|decoder)\.transformer\.(\d+)\.mlp\.c_proj\.(weight|bias)", r"\1.blocks.\2.down.\3"),
    (r"quantizer\.(project_in|project_out)\.(weight|bias)", r"quantizer.\1.\2"),
    (r"quantizer\._codebook\.initted", r"quantizer.initialized"),
    (r"quantizer\._codebook\.cluster_size", r"quantizer.cluster_size"),
    (r"quantizer\._codebook\.embed_avg", r"quantizer.code_sum"),
    (r"quantizer\._codebook\.embed", r"quantizer.codes"),
)

PLANNER: Rules = (
    (r"cond_model\.null_text_embedding", r"null_text"),
    (r"cond_model\.embeddings\.fc0\.(weight|bias)", r"text_in.\1"),
    (r"cond_model\.embeddings\.fc1\.(weight|bias)", r"text_out.\1"),
    (r"micro_condition\.mlps\.frames\.0\.(weight|bias)", r"frames.enter.\1"),
    (r"micro_condition\.mlps\.frames\.2\.(weight|bias)", r"frames.leave.\1"),
    (r"micro_condition\.mlps\.motion_score\.0\.(weight|bias)", r"motion.enter.\1"),
    (r"micro_condition\.mlps\.motion_score\.2\.(weight|bias)", r"motion.leave.\1"),
    (r"visual_embedding_model\.tok_emb_code\.weight", r"tokens.weight"),
    (r"transformer\.blocks\.(\d+)\.norm0\.weight", r"blocks.\1.attention_norm.weight"),
    (r"transformer\.blocks\.(\d+)\.norm1\.weight", r"blocks.\1.mlp_norm.weight"),
    (r"transformer\.blocks\.(\d+)\.wqkv\.weight", r"blocks.\1.qkv.weight"),
    (r"transformer\.blocks\.(\d+)\.wo\.weight", r"blocks.\1.out.weight"),
    (r"transformer\.blocks\.(\d+)\.mlp\.w1\.weight", r"blocks.\1.gate.weight"),
    (r"transformer\.blocks\.(\d+)\.mlp\.w2\.weight", r"blocks.\1.down.weight"),
    (r"transformer\.blocks\.(\d+)\.mlp\.w3\.weight", r"blocks.\1.up.weight"),
    (r"transformer\.layer_norm\.(weight|bias)", r"norm.\1"),
    (r"transformer\.head\.weight", r"head.weight"),
)

THEIA: Rules = (
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.position_embeddings", r"positions"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.\1"),
    (r"layers\.(\d+)\.layernorm_before\.(weight|bias)", r"blocks.\1.attention_norm.\2"),
    (r"layers\.(\d+)\.layernorm_after\.(weight|bias)", r"blocks.\1.mlp_norm.\2"),
    (r"layers\.(\d+)\.attention\.q_proj\.(weight|bias)", r"blocks.\1.query.\2"),
    (r"layers\.(\d+)\.attention\.k_proj\.(weight|bias)", r"blocks.\1.key.\2"),
    (r"layers\.(\d+)\.attention\.v_proj\.(weight|bias)", r"blocks.\1.value.\2"),
    (r"layers\.(\d+)\.attention\.o_proj\.(weight|bias)", r"blocks.\1.out.\2"),
    (r"layers\.(\d+)\.mlp\.fc1\.(weight|bias)", r"blocks.\1.up.\2"),
    (r"layers\.(\d+)\.mlp\.fc2\.(weight|bias)", r"blocks.\1.down.\2"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
)

_THEIA_RELEASED: Rules = (
    (r"backbone\.model\.embeddings\.cls_token", r"cls_token"),
    (r"backbone\.model\.embeddings\.position_embeddings", r"positions"),
    (r"backbone\.model\.embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.\1"),
    (r"backbone\.model\.encoder\.layer\.(\d+)\.layernorm_before\.(weight|bias)", r"blocks.\1.attention_norm.\2"),
    (r"backbone\.model\.encoder\.layer\.(\d+)\.layernorm_after\.(weight|bias)", r"blocks.\1.mlp_norm.\2"),
    (r"backbone\.model\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)",
     r"blocks.\1.\2.\3"),
    (r"backbone\.model\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.out.\2"),
    (r"backbone\.model\.encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"blocks.\1.up.\2"),
    (r"backbone\.model\.encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"blocks.\1.down.\2"),
    (r"backbone\.model\.layernorm\.(weight|bias)", r"norm.\1"),
)  # fmt: skip

THEIA_SPELLINGS: tuple[Rules, ...] = (
    _THEIA_RELEASED,
    tuple((r"backbone\.model\." + pattern, name) for pattern, name in THEIA),
    THEIA,
)
"""The file as published, written with transformers 4; as version 5 writes it; and the transformer on its own."""


def to_ours(name: str, rules: Rules) -> str:
    """Our name of a published tensor; KeyError if no rule knows it."""
    return _apply(name, rules)


def to_published(name: str, rules: Rules) -> str:
    """The published name of one of our tensors; KeyError if no rule knows it."""
    return _apply(name, _reversed(rules))


def _apply(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise KeyError(f"no renaming rule knows the tensor {name!r}")


@lru_cache(maxsize=16)
def _reversed(rules: Rules) -> Rules:
    return tuple(_reverse(pattern, replacement) for pattern, replacement in rules)


def _reverse(pattern: str, replacement: str) -> tuple[str, str]:
    groups = _GROUP.findall(pattern)
    order = [int(number) for number in _REFERENCE.findall(replacement)]
    if sorted(order) != list(range(1, len(groups) + 1)):
        raise ValueError(f"rule {pattern!r} -> {replacement!r} does not use each group once, so it has no inverse")
    texts = _REFERENCE.split(replacement)[::2]
    back = re.escape(texts[0]) + "".join(
        groups[number - 1] + re.escape(text) for number, text in zip(order, texts[1:], strict=True)
    )
    numbers = iter(order.index(number) + 1 for number in range(1, len(groups) + 1))
    return back, _GROUP.sub(lambda _: f"\\{next(numbers)}", pattern.replace(r"\.", "."))
