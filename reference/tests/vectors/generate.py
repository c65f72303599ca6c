"""Writes index.json and its cases: Llama blocks and all their gradients by PyTorch's autograd, in f64 throughout.

transformers' own LlamaRMSNorm and eager softmax cast to f32 inside, so the norm is written out here and attention is
scaled_dot_product_attention, which computes in the type it is given. Rotary tables are transformers' (f32).

    pip install torch==2.15.0 transformers==5.23.0 safetensors && python generate.py
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

HERE = pathlib.Path(__file__).parent
TOKENS = 10
CASES = [
    {"name": "block_mha", "heads": 4, "kv_heads": 4},
    {
        "name": "block_gqa_bias_window_llama3",
        "heads": 4,
        "kv_heads": 2,
        "bias": True,
        "sliding_window": 4,
        # wavelengths of 6, 63, 628 and 6283 positions: one kept, one blended, two divided
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
]


class Norm(torch.nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def compute(case, seed):
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if "rope_scaling" in case:
        rope = {**rope, **case["rope_scaling"], "rope_type": "llama3"}
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=case["heads"],
        num_key_value_heads=case["kv_heads"],
        head_dim=8,
        attention_bias=case.get("bias", False),
        rope_parameters=rope,
        attn_implementation="sdpa",
    )
    layer = LlamaDecoderLayer(config, 0).double()
    layer.input_layernorm = Norm(16, 1e-5).double()
    layer.post_attention_layernorm = Norm(16, 1e-5).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        norm.weight.data += 1.0
    x = torch.randn(2, TOKENS, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, TOKENS, 16, dtype=torch.float64)
    positions = torch.arange(TOKENS)
    cos, sin = LlamaRotaryEmbedding(config)(x, positions[None].expand(2, -1))
    distance = positions[:, None] - positions[None, :]
    hidden = (distance < 0) | (distance >= case.get("sliding_window", TOKENS))
    mask = torch.zeros(TOKENS, TOKENS, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    y = layer(x, attention_mask=mask[None, None], position_embeddings=(cos.double(), sin.double()))
    y = y[0] if isinstance(y, tuple) else y
    loss = (y - target).pow(2).mean()
    loss.backward()
    arrays = {"x": x, "target": target, "cos": cos, "sin": sin, "y": y, "grad_x": x.grad}
    for name, parameter in layer.named_parameters():
        arrays[f"param.{name}"] = parameter
        arrays[f"grad.{name}"] = parameter.grad
    arrays = {name: array.detach().double().contiguous() for name, array in arrays.items()}
    save_file(arrays, HERE / f"{case['name']}.safetensors")
    return {"kind": "llama_block", "loss": loss.item(), "rms_norm_eps": 1e-5, "rope_theta": 10000.0, **case}


index = [compute(case, seed) for seed, case in enumerate(CASES, start=1)]
(HERE / "index.json").write_text(json.dumps(index, indent=1) + "\n")
