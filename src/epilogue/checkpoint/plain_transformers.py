"""What transformers' own MPT makes of an architecture, without this program: read in its source, held by a test."""

from epilogue.model import MPTConfig


def misread_by_transformers(config: MPTConfig) -> list[str]:
    """Where transformers' own MPT (5.x, models/mpt) computes something else, a clause each; empty if nowhere.

    Its limit of max_seq_len tokens is no wrong result, so it is not among these.
    """
    attention = config.attn_config
    findings = (
        (not attention.alibi, "it adds ALiBi's biases, which this model has not"),
        (
            attention.alibi and attention.alibi_bias_max != 8,
            f"it takes alibi_bias_max for 8, and this model has {attention.alibi_bias_max:g}: every head looks back as "
            f"far as another should",
        ),
        (attention.qk_ln or attention.qk_gn, "it leaves out the norms on queries and keys"),
        (attention.attn_type != "multihead_attention", f"it does not load {attention.attn_type}"),
        (config.expansion_ratio != 4, "it does not load a feed-forward that is not four times as wide as the model"),
        (not config.no_bias or config.has_qkv_bias, "it leaves out the biases"),
        (config.logit_scale is not None, "it leaves out logit_scale"),
        ("rmsnorm" in config.norm_type, f"it runs a LayerNorm in place of {config.norm_type}"),
    )
    return [clause for is_so, clause in findings if is_so]
