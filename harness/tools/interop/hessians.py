"""Plain, guided and two-sided Hessians side by side: a model quantized without tuning, its perplexity and divergence.

    python hessians.py MODEL CALIBRATION EVALUATION --scheme 2x8g8 --modes plain guided:1 two-sided

MODEL is a Llama folder (or NAME.gguf inside one, with the package gguf); the texts are .txt, or .jsonl with a "text" a
line. A mode is one of
    plain              H = mean x x^T of the layer's inputs behind the quantized blocks
    guided:G           the same, each token weighted by the squared gradient of the dense model's loss with respect to the
                       layer's outputs, averaged over each of G groups of output rows
    guided-sampled:G   the same with labels drawn from the dense model
    two-sided          tr(H_O E H E^T) with the plain H; H_O = mean G G^T of the gradients G of sequences, labels drawn
                       from the model (YAQA, arXiv 2505.22988, sketch B)
    sketched           one-sided, under H_I = mean G^T G
    both-sketched      tr(H_O E H_I E^T)
The quantizer is error feedback with one hypothesis, pairs of codewords searched jointly, two passes with a closed-form
update between them; rows of a block of 32 do not see each other's H_O. Runs on a GPU if there is one.
"""

import argparse
import json
import math
import os
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
# the layers whose inputs are read, and the layers that share each
READERS = {0: (0, 1, 2), 3: (3,), 4: (4, 5), 6: (6,)}
ROWS = 32


def load(path):
    folder, file = (os.path.dirname(path), os.path.basename(path)) if path.endswith(".gguf") else (path, None)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.eval().to(DEVICE)


def token_ids(path, tokenizer):
    with open(path, encoding="utf-8", newline="") as file:
        if not path.endswith(".jsonl"):
            return torch.tensor(tokenizer(file.read(), add_special_tokens=False).input_ids)
        ids = []
        for line in file:
            ids += [tokenizer.bos_token_id or 1, *tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids]
        return torch.tensor(ids)


def windows(ids, length, most):
    count = min(len(ids) // length, most)
    return ids[: count * length].view(count, length).to(DEVICE)


@torch.no_grad()
def judge(dense, model, texts):
    """Mean KL over positions, its error over windows, and perplexity."""
    divergences, losses = [], []
    for tokens in texts:
        q, p = (m(tokens[None]).logits[0].log_softmax(-1) for m in (model, dense))
        divergences.append((p.exp() * (p - q)).sum(-1).mean().double())
        losses.append(-q[:-1].gather(1, tokens[1:, None]).mean().double())
    divergences = torch.stack(divergences)
    error = divergences.std() / len(divergences) ** 0.5
    return divergences.mean().item(), error.item(), math.exp(torch.stack(losses).mean().item())


def backward(dense, tokens, generator):
    """Gradients of the summed cross-entropy; labels are the text's, or drawn from the model."""
    logits = dense(tokens).logits.flatten(0, 1)
    if generator is None:
        labels = torch.cat([tokens[:, 1:], tokens[:, :1]], 1).flatten()
    else:
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).flatten()
    dense.zero_grad()
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()


def saliency(dense, names, texts, groups, sampled):
    """[tokens, groups] of every layer."""
    store = {name: [] for name in names}
    generator = torch.Generator(DEVICE).manual_seed(0) if sampled else None

    def hook(name):
        def keep(module, inputs, outputs):
            squares = outputs[0].double().flatten(0, 1) ** 2
            store[name].append(squares.unflatten(1, (groups, -1)).mean(-1))

        return dense.get_submodule(name).register_full_backward_hook(keep)

    hooks = [hook(name) for name in names]
    for batch in texts.split(4):
        backward(dense, batch, generator)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in store.items()}


def sketch(dense, names, texts, draws):
    """H_O and H_I of every layer, from gradients of sequences."""
    outer, inner, inputs, hooks = {}, {}, {}, []
    generator = torch.Generator(DEVICE).manual_seed(0)
    for name in names:
        module = dense.get_submodule(name)

        def remember(module, given, name=name):
            inputs[name] = given[0].detach()

        def add(module, given, outputs, name=name):
            g = torch.einsum("bto,bti->boi", outputs[0], inputs[name])
            outer[name] = outer.get(name, 0) + torch.einsum("boi,bpi->op", g, g).double()
            inner[name] = inner.get(name, 0) + torch.einsum("boi,boj->ij", g, g).double()

        hooks += [module.register_forward_pre_hook(remember), module.register_full_backward_hook(add)]
    for _ in range(draws):
        for batch in texts.split(16):
            backward(dense, batch, generator)
    for hook in hooks:
        hook.remove()
    return outer, inner


