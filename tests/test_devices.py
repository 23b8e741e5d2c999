# SPDX-License-Identifier: MIT
"""More than one process: the same update however the batch and the weights are spread over devices (gloo, CPU)."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, examples_of, rollouts_of
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import Qwen3Config

import renio
from renio import Devices, Teacher, UserError, load_model, sample


def in_processes(world, folder, function, *args):
    """Run function(devices, *args) in `world` processes that are connected to each other.

    They are forked from a server that has imported torch and no more: a fork of this process would inherit its threads.
    """
    rendezvous = folder / f"rendezvous-{len(list(folder.iterdir()))}"
    multiprocessing.set_forkserver_preload(["conftest", "filter_experiments"])
    torch.multiprocessing.start_processes(connected, (world, rendezvous, function, args), nprocs=world,
                                          start_method="forkserver")


def connected(rank, world, rendezvous, function, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        function(Devices("cpu", rank, world), *args)
    finally:
        dist.destroy_process_group()


def save_gradient(devices, config, rollouts, path):
    student, tokenizer = renio.load_student(config, "cpu")
    if config.fsdp:
        devices.shard(student)
    teacher = renio.Teacher(config, student, tokenizer, devices)
    total, records = renio.distillation_step(student, teacher, devices.part_of(rollouts), config, devices,
                                             renio.Stopwatch("cpu"))
    gradients = [p.grad for p in student.parameters()]
    devices.sum([*gradients, total])
    weights = [record["weight"] for record in devices.gather(records)]
    norm = devices.norm(gradients)
    gradients = [g.full_tensor() if isinstance(g, DTensor) else g for g in gradients]
    if devices.rank == 0:
        torch.save((torch.cat([g.flatten() for g in gradients]) / total, (norm / total).item(), sorted(weights)), path)


def test_the_update_is_the_same_for_any_split_and_any_number_of_processes(tmp_path, config, tokenizer, model,
                                                                          micro_model):
    def update(world, micro_batch_size, *words):
        flags = config("--method", "opd", "--teacher", micro_model, "--weighting", "renio", "--threshold", 0.01,
                       "--micro_batch_size", micro_batch_size, *words)
        path = tmp_path / "gradient.pt"
        in_processes(world, tmp_path, save_gradient, flags, rollouts, path)
        return torch.load(path)

    examples = examples_of(config("--method", "opd", "--teacher", "none"), tokenizer, 32)
    completions = sample(model, [example.student_prompt for example in examples], 14, list(range(20, 30)), seed=2)
    rollouts = rollouts_of(examples, completions)
    whole, whole_norm, weights = update(1, 32)
    assert torch.tensor(weights).std() > 0.01
    for world, micro_batch_size, *words in ((2, 4), (4, 2), (2, 8, "--fsdp")):
        gradient, norm, _ = update(world, micro_batch_size, *words)
        assert (gradient - whole).norm() < 1e-6 * whole.norm(), (world, micro_batch_size, words)
        assert norm == pytest.approx(whole_norm, rel=1e-5)
        assert norm == pytest.approx(gradient.double().norm().item(), rel=1e-4)


def run_train(devices, config):
    renio.train(config, devices)


@pytest.mark.parametrize("words", [
    "--method opd --teacher MODEL --lora_r 4 --dtype bfloat16 --gradient_checkpointing",
    "--method opsd --lora_r 4 --max_grad_norm 0.01",
    "--method opsd",
    "--method sft --max_steps 3 --schedule_steps 3",
])
def test_sharded_weights_train_as_whole_ones(tmp_path, config, micro_model, words):
    def run(name, *more):
        flags = config("--model", micro_model, "--max_steps", 3, "--batch_size", 4, "--save_steps", 2,
                       "--prefix_tokens", 8, *words.replace("MODEL", str(micro_model)).split(), *more,
                       "--output_dir", tmp_path / name)
        in_processes(2, tmp_path, run_train, flags)
        final = str(tmp_path / name / "final")
        model = PeftModel.from_pretrained(load_model(str(micro_model)), final) if flags.lora_r else load_model(final)
        return model.state_dict(), [json.loads(line) for line in open(tmp_path / name / "metrics.jsonl")]

    whole, whole_rows = run("whole")
    sharded, rows = run("sharded", "--fsdp")
    for row, whole_row in zip(rows, whole_rows, strict=True):
        for key in ("loss", "grad_norm", "completion_length"):
            assert row[key] == pytest.approx(whole_row[key], rel=1e-3), key
    start = load_model(str(micro_model)).state_dict()
    assert sharded.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], rtol=1e-3, atol=2e-4)
    assert any(name not in start or not torch.equal(sharded[name], start[name]) for name in sharded)
    (tmp_path / "sharded" / "final").rename(tmp_path / "lost")
    resumed, resumed_rows = run("sharded", "--fsdp", "--resume")  # from step 2
    assert [row["loss"] for row in resumed_rows] == [row["loss"] for row in rows]
    assert all(torch.equal(resumed[name], sharded[name]) for name in sharded)


def sample_apart(devices, config):
    student, _ = renio.load_student(config, "cpu")
    prompts, ends = [[3, 14, 20, 40, 4], [3, 15, 4]], [-1]
    expected = sample(student, prompts, 4 + 9 * devices.rank, ends, seed=devices.rank)
    devices.shard(student)
    with devices.unsharded(student):  # a rank that samples longer does not wait for the others
        assert sample(student, prompts, 4 + 9 * devices.rank, ends, seed=devices.rank) == expected
    layers = list(renio.decoder_of(student).layers.parameters())
    assert all(isinstance(p, DTensor) for p in layers)
    assert sum(renio.local_part(p).numel() for p in layers) == sum(p.numel() for p in layers) // devices.world


def test_ranks_sample_sharded_models_apart_and_hold_half_of_them_afterwards(tmp_path, config, micro_model):
    in_processes(2, tmp_path, sample_apart, config("--method", "opsd", "--model", micro_model))


def test_no_two_seeds_steps_or_ranks_sample_with_one_seed(config):
    seeds = {renio.rollout_seed(config("--method", "grpo", "--seed", seed), step, rank)
             for seed in range(3) for step in range(20) for rank in range(8)}
    assert len(seeds) == 3 * 20 * 8


def test_a_rank_that_dies_ends_the_job_with_its_error(tmp_path):
    script = tmp_path / "dying.py"
    script.write_text(f"""import os, sys
