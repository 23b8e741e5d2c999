# SPDX-License-Identifier: MIT
"""Time and memory of a step beside TRL's DistillationTrainer, on one job, in one run. A command, no test.

    python -m venv trl-env && trl-env/bin/pip install torch==2.13.0 transformers==5.19.0 trl==1.16
    python tests/bench_trl.py --trl_python trl-env/bin/python --tokenizer Qwen/Qwen3-0.6B --tokens 64 512

The job: random models of the Qwen3 architecture with a vocabulary of 151,936, student 256 wide and teacher 512, 4
layers each, batch 4, forward KL, float32, all weights trained, on the CPU. TRL is no dependency of the project.

Measured on 2 slow cores, medians of 5 steps, ours / TRL 1.16:
  64 new tokens     2.08 /  5.97 s = 0.35    2.03 / 2.17 GB = 0.94
  512 new tokens    19.2 /  46.3 s = 0.41    2.52 / 5.02 GB = 0.50
Of the 19.2 s 7.8 are decoding, 0.4 the teacher, 10.9 the student with the loss, whose six matrix products with the
heads take most; of the 2.52 GB 1.1 are weights, gradients and the optimizer's state.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = 6  # the first is not counted


def make_job(folder, tokenizer_name):
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    for name, width in (("student", 256), ("teacher", 512)):
        Qwen3ForCausalLM(Qwen3Config(
            vocab_size=151_936, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, head_dim=width // 4, tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    with (folder / "problems.jsonl").open("w") as file:
        for i in range(4 * STEPS):
            file.write(json.dumps(dict(problem=f"What is {i} plus {2 * i + 1}?", solution=str(3 * i + 1))) + "\n")


def run_renio(folder, turn, tokens):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import renio

    renio.main([
        "--method", "opd", "--model", f"{folder}/student", "--teacher", f"{folder}/teacher", "--dataset",
        f"{folder}/problems.jsonl", "--task", "math", "--batch_size", "4", "--micro_batch_size", "4", "--prefix_tokens",
        str(tokens), "--max_steps", str(STEPS), "--save_steps", "0", "--max_prompt_tokens", "512", "--weighting",
        "renio", "--output_dir", f"{folder}/renio-{turn}"])
    rows = [json.loads(line) for line in open(f"{folder}/renio-{turn}/metrics.jsonl")]
    return [row["seconds"] for row in rows], [row["completion_length"] for row in rows]


def run_trl(folder, turn, tokens):
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    class Clock(TrainerCallback):
        ends = [time.perf_counter()]

        def on_step_end(self, *args, **kwargs):
            self.ends.append(time.perf_counter())

    rows = [json.loads(line) for line in open(f"{folder}/problems.jsonl")]
    data = Dataset.from_list([dict(prompt=[dict(role="user", content=row["problem"])]) for row in rows])
    trainer = DistillationTrainer(
        model=f"{folder}/student", teacher_model=f"{folder}/teacher", train_dataset=data, callbacks=[Clock()],
        args=DistillationConfig(
            f"{folder}/trl-{turn}", beta=0.0, temperature=1.0, max_completion_length=tokens,
            per_device_train_batch_size=4, max_steps=STEPS, bf16=False, gradient_checkpointing=False, use_cpu=True,
            report_to="none", save_strategy="no", logging_steps=1, learning_rate=3e-4,
            model_init_kwargs=dict(dtype="float32"), teacher_model_init_kwargs=dict(dtype="float32")))
    Clock.ends[:] = [time.perf_counter()]
    trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    return [end - start for start, end in itertools.pairwise(Clock.ends)], lengths


def compare(folder, trl_python, tokens, turns):
    took, peaks = {"trl": [], "renio": []}, {}
    for turn in range(turns):  # in turns, so that a slow minute of the machine hits both
        for name, python in (("trl", trl_python), ("renio", sys.executable)):
            done = subprocess.run([python, __file__, name, str(folder), f"{tokens}-{turn}", str(tokens)],
                                  capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            took[name] += result["seconds"][1:]
            peaks[name] = result["gb"]
            print(f"{name}: {', '.join(f'{s:.2f}' for s in result['seconds'][1:])} s a step, "
                  f"{statistics.mean(result['lengths']):.0f} tokens a rollout, peak {result['gb']:.2f} GB", flush=True)
    medians = {name: statistics.median(times) for name, times in took.items()}
    print(f"{tokens} new tokens, median seconds a step: trl {medians['trl']:.2f}, renio {medians['renio']:.2f}; "
          f"renio / trl: time {medians['renio'] / medians['trl']:.2f}, peak memory {peaks['renio'] / peaks['trl']:.2f}",
          flush=True)


def main():
    if sys.argv[1:2] in (["renio"], ["trl"]):
        name, folder, turn, tokens = sys.argv[1:]
        took, lengths = dict(renio=run_renio, trl=run_trl)[name](Path(folder), turn, int(tokens))
        print(json.dumps(dict(seconds=took, lengths=lengths,
                              gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl_python", required=True, help="python of an environment with trl 1.16")
    parser.add_argument("--tokenizer", default="Qwen/Qwen3-0.6B", help="folder or hub name of the Qwen3 tokenizer")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 512], help="new tokens a rollout, in turn")
    parser.add_argument("--turns", type=int, default=2, help="runs of each, one after the other")
    parser.add_argument("--folder", default="runs/bench_trl", help="where models and runs go")
    args = parser.parse_args()
    folder = Path(args.folder).resolve()
    folder.mkdir(parents=True)
    make_job(folder, args.tokenizer)
    for tokens in args.tokens:
        compare(folder, args.trl_python, tokens, args.turns)


if __name__ == "__main__":
    main()
