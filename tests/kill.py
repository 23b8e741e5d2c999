# SPDX-License-Identifier: MIT
"""Kill training runs with SIGKILL at random moments, resume them, and compare with uninterrupted ones, bit for bit.

    python tests/kill.py                  # every kind, 3 kills each (about 10 minutes on 2 slow cores)
    python tests/kill.py --kinds opsd-lora two-ranks --kills 5 --seed 1

A command, no test: tests/test_faults.py does the same with one kill. Compared are the final weights, the rows of
metrics.jsonl but for times and memory, and the verdicts of an evaluation. Of 27 runs so killed, of every method, with
LoRA and without, on one process and two, all ended bit for bit as they would have.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
COMMON = f"--max_steps {STEPS} --save_steps 4 --batch_size 8 --seed 3"
KINDS = {  # flags of renio.py; {base} is a folder with a micro model
    "sft": f"--method sft --dataset arith-gaps --schedule_steps {STEPS} --warmup_steps 2",
    "opd": "--method opd --model {base} --teacher {base} --weighting renio --temperature 1.3",
    "opd-lora": "--method opd --model {base} --teacher {base} --lora_r 4 --weighting renio_shuffled",
    "opsd": "--method opsd --model {base} --weighting renio",
    "opsd-lora": "--method opsd --model {base} --lora_r 4 --save_rollouts True",
    "grpo": "--method grpo --model {base} --generations 4",
    "grpo-lora": "--method grpo --model {base} --generations 4 --lora_r 4",
    "two-ranks": "--method opsd --model {base} --weighting renio --micro_batch_size 2",
    "two-ranks-fsdp": "--method opsd --model {base} --weighting renio --micro_batch_size 2 --fsdp True",
}


def command(kind, base, folder):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if "two-ranks" in kind else []
    words = [*KINDS[kind].format(base=base).split(), *COMMON.split()]
    return [sys.executable, *launcher, str(ROOT / "renio.py"), *words, "--output_dir", str(folder), "--resume", "True"]


def start(words):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=environment)


def finish(words):
    process = start(words)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(words)}\n{output[-3000:]}")
    return output


def rows(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def kill_at(words, folder, step, delay):
    """Start, wait for `step` rows of metrics and `delay` seconds more, then kill every process of it.

    Returns False where it had ended by itself.
    """
    process = start(words)
    while rows(folder) < step and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    alive = process.poll() is None
    for pid in family(process.pid):  # torchrun gives its workers sessions of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    return alive


def family(pid):
    """A process and all below it."""
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid, *(each for child in children for each in family(int(child)))]


def outcome(folder):
    """What must be the same: checksums of the final weights, and the metrics but for times and memory."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steady = [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k and "memory" not in k}
              for row in metrics]
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
             for path in sorted((folder / "final").iterdir()) if path.suffix == ".safetensors"}
    rollouts = folder / "rollouts.jsonl"
    return dict(steady=steady, files=files, rollouts=rollouts.read_text() if rollouts.exists() else None)


def verdicts(folder, base):
    """Of an evaluation of the final model."""
    adapter = (folder / "final" / "adapter_config.json").exists()
    words = ["--model", str(base if adapter else folder / "final"), *(["--adapter", str(folder / "final")] * adapter)]
    finish([sys.executable, str(ROOT / "eval.py"), *words, "--limit", "40", "--n", "2", "--output",
            str(folder / "eval.json")])
    return json.loads((folder / "eval.json").read_text())["results"][0]["problems"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, total = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as top:
        top = Path(top)
        finish([sys.executable, str(ROOT / "renio.py"), "--method", "sft", "--max_steps", "60", "--schedule_steps",
                "60", "--save_steps", "0", "--output_dir", str(top / "base")])
        base = top / "base" / "final"
        for kind in args.kinds:
            finish(command(kind, base, top / kind))
            expected, answers = outcome(top / kind), verdicts(top / kind, base)
            folder, where = top / f"{kind}-killed", []
            for _ in range(args.kills):
                step, delay = rng.randrange(rows(folder), STEPS) if rows(folder) < STEPS else STEPS, rng.uniform(0, 0.3)
                if not kill_at(command(kind, base, folder), folder, step, delay):
                    break
                where.append(f"{rows(folder)} rows + {delay:.2f} s")
            finish(command(kind, base, folder))
            same = outcome(folder) == expected and verdicts(folder, base) == answers
            total += len(where)
            print(f"{kind}: killed at {', '.join(where)}: {'the same' if same else 'DIFFERENT'}", flush=True)
            if not same:
                sys.exit(1)
    print(f"{total} kills, every run ended as the uninterrupted one")


if __name__ == "__main__":
    main()
