"""Tiny models of many families and spellings, made with transformers, and their logits.

Runs inside one of the environments that run.py makes; many_models.py drives it.

    python tiny_models.py make OUT GOLDEN      one folder per case under OUT, and OUT/cases.json
    python tiny_models.py losses JOBS          token losses of each (folder, dump) in JOBS, as one JSON document
    python tiny_models.py greedy JOBS          how likely each text of (folder, result of `aqlm generate`) in JOBS is
"""

import json
import logging
import os
import random
import shutil
import sys
from pathlib import Path

os.environ["NUMBA_NUM_THREADS"] = "1"  # aqlm's kernel for 8-bit codes races (compare.py says more)
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()

# Tokens that many_models.py asks `aqlm generate` for.
NEW_TOKENS = 24
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
BASE = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
}
# Families with parts that a Llama lacks; their models are compared with transformers 5 alone.
OTHER_CLASSES = {
    "qwen3": transformers.Qwen3Config,
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "phi3": transformers.Phi3Config,
    "olmo2": transformers.Olmo2Config,
    "granite": transformers.GraniteConfig,
    "smollm3": transformers.SmolLM3Config,
    "stablelm": transformers.StableLmConfig,
    "glm": transformers.GlmConfig,
    "glm4": transformers.Glm4Config,
    "mixtral": transformers.MixtralConfig,
    "qwen2_moe": transformers.Qwen2MoeConfig,
    "qwen3_moe": transformers.Qwen3MoeConfig,
}


# Changes of a finished folder. Each gets the folder; the reference is a copy made before the change.


def edit_config(**changes):
    """Sets keys of config.json; None removes a key, "null" writes null."""

    def change(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for key, value in changes.items():
            config.pop(key, None)
            if value is not None:
                config[key] = None if value == "null" else value
        path.write_text(json.dumps(config, indent=1))

    return change


def old_rope(theta, scaling):
    """The rotary embedding in the spelling of transformers 4."""
    scaling = "null" if scaling is None else scaling
    return edit_config(rope_parameters=None, rope_theta=theta, rope_scaling=scaling)


def edit_tensors(function):
    def change(folder):
        path = folder / "model.safetensors"
        tensors = function(load_file(path))
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})

    return change


def with_head(tensors):
    return {**tensors, "lm_head.weight": 0.3 * torch.randn(tensors["model.embed_tokens.weight"].shape)}


def same_head(tensors):
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}


def head_only(tensors):
    tensors = dict(tensors)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    return tensors


def bare(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def buffers(tensors):
    return {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(8)}


def more_blocks(tensors):
    return {**tensors, "model.layers.7.input_layernorm.weight": torch.rand(64)}


def cast(dtype):
    return edit_tensors(lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})


def shards_nobody_needs(folder):
    tensors = list(load_file(folder / "model.safetensors"))
    index = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    index["vision.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def two_shards(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    index = {}
    for part, chosen in enumerate([names[::2], names[1::2]], 1):
        file = f"model-{part:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file, {"format": "pt"})
        index.update(dict.fromkeys(chosen, file))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def byte_order_mark(folder):
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        if path.is_file():
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def not_finite(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "initializer_range": float("nan"), "own": [float("-inf")]}))


def cache_folder(folder):
    """The folder as the Hub's client keeps it: blobs, a snapshot of links, refs/main."""
    files = list(folder.iterdir())
    (folder / "blobs").mkdir()
    snapshot = folder / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(files):
        blob = folder / "blobs" / f"{number:040}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a1b2c")


def lfs_pointer(folder):
    path = folder / "model.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064}\nsize 9\n")


def rope(**parameters):
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", **parameters}}


def case(name, family, config=None, change=None, refused=None, peers=("5", "4"), reference="before", quantize=False):
    """One case. `refused` is what the message must name; `peers` are the generations that compute the reference,
    which is the folder "before" or "after" the change."""
    return {
        "name": name,
        "family": family,
        "config": config or {},
        "change": change or [],
        "refused": refused,
        "peers": list(peers),
        "reference": reference,
        "quantize": quantize,
    }


