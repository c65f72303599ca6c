#!/usr/bin/env python3
"""Do our zero-shot tasks mean what the LM Evaluation Harness means? One document at a time.

    python tasks.py lm-eval MODEL DATA --bos never --limit 200 --out peer.jsonl       their scores, transformers on CPU
    aqlm tasks MODEL --tasks winogrande,piqa,hellaswag,arc_easy,arc_challenge --task-data DATA --bos never \\
        --limit 200 --results ours.jsonl
    python tasks.py compare peer.jsonl ours.jsonl                                     both, document by document

    python tasks.py prompts DATA                                                      their requests, without a model

MODEL is a Hugging Face folder in f16 or f32, computed in f32. DATA is a folder with the files that
docs/evaluation.md names. lm-eval's own task definitions are used; only the place of the data is replaced, so that
nothing is downloaded. With `--bos always`, the tokenizer gets a post-processor that puts BOS first, since
lm-eval's `add_bos_token` adds what the tokenizer adds, and SmolLM2's adds nothing.

Needs requirements-lm-eval.txt. `compare` prints the figures of each task. Exit code 0: acc and acc_norm are the same on
every document, except where the two best scores are within the limit of each other; 1: some differ.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

# lm-eval's definition, the file below DATA that holds the split it evaluates, and the file with the shots
TASKS = {
    "winogrande": ("winogrande/default.yaml", "winogrande_xl_validation", None),
    "piqa": ("piqa/piqa.yaml", "piqa_validation", None),
    "arc_easy": ("arc/arc_easy.yaml", "arc_easy_test", None),
    "arc_challenge": ("arc/arc_challenge.yaml", "arc_challenge_test", None),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag_validation", None),
    "lambada_openai": ("lambada/lambada_openai.yaml", "lambada_openai_test", None),
    "mmlu": ("mmlu/default/mmlu_abstract_algebra.yaml", "mmlu_test", "mmlu_dev"),
}
WITH_DATA = ["winogrande", "piqa", "arc_easy", "arc_challenge", "hellaswag"]


def find(folder, stem):
    for ending in (".jsonl", ".jsonl.gz"):
        if (folder / f"{stem}{ending}").is_file():
            return str(folder / f"{stem}{ending}")
    sys.exit(f"{folder}: expected {stem}.jsonl or {stem}.jsonl.gz, found neither")


def build(name, folder, shots, limit):
    """One of lm-eval's tasks with its data read from `folder`."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    file, stem, dev = TASKS[name]
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / file)
    split = config.get("test_split") or config["validation_split"]
    files = {split: find(folder, stem)}
    if dev is not None:
        files[config["fewshot_split"]] = find(folder, dev)
    for unused in ("tag", "dataset_name", "training_split"):
        config.pop(unused, None)
    if split != config.get("validation_split"):
        config["validation_split"] = None
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "num_fewshot": shots}
    task = ConfigurableTask(config=config)
    task.build_all_requests(limit=limit)
    return task


