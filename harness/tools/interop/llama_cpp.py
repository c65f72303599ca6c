"""Base files and statistics beside llama.cpp's own `llama-perplexity`.

    python llama_cpp.py --llama-perplexity PATH --aqlm PATH --dense DIR --quantized DIR --text FILE.txt --out FOLDER

Writes GGUF files of both models (Llama folders with a byte-level BPE tokenizer; an AQLM checkpoint is decoded), then
  1. llama.cpp reads a base file of ours and compares the quantized model with it,
  2. llama.cpp writes a base file, and compares the same way,
  3. we read both files, compare the same way, and every figure is printed beside llama.cpp's.
The dense GGUF is F16, as the checkpoint is; --f32 stores it in F32, since llama.cpp multiplies F16 weights by
activations rounded to f16. Needs numpy, safetensors and gguf.

Exit code 0 when all figures agree to the printed digits or the limit, 1 otherwise.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import gguf
import gguf_vocabulary
import numpy as np
from safetensors import safe_open

# llama.cpp computes in f32 with sums in another order, and stores differences of positions in f32.
RELATIVE = 2e-4

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def tensors(folder):
    """Every tensor of a folder in f32, quantized layers decoded."""
    config = json.loads((folder / "config.json").read_text())
    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as source:
            state |= {key: source.get_tensor(key) for key in source.keys()}
    for name in [key.removesuffix(".codes") for key in state if key.endswith(".codes")]:
        codes, codebooks, scales = (state.pop(f"{name}.{part}") for part in ("codes", "codebooks", "scales"))
        codes = codes.astype(np.int64) % 2 ** config["quantization_config"]["nbits_per_codebook"]
        groups = sum(codebooks[m].astype(np.float64)[codes[:, :, m]] for m in range(codes.shape[2]))
        groups = groups * scales.astype(np.float64).reshape(-1, 1, 1, 1)
        rows, columns = codes.shape[0] * groups.shape[2], codes.shape[1] * groups.shape[3]
        state[f"{name}.weight"] = groups.transpose(0, 2, 1, 3).reshape(rows, columns)
    return config, {key: value.astype(np.float32) for key, value in state.items()}


def paired(weight, heads):
    """Rows of a query or key projection in llama.cpp's order: the two halves of each head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(folder, tokenizer, path, half):
    config, state = tensors(folder)
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    special = (config["bos_token_id"], config["eos_token_id"])
    gguf_vocabulary.write(writer, tokenizer, config["vocab_size"], *special)
    outer = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    for name, weight in state.items():
        if name in outer:
            target = outer[name]
        else:
            _, _, block, rest = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{block}.{NAMES[rest]}"
            if rest == "self_attn.q_proj":
                weight = paired(weight, heads)
            elif rest == "self_attn.k_proj":
                weight = paired(weight, kv_heads)
        if half and weight.ndim == 2:
            weight = weight.astype(np.float16)
        writer.add_tensor(f"{target}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def execute(command):
    print("+", " ".join(map(str, command)), flush=True)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr if str(command[-1]) != "--json" else done.stdout


def figures(text):
    """llama.cpp's final figures, by our names: (value, unit of the last printed digit)."""
    found = {}
    patterns = {
        "perplexity.value": r"Mean PPL\(Q\)\s*:\s*(\S+)",
        "perplexity.error": r"Mean PPL\(Q\)\s*:\s*\S+ ±\s*(\S+)",
        "dense_perplexity.value": r"Mean PPL\(base\)\s*:\s*(\S+)",
        "dense_perplexity.error": r"Mean PPL\(base\)\s*:\s*\S+ ±\s*(\S+)",
        "ln_ratio.value": r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:\s*(\S+)",
        "ln_ratio.error": r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:\s*\S+ ±\s*(\S+)",
        "loss_correlation": r"Cor\(.*?\):\s*(\S+)%",
        "kl.value": r"Mean    KLD:\s*(\S+)",
        "kl.error": r"Mean    KLD:\s*\S+ ±\s*(\S+)",
        "delta_p.value": r"Mean    Δp:\s*(\S+)",
        "delta_p.error": r"Mean    Δp:\s*\S+ ±\s*(\S+)",
        "delta_p_rms.value": r"RMS Δp\s*:\s*(\S+)",
        "delta_p_rms.error": r"RMS Δp\s*:\s*\S+ ±\s*(\S+)",
        "same_top.value": r"Same top p:\s*(\S+)",
        "same_top.error": r"Same top p:\s*\S+ ±\s*(\S+)",
    }
    ranks = {
        "maximum": "Maximum", "p99_9": "99.9%", "p99": "99.0%", "p95": "95.0%", "p90": "90.0%", "p75": "75.0%",
        "median": "Median", "p25": "25.0%", "p10": "10.0%", "p5": " 5.0%", "p1": " 1.0%", "p0_1": " 0.1%",
        "minimum": "Minimum",
    }  # fmt: skip
    for name, word in ranks.items():
        if name not in ("p75", "p25"):
            patterns[f"kl_percentiles.{name}"] = rf"{re.escape(word)}\s+KLD:\s*(\S+)"
        patterns[f"delta_p_percentiles.{name}"] = rf"{re.escape(word)}\s+Δp:\s*([^\s%]+)"
    for name, pattern in patterns.items():
        match = re.search(pattern, text)
        if not match:
            sys.exit(f"llama-perplexity printed no {name}:\n{text[-3000:]}")
        digits = match[1].rstrip("%")
        share = 0.01 if "delta_p" in name or "same_top" in name or name == "loss_correlation" else 1.0
        found[name] = (share * float(digits), share * 10.0 ** -len(digits.partition(".")[2]))
    return found


def beside(title, record, text):
    print(title)
    fine = True
    for name, (theirs, digit) in figures(text).items():
        ours = record["divergence"]
        for part in name.split("."):
            ours = ours[part]
        # half a unit of the last digit on either side
        agrees = abs(ours - theirs) <= digit or abs(ours - theirs) <= RELATIVE * abs(theirs)
        fine &= agrees
        exact = "" if abs(ours - theirs) <= digit else f"  ({abs(ours - theirs) / digit:.0f} units of the last digit)"
        print(f"  {'' if agrees else 'DIFFERS '}{name}: aqlm {ours:.7f}, llama.cpp {theirs:.7g}{exact}")
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-perplexity", required=True)
    parser.add_argument("--aqlm", required=True)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--quantized", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--f32", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    write_gguf(arguments.dense, arguments.dense, out / "dense.gguf", not arguments.f32)
    write_gguf(arguments.quantized, arguments.dense, out / "quantized.gguf", False)
    ctx = ["-c", arguments.ctx, "-b", arguments.ctx, "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", 2]
    perplexity = [arguments.llama_perplexity, *ctx, "-m"]
    evaluate = [arguments.aqlm, "eval"]
    text = ["--data", arguments.text, "--protocol", "llama-cpp", "--ctx", arguments.ctx]
    ours, theirs = out / "ours.kld", out / "theirs.kld"
    execute([*evaluate, arguments.dense, *text, "--save-base", ours])
    execute([*perplexity, out / "dense.gguf", "-f", arguments.text, "--save-all-logits", theirs])
    fine = True
    for model, name in [(arguments.quantized, "quantized"), (arguments.dense, "dense")]:
        for base in [ours, theirs]:
            printed = execute([*perplexity, out / f"{name}.gguf", "--kl-divergence", "--kl-divergence-base", base])
            (out / f"{name}-{base.stem}.txt").write_text(printed)
            record = json.loads(execute([*evaluate, model, *text, "--base", base, "--json"]))
            (out / f"{name}-{base.stem}.json").write_text(json.dumps(record, indent=1))
            same = beside(f"{name} model, base file {base.name}", record, printed)
            # Of a model against itself, all figures are rounding.
            fine &= same or name == "dense"
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
