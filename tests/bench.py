# SPDX-License-Identifier: MIT
"""Time and memory of the loss against full logits, and seconds of a micro step, on a CPU.

    python tests/bench.py             # the loss at Qwen3's vocabulary, frozen and trained head, and a micro step
    python tests/bench.py --tiny      # does it run?

Every way runs in a process of its own, in turns, and the fastest of five counts. Read the ratios: seconds depend on the
machine.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import renio  # noqa: E402

SIZES = dict(vocabulary=151_936, tokens=1024, width=256)
TINY = dict(vocabulary=997, tokens=64, width=16)


def full_logits(hidden, teacher_hidden, head, teacher_head, tokens):
    """The plain way: all logits of both models at once."""
    logits, teacher_logits = hidden @ head.T, teacher_hidden @ teacher_head.T
    renio.token_logprobs(logits.detach(), tokens, 1.0), renio.token_logprobs(teacher_logits, tokens, 1.0)
    return renio.token_divergence(logits, teacher_logits).sum()


def chunked(*operands):
    return renio.chunked_divergence(*operands).divergence.sum()


WAYS = dict(full=full_logits, chunked=chunked)


def once(way, trained, sizes):
    """Seconds of value and gradient after a first round, and peak memory in GB beyond the operands, as JSON."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    hidden, teacher_hidden = torch.randn(2, sizes["tokens"], sizes["width"])
    head, teacher_head = torch.randn(2, sizes["vocabulary"], sizes["width"]) / sizes["width"] ** 0.5
    hidden, head = hidden.requires_grad_(), head.requires_grad_(trained)
    tokens = torch.randint(sizes["vocabulary"], (sizes["tokens"],))
    before, seconds = peak_memory(), []
    for _ in range(3):
        start = time.perf_counter()
        WAYS[way](hidden, teacher_hidden, head, teacher_head, tokens).backward()
        seconds.append(time.perf_counter() - start)
        hidden.grad = head.grad = None
    print(json.dumps([min(seconds), peak_memory() - before]))


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def compare(trained, sizes, rounds):
    """Print time and memory of the chunked divergence as shares of full logits'."""
    best = {way: [float("inf")] * 2 for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            words = [sys.executable, __file__, "--way", way, "--sizes", json.dumps(sizes)] + ["--trained"] * trained
            found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            best[way] = [min(pair) for pair in zip(best[way], found, strict=True)]
    (seconds, memory), (full_seconds, full_memory) = best["chunked"], best["full"]
    kind = "trained" if trained else "frozen"
    print(f"loss, {kind} head: {seconds:.2f} s of {full_seconds:.2f} s, ratio {seconds / full_seconds:.2f}; "
        f"{memory:.2f} GB of {full_memory:.2f} GB, ratio {memory / full_memory:.2f}", flush=True)  # fmt: skip


def micro_step(steps):
    """Print the median seconds of the steps of a micro run of OPSD, and of their phases."""
    with tempfile.TemporaryDirectory() as folder:
        words = f"--method sft --max_steps 1 --schedule_steps 0 --save_steps 0 --output_dir {folder}/base"
        renio.main(words.split())
        words = f"--scale micro --method opsd --weighting renio --model {folder}/base/final --max_steps {steps}"
        renio.main([*words.split(), "--schedule_steps", "0", "--save_steps", "0", "--output_dir", f"{folder}/run"])
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    for name in ("seconds", "seconds_rollout", "seconds_update"):
        print(f"micro step, {name}: {sorted(row[name] for row in rows)[len(rows) // 2]:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--way", choices=WAYS, help="only this way in this process (used by itself)")
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--sizes", type=json.loads)
    args = parser.parse_args()
    if args.way:
        once(args.way, args.trained, args.sizes)
        return
    for trained in (False, True):
        compare(trained, TINY if args.tiny else SIZES, 1 if args.tiny else 5)
    micro_step(2 if args.tiny else 8)


if __name__ == "__main__":
    main()