def model_of(folder, bos, threads, batch):
    """lm-eval's wrapper of a transformers model in f32."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if bos == "always":
        token, number = tokenizer.bos_token, tokenizer.bos_token_id
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, number)]
        )
        if tokenizer.encode("a")[0] != number:
            sys.exit(f"{folder}: the tokenizer did not take the post-processor that adds {token}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch, device="cpu", add_bos_token=bos == "always"
    )


def run_lm_eval(arguments):
    lm = model_of(arguments.model, arguments.bos, arguments.threads, arguments.batch)
    out = Path(arguments.out)
    with out.open("w") as file:
        for name in arguments.tasks.split(","):
            started = time.time()
            task = build(name, Path(arguments.data), arguments.shots, arguments.limit)
            answers = lm.loglikelihood(task.instances, disable_tqdm=True)
            documents = {}
            for instance, answer in zip(task.instances, answers, strict=True):
                documents.setdefault(instance.doc_id, []).append((instance, answer))
            for index, pairs in documents.items():
                results = task.process_results(pairs[0][0].doc, [answer for _, answer in pairs])
                line = {
                    "task": name,
                    "index": index,
                    "contexts": [instance.args[0] for instance, _ in pairs],
                    "continuations": [instance.args[1] for instance, _ in pairs],
                    "log_likelihoods": [score for score, _ in (answer for _, answer in pairs)],
                    "greedy": [greedy for _, greedy in (answer for _, answer in pairs)],
                    **{metric: float(value) for metric, value in results.items()},
                }
                file.write(json.dumps(line) + "\n")
            file.flush()
            print(f"{name}: {len(documents)} documents, {time.time() - started:.0f} s", file=sys.stderr, flush=True)


def run_prompts(arguments):
    for name in arguments.tasks.split(","):
        task = build(name, Path(arguments.data), arguments.shots, arguments.limit)
        for instance in task.instances:
            context, continuation = instance.args
            line = {"task": name, "index": instance.doc_id, "context": context, "continuation": continuation}
            print(json.dumps(line))


def score(values, gold):
    """Whether the first largest value is the right one, and how far it leads."""
    best = max(range(len(values)), key=lambda index: values[index])
    others = [value for index, value in enumerate(values) if index != best]
    return best == gold, values[best] - max(others) if others else float("inf")


def read(path, kind=None):
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for row in rows:
        if kind is not None and row.pop("record") != kind:
            sys.exit(f"{path}: expected lines of {kind}")
    return {(row["task"], row["index"]): row for row in rows}


def run_compare(arguments):
    theirs, ours = read(arguments.theirs), read(arguments.ours, "task_document/1")
    same = True
    for task in dict.fromkeys(name for name, _ in theirs):
        keys = sorted(key for key in theirs if key[0] == task)
        missing = [key for key in keys if key not in ours]
        if missing:
            sys.exit(f"{arguments.ours}: no document {missing[0]}")
        largest, ties, differ = 0.0, 0, []
        figures = {metric: [0.0, 0.0] for metric in ("acc", "acc_norm") if metric in theirs[keys[0]]}
        for key in keys:
            their, our = theirs[key], ours[key]
            logs = [answer["log_likelihood"] for answer in our["answers"]]
            largest = max([largest, *(abs(a - b) for a, b in zip(logs, their["log_likelihoods"], strict=True))])
            if [answer["greedy"] for answer in our["answers"]] != their["greedy"]:
                print(f"note: {task} {key[1]}: another continuation is greedy")
            for metric, sums in figures.items():
                sums[0] += their[metric]
                sums[1] += our[metric]
                if their[metric] != our[metric]:
                    lengths = [answer["characters"] if metric == "acc_norm" else 1 for answer in our["answers"]]
                    _, lead = score([log / length for log, length in zip(logs, lengths)], our["gold"])
                    # A log-likelihood per character moves by at most that of the whole over the shortest answer.
                    if lead <= arguments.limit / min(lengths):
                        ties += 1
                    else:
                        differ.append((key[1], metric, lead))
        count = len(keys)
        words = ", ".join(f"{m} {a / count:.4f} lm-eval, {b / count:.4f} aqlm" for m, (a, b) in figures.items())
        print(
            f"{task}: {count} documents, {words}; {len(differ)} differ, {ties} ties; largest difference of a "
            f"log-likelihood {largest:.1e}"
        )
        for index, metric, lead in differ:
            print(f"DIFFERS: {task} {index}: {metric}, lead {lead:.2e}")
        same &= not differ
    return 0 if same else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name, run):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        return sub

    peer = command("lm-eval", run_lm_eval)
    peer.add_argument("model")
    peer.add_argument("data")
    peer.add_argument("--out", required=True)
    peer.add_argument("--bos", choices=["never", "always"], default="never")
    peer.add_argument("--threads", type=int, default=1)
    peer.add_argument("--batch", type=int, default=8)
    prompts = command("prompts", run_prompts)
    prompts.add_argument("data")
    for sub in (peer, prompts):
        sub.add_argument("--tasks", default=",".join(WITH_DATA))
        sub.add_argument("--limit", type=int)
        sub.add_argument("--shots", type=int, default=0)
    comparison = command("compare", run_compare)
    comparison.add_argument("theirs", help="what `lm-eval --out` wrote")
    comparison.add_argument("ours", help="what `aqlm tasks --results` wrote")
    comparison.add_argument("--limit", type=float, default=1e-4, help="leads below it are ties")
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


if __name__ == "__main__":
    main()
