"""Recomputes the llama_block vectors of a folder with transformers in f64 throughout.

transformers casts to f32 inside LlamaRMSNorm and inside the eager softmax even when the model is f64, so vectors made
with it as it stands carry f32 rounding of about 1e-7. This script checks that on the given vectors (as it stands,
transformers must reproduce them to f64 rounding), then computes the same cases with those two casts removed, and writes
them to another folder, marked `"arithmetic": "f64"`, for `aqlm check --vectors OUT`, which then asks for 1e-9.

    python llama_block_f64.py VECTORS OUT
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama


def decoder_layer(entry, tensors):
    config = LlamaConfig(
        hidden_size=tensors["x"].shape[-1],
        intermediate_size=tensors["param.mlp.gate_proj.weight"].shape[0],
        num_attention_heads=entry["heads"],
        num_key_value_heads=entry["kv_heads"],
        rms_norm_eps=entry["rms_norm_eps"],
        num_hidden_layers=1,
        vocab_size=8,
        attn_implementation="eager",
    )
    layer = modeling_llama.LlamaDecoderLayer(config, 0).double()
    layer.load_state_dict({k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")})
    return layer


def run(entry, tensors):
    layer = decoder_layer(entry, tensors)
    x = tensors["x"].clone().requires_grad_()
    tokens = x.shape[1]
    mask = torch.full((tokens, tokens), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    y = layer(x, attention_mask=mask, position_embeddings=(tensors["cos"], tensors["sin"]))
    y = y[0] if isinstance(y, tuple) else y
    loss = (y - tensors["target"]).pow(2).mean()
    loss.backward()
    result = {"y": y.detach(), "grad_x": x.grad}
    for name, parameter in layer.named_parameters():
        result[f"grad.{name}"] = parameter.grad
    return result


def worst(result, tensors):
    return max(((v - tensors[k]).norm() / tensors[k].norm()).item() for k, v in result.items())


def rms_norm_f64(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def main(vectors, out):
    entries = [e for e in json.loads((vectors / "index.json").read_text()) if e["kind"] == "llama_block"]
    inputs = {e["name"]: load_file(vectors / f"{e['name']}.safetensors") for e in entries}
    for entry in entries:
        difference = worst(run(entry, inputs[entry["name"]]), inputs[entry["name"]])
        print(f"{entry['name']}: transformers as it stands, worst relative difference {difference:.2e}")

    modeling_llama.LlamaRMSNorm.forward = rms_norm_f64
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim, dtype=None: softmax(x, dim=dim)
    out.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        tensors = inputs[entry["name"]]
        result = run(entry, tensors)
        print(f"{entry['name']}: f64 throughout moves it by {worst(result, tensors):.2e}")
        entry["arithmetic"] = "f64"
        save_file({k: v.contiguous() for k, v in {**tensors, **result}.items()}, out / f"{entry['name']}.safetensors")
    (out / "index.json").write_text(json.dumps(entries, indent=1))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
