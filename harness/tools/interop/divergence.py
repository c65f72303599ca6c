"""The statistics of `aqlm eval QUANTIZED --against DENSE`, computed by transformers and torch in f64.

    aqlm eval QUANTIZED --against DENSE --data TEXT --backend reference --save-base base.safetensors --json > record.json
    python divergence.py DENSE QUANTIZED base.safetensors record.json

Both models are Llama folders; QUANTIZED is an AQLM checkpoint, whose layers are decoded here from their definition
(docs/formats.md 1). transformers computes both models' logits from the token ids in the base file in f64: its casts to f32 inside the norm
and of sines and cosines are replaced. Needs torch, transformers, safetensors and numpy.

Prints one line per figure; exit code 0 when every figure is within the limit, relative, and 1 otherwise.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoConfig, LlamaForCausalLM  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

BORDERS = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0]
QUANTILES = {
    "maximum": 1.0, "p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "p75": 0.75, "median": 0.5,
    "p25": 0.25, "p10": 0.1, "p5": 0.05, "p1": 0.01, "p0_1": 0.001, "minimum": 0.0,
}  # fmt: skip


def rms_norm_f64(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary_f64(self, x, position_ids):
    dim = self.config.head_dim
    theta = getattr(self.config, "rope_theta", None) or self.config.rope_parameters["rope_theta"]
    # Frequencies and angles are rounded to f32, as transformers does; their sines and cosines are not.
    frequencies = (theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)).float()
    angles = (position_ids[..., None].float() * frequencies).double()
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


modeling_llama.LlamaRMSNorm.forward = rms_norm_f64
modeling_llama.LlamaRotaryEmbedding.forward = rotary_f64


def decoded(codes, codebooks, scales, bits):
    """The weight of a layer, in f64."""
    codes = codes.long() % 2**bits
    out_groups, in_groups, count = codes.shape
    _, _, out_size, in_size = codebooks.shape
    weight = torch.zeros(out_groups, in_groups, out_size, in_size, dtype=torch.float64)
    for m in range(count):
        weight += codebooks[m].double()[codes[:, :, m]]
    weight = weight * scales.double().reshape(-1, 1, 1, 1)
    return weight.permute(0, 2, 1, 3).reshape(out_groups * out_size, in_groups * in_size)


def load(folder):
    """A model in f64, quantized layers decoded."""
    config = AutoConfig.from_pretrained(folder)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        del config.quantization_config
    config._attn_implementation = "sdpa"
    state = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            state |= {key: tensors.get_tensor(key) for key in tensors.keys()}
    for name in [key.removesuffix(".codes") for key in state if key.endswith(".codes")]:
        parts = [state.pop(f"{name}.{part}") for part in ("codes", "codebooks", "scales")]
        bits = quantization["nbits_per_codebook"]
        state[f"{name}.weight"] = decoded(*parts, bits)
    torch.set_default_dtype(torch.float64)
    model = LlamaForCausalLM(config).double().eval()
    missing, unexpected = model.load_state_dict({k: v.double() for k, v in state.items()}, strict=False)
    missing = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if missing or unexpected:
        sys.exit(f"{folder}: missing {missing}, unexpected {unexpected}")
    return model


def mean(values):
    count = len(values)
    value = float(values.mean())
    error = math.sqrt(float(((values - value) ** 2).mean()) / (count - 1)) if count > 1 else math.nan
    return {"value": value, "error": error}


def exponential(of):
    return {"value": math.exp(of["value"]), "error": math.exp(of["value"]) * of["error"]}


def statistics(kl, dense_loss, loss, dense_top, same):
    delta = torch.exp(-loss) - torch.exp(-dense_loss)
    square = mean(delta**2)
    rms = math.sqrt(square["value"])
    quantiles = lambda x: {name: float(np.quantile(x.numpy(), share)) for name, share in QUANTILES.items()}
    buckets = []
    for low, high in zip(BORDERS, BORDERS[1:]):
        inside = (dense_top >= low) & ((dense_top < high) | (high == 1.0))
        bucket = {"from": low, "to": high, "positions": int(inside.sum())}
        if inside.any():
            bucket |= {"kl": mean(kl[inside]), "same_top": mean(same[inside])}
        buckets.append(bucket)
    return {
        "positions": len(kl),
        "not_finite": 0,
        "kl": mean(kl),
        "kl_percentiles": quantiles(kl),
        "same_top": mean(same),
        "delta_p": mean(delta),
        "delta_p_percentiles": quantiles(delta),
        "delta_p_rms": {"value": rms, "error": 0.5 / rms * square["error"]},
        "perplexity": exponential(mean(loss)),
        "dense_perplexity": exponential(mean(dense_loss)),
        "ln_ratio": mean(loss - dense_loss),
        "loss_correlation": float(torch.corrcoef(torch.stack([loss, dense_loss]))[0, 1]),
        "buckets": buckets,
    }


def compare(ours, theirs, path, limit, worst):
    if isinstance(theirs, dict):
        return all([compare(ours[key], theirs[key], f"{path}.{key}", limit, worst) for key in theirs])
    if isinstance(theirs, list):
        return all([compare(a, b, f"{path}[{i}]", limit, worst) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))])
    if ours is None:
        return math.isnan(theirs)
    # A minimum of a divergence may be zero up to rounding.
    difference = abs(ours - theirs) / max(abs(theirs), 1e-9)
    worst.append((difference, path))
    fine = difference <= limit
    print(f"{'' if fine else 'DIFFERS '}{path}: aqlm {ours:.12g}, torch {theirs:.12g}, relative {difference:.1e}")
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("quantized")
    parser.add_argument("base", help="lossless base file of the dense model: its token ids are read, its logits compared")
    parser.add_argument("record", help="what `aqlm eval --against --json` printed")
    parser.add_argument("--limit", type=float, default=1e-6, help="largest relative difference")
    arguments = parser.parse_args()
    record = json.loads(Path(arguments.record).read_text())
    base = safe_open(arguments.base, framework="pt")
    first = int(base.metadata()["first"])
    windows = base.get_tensor("input_ids").long().split(base.get_tensor("window_lengths").tolist())
    kept = base.get_slice("logits")
    dense, quantized = load(arguments.dense), load(arguments.quantized)
    columns, row, largest = [], 0, 0.0
    with torch.no_grad():
        for ids in windows:
            scored = slice(first, len(ids) - 1)
            logits = dense(ids[None]).logits[0, scored].double()
            rows = kept[row : row + len(logits)].double()
            row += len(logits)
            largest = max(largest, float((logits - rows).abs().max()))
            p = torch.log_softmax(logits, -1)
            q = torch.log_softmax(quantized(ids[None]).logits[0, scored].double(), -1)
            target = ids[first + 1 :, None]
            columns.append(
                torch.stack(
                    [
                        (p.exp() * (p - q)).sum(-1),
                        -p.gather(-1, target)[:, 0],
                        -q.gather(-1, target)[:, 0],
                        p.max(-1).values.exp(),
                        (p.argmax(-1) == q.argmax(-1)).double(),
                    ]
                )
            )
    print(f"largest difference of a dense logit: {largest:.2e}")
    worst = []
    fine = compare(record["divergence"], statistics(*torch.cat(columns, 1)), "divergence", arguments.limit, worst)
    print(f"worst: {max(worst)[1]}, relative {max(worst)[0]:.1e}; limit {arguments.limit:.0e}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