sys.path.insert(0, {str(ROOT)!r})
import renio
step = renio.sft_step
def dying(*args):
    if os.environ["RANK"] == "1":
        raise renio.UserError("this rank has had enough")
    return step(*args)
renio.sft_step = dying
renio.main()
""")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29518", str(script),
         "--method", "sft", "--batch_size", "4", "--output_dir", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0 and "dying.py: this rank has had enough" in done.stderr
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize("processes, gpus, rank, expected", [
    (2, 4, 1, ("nccl", "cuda:1")), (3, 3, 2, ("nccl", "cuda:2")),
    (4, 2, 3, "torchrun started 4 processes for 2 GPUs; use --nproc_per_node 2")])
def test_each_process_has_a_gpu_of_its_own(monkeypatch, config, processes, gpus, rank, expected):
    asked = []
    for name, value in dict(WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes, LOCAL_RANK=rank).items():
        monkeypatch.setenv(name, str(value))
    for name, value in dict(is_available=True, device_count=gpus).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.append(backend))
    for name, value in dict(get_rank=rank, get_world_size=processes).items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    flags = config("--method", "opsd")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            renio.connect(flags)
    else:
        devices = renio.connect(flags)
        assert (asked[0], devices.device) == expected and (devices.rank, devices.world) == (rank, processes)


def test_two_machines_train_as_two_processes_of_one(tmp_path, micro_model):
    """Each agent of torchrun is a machine; they meet on the loopback, and the folder is a shared one."""
    words = ["renio.py", "--method", "opsd", "--weighting", "renio", "--model", str(micro_model), "--max_steps", "2",
             "--batch_size", "4", "--prefix_tokens", "8", "--output_dir"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend",
              "c10d", "--rdzv_id", "1", "--rdzv_endpoint", "localhost:29527", "--local_addr", "localhost"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = [subprocess.Popen([*launch, *words, str(tmp_path / "two")], cwd=ROOT, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    for agent in agents:
        said, _ = agent.communicate(timeout=240)
        assert agent.returncode == 0, said
    in_processes(2, tmp_path, run_train, renio.parse_config([*words[1:], str(tmp_path / "one")]))
    two, one = ((tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("two", "one"))
    assert two == one


def test_sharding_over_one_process_is_refused(config):
    with pytest.raises(UserError, match="--fsdp: one process"):
        renio.connect(config("--method", "opsd", "--fsdp"))


# --- predicted memory -------------------------------------------------------------------------------------------------

def predicted(config, tokenizer, words, device="cpu"):
    """predict_memory's parts of a run with these flags."""
    flags = config(*words.split())
    student, _ = renio.load_student(flags, "cpu")
    teacher = Teacher(flags, student, tokenizer, Devices("cpu")) if flags.method == "opsd" else None
    examples, _ = renio.load_examples(flags, tokenizer, teacher and tokenizer, 4)
    return renio.predict_memory(flags, Devices(device), student, teacher, examples)