def damped(h, share):
    h = h / h.diagonal().mean()
    return h + share * torch.eye(len(h), dtype=h.dtype, device=h.device)


class Layer:
    """A layer being quantized: weight [out, in], one Hessian for each group of rows, H_O or None."""

    def __init__(self, weight, hessians, outer, scheme):
        (self.out, self.inputs), self.w = weight.shape, weight.float()
        self.size, self.group = 2 ** scheme[1], scheme[2]
        mean = hessians[0].diagonal().mean()
        ridge = [1e-4 * h.diagonal().mean() / mean * torch.eye(self.inputs, dtype=h.dtype, device=DEVICE) for h in hessians]
        hessians = [h / mean + r for h, r in zip(hessians, ridge)]
        self.h = [h.float() for h in hessians]
        self.factors = [torch.linalg.cholesky(h).float() for h in hessians]
        self.outer = None if outer is None else damped(outer, 1e-2)
        self.scale = self.w.norm(dim=1, keepdim=True) / self.inputs**0.5
        self.u = self.w / self.scale
        self.rows = self.out // len(hessians)

    def start(self):
        """Residual k-means, then both codebooks fitted to the pair that is nearest."""
        groups = self.u.reshape(-1, self.group)
        self.books, left = [], groups
        for _ in range(2):
            book = left[torch.randperm(len(left), device=DEVICE)[: self.size]]
            for _ in range(25):
                book = self.means(book, nearest(left, book), left)
            left = left - book[nearest(left, book)]
            self.books.append(book)
        some = groups[torch.randperm(len(groups), device=DEVICE)[:32768]]
        for _ in range(10):
            pair = nearest(some, self.sums())
            codes = (pair // self.size, pair % self.size)
            for m in (0, 1):
                self.books[m] = self.means(self.books[m], codes[m], some - self.books[1 - m][codes[1 - m]])

    def means(self, book, codes, values):
        counts = torch.bincount(codes, minlength=self.size).float()[:, None]
        sums = torch.zeros_like(book).index_add_(0, codes, values)
        return torch.where(counts > 0, sums / counts.clamp(min=1), book)

    def sums(self):
        return (self.books[0][:, None] + self.books[1][None]).reshape(-1, self.group)

    def independent(self, sums, target, factor):
        """Error feedback of rows that do not see each other: pairs of codes [rows, groups]."""
        error = torch.zeros_like(target)
        pairs = torch.zeros(len(target), self.inputs // self.group, dtype=torch.long, device=DEVICE)
        for j in range(pairs.shape[1] - 1, -1, -1):
            own = slice(j * self.group, (j + 1) * self.group)
            goal = target[:, own] @ factor[own, own] + error[:, own.stop :] @ factor[own.stop :, own]
            pairs[:, j] = nearest(goal, sums @ factor[own, own])
            error[:, own] = target[:, own] - sums[pairs[:, j]]
        return pairs

    def feedback(self):
        sums = self.sums()
        step = self.rows if self.outer is None else ROWS
        factor = None if self.outer is None else torch.linalg.cholesky(self.outer).float()
        error, parts = torch.zeros_like(self.w), {}
        for first in reversed(range(0, self.out, step)):
            own = slice(first, min(first + step, self.out))
            target = self.u[own]
            if factor is not None and own.stop < self.out:
                behind = factor[own.stop :, own].T @ error[own.stop :]
                shift = torch.linalg.solve_triangular(factor[own, own].T.contiguous(), behind, upper=True)
                target = target + shift / self.scale[own]
            parts[first] = self.independent(sums, target, self.factors[first // self.rows])
            error[own] = (self.u[own] - sums[parts[first]].reshape(-1, self.inputs)) * self.scale[own]
        return torch.cat([parts[first] for first in sorted(parts)])

    def decoded(self, pairs, books):
        return (books[0][pairs // self.size] + books[1][pairs % self.size]).reshape(self.out, -1) * self.scale

    def image(self, d):
        d = torch.cat([part @ h for part, h in zip(d.split(self.rows), self.h)])
        return d if self.outer is None else self.outer.float() @ d

    def loss(self, pairs):
        error = self.w - self.decoded(pairs, self.books)
        return (self.image(error) * error).sum().item()

    def update(self, pairs):
        """Least squares for the codebooks, by conjugate gradients."""
        codes = [(pairs // self.size).flatten(), (pairs % self.size).flatten()]

        def scatter(d):
            d = (d * self.scale).reshape(-1, self.group).double()
            empty = torch.zeros(self.size, self.group, dtype=torch.float64, device=DEVICE)
            return torch.stack([empty.index_add(0, own, d) for own in codes]).float()

        counts = torch.stack([torch.bincount(own, minlength=self.size) for own in codes]).float().clamp(min=1)[..., None]
        x = torch.stack(self.books)
        r = scatter(self.image(self.w - self.decoded(pairs, self.books)))
        p = r / counts
        rz = first = (r * p).sum()
        for _ in range(40):
            image = scatter(self.image(self.decoded(pairs, list(p))))
            step = rz / (p * image).sum()
            x, r = x + step * p, r - step * image
            new = (r * r / counts).sum()
            if new < 1e-10 * first:
                break
            p, rz = r / counts + new / rz * p, new
        self.books = list(x)

    def quantized(self):
        torch.manual_seed(0)
        self.start()
        pairs = self.feedback()
        self.update(pairs)
        before, again = self.loss(pairs), self.feedback()
        if self.loss(again) < before:
            pairs = again
        self.update(pairs)
        return self.decoded(pairs, self.books)


def nearest(values, words):
    """Index of the nearest word for each value."""
    half = (words * words).sum(1)
    return torch.cat([(2 * part @ words.T - half).argmax(1) for part in values.split(4096)])


def inputs_of(model, block, texts):
    """[tokens, in] of the block's four different inputs."""
    kept, hooks = {reader: [] for reader in READERS}, []

    class Enough(Exception):
        pass

    def stop(*_):
        raise Enough

    layer = model.model.layers[block]
    for reader in READERS:

        def keep(module, given, reader=reader):
            kept[reader].append(given[0].detach().flatten(0, 1))

        hooks.append(layer.get_submodule(KINDS[reader]).register_forward_pre_hook(keep))
    hooks.append(layer.register_forward_hook(stop))
    with torch.no_grad():
        for batch in texts.split(8):
            try:
                model(batch)
            except Enough:
                pass
    for hook in hooks:
        hook.remove()
    return {reader: torch.cat(parts).double() for reader, parts in kept.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("evaluation")
    parser.add_argument("--scheme", default="2x8g8")
    parser.add_argument("--modes", nargs="+", default=["plain"])
    parser.add_argument("--tokenizer", help="folder of the tokenizer, if not MODEL")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=1 << 30)
    parser.add_argument("--draws", type=int, default=4, help="labels drawn for each sequence of the sketch")
    args = parser.parse_args()
    books, _, rest = args.scheme.partition("x")
    scheme = (int(books), *map(int, rest.split("g")))
    if scheme[0] != 2:
        parser.error("a scheme with two codebooks")
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
    text = token_ids(args.calibration, tokenizer)
    calibration = windows(text, args.seqlen, args.sequences)
    judged = windows(token_ids(args.evaluation, tokenizer), args.ctx, args.windows)
    dense = load(args.model)
    blocks = len(dense.model.layers)
    names = [f"model.layers.{block}.{kind}" for block in range(blocks) for kind in KINDS]
    print("dense", judge(dense, dense, judged), flush=True)
    if any("-s" in mode and not mode.startswith("guided") or mode == "sketched" for mode in args.modes):
        started = time.time()
        sketched = sketch(dense, names, windows(text, 256, 1 << 30), args.draws)
        print(f"sketch {time.time() - started:.0f} s", flush=True)
    for mode in args.modes:
        started, (kind, _, groups) = time.time(), mode.partition(":")
        weights = None
        if kind.startswith("guided"):
            weights = saliency(dense, names, calibration, int(groups), kind == "guided-sampled")
        model, errors = load(args.model), []
        for block in range(blocks):
            for reader, x in inputs_of(model, block, calibration).items():
                plain = x.T @ x / len(x)
                for number in READERS[reader]:
                    name = names[block * len(KINDS) + number]
                    parameter = model.get_submodule(name).weight
                    hessians, outer = [plain], None
                    if weights is not None:
                        of = weights[name] / weights[name].mean()
                        hessians = [(x * of[:, [g]]).T @ x / len(x) for g in range(of.shape[1])]
                    if kind in ("sketched", "both-sketched"):
                        hessians = [sketched[1][name]]
                    if kind in ("two-sided", "both-sketched"):
                        outer = sketched[0][name]
                    found = Layer(parameter.data, hessians, outer, scheme).quantized()
                    error = (parameter.data - found).double()
                    whole = parameter.data.double()
                    errors.append(((error @ plain * error).sum() / (whole @ plain * whole).sum()).item())
                    parameter.data = found
        kl, spread, perplexity = judge(dense, model, judged)
        print(
            f"{args.scheme} {mode}: KL {kl:.4f} +- {spread:.4f}, perplexity {perplexity:.3f}, "
            f"mean relative layer error {sum(errors) / len(errors):.4f}, {time.time() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