def cases():
    after = {"reference": "after"}
    old = lambda theta=10000.0, scaling=None: [old_rope(theta, scaling)]  # noqa: E731
    yield case("llama-mha", "llama", {"num_key_value_heads": 4}, old(), **after, quantize=True)
    yield case("llama-gqa", "llama", {}, old(), **after, quantize=True)
    yield case("llama-mqa", "llama", {"num_key_value_heads": 1}, old(), **after)
    yield case("llama-kv-null", "llama", {"num_key_value_heads": 4},
               [*old(), edit_config(num_key_value_heads="null")], **after)
    yield case("llama-kv-absent", "llama", {"num_key_value_heads": 4},
               [*old(), edit_config(num_key_value_heads=None)], **after)
    yield case("llama-tied", "llama", {"tie_word_embeddings": True}, old(), **after, quantize=True)
    yield case("llama-head-dim", "llama", {"head_dim": 32}, old(), **after, quantize=True)
    yield case("llama-attention-bias", "llama", {"attention_bias": True}, old(), **after, quantize=True)
    yield case("llama-mlp-bias", "llama", {"mlp_bias": True}, old(), **after)
    yield case("llama-all-biases", "llama", {"mlp_bias": True, "attention_bias": True}, old(), **after, quantize=True)
    yield case("llama-eps", "llama", {"rms_norm_eps": 0.1}, old(), **after)
    yield case("llama-swish", "llama", {"hidden_act": "swish"}, old(), **after)
    yield case("llama-one-block", "llama", {"num_hidden_layers": 1}, old(), **after)
    yield case("llama-tp-and-dropout", "llama", {"pretraining_tp": 2, "attention_dropout": 0.5, "use_cache": False,
                                                 "initializer_range": 0.9}, old(), **after)
    yield case("llama-theta-old", "llama", rope(rope_theta=500.0), old(500.0), **after, quantize=True)
    yield case("llama-theta-new", "llama", rope(rope_theta=500.0), peers=["5"], quantize=True)
    yield case("llama-theta-both", "llama", rope(rope_theta=500.0), [edit_config(rope_theta=500.0)], **after)
    yield case("llama-theta-in-scaling", "llama", rope(rope_theta=500.0, rope_type="linear", factor=2.0),
               [edit_config(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0, "rope_theta": 500.0})],
               **after, peers=["5"])
    yield case("llama-linear-type", "llama", rope(rope_type="linear", factor=4.0),
               old(10000.0, {"type": "linear", "factor": 4.0}), **after, quantize=True)
    yield case("llama-linear-new", "llama", rope(rope_type="linear", factor=4.0), peers=["5"])
    yield case("llama-linear-unread", "llama", rope(rope_type="linear", factor=4.0),
               old(10000.0, {"rope_type": "linear", "factor": 4.0, "attention_factor": 2.0, "beta_fast": 3}), **after)
    yield case("llama-dynamic-within", "llama", rope(rope_type="dynamic", factor=4.0),
               old(10000.0, {"type": "dynamic", "factor": 4.0}), **after)
    for family in CLASSES:
        yield case(f"{family}-dynamic-beyond", family, {**rope(rope_type="dynamic", factor=4.0),
                                                        "max_position_embeddings": 40, "sliding_window": None},
                   [*old(10000.0, {"rope_type": "dynamic", "factor": 4.0}), edit_config(sliding_window="null")],
                   **after, quantize=family != "qwen2")
    yield case("llama-llama3-old", "llama", rope(rope_type="llama3", **LLAMA3),
               old(10000.0, {"rope_type": "llama3", **LLAMA3}), **after, quantize=True)
    yield case("llama-llama3-new", "llama", rope(rope_type="llama3", **LLAMA3), peers=["5"], quantize=True)
    yarns = {
        "plain": {},
        "no-truncate": {"truncate": False},
        "attention-factor": {"attention_factor": 1.5},
        "mscale": {"mscale": 1.2, "mscale_all_dim": 0.7},
        "mscale-alone": {"mscale": 1.2},
        "betas": {"beta_fast": 8.0, "beta_slow": 2.0},
        "narrow": {"beta_fast": 2.0, "beta_slow": 2.0},
        "wide-context": {"original_max_position_embeddings": 4096},
    }
    for name, body in yarns.items():
        yield case(f"llama-yarn-{name}", "llama", rope(**{**YARN, **body}), old(10000.0, {**YARN, **body}), **after,
                   quantize=name in ("plain", "mscale"))
    for family in ("mistral", "qwen2"):
        yield case(f"{family}-yarn", family, rope(**YARN), old(10000.0, YARN), **after, quantize=True)
    yield case("llama-yarn-new", "llama", rope(**YARN), peers=["5"])
    yield case("llama-yarn-no-original", "llama", rope(rope_type="yarn", factor=4.0),
               old(10000.0, {"rope_type": "yarn", "factor": 4.0}), **after)
    # heads and names
    tied = {"tie_word_embeddings": True}
    yield case("llama-tied-real-head", "llama", tied, [*old(), edit_tensors(with_head)], **after, peers=["5"],
               quantize=True)
    yield case("llama-tied-same-head", "llama", tied, [*old(), edit_tensors(same_head)], **after)
    yield case("llama-tied-head-only", "llama", tied, [*old(), edit_tensors(head_only)], **after, peers=["5"])
    yield case("llama-bare-names", "llama", tied, [*old(), edit_tensors(bare)], **after)
    yield case("llama-bare-names-untied", "llama", {}, [edit_tensors(bare)], refused="lm_head.weight")
    yield case("llama-buffers", "llama", {}, [*old(), edit_tensors(buffers)], **after)
    yield case("llama-more-blocks", "llama", {}, [*old(), edit_tensors(more_blocks)], **after)
    # files
    yield case("llama-bf16", "llama", {}, [*old(), cast(torch.bfloat16)], **after)
    yield case("llama-f16", "llama", {}, [*old(), cast(torch.float16)], **after)
    yield case("llama-f64", "llama", {}, [*old(), cast(torch.float64)], **after)
    yield case("llama-two-shards", "llama", {}, [*old(), two_shards], **after)
    yield case("llama-shards-nobody-needs", "llama", {}, [shards_nobody_needs])
    yield case("llama-byte-order-mark", "llama", {}, [byte_order_mark])
    yield case("llama-not-finite", "llama", {}, [not_finite])
    yield case("llama-cache-folder", "llama", {}, [cache_folder])
    yield case("llama-unknown-key", "llama", {}, [*old(), edit_config(own={"a": 1}, rope_other=3)], **after)
    yield case("llama-neutral-keys", "llama", {}, [*old(), edit_config(
        is_causal=True, pruned_heads={}, num_experts=0, logits_scaling=1.0, partial_rotary_factor=1.0)], **after)
    yield case("llama-lfs-pointer", "llama", {}, [lfs_pointer], refused="git-lfs pointer")
    # Mistral and Qwen2
    window = {"sliding_window": 8}
    yield case("mistral-window", "mistral", window, old(), **after, quantize=True)
    yield case("mistral-no-window", "mistral", {"sliding_window": None},
               [*old(), edit_config(sliding_window="null")], **after)
    yield case("mistral-default-window", "mistral", {}, [*old(), edit_config(sliding_window=None)], **after)
    yield case("mistral-kv-null", "mistral", {"num_key_value_heads": 4, **window},
               [*old(), edit_config(num_key_value_heads="null")], peers=["4"], **after)
    yield case("mistral-kv-absent", "mistral", {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 8},
               [*old(), edit_config(num_key_value_heads=None)], **after)
    yield case("mistral-attention-bias", "mistral", window, [*old(), edit_config(attention_bias=True)], **after)
    yield case("mistral-theta-new", "mistral", {**rope(rope_theta=500.0), **window}, peers=["5"], quantize=True)
    yield case("mistral-head-dim", "mistral", {"head_dim": 32, **window}, old(), **after)
    yield case("mistral-tied", "mistral", {**tied, **window}, old(), **after)
    yield case("mistral-layer-types", "mistral", window,
               [*old(), edit_config(layer_types=["sliding_attention"] * 2)], **after)
    yield case("mistral-contradictory-layer-types", "mistral", window,
               [edit_config(layer_types=["full_attention"] * 2)], refused="layer_types")
    yield case("qwen2-plain", "qwen2", {}, old(), **after, quantize=True)
    yield case("qwen2-tied", "qwen2", tied, old(), **after)
    yield case("qwen2-kv-null", "qwen2", {"num_key_value_heads": 4},
               [*old(), edit_config(num_key_value_heads="null")], **after)
    yield case("qwen2-attention-bias", "qwen2", {}, [*old(), edit_config(attention_bias=True, mlp_bias=True)], **after)
    yield case("qwen2-theta-old", "qwen2", rope(rope_theta=1e6), old(1e6), **after)
    yield case("qwen2-theta-new", "qwen2", rope(rope_theta=1e6), peers=["5"], quantize=True)
    yield case("qwen2-window", "qwen2", {"use_sliding_window": True, "max_window_layers": 0, **window}, old(), **after,
               quantize=True)
    yield case("qwen2-window-off", "qwen2", {"use_sliding_window": False, **window}, old(), **after)
    yield case("qwen2-window-late", "qwen2", {"use_sliding_window": True, "max_window_layers": 2, **window}, old(),
               **after)
    mixed = {"use_sliding_window": True, "max_window_layers": 1, **window}
    yield case("qwen2-mixed-window", "qwen2", mixed, [*old(), edit_config(layer_types=None)], **after, quantize=True)
    yield case("qwen2-mixed-layer-types", "qwen2", mixed, peers=["5"])
    # what changes the arithmetic and is not implemented
    refused = {
        "is_causal": False,
        "transformers_weights": "other.safetensors",
        "per_layer_config": {"0": {"intermediate_size": 32}},
        "hidden_act": "gelu",
        "partial_rotary_factor": 0.5,
        "pruned_heads": {"0": [1]},
        "attn_logit_softcapping": 50.0,
        "logits_scaling": 8.0,
        "num_local_experts": 4,
        "text_config": {"hidden_size": 64},
        "is_encoder_decoder": True,
        "sliding_window": 8,
        "rms_norm_eps": "1e-5",
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }
    for key, value in refused.items():
        yield case(f"llama-refused-{key}", "llama", {}, [edit_config(**{key: value})], refused=key)
    ropes = {
        "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0},
        "proportional": {"rope_type": "proportional", "rope_theta": 10000.0},
        "mrope": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    for name, body in ropes.items():
        yield case(f"llama-refused-rope-{name}", "llama", {}, old(10000.0, body), refused="rope_scaling.")
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}
    yield case("llama-refused-rope-nested", "llama", {}, [edit_config(rope_parameters=nested)],
               refused="rope_parameters.full_attention")
    yield case("llama-refused-two-thetas", "llama", {}, [edit_config(rope_theta=500.0)],
               refused="rope_parameters.rope_theta")
    yield case("llama-refused-no-head", "llama", {}, [edit_tensors(
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"})],
        refused="lm_head.weight")
    yield case("llama-refused-own-bias", "llama", {}, [edit_tensors(
        lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.rand(64)})],
        refused="q_proj.bias")
    for family in OTHERS:
        yield case(f"other-{family}", family, refused="model_type")
    yield from cases_of_other_families()


def cases_of_other_families():
    def of(family, variants):
        for name, (config, change) in variants.items():
            own = {"head_dim": 16, "pad_token_id": 0, **config}
            yield case(f"family-{family}-{name}", family, own, change, peers=["5"], reference="after", quantize=True)

    yield from of("qwen3", {
        "plain": ({}, []),
        "mha": ({"num_key_value_heads": 4}, []),
        "tied": ({"tie_word_embeddings": True}, []),
        "bias": ({"attention_bias": True}, []),
        "head-dim": ({"head_dim": 32}, []),
        "theta": (rope(rope_theta=500.0), []),
        "yarn": (rope(**YARN), []),
        "late-window": ({"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}, []),
        "windows-by-type": ({"use_sliding_window": True, "sliding_window": 8,
                             "layer_types": ["sliding_attention", "full_attention"]}, []),
    })  # fmt: skip
    yield from of("gemma", {
        "plain": ({}, []),
        "mqa": ({"num_key_value_heads": 1}, []),
        "head-dim": ({"head_dim": 32}, []),
        "bias": ({"attention_bias": True}, []),
        "untied": ({"tie_word_embeddings": False}, []),
        "old-activation": ({}, [edit_config(hidden_act="gelu", hidden_activation="null")]),
        "linear": (rope(rope_type="linear", factor=4.0), []),
    })  # fmt: skip
    yield from of("gemma2", {
        "plain": ({}, []),
        "window": ({"sliding_window": 8, "num_hidden_layers": 3}, []),
        "low-caps": ({"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, []),
        "no-caps": ({"attn_logit_softcapping": None, "final_logit_softcapping": None}, []),
        "scale": ({"query_pre_attn_scalar": 24}, []),
        "bias": ({"attention_bias": True, "num_key_value_heads": 4}, []),
        "windows-by-type": ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, []),
    })  # fmt: skip
    both = {"sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0}}  # fmt: skip
    yield from of("gemma3_text", {
        "plain": ({}, []),
        "window": ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, []),
        "two-rotations": ({"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": both}, []),
        "old-spelling": ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
                         [edit_config(rope_parameters=None, rope_theta=5000.0, rope_local_base_freq=300.0,
                                      rope_scaling={"rope_type": "linear", "factor": 8.0})]),
        "pattern": ({"num_hidden_layers": 3, "sliding_window": 8},
                    [edit_config(layer_types=None, _sliding_window_pattern=None, sliding_window_pattern=2)]),
        "scale": ({"query_pre_attn_scalar": 24, "num_key_value_heads": 4}, []),
        "capped-logits": ({"final_logit_softcapping": 3.0, "num_key_value_heads": 1}, []),
    })  # fmt: skip
    lists = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [1.5 + i for i in range(8)]}
    half = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.5, 2.0, 4.0, 7.0]}
    long = lambda body, **other: {**rope(rope_type="longrope", **body), **other}  # noqa: E731
    yield from of("phi3", {
        "plain": ({}, []),
        "mha": ({"num_key_value_heads": 4}, []),
        "window": ({"sliding_window": 8}, []),
        "tied": ({"tie_word_embeddings": True}, []),
        "partial": ({"partial_rotary_factor": 0.5}, []),
        "longrope-within": (long(lists, original_max_position_embeddings=96), []),
        "longrope-beyond": (long(lists, original_max_position_embeddings=32), []),
        "longrope-partial": (long(half, original_max_position_embeddings=32, partial_rotary_factor=0.5), []),
        "longrope-old": (long(lists, original_max_position_embeddings=32),
                         [edit_config(rope_parameters=None, rope_theta=10000.0, rope_scaling={"type": "longrope", **lists})]),
    })  # fmt: skip
    yield from of("olmo2", {
        "plain": ({}, []),
        "mha": ({"num_key_value_heads": 4}, []),
        "tied": ({"tie_word_embeddings": True}, []),
        "bias": ({"attention_bias": True}, []),
        "linear": (rope(rope_type="linear", factor=4.0), []),
    })  # fmt: skip
    factors = {"embedding_multiplier": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3, "logits_scaling": 2.0}
    yield from of("granite", {
        "plain": ({}, []),
        "factors": (factors, []),
        "bias": ({**factors, "attention_bias": True, "mlp_bias": True}, []),
        "tied": ({**factors, "tie_word_embeddings": True}, []),
    })  # fmt: skip
    yield from of("smollm3", {
        "plain": ({"num_hidden_layers": 4}, []),
        "first-still": ({"no_rope_layers": [0, 1]}, []),
        "interval": ({"num_hidden_layers": 3, "no_rope_layer_interval": 2}, []),
        "window": ({"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 8}, []),
        "bias": ({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}, []),
    })  # fmt: skip
    yield from of("stablelm", {
        "plain": ({}, []),
        "mha": ({"num_key_value_heads": 4}, []),
        "bias": ({"use_qkv_bias": True}, []),
        "half": (rope(partial_rotary_factor=0.5, rope_theta=500.0), []),
        "whole-tied": ({**rope(partial_rotary_factor=1.0), "tie_word_embeddings": True}, []),
        "linear": (rope(rope_type="linear", factor=4.0, partial_rotary_factor=0.5), []),
        "eps": ({"layer_norm_eps": 0.1}, []),
        "old-rope": (rope(rope_theta=500.0, partial_rotary_factor=0.25),
                     [edit_config(rope_parameters=None, rope_theta=500.0, partial_rotary_factor=0.25)]),
    })  # fmt: skip
    for key in ("use_parallel_residual", "qk_layernorm"):
        yield case(f"family-stablelm-refused-{key}", "stablelm", {"head_dim": 16, key: True}, refused=key)
    yield from of("glm", {
        "plain": ({}, []),
        "no-bias": ({"attention_bias": False}, []),
        "mqa-head-dim": ({"num_key_value_heads": 1, "head_dim": 32}, []),
        "whole": (rope(partial_rotary_factor=1.0, rope_theta=500.0), []),
        "quarter-tied": ({**rope(partial_rotary_factor=0.25), "tie_word_embeddings": True}, []),
    })  # fmt: skip
    yield from of("glm4", {
        "plain": ({}, []),
        "no-bias-theta": ({"attention_bias": False, **rope(rope_theta=500.0, partial_rotary_factor=0.5)}, []),
    })  # fmt: skip
    of_mixtral = {"num_local_experts": 4, "num_experts_per_tok": 2}
    yield from of("mixtral", {
        "plain": (of_mixtral, []),
        "one-of-five": ({"num_local_experts": 5, "num_experts_per_tok": 1}, []),
        "three-of-three": ({"num_local_experts": 3, "num_experts_per_tok": 3, "num_key_value_heads": 4}, []),
        "window": ({**of_mixtral, "sliding_window": 8}, []),
        "gelu-tied-theta": ({**of_mixtral, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True,
                             **rope(rope_theta=500.0)}, []),
    })  # fmt: skip
    of_qwen = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    shared = {**of_qwen, "shared_expert_intermediate_size": 40}
    yield from of("qwen2_moe", {
        "plain": (shared, []),
        "normalized": ({**shared, "norm_topk_prob": True, "num_experts_per_tok": 3}, []),
        "every-other": ({**shared, "num_hidden_layers": 3, "decoder_sparse_step": 2}, []),
        "dense-first": ({**shared, "mlp_only_layers": [0], "qkv_bias": False}, []),
    })  # fmt: skip
    # transformers 4.5x has the window in other blocks, so the quantized model cannot be compared
    yield case("family-qwen2_moe-window", "qwen2_moe", {**shared, "head_dim": 16, "pad_token_id": 0,
               "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 8},
               peers=["5"], reference="after")  # fmt: skip
    yield from of("qwen3_moe", {
        "plain": (of_qwen, []),
        "normalized": ({**of_qwen, "norm_topk_prob": True, "num_experts_per_tok": 4}, []),
        "dense-last": ({**of_qwen, "mlp_only_layers": [1]}, []),
        "every-other": ({**of_qwen, "num_hidden_layers": 3, "decoder_sparse_step": 2, "head_dim": 32}, []),
        "window": ({**of_qwen, "use_sliding_window": True, "sliding_window": 8}, []),
        "bias-tied": ({**of_qwen, "attention_bias": True, "tie_word_embeddings": True}, []),
    })  # fmt: skip


OTHERS = [
    "cohere", "cohere2", "falcon", "gpt2", "gpt_neox", "olmo", "opt", "phi", "starcoder2",
]  # fmt: skip


def other_config(family):
    """A small configuration of a family that is refused."""
    config = transformers.AutoConfig.for_model(family)
    sizes = {
        **BASE, "n_embd": 64, "n_layer": 2, "n_head": 4, "ffn_dim": 96, "word_embed_proj_dim": 64, "ffn_hidden_size": 96,
        "head_dim": 16, "num_local_experts": 2, "num_experts": 2, "moe_intermediate_size": 32, "pad_token_id": 0,
        "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1, "layer_types": ["full_attention"] * 2,
        "no_rope_layers": [1, 1],
    }  # fmt: skip
    known = config.to_dict()
    return transformers.AutoConfig.for_model(
        family, **{key: value for key, value in sizes.items() if key in known or key in BASE}
    )


def make_one(spec, out, golden):
    torch.manual_seed(sum(map(ord, spec["name"])))
    classes = {**CLASSES, **OTHER_CLASSES}
    if spec["family"] in classes:
        config = classes[spec["family"]](**{**BASE, **spec["config"]})
    else:
        config = other_config(spec["family"])
    config.use_cache = False
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # large enough that every part of the arithmetic moves the losses
            if parameter.dim() == 1:
                # a Gemma adds the 1 itself
                one = name.endswith("norm.weight") and "gemma" not in spec["family"]
                parameter.copy_(torch.randn_like(parameter) * 0.3 + one)
            else:
                # a tied head with larger weights would have logits whose rounding in f32 alone is near the limit
                embedding = 0.3 if config.tie_word_embeddings else 1.0
                parameter.copy_(torch.randn_like(parameter) * (embedding if "embed" in name else 2.0 / parameter.shape[-1] ** 0.5))
    folder = out / spec["name"]
    model.save_pretrained(folder)
    shutil.copy(golden / "tokenizer.json", folder)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    reference = out / f"{spec['name']}.reference"
    if spec["reference"] == "before":
        shutil.copytree(folder, reference)
    for change in spec["change"]:
        change(folder)
    return folder if spec["reference"] == "after" else reference


def make(out, golden):
    made = []
    for spec in cases():
        reference = make_one(spec, out, golden)
        kept = {key: spec[key] for key in ("name", "family", "refused", "peers", "quantize")}
        made.append({**kept, "folder": str(out / spec["name"]), "reference": str(reference)})
    (out / "cases.json").write_text(json.dumps(made, indent=1))


def token_losses(logits, ids):
    """Losses of tokens 1.. of a window: logits [ctx, vocab] f64, ids [ctx]."""
    chosen = logits[:-1].gather(1, ids[1:, None]).squeeze(1)
    return torch.logsumexp(logits[:-1], dim=1) - chosen


def difference(folder, dump):
    """The largest difference of a token's loss between the dump and transformers, and the mean loss there."""
    options = {"output_loading_info": True, "dtype": torch.float32}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    lacking = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
    if lacking:
        return {"error": f"loads with missing or mismatched keys: {lacking}"}
    worst, total, count = 0.0, 0.0, 0
    with safe_open(dump, framework="pt") as tensors:
        for ids, theirs in zip(tensors.get_tensor("input_ids").long(), tensors.get_tensor("logits").double()):
            with torch.no_grad():
                here = model.eval()(input_ids=ids[None], use_cache=False).logits[0].double()
            here, theirs = token_losses(here, ids), token_losses(theirs, ids)
            gap = (here - theirs).abs().max().item()
            worst = max(worst, gap if gap == gap else float("inf"))  # a NaN must not pass
            total, count = total + here.sum().item(), count + len(here)
    return {"difference": worst if worst != float("inf") else 1e9, "loss": total / count}


def behind(folder, generated):
    """The largest gap between the largest logit and that of the token that was generated, when the whole text is run
    at once without a cache. It is filled up to the length that was asked for, on which some rotations depend."""
    written = json.loads(Path(generated).read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(written["prompt"])["input_ids"][: written["prompt_tokens"]]
    if len(ids) != written["prompt_tokens"]:
        return {"error": f"the prompt has {len(ids)} tokens here and {written['prompt_tokens']} there"}
    if len(written["tokens"]) < 8:
        return {"error": f"only {len(written['tokens'])} tokens were generated"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    whole = ids + written["tokens"]
    filled = whole + [0] * (len(ids) + NEW_TOKENS - len(whole))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([filled]), use_cache=False).logits[0].double()
    gaps = [(logits[at].max() - logits[at, whole[at + 1]]).item() for at in range(len(ids) - 1, len(whole) - 1)]
    return {"difference": max(gaps)}


def judge(function, jobs):
    results = []
    for folder, file in jobs:
        try:
            results.append(function(Path(folder), file))
        except Exception as error:  # whatever transformers raises about a folder is that folder's result
            results.append({"error": f"{type(error).__name__}: {error}"[:300]})
    return {"transformers": transformers.__version__, "results": results}


if __name__ == "__main__":
    random.seed(0)
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        function = {"losses": difference, "greedy": behind}[sys.argv[1]]
        print(json.dumps(judge(function, json.loads(Path(sys.argv[2]).read_text()))))