def test_the_predicted_memory_holds_grpo_rollouts(config, tokenizer):
    parts = predicted(config, tokenizer, "--method grpo --prefix_tokens 1000 --batch_size 8")
    numbers = 8 * 1000 * 3 * 2 * 96  # rollouts x tokens x layers x keys and values x width, and a few for the prompts
    assert 4 * numbers / 1e9 < parts["rollouts"] < 1.1 * 4 * numbers / 1e9
    assert predicted(config, tokenizer, "--method sft")["rollouts"] == 0


def test_the_predicted_memory_holds_the_share_of_vllm(config, tokenizer, monkeypatch):
    monkeypatch.setattr(renio, "device_memory", lambda device: 80.0)
    monkeypatch.setattr(renio, "check", lambda config: None)  # which refuses random models, and asks for vLLM
    parts = predicted(config, tokenizer, "--method opsd --rollout_engine vllm --vllm_memory 0.4")
    assert parts["vllm"] == pytest.approx(32) and parts["rollouts"] == 0
    assert "about 32.4" in renio.describe_memory(parts) and "vLLM 32.00" in renio.describe_memory(parts)
    words = "--method opsd --rollout_engine vllm --vllm_memory 0.4 --vllm_sleep"
    assert predicted(config, tokenizer, words)["vllm"] == parts["vllm"]  # on a CPU it can't sleep
    asleep = predicted(config, tokenizer, words, device="cuda")
    assert asleep["vllm"] == 0 and asleep["rollouts"] == pytest.approx(32)


# hidden size, layers, inner size, heads: from the models' published configurations; all have 8 key-value heads of 128
QWEN3 = {"Qwen/Qwen3-0.6B": (1024, 28, 3072, 16), "Qwen/Qwen3-1.7B": (2048, 28, 6144, 16),
         "Qwen/Qwen3-4B": (2560, 36, 9728, 32)}


@pytest.mark.parametrize("method", ["opd", "opsd"])
def test_scale_one_fits_a_gpu_of_24_gb(config, tokenizer, monkeypatch, method):
    def shape(name):
        hidden, layers, inner, heads = QWEN3[name]
        return Qwen3Config(vocab_size=151_936, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner,
                           num_attention_heads=heads, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True)

    monkeypatch.setattr(renio.AutoConfig, "from_pretrained", shape)
    monkeypatch.setattr(renio, "load_tokenizer", lambda name: tokenizer)
    monkeypatch.setattr(renio, "device_memory", lambda device: 24.0)
    monkeypatch.setattr(renio, "need_vllm", lambda flag: None)
    flags = config("--scale", "one", "--method", method, "--rollout_engine", "vllm")
    student, tokenizer, teacher = renio.check_models(flags)[0]
    longest = [renio.Example({}, [0] * flags.max_prompt_tokens, [0] * flags.max_prompt_tokens)]
    parts = renio.predict_memory(flags, Devices("cuda"), student, teacher, longest)
    assert 10 < renio.peak_of(parts) < 22


@pytest.mark.parametrize("checkpointing, layers", [(False, 3), (True, 1)])
def test_the_predicted_memory_holds_the_inputs_that_an_adapter_copies(config, tokenizer, checkpointing, layers):
    words = f"--method opsd --micro_batch_size 2 --prefix_tokens 500 --gradient_checkpointing {checkpointing} --lora_r "
    adapted, whole = (predicted(config, tokenizer, f"{words}{r} --dtype bfloat16") for r in (4, 0))
    tokens = 2 * 500  # and those of the prompts
    copies = tokens * layers * 4 * (6 * 96 + 288)  # q, k, v, o, gate and up have 96 inputs, down 288; float32
    assert copies / 1e9 < adapted["activations"] - whole["activations"] < 1.2 * copies / 1e9
    plain = [predicted(config, tokenizer, f"{words}{r} --dtype float32")["activations"] for r in (4, 0)]
    assert plain[0] == plain[1]  # in float32 there is nothing to copy
