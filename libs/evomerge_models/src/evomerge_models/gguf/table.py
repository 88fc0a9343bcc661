"""The architectures of GGUF that are written and read, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge_models.gguf.architectures import ANY_BIAS, Architecture, Field, field_of
from evomerge_models.gguf.hyperparameters import EPSILON, RMS_EPSILON

_QKV = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
_ATTENTION = {**_QKV, "attn_output": "self_attn.o_proj"}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_FUSED_MLP = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.*.gate_proj", "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}  # fmt: skip
_SHARED_EXPERTS = {
    f"ffn_{kind}_shexp": f"mlp.shared_experts.{kind}_proj" for kind in ("gate", "up", "down")
}  # fmt: skip
_CORRECTION = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
_LATENT = {
    "attn_q": "self_attn.q_proj", "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_kv_b": "self_attn.kv_b_proj", "attn_output": "self_attn.o_proj",
}  # fmt: skip
_LLAMA = {**_ATTENTION, **_MLP, **_NORMS}
_GEMMA = {**_ATTENTION, **_MLP, **_POST_NORMS, "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
_GRANITE_MOE = {
    **_ATTENTION, **_NORMS, "ffn_gate_inp": "block_sparse_moe.router.layer",
    "ffn_gate_exps": "block_sparse_moe.input_linear[0]", "ffn_up_exps": "block_sparse_moe.input_linear[1]",
    "ffn_down_exps": "block_sparse_moe.output_linear",
}  # fmt: skip

_WIDTHS = (
    field_of("context_length", "max_position_embeddings"), field_of("embedding_length", "hidden_size"),
    field_of("block_count", "num_hidden_layers"), field_of("feed_forward_length", "intermediate_size"),
    field_of("attention.head_count", "num_attention_heads"),
)  # fmt: skip
_SIZES = (
    *_WIDTHS,
    field_of("attention.head_count_kv", "num_key_value_heads", default=lambda config: config["num_attention_heads"]),
)
_RMS = (*_SIZES, field_of(RMS_EPSILON, "rms_norm_eps", float, 1e-6))
_LAYER_NORM = (*_SIZES, field_of(EPSILON, "layer_norm_eps", float, 1e-5))
_ROUTED = (
    field_of("expert_count", "num_experts|num_local_experts"), field_of("expert_used_count", "num_experts_per_tok"),
)  # fmt: skip
_NARROW = (*_ROUTED, field_of("expert_feed_forward_length", "moe_intermediate_size"))
_DENSE_FIRST = field_of("leading_dense_block_count", "first_k_dense_replace", default=0)
_SHARED = (
    _DENSE_FIRST, field_of("expert_count", "n_routed_experts"), *_NARROW[1:],
    field_of("expert_shared_count", "n_shared_experts"),
    field_of("expert_weights_scale", "routed_scaling_factor", float, 1.0),
)  # fmt: skip
_GROUPED = (
    field_of("expert_group_count", "n_group", default=1),
    field_of("expert_group_used_count", "topk_group", default=1),
)
_RANKS = (
    field_of("attention.q_lora_rank", "q_lora_rank", default=0), field_of("attention.kv_lora_rank", "kv_lora_rank"),
)  # fmt: skip
_NORMED = field_of("expert_weights_norm", "norm_topk_prob", bool, False)
_SOFTMAX, _SIGMOID = {"expert_gating_func": 1}, {"expert_gating_func": 2}
_WINDOW = field_of("attention.sliding_window", "sliding_window")
_MULTIPLIERS = (
    field_of("logit_scale", "logits_scaling", float, 1.0),
    field_of("embedding_scale", "embedding_multiplier", float, 1.0),
    field_of("residual_scale", "residual_multiplier", float, 1.0),
    field_of("attention.scale", "attention_multiplier", float, 1.0),
)  # fmt: skip
_LOGIT_SCALE = field_of("logit_scale", "logit_scale", float, 0.0625)


def _shared_width(config: Mapping[str, Any]) -> int:
    """How wide experts that are always asked are together."""
    return int(config["moe_intermediate_size"]) * int(config["moe_num_shared_experts"])


def _cap(kind: str, default: float | None) -> Field:
    return field_of(f"{kind}_logit_softcapping", f"{kind}_logit_softcapping", float, default)


_SILU = {"hidden_act": ("silu", "swish")}
_TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_GEMMA_GELU = {"hidden_activation": _TANH_GELU[:2]}
_QK = ("attn_q", "attn_k")
_BIAS = {"attention_bias": "attn_output.bias"}
_QKV_BIAS = {"attention_bias": "attn_q.bias"}
_LLAMA_BIASES = (*_QKV, "attn_output", *_MLP)
_EVERY_EXPERT: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}

_LLAMA_ROW = Architecture(
    "llama", "llama", "LlamaForCausalLM", _LLAMA, _RMS, fixed=_SILU, rotary=_QK, factors=True, biases=_LLAMA_BIASES,
    flags={**_BIAS, "mlp_bias": "ffn_down.bias"},
)  # fmt: skip
ROWS = (
    _LLAMA_ROW,
    replace(_LLAMA_ROW, model_type="mistral", hf_class="MistralForCausalLM", reads={"sliding_window": None}, flags={},
            biases=()),
    Architecture(
        "llama", "mixtral", "MixtralForCausalLM",
        {**_ATTENTION, **_NORMS, "ffn_gate_inp": "block_sparse_moe.gate",
         "ffn_gate_exps": "block_sparse_moe.experts.*.w1", "ffn_down_exps": "block_sparse_moe.experts.*.w2",
         "ffn_up_exps": "block_sparse_moe.experts.*.w3"},
        (*_RMS, *_ROUTED[1:], field_of("expert_count", "num_local_experts")), fixed=_SILU, rotary=_QK, factors=True,
        biases=(),
    ),
    Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", _LLAMA, _RMS, fixed=_SILU),
    Architecture(
        "qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM",
        {**_ATTENTION, **_NORMS, **_EXPERTS, "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
         "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
         "ffn_down_shexp": "mlp.shared_expert.down_proj"},
        (*_RMS, *_NARROW, field_of("expert_shared_feed_forward_length", "shared_expert_intermediate_size")),
        fixed={**_SILU, **_EVERY_EXPERT, "norm_topk_prob": (False,)}, own_head=True, plain_heads=True,
        flags={"qkv_bias": "attn_q.bias"},
    ),
    Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", {**_LLAMA, **_QK_NORMS}, _RMS, fixed=_SILU, flags=_QKV_BIAS),
    Architecture(
        "qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", {**_ATTENTION, **_NORMS, **_QK_NORMS, **_EXPERTS},
        (*_RMS, *_NARROW), fixed={**_SILU, **_EVERY_EXPERT, "norm_topk_prob": (True,)}, flags=_QKV_BIAS,
    ),
    Architecture("gemma", "gemma", "GemmaForCausalLM", _LLAMA, _RMS, norm_shift=1.0, own_head=False, biases=(),
                 fixed={"hidden_act": _TANH_GELU[:2], "use_bidirectional_attention": (None, False)}),
    Architecture(
        "gemma2", "gemma2", "Gemma2ForCausalLM", _GEMMA,
        (*_RMS, replace(_WINDOW, default=4096), _cap("attn", 50.0), _cap("final", 30.0)), norm_shift=1.0,
        own_head=False, window=2, deep=46,
        fixed={**_GEMMA_GELU, "use_bidirectional_attention": (None, False)}, flags=_QKV_BIAS,
    ),
    Architecture(
        "gemma3", "gemma3_text", "Gemma3ForCausalLM", {**_GEMMA, **_QK_NORMS},
        (*_RMS, replace(_WINDOW, default=1024), _cap("final", None)), norm_shift=1.0, window=6, deep=62, both=True,
        flags=_QKV_BIAS,
        fixed={**_GEMMA_GELU, "attn_logit_softcapping": (None,), "use_bidirectional_attention": (False, None)},
    ),
    Architecture(
        "phi2", "phi", "PhiForCausalLM",
        {**_QKV, "attn_output": "self_attn.dense", "attn_norm": "input_layernorm", "ffn_up": "mlp.fc1",
         "ffn_down": "mlp.fc2"},
        _LAYER_NORM, outer={"token_embd": "embed_tokens", "output_norm": "final_layernorm"}, own_head=True,
        biases=ANY_BIAS, plain_heads=True, fixed={"hidden_act": _TANH_GELU, "qk_layernorm": (False,)},
    ),
    Architecture(
        "phi3", "phi3", "Phi3ForCausalLM",
        {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", **_FUSED_MLP, **_NORMS},
        (*_RMS, replace(_WINDOW, default=None)), fixed=_SILU, factors=True, plain_heads=True, biases=(),
    ),
    Architecture(
        "olmo2", "olmo2", "Olmo2ForCausalLM", {**_ATTENTION, **_MLP, **_POST_NORMS, **_QK_NORMS}, _RMS, fixed=_SILU,
        own_head=True, plain_heads=True, biases=(),
    ),
    Architecture(
        "olmo2", "olmo3", "Olmo3ForCausalLM", {**_ATTENTION, **_MLP, **_POST_NORMS, **_QK_NORMS}, (*_RMS, _WINDOW),
        fixed=_SILU, own_head=True, plain_heads=True, window=4, both=True,
        one_base=True, biases=(),
    ),
    Architecture(
        "olmoe", "olmoe", "OlmoeForCausalLM", {**_ATTENTION, **_NORMS, **_QK_NORMS, **_EXPERTS}, (*_RMS, *_ROUTED),
        fixed={**_SILU, "norm_topk_prob": (False,), "clip_qkv": (None,)}, own_head=True, plain_heads=True,
        own_keys=True, biases=(),
    ),
    Architecture(
        "granite", "granite", "GraniteForCausalLM", _LLAMA, (*_RMS, *_MULTIPLIERS), fixed=_SILU, rotary=_QK,
        factors=True, biases=_LLAMA_BIASES, flags={**_BIAS, "mlp_bias": "ffn_down.bias"},
    ),
    Architecture(
        "granitemoe", "granitemoe", "GraniteMoeForCausalLM", _GRANITE_MOE, (*_RMS, *_MULTIPLIERS, *_ROUTED[1:],
        field_of("expert_count", "num_local_experts")), fixed=_SILU, rotary=_QK, factors=True, flags=_BIAS,
        biases=(*_QKV, "attn_output"),
    ),
    Architecture(
        "granitemoe", "granitemoeshared", "GraniteMoeSharedForCausalLM",
        {**_GRANITE_MOE, "ffn_gate_shexp": "shared_mlp.input_linear[0]", "ffn_up_shexp": "shared_mlp.input_linear[1]",
         "ffn_down_shexp": "shared_mlp.output_linear"},
        (*_RMS, *_MULTIPLIERS, *_ROUTED[1:], field_of("expert_count", "num_local_experts"),
         field_of("expert_shared_feed_forward_length", "shared_intermediate_size")),
        fixed=_SILU, rotary=_QK, factors=True, flags=_BIAS, biases=(*_QKV, "attn_output"),
    ),
    Architecture("smollm3", "smollm3", "SmolLM3ForCausalLM", _LLAMA, _RMS, rotary=_QK, no_rope=4, flags=_QKV_BIAS,
                 fixed={**_SILU, "use_sliding_window": (False,)}),
    Architecture(
        "glm4", "glm4", "Glm4ForCausalLM",
        {**_ATTENTION, **_FUSED_MLP, **_NORMS, "post_attention_norm": "post_self_attn_layernorm",
         "post_ffw_norm": "post_mlp_layernorm"},
        _RMS, fixed=_SILU, flags=_QKV_BIAS,
    ),
    Architecture(
        "glm4moe", "glm4_moe", "Glm4MoeForCausalLM",
        {**_ATTENTION, **_QK_NORMS, **_MLP, **_EXPERTS, **_SHARED_EXPERTS, **_CORRECTION,
         "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"},
        (*_RMS, *_SHARED, *_GROUPED, _NORMED), fixed=_SILU, writes=_SIGMOID,
        flags={**_QKV_BIAS, "use_qk_norm": "attn_q_norm.weight"},
    ),
    Architecture(
        "deepseek2", "deepseek_v2", "DeepseekV2ForCausalLM",
        {**_LATENT, **_NORMS, **_MLP, **_EXPERTS, **_SHARED_EXPERTS}, (*_RMS, *_RANKS, *_SHARED), latent=True,
        biases=(), writes=_SOFTMAX, fixed={**_SILU, "topk_method": ("greedy",), "norm_topk_prob": (False,)},
    ),
    Architecture(
        "deepseek2", "deepseek_v3", "DeepseekV3ForCausalLM",
        {**_LATENT, **_NORMS, **_MLP, **_EXPERTS, **_SHARED_EXPERTS, **_CORRECTION},
        (*_RMS, *_RANKS, *_SHARED, *_GROUPED, _NORMED), latent=True, biases=(), writes=_SIGMOID,
        fixed={**_SILU, "rope_interleave": (True,)},
    ),
    Architecture(
        "command-r", "cohere", "CohereForCausalLM", {**_ATTENTION, **_MLP, "attn_norm": "input_layernorm"},
        (*_LAYER_NORM, _LOGIT_SCALE), fixed={**_SILU, "use_qk_norm": (False,)}, own_head=False, plain_heads=True,
        flags=_QKV_BIAS,
    ),
    Architecture(
        "cohere2", "cohere2", "Cohere2ForCausalLM", {**_ATTENTION, **_MLP, "attn_norm": "input_layernorm"},
        (*_LAYER_NORM, _LOGIT_SCALE, _WINDOW), fixed=_SILU, own_head=False, plain_heads=True, window=4, flags=_QKV_BIAS,
    ),
    Architecture(
        "starcoder2", "starcoder2", "Starcoder2ForCausalLM",
        {**_ATTENTION, **_NORMS, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        (*_SIZES, field_of(EPSILON, "norm_epsilon", float, 1e-5)), biases=ANY_BIAS, plain_heads=True,
        fixed={"hidden_act": _TANH_GELU, "use_bias": (True,)},
    ),
    Architecture(
        "stablelm", "stablelm", "StableLmForCausalLM", _LLAMA,
        (*_LAYER_NORM, field_of("use_parallel_residual", "use_parallel_residual", bool, False)), own_head=True,
        plain_heads=True, fixed={**_SILU, "qk_layernorm": (False,)}, flags={"use_qkv_bias": "attn_q.bias"},
        biases=(*_QKV, "attn_norm", "ffn_norm", "output_norm"),
    ),
    Architecture(
        "nemotron", "nemotron", "NemotronForCausalLM",
        {**_ATTENTION, **_NORMS, "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
        (*_SIZES, field_of(EPSILON, "norm_eps", float, 1e-5)), own_head=True, plain_heads=True, norm_shift=1.0,
        biases=ANY_BIAS, fixed={"hidden_act": ("relu2",)}, flags={**_BIAS, "mlp_bias": "ffn_down.bias"},
    ),
    Architecture(
        "exaone4", "exaone4", "Exaone4ForCausalLM", {**_ATTENTION, **_MLP, **_POST_NORMS, **_QK_NORMS},
        (*_RMS, replace(_WINDOW, default=None)), fixed=_SILU, factors=True, plain_heads=True, biases=(), window=4,
        window_depth=64,
    ),
    Architecture("ernie4_5", "ernie4_5", "Ernie4_5ForCausalLM", _LLAMA, _RMS, flags={"use_bias": "attn_q.bias"},
                 fixed=_SILU, biases=(*_QKV, "attn_output")),
    Architecture(
        "ernie4_5-moe", "ernie4_5_moe", "Ernie4_5_MoeForCausalLM",
        {**_LLAMA, **_EXPERTS, **_SHARED_EXPERTS, "exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"},
        (*_RMS, field_of("leading_dense_block_count", "moe_layer_start_index", default=0),
         field_of("expert_count", "moe_num_experts|num_experts"),
         field_of("expert_used_count", "moe_k|num_experts_per_tok"), *_NARROW[2:],
         field_of("expert_shared_count", "moe_num_shared_experts"),
         Field("expert_shared_feed_forward_length", (), default=_shared_width)),
        fixed={**_SILU, "moe_layer_interval": (1,)}, writes={"interleave_moe_layer_step": 1},
        flags={"use_bias": "attn_q.bias"}, biases=(*_QKV, "attn_output"),
    ),
    Architecture(
        "hunyuan-dense", "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM",
        {**_LLAMA, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}, _RMS,
        fixed=_SILU, alpha=True, biases=(),
    ),
    Architecture(
        "hunyuan-moe", "hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM",
        {**_ATTENTION, **_NORMS, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm",
         **_EXPERTS, "ffn_gate_inp": "mlp.gate.wg",
         **{f"ffn_{kind}_shexp": f"mlp.shared_mlp.{kind}_proj" for kind in ("gate", "up", "down")}},
        (*_RMS, _ROUTED[0], field_of("expert_used_count", "moe_topk"),
         Field("expert_feed_forward_length", (), default=lambda config: config["intermediate_size"])),
        fixed=_SILU, alpha=True, biases=(),
    ),
    Architecture(
        "dots1", "dots1", "Dots1ForCausalLM",
        {**_LLAMA, **_QK_NORMS, **_EXPERTS, **_SHARED_EXPERTS, **_CORRECTION},
        (*_RMS, *_SHARED, *_GROUPED, _NORMED), fixed=_SILU, writes=_SIGMOID, own_head=True, own_keys=True,
        flags=_QKV_BIAS, reads={"sliding_window": None},
    ),
    Architecture("chatglm", "glm", "GlmForCausalLM", {**_ATTENTION, **_FUSED_MLP, **_NORMS}, _RMS, fixed=_SILU,
                 flags=_QKV_BIAS, plain_heads=True),
    Architecture(
        "olmo", "olmo", "OlmoForCausalLM", {**_ATTENTION, **_MLP},
        (*_SIZES, field_of("attention.clamp_kqv", "clip_qkv", float, None)), outer={"token_embd": "embed_tokens"},
        fixed=_SILU, writes={EPSILON: 1e-5}, rotary=_QK, plain_heads=True, biases=(),
    ),
    Architecture(
        "mistral3", "ministral3", "Ministral3ForCausalLM", _LLAMA, _RMS, fixed=_SILU, rotary=_QK, factors=True,
        betas=True, reads={"sliding_window": None}, biases=(),
    ),
    Architecture(
        "seed_oss", "seed_oss", "SeedOssForCausalLM",
        {**_ATTENTION, **_MLP, "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}, _RMS,
        fixed=_SILU, flags=_QKV_BIAS,
    ),
    Architecture(
        "arcee", "arcee", "ArceeForCausalLM",
        {**_ATTENTION, **_NORMS, "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}, _RMS, rotary=_QK, factors=True,
        fixed={"hidden_act": ("relu2",)}, biases=(),
    ),
    Architecture(
        "gptneox", "gpt_neox", "GPTNeoXForCausalLM",
        {"attn_qkv": "attention.query_key_value", "attn_output": "attention.dense", **_NORMS,
         "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"},
        (*_WIDTHS, field_of(EPSILON, "layer_norm_eps", float, 1e-5),
         field_of("use_parallel_residual", "use_parallel_residual", bool, True)),
        outer={"token_embd": "embed_in", "output_norm": "final_layer_norm"}, prefix="gpt_neox.", head="embed_out",
        own_head=True, biases=ANY_BIAS, grouped=True, plain_heads=True,
        fixed={"hidden_act": ("gelu", *_TANH_GELU), "attention_bias": (True,)},
        ignored=r"\.(rotary_emb\.inv_freq|attention\.(bias|masked_bias))$",
    ),
    Architecture(
        "falcon", "falcon", "FalconForCausalLM",
        {"attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense",
         "attn_norm": "input_layernorm", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"},
        (*_WIDTHS[:3], _WIDTHS[4], field_of("feed_forward_length", "ffn_hidden_size"),
         field_of(EPSILON, "layer_norm_epsilon", float, 1e-5)),
        outer={"token_embd": "word_embeddings", "output_norm": "ln_f"}, prefix="transformer.", layers="h",
        biases=("attn_norm", "output_norm"), plain_heads=True, writes={"attention.head_count_kv": 1},
        derived=("head_dim",),
        fixed={"activation": ("gelu",), "alibi": (False,), "new_decoder_architecture": (False,), "multi_query": (True,),
               "parallel_attn": (True,), "bias": (False,)},
    ),
    Architecture(
        "gpt2", "gpt2", "GPT2LMHeadModel",
        {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
         "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        (field_of("context_length", "n_positions"), field_of("embedding_length", "n_embd"),
         field_of("block_count", "n_layer"), field_of("attention.head_count", "n_head"),
         field_of("feed_forward_length", "n_inner", default=lambda config: 4 * config["n_embd"]),
         field_of(EPSILON, "layer_norm_epsilon", float, 1e-5)),
        outer={"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}, prefix="transformer.", layers="h",
        transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"), biases=ANY_BIAS, positions=False,
        fixed={"activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "scale_attn_weights": (True,),
               "scale_attn_by_inverse_layer_idx": (False,)},
        ignored=r"\.attn\.(bias|masked_bias)$",
    ),
    Architecture(
        "bert", "bert", "BertModel",
        {"attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
         "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm",
         "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm"},
        (*_WIDTHS, field_of(EPSILON, "layer_norm_eps", float, 1e-12)),
        outer={"token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
               "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm"},
        prefix="", layers="encoder.layer", head="", biases=ANY_BIAS, positions=False,
        writes={"attention.causal": False}, fixed={"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)},
        ignored=r"^(bert\.)?(embeddings\.position_ids|pooler\..*|cls\..*)$",
    ),
)  # fmt: skip
ARCHITECTURES = {one.model_type: one for one in ROWS}
"""By model_type. Several may share a GGUF architecture: the first is what it is read as."""
