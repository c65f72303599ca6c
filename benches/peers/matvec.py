"""One input times a quantized weight on the CPU: this project, the Python package aqlm and dense BLAS, side by side.

    python -m venv VENV && VENV/bin/pip install -r benches/peers/requirements.txt
    cargo build --release -p aqlm-benches
    VENV/bin/python benches/peers/matvec.py target/release/matvec_times [--threads 2] [--rounds 5] [--seconds 1]

Rounds alternate between all of them, because other work on the machine comes and goes: a figure is the least over all calls
and the median over rounds of each round's median. Processor time (all threads together) stands beside wall time: where
the cores are shared with other processes, it is the figure to compare. Every peer's result is checked against a product in f64 before it
is timed; matvec_times does the same for its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

parser = argparse.ArgumentParser()
parser.add_argument("binary", help="target/release/matvec_times")
parser.add_argument("--schemes", default="2x8g8,4x8g8,1x16g8")
parser.add_argument("--shape", default="11008x4096", help="OUTxIN")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--seconds", type=float, default=1.0, help="per figure and round")
parser.add_argument("--level", default=None, help="one SIMD level instead of all")
arguments = parser.parse_args()

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[variable] = str(arguments.threads)

import numpy as np  # noqa: E402 (after the number of threads is set)
import torch  # noqa: E402
from aqlm.inference_kernels.numba_kernel import numba_gemm_lut  # noqa: E402

torch.set_num_threads(arguments.threads)
out_features, in_features = map(int, arguments.shape.split("x"))
rng = np.random.default_rng(0)


def timed(call):
    call()
    wall, cpu, start = [], [], time.perf_counter()
    while len(wall) < 3 or time.perf_counter() - start < arguments.seconds:
        before, cpu_before = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - before)
        cpu.append(time.process_time() - cpu_before)
    return tuple(1e6 * f(seconds) for seconds in (wall, cpu) for f in (min, statistics.median))


def agrees(found, expected, what):
    error = np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)
    # n roundings of f32 relative to a sum of random signs: n eps / 2 times sqrt(n) at the very worst
    limit = in_features**1.5 * 2.0**-24
    if not error <= limit:
        print(f"{what}: relative error {error:.1e} is over {limit:.1e}; timed all the same, and marked")
    return bool(error <= limit)


def aqlm_case(scheme):
    codebooks_count, rest = scheme.split("x")
    bits, group = map(int, rest.split("g"))
    codes = rng.integers(0, 2**bits, (out_features, in_features // group, int(codebooks_count)))
    codebooks = rng.uniform(-1, 1, (int(codebooks_count), 2**bits, 1, group)).astype(np.float32)
    scales = rng.uniform(0.01, 0.02, (out_features, 1, 1, 1)).astype(np.float32)
    x = rng.uniform(-1, 1, (1, in_features)).astype(np.float32)
    weight = sum(codebooks[m, codes[:, :, m], 0, :].astype(np.float64) for m in range(int(codebooks_count)))
    weight = weight.reshape(out_features, in_features) * scales.reshape(-1, 1)
    # the layout that aqlm's QuantizedLinear gives this kernel: [in groups, out groups, codebooks]
    alternative = torch.from_numpy(np.ascontiguousarray(codes.astype(np.uint8).view(np.int8).transpose(1, 0, 2)))
    tensors = [torch.from_numpy(x), alternative, torch.from_numpy(codebooks), torch.from_numpy(scales), None]
    return lambda: numba_gemm_lut(*tensors), weight @ x[0].astype(np.float64)


dense = rng.uniform(-1, 1, (out_features, in_features)).astype(np.float32)
vector = rng.uniform(-1, 1, in_features).astype(np.float32)
dense_torch, vector_torch = torch.from_numpy(dense), torch.from_numpy(vector)
exact = dense.astype(np.float64) @ vector.astype(np.float64)
peers = {"dense f32 numpy": lambda: dense @ vector, "dense f32 torch": lambda: torch.mv(dense_torch, vector_torch)}
correct = {name: agrees(call(), exact, name) for name, call in peers.items()}
schemes = arguments.schemes.split(",")
for scheme in schemes:
    if scheme.split("x")[1].startswith("8g"):
        name = f"{scheme} numba_gemm_lut"
        peers[name], expected = aqlm_case(scheme)
        correct[name] = agrees(peers[name]()[0], expected, name)

KEYS = ("min_us", "median_us", "cpu_min_us", "cpu_median_us")
figures, bandwidths = {}, []
for _ in range(arguments.rounds):
    for name, call in peers.items():
        figures.setdefault(name, []).append(timed(call))
    for scheme in schemes:
        command = [arguments.binary, scheme, arguments.shape, str(arguments.seconds)]
        command += [arguments.level] if arguments.level else []
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            row = json.loads(line)
            if "min_us" in row:
                name = row["what"] if row["what"].startswith("dense") else f"{scheme} {row['what']}"
                figures.setdefault(name, []).append([row[key] for key in KEYS])
            else:
                bandwidths.append(row["gb_per_s_best"])

print(f"{arguments.shape}, {arguments.threads} threads, {arguments.rounds} rounds; us")
print(f"{'':<36}{'wall least':>12}{'median':>12}{'cpu least':>12}{'median':>12}")
for name, rows in figures.items():
    mark = "" if correct.get(name, True) else "   (wrong result)"
    columns = [f(row[c] for row in rows) for c, f in enumerate((min, statistics.median, min, statistics.median))]
    print(f"{name:<36}" + "".join(f"{value:>12.1f}" for value in columns) + mark)
print(f"copy: {max(bandwidths):.1f} GB/s at best")
