"""Do GGUF files that llama.cpp's converter writes mean the same here as the Hugging Face folders that they come from?

    python gguf_families.py --llama-cpp DIR --aqlm PATH [--out DIR] [--only WORD]

DIR is a checkout of llama.cpp with its folder `conversion` (tried: that of llama-cpp-python 0.3.36). For each case, a
tiny model with random weights is made with transformers and converted. Its vocabulary is written here, since the
converter knows tokenizers by name. All matrices hold numbers of f16, so a file of either type has the same weights. The
program evaluates folder and file, and no token's loss may differ by more than 1e-5.

Runs inside the environment of requirements-transformers5.txt. Exit code 1 when a case differs.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf_vocabulary
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from tiny_models import YARN, make_one, rope

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "tiny-stories-4m"
# Weights are the same numbers; only those of Gemma's norms go through a sum with 1 and back, in f32.
LIMIT = 1e-5
CTX, WINDOWS = 72, 2

SHARED = {"head_dim": 16, "pad_token_id": 0}
MIXTURE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LISTS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [1.5 + i for i in range(8)]}
HALF = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.5, 2.0, 4.0, 7.0]}
BOTH = {"sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0}}  # fmt: skip
# Only what a file of the architecture can say: files of Qwen have no windows, those of Gemma 2 no factor of scores,
# and the converter writes no theta for Gemma 1 and 2 and StableLM.
CASES = {
    "llama": {
        "plain": {},
        "mqa": {"num_key_value_heads": 1},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "llama3": rope(rope_type="llama3", rope_theta=5e5, **LLAMA3),
    },
    "qwen2": {"plain": {}, "tied": {"tie_word_embeddings": True}},
    "qwen3": {
        "plain": {},
        "head-dim": {"head_dim": 32, "num_key_value_heads": 4},
        "bias-tied": {"attention_bias": True, "tie_word_embeddings": True},
        "yarn": rope(**YARN),
    },
    "gemma": {
        "plain": {},
        "mqa-head-dim": {"num_key_value_heads": 1, "head_dim": 32},
        "bias": {"attention_bias": True},
    },
    "gemma2": {
        "plain": {"query_pre_attn_scalar": 16, "num_hidden_layers": 3, "sliding_window": 8},
        "low-caps": {"query_pre_attn_scalar": 32, "head_dim": 32, "attn_logit_softcapping": 2.0,
                     "final_logit_softcapping": 3.0},
    },
    "gemma3_text": {
        "plain": {"query_pre_attn_scalar": 16},
        "window": {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7},
        "two-rotations": {"query_pre_attn_scalar": 16, "num_hidden_layers": 7, "sliding_window": 8,
                          "rope_parameters": BOTH, "final_logit_softcapping": 3.0},
    },
    "phi3": {
        "plain": {},
        "window-tied": {"sliding_window": 8, "tie_word_embeddings": True},
        "partial": {"partial_rotary_factor": 0.5},
        "longrope-within": {**rope(rope_type="longrope", **LISTS), "original_max_position_embeddings": 96},
        "longrope-beyond": {**rope(rope_type="longrope", **LISTS), "original_max_position_embeddings": 32},
        "longrope-partial": {**rope(rope_type="longrope", **HALF), "original_max_position_embeddings": 32,
                             "partial_rotary_factor": 0.5},
    },
    "olmo2": {
        "plain": {},
        "mha": {"num_key_value_heads": 4},
        "linear": rope(rope_type="linear", factor=4.0),
    },
    "granite": {
        "plain": {},
        "factors": {"embedding_multiplier": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3,
                    "logits_scaling": 2.0},
        "bias-tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "logits_scaling": 2.0},
    },
    "smollm3": {
        "plain": {"num_hidden_layers": 5},
        "bias": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    },
    "stablelm": {
        "plain": {"use_qkv_bias": True},
        "half-mha": {**rope(partial_rotary_factor=0.5), "num_key_value_heads": 4},
    },
    "glm4": {
        "plain": {},
        "no-bias-quarter": {"attention_bias": False, **rope(partial_rotary_factor=0.25, rope_theta=500.0)},
    },
    "mixtral": {
        "plain": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "one-of-five": {"num_local_experts": 5, "num_experts_per_tok": 1},
    },
    "qwen2_moe": {"plain": {**MIXTURE, "shared_expert_intermediate_size": 40}},
    "qwen3_moe": {
        "plain": {**MIXTURE, "norm_topk_prob": True},
        "bias-tied": {**MIXTURE, "norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True},
    },
}  # fmt: skip


def rounded(folder):
    """Rounds matrices to numbers of f16."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors = {name: value.half().float() if value.dim() > 1 else value for name, value in tensors.items()}
    save_file(tensors, path, {"format": "pt"})


def vocabulary(converter):
    """Takes the place of the converter's own: the byte-level BPE of the folder's tokenizer.json."""
    gguf_vocabulary.write(converter.gguf_writer, converter.dir_model, converter.hparams["vocab_size"], 1, 2)


def convert(folder, file, half):
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    description = ModelBase.load_hparams(folder, False)
    converter = get_model_class(get_model_architecture(description, ModelType.TEXT))
    own = type(converter.__name__, (converter,), {"set_vocab": vocabulary, "model_arch": converter.model_arch})
    kind = gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32
    with torch.inference_mode():
        own(folder, kind, file).write()


def losses(program, model, scratch):
    """Token losses of the model, or an error."""
    file = scratch / "losses.safetensors"
    command = [program, "eval", model, "--data", GOLDEN / "eval.jsonl", "--ctx", CTX, "--windows", WINDOWS,
               "--save-losses", file]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None, done.stderr.strip()
    return load_arrays(file)["losses"], done.stderr.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--aqlm", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder for the models, kept (default: a temporary one)")
    parser.add_argument("--only", help="cases whose name has this word")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.llama_cpp), str(arguments.llama_cpp / "gguf-py")]
    logging.disable(logging.WARNING)
    wrong, worst = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="aqlm-gguf-") as scratch:
        scratch = Path(scratch)
        out = (arguments.out or scratch).resolve()
        out.mkdir(parents=True, exist_ok=True)
        number = 0
        for family, variants in CASES.items():
            for variant, config in variants.items():
                name = f"{family}-{variant}"
                if arguments.only and arguments.only not in name:
                    continue
                spec = {"name": name, "family": family, "config": {**SHARED, **config}, "change": [rounded],
                        "reference": "after"}  # fmt: skip
                folder, file = make_one(spec, out, GOLDEN), out / f"{name}.gguf"
                number += 1
                half = number % 2 == 1
                try:
                    convert(folder, file, half)
                except Exception as error:  # whatever the converter raises about a folder is that case's result
                    print(f"FAIL {name}: the converter: {type(error).__name__}: {error}")
                    wrong += 1
                    continue
                (ours, first), (theirs, second) = (losses(arguments.aqlm, model, scratch) for model in (folder, file))
                if ours is None or theirs is None:
                    print(f"FAIL {name}: {first if ours is None else second}")
                    wrong += 1
                    continue
                gap = float(abs(ours - theirs).max())
                worst = max(worst, gap)
                bad = not gap <= LIMIT or bool(second)
                wrong += bad
                kind = "F16" if half else "F32"
                print(f"{'FAIL' if bad else 'ok  '} {name:28} {kind} mean loss {ours.mean():.4f}, largest difference "
                      f"of a token's loss {gap:.1e} {second}", flush=True)  # fmt: skip
    print(f"{number} cases, of which {wrong} wrong; largest difference {worst:.1e}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
