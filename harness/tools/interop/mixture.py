"""Makes a mixture of experts out of a dense Llama, small enough for an hour of one core, that still writes its texts.

    python mixture.py DENSE OUT --text TEXT.jsonl [--text TEXT.jsonl ...] [--experts 4] [--used 2] [--steps 600]

DENSE is a Llama folder, the texts have a "text" a line; OUT becomes a folder of model_type mixtral in f16. The hidden
units of each MLP are divided among the experts: units that are active for the same tokens come together, each expert
gets as many as the others, so the mixture has the dense model's size, and a router beside it. The router starts from a
regression of how much each expert would add to the block's output. Then the whole model learns the dense model's
distribution of the next token (the divergence from it is the loss), with Mixtral's own loss for the balance of the
experts beside it. Needs the packages of requirements-mixture.txt. Prints the loss, and the share of each expert's tokens.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.optimize import linear_sum_assignment  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM  # noqa: E402
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # noqa: E402

# Tokens that decide on clusters and on the routers' start.
PROBE = 8192
BALANCE = 0.01


def windows(paths, folder, length):
    """Documents as BOS, tokens, EOS, one behind the other, cut to windows."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            ids += [1, *tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids, 2]
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).view(count, length)


def clusters(activity, count, generator):
    """Equal clusters of hidden units [tokens, units] by k-means: a unit's point is its activity, of length 1."""
    points = (activity / activity.norm(dim=0, keepdim=True).clamp_min(1e-12)).T.double().numpy()
    units = len(points)
    slots = np.repeat(np.arange(count), units // count)
    chosen = torch.randperm(units, generator=generator)[:count].numpy()
    means = points[chosen]
    for _ in range(20):
        _, slot = linear_sum_assignment(-(points @ means.T)[:, slots])
        of_unit = slots[slot]
        means = np.stack([points[of_unit == cluster].mean(0) for cluster in range(count)])
    return [torch.tensor(np.flatnonzero(of_unit == cluster)) for cluster in range(count)]


@torch.no_grad()
def divide(dense, mixture, ids, count, used, generator):
    """Copies the dense model's weights into the mixture."""
    inputs = {}
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args, at=at: inputs.update({at: args[0].flatten(0, 1)}))
        for at, layer in enumerate(dense.model.layers)
    ]
    dense(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    theirs = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    missing, unexpected = mixture.load_state_dict(theirs, strict=False)
    assert not unexpected and all(".mlp." in name for name in missing), (missing, unexpected)
    for at, layer in enumerate(dense.model.layers):
        mlp, x = layer.mlp, inputs[at]
        hidden = torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
        activity = hidden.abs() * mlp.down_proj.weight.norm(dim=0)
        parts = clusters(activity, count, generator)
        block = mixture.model.layers[at].mlp
        added = []
        for expert, units in enumerate(parts):
            both = torch.cat([mlp.gate_proj.weight[units], mlp.up_proj.weight[units]])
            block.experts.gate_up_proj[expert].copy_(both)
            # the weights of a token's experts add up to 1, and `used` parts are to be added whole
            block.experts.down_proj[expert].copy_(mlp.down_proj.weight[:, units] * used)
            added.append((hidden[:, units] @ mlp.down_proj.weight[:, units].T).norm(dim=1))
        # the logarithm of each part's size, in units of its spread; what all parts share moves no choice
        target = torch.stack(added, 1).log()
        target = (target - target.mean(1, keepdim=True)).double()
        target = (target - target.mean(0)) / target.std()
        x = x.double()
        gram = x.T @ x
        gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        block.gate.weight.copy_(torch.linalg.solve(gram, x.T @ target).T)


def shares(router_logits, used):
    """For each block, the share of choices that each expert gets."""
    found = []
    for logits in router_logits:
        chosen = logits.topk(used, dim=-1).indices.flatten()
        found.append((torch.bincount(chosen, minlength=logits.shape[-1]) / len(chosen)).tolist())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--used", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    dense = AutoModelForCausalLM.from_pretrained(arguments.dense, dtype=torch.float32).eval()
    old = dense.config
    if old.intermediate_size % arguments.experts:
        parser.error(f"--experts must divide {old.intermediate_size}, the hidden units of an MLP")
    config = MixtralConfig(
        vocab_size=old.vocab_size, hidden_size=old.hidden_size, head_dim=old.head_dim,
        intermediate_size=old.intermediate_size // arguments.experts, num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads, num_key_value_heads=old.num_key_value_heads,
        max_position_embeddings=old.max_position_embeddings, rms_norm_eps=old.rms_norm_eps,
        rope_parameters=old.rope_parameters, tie_word_embeddings=old.tie_word_embeddings, sliding_window=None,
        bos_token_id=old.bos_token_id, eos_token_id=old.eos_token_id, num_local_experts=arguments.experts,
        num_experts_per_tok=arguments.used, output_router_logits=False,
    )  # fmt: skip
    mixture = MixtralForCausalLM._from_config(config, dtype=torch.float32)
    text = windows(arguments.text, arguments.dense, arguments.length)
    print(f"{text.numel()} tokens in {len(text)} windows", flush=True)
    order = torch.randperm(len(text), generator=generator)
    divide(dense, mixture, text[order[: PROBE // arguments.length]], arguments.experts, arguments.used, generator)

    matrices = [parameter for parameter in mixture.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in mixture.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.95))
    warm = max(1, arguments.steps // 20)

    def rate(step):
        if step < warm:
            return (step + 1) / warm
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, arguments.steps - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
    begin, at, mean = time.time(), 0, None
    for step in range(arguments.steps):
        if at + arguments.batch > len(order):
            order, at = torch.randperm(len(text), generator=generator), 0
        ids = text[order[at : at + arguments.batch]]
        at += arguments.batch
        with torch.no_grad():
            teacher = dense(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        result = mixture(input_ids=ids, use_cache=False, output_router_logits=True)
        student = result.logits.log_softmax(-1)
        divergence = (teacher.exp() * (teacher - student)).sum(-1).mean()
        balance = load_balancing_loss_func(result.router_logits, arguments.experts, arguments.used)
        (divergence + BALANCE * balance).backward()
        torch.nn.utils.clip_grad_norm_(mixture.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        schedule.step()
        mean = divergence.item() if mean is None else 0.98 * mean + 0.02 * divergence.item()
        if step in (0, arguments.steps - 1) or step % 50 == 49:
            print(f"step {step + 1}: KL {mean:.4f}, balance {balance.item():.4f}, {time.time() - begin:.0f} s", flush=True)

    with torch.no_grad():
        result = mixture(input_ids=text[order[: PROBE // arguments.length]], use_cache=False, output_router_logits=True)
    for block, share in enumerate(shares(result.router_logits, arguments.used)):
        print(f"block {block}: shares of the experts {', '.join(f'{one:.3f}' for one in share)}")
    mixture.to(torch.float16).save_pretrained(arguments.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (arguments.dense / name).exists():
            (arguments.out / name).write_bytes((arguments.dense / name).read_bytes())


if __name__ == "__main__":
    main()
