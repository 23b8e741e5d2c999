#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Reproduce the paper's tables and figures: train, score, report.
#   bash run_all.sh                   set up, then tables 1 and 2 at micro scale: four minutes, no model to download
#   bash run_all.sh table4 figure6    other targets; `all` for every one, `--list` for their names and costs
#   SCALE=paper REHEARSE=1 bash run_all.sh table1     the real commands, but two tiny steps and two problems each
#   bash run_all.sh setup | test | report    only set up; run the tests; make the report of the published results again
# What is finished is skipped, and what was interrupted goes on: run the same command again. To change a hyperparameter
# edit the flags on its run's line; or edit SCALES in renio.py or eval.py, and set another OUT. Environment:
#   SCALE                 micro (default) | small (SmolLM2-135M on a CPU) | one (a GPU of 24 GB) | paper (GPUs of 80 GB)
#   VARIANT               official (as released; default at one and paper) | paper (the equations; default elsewhere)
#   SEEDS                 of training, "0 1 2"; a score samples with the seed of its training
#   STUDENTS, TEACHER     at one and paper: names or folders, in place of the paper's; PRETRAINED: at small, likewise
#   DATASET, CODE_DATASET, DATA_DIR    files, and for benchmarks a folder, in place of the hub's
#   ENGINE                at one and paper: vllm (default where a GPU is) | transformers
#   CUDA_VISIBLE_DEVICES  which GPUs; NGPU: how many for a training run (paper: up to 4); JOBS: most jobs side by side
#   OUT                   where all goes: results/$SCALE, behind it -$VARIANT where that is not the default
#   DRY=1                 print the commands, run nothing
#   PRIVILEGED_OPD=1      table 2 also with the solution in the prompt of OPD's teacher, where the release puts it
# On a cluster: after `bash run_all.sh setup` a job a seed, a student or a target; or one training run over two nodes.
#   sbatch --array 0-2 --gpus 4 --wrap 'SCALE=paper SEEDS=$SLURM_ARRAY_TASK_ID bash run_all.sh table1'
#   sbatch --nodes 2 --gpus-per-node 4 --wrap 'srun --ntasks-per-node 1 torchrun --nnodes 2 --nproc_per_node 4 \
#     --rdzv_backend c10d --rdzv_endpoint $(hostname):29500 renio.py --scale paper --method opsd --output_dir runs/opsd'
set -euo pipefail; cd "$(dirname "$0")"
fail() { printf '%s\n' "$@" >&2; exit 1; }
ASKED_SCALE=${SCALE:-} SCALE=${SCALE:-micro} SEEDS=${SEEDS:-0} ASKED_STUDENTS=${STUDENTS:-} ASKED_TEACHER=${TEACHER:-}
case $SCALE in
  micro | small) USUAL=paper STUDENTS=base ;;
  one) USUAL=official STUDENTS=${STUDENTS:-Qwen/Qwen3-1.7B Qwen/Qwen3-0.6B} ;;
  paper) USUAL=official STUDENTS=${STUDENTS:-Qwen/Qwen3-1.7B Qwen/Qwen3-4B Qwen/Qwen3-8B
    deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B deepseek-ai/DeepSeek-R1-Distill-Qwen-7B} ;;
  *) fail "SCALE=$SCALE: known are micro, small, one, paper" ;;
esac
VARIANT=${VARIANT:-$USUAL} PRETRAINED=${PRETRAINED:-HuggingFaceTB/SmolLM2-135M-Instruct}
case $VARIANT in official | paper) ;; *) fail "VARIANT=$VARIANT: known are official, paper" ;; esac
OUT=${OUT:-results/${REHEARSE:+rehearsal-}$SCALE$([ "$VARIANT" = "$USUAL" ] || echo "-$VARIANT")}
GPUS=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd , -)} || GPUS=
case $GPUS in -*) GPUS= ;; *) GPUS=${GPUS// /} ;; esac # -1: none
COUNT=$(tr , '\n' <<<"$GPUS" | grep -c . || true)
NGPU=${NGPU:-$([ "$SCALE" = paper ] && echo $((COUNT >= 4 ? 4 : COUNT >= 2 ? 2 : 1)) || echo 1)}
case $SCALE:$COUNT in micro:* | small:*) ENGINE= ;; *:0) ENGINE=${ENGINE:-} ;; *) ENGINE=${ENGINE:-vllm} ;; esac
TINY=${REHEARSE:+--max_steps 2 --save_steps 2 --batch_size $((2 * NGPU)) --micro_batch_size 1 --prefix_tokens 32}
FEW=${REHEARSE:+--limit 2 --n 1 --max_new_tokens 32}
SLOTS=$((COUNT > 0 ? COUNT : ${JOBS:-2})) CORES=$(getconf _NPROCESSORS_ONLN) # SLOTS: for jobs that take one GPU each
JOBS=${JOBS:-$SLOTS} CODE_DATASET=${CODE_DATASET:-open-thoughts/OpenThoughts-114k:metadata}
[ "$COUNT" -gt 0 ] || export ONEDNN_PRIMITIVE_CACHE_CAPACITY=8 OMP_NUM_THREADS=$((CORES > SLOTS ? CORES / SLOTS : 1))
[ "$COUNT" -gt 0 ] || [ "$SCALE" != micro ] || export OMP_NUM_THREADS=1 # threads gain so small a model nothing

# --- the runs: a function a table or figure ---------------------------------------------------------------------------
# train NAME METHOD FLAGS...   a run of renio.py, scored at its last step, at scale paper at each checkpoint
# curve NAME METHOD FLAGS...   the same, scored at each checkpoint at every scale
# study NAME METHOD FLAGS...   the same by filter_experiments.py
# pair LINE SUFFIX METHOD FLAGS...   two of these lines: METHOD and METHOD+renio, each with SUFFIX in its name
# prepare NAME FLAGS, score NAME FLAGS   fine-tuning of a model that runs start from or learn from; eval.py on a model
# code LINE, at SCALES LINE    one of these lines, on code instead of math at scale paper; only at these scales
# A run that several targets name is made once. Comments: what a target makes, and its cost for a seed at micro | small
# (both: 2 CPU cores; small from seconds a step) | one (24 GB GPU) | paper (4 H100); the last two: estimates, never run.
at() { case " $1 " in *" $SCALE "*) "${@:2}" ;; esac; }
code() { local TASK=code DIR=$DIR/code DATASET=$CODE_DATASET; at paper "$@"; }
pair() { "$1" "$3$2" "$3" "${@:4}"; "$1" "$3+renio$2" "$3" --weighting renio "${@:4}"; }

main() { opsd; opd; curve grpo grpo; } # tables 1 and 2 on one student (the default): 4 min | 90 min | 6 h | 17 h
table1() { opsd; curve grpo grpo; on_code opsd; } # base, OPSD, OPSD+ReNIO, GRPO: 4 min | 70 min | 3 h | 60 h
table2() { # base, OPD, OPD+ReNIO: 3 min | 70 min | 3 h | 15 h
  opd; on_code opd
  [ -z "${PRIVILEGED_OPD:-}" ] || for task in "" code; do $task pair curve -privileged opd --privileged True; done
}
table3() { # OPSD and OPD with and without ReNIO, rollouts of two lengths: 5 min | 140 min | 20 h | 22 h
  opsd; opd; for method in opsd opd; do pair train "@$OTHER" $method --prefix_tokens "$OTHER"; done
}
table4() { # ReNIO without clip, without threshold, without batch normalization: 3 min | 100 min | 8 h | 14 h
  opd; train opd+renio-noclip opd --weighting renio --log_ratio_clip inf
  train opd+renio-nothreshold opd --weighting renio --threshold=-inf
  train opd+renio-nonorm opd --weighting renio --weight_norm none
}
table8() { # ReNIO beside teacher-to-student sample weights and token weights: 3 min | 90 min | 6 h | 12 h
  opsd; train opsd+ts_sample opsd --weighting ts_sample
  train opsd+st_token opsd --weighting st_token
}
figure1() { # the filter study, also figures 7 and 8; -mixed: on problems solved at times: 8 min | 3 h | 50 h | 40 h
  base; teacher
  for method in opsd opd; do for kind in correct incorrect any; do
    case $SCALE:$method:$kind in small:opsd:* | small:*:any) continue ;; esac # which would take hours
    study $method-$kind $method --keep $kind --problems all
    study $method-$kind-mixed $method --keep $kind --problems mixed
  done; done
}
figure3() { opsd; opd; } # histogram of log-ratios: 3 min | 90 min | 6 h | 11 h
figure4() { table3; curve grpo grpo; } # seconds a step: 5 min | 140 min | 20 h | 28 h
figure5() { opsd; opd; } # weight and the teacher's entropy; weight of incorrect rollouts: 3 min | 90 min | 6 h | 11 h
figure6() { # sweeps of the clip and of the threshold: 4 min | 130 min | 10 h | 20 h
  opd; train opd+renio-clip2.0 opd --weighting renio --threshold 0.8 --log_ratio_clip 2.0
  train opd+renio-clip2.5 opd --weighting renio --threshold 0.8 --log_ratio_clip 2.5
  [ "$VARIANT" = paper ] || train opd+renio-clip3.0 opd --weighting renio --threshold 0.8 --log_ratio_clip 3.0
  train opd+renio-threshold0.6 opd --weighting renio --threshold 0.6 --log_ratio_clip 3.0
  train opd+renio-threshold1.0 opd --weighting renio --threshold 1.0 --log_ratio_clip 3.0
}
controls() { # not in the paper: shuffled weights, batch 128, the oracle, JSD, reverse KL: 9 min | 5 h | 50 h | 70 h
  opsd; opd
  for method in opsd opd; do
    curve $method+renio_shuffled $method --weighting renio_shuffled
    train $method+correctness $method --weighting correctness
    pair train -beta0.5 $method --beta 0.5
    pair train -beta1 $method --beta 1
    at "micro one paper" pair train -batch128 $method --batch_size 128
    at "micro one paper" train $method+renio_shuffled-batch128 $method --batch_size 128 --weighting renio_shuffled
  done
}
all() { for target in $ALL; do ! shown_in "$target" || "$target"; done; } # everything: 20 min | 13 h | 130 h | 200 h
ALL="table1 table2 table3 table4 table8 figure1 figure6 controls"

base() {
  at micro prepare base --dataset arith-gaps --privileged_share 0.65
  at small prepare base --model "$PRETRAINED" --privileged_share 0.4 --dtype float32
  score base --model "$STUDENT"
  at "micro small" score base-with-solution --model "$STUDENT" --privileged
}
teacher() { # at small a larger model may take PRETRAINED's place: HuggingFaceTB/SmolLM2-360M-Instruct
  at micro prepare teacher --model init:micro-teacher --max_steps 800 --schedule_steps 800
  at small prepare teacher --model "$PRETRAINED" --lora_r 16 --learning_rate 5e-4 --max_steps 100 \
    --schedule_steps 100 --save_steps 50
  [ -z "$TEACHER" ] || score teacher --model "$TEACHER"
}
opsd() { base; curve opsd opsd --save_rollouts True; curve opsd+renio opsd --weighting renio; }
opd() { base; teacher; curve opd opd --save_rollouts True; curve opd+renio opd --weighting renio; }
on_code() { code score base --model "$STUDENT"; code pair curve "" "$1"; }
# --- students, and what depends on them -------------------------------------------------------------------------------
shown_in() { # shown_in TARGET: whether the paper has this student there; STUDENTS that you name are in every target
  case ${ASKED_STUDENTS:-$SCALE:$STUDENT:$1} in
    paper:*-1.7B:* | paper:*:table1 | paper:*:all | paper:*-1.5B:table2) ;;
    paper:*:*) return 1 ;;
  esac
}
choose() { # choose STUDENT SEED: where its runs go, its teacher, by which METHODS it is trained, table 3's OTHER length
  STUDENT=$1 SEED=$2 FOLDER=$OUT/${1##*/} METHODS="opsd opd grpo" OTHER=4096
  STUDY="--prefix_tokens 4096" # so long that a rollout has an answer to judge
  case $SCALE:$1 in
    micro:*) FOLDER=$OUT STUDENT=$OUT/seed$2/base/final TEACHER=$OUT/seed$2/teacher/final OTHER=16 STUDY="" ;;
    small:*) FOLDER=$OUT STUDENT=$OUT/base/final TEACHER=$OUT/teacher/final METHODS="opsd opd" OTHER=24
      STUDY="--max_steps 20 --schedule_steps 20 --save_steps 20" ;;
    one:*-0.6B) TEACHER=${ASKED_TEACHER:-Qwen/Qwen3-4B} METHODS=opd ;;
    one:*) TEACHER=$ASKED_TEACHER METHODS="opsd${ASKED_TEACHER:+ opd}" ;; # 24 GB hold no teacher beside 1.7B
    paper:*R1-Distill*) TEACHER=${ASKED_TEACHER:-deepseek-ai/DeepSeek-R1-Distill-Qwen-7B} ;;
    paper:*) TEACHER=${ASKED_TEACHER:-Qwen/Qwen3-8B} ;;
  esac
  DIR=$FOLDER/seed$SEED
}
settings() { # settings METHOD: SET, its flags for this student, after Tables 5 and 6 and the release's scripts
  local rollouts released="" # rollouts a device at a time: over so many the release normalizes the weight
  SET=(--method "$1" --model "$STUDENT")
  [ "$1" != opd ] || SET+=(--teacher "$TEACHER")
  [ "$1" != grpo ] || SET+=(${REHEARSE:+--generations 2})
  [[ $STUDENT != *R1-Distill* ]] || SET+=(--learning_rate 1e-6)
  [[ $1:$STUDENT != op*:*R1-Distill* ]] || SET+=(--prefix_tokens 2048)
  case $1:$STUDENT in
    opsd:*-4B) rollouts=4 released="--max_grad_norm 0.1 --threshold 0.01 --log_ratio_clip 2.0" ;; # run_opsd_4b.sh
    opsd:*-[78]B) rollouts=2 # run_opsd_8b.sh
      released="--max_grad_norm 0.1 --threshold 0.01 --log_ratio_clip 2.0 --entry_clip 0.06" ;;
    opsd:*) rollouts=8 released="--threshold 0.8 --log_ratio_clip 2.5" ;; # run_opsd_1b.sh
    opd:*) rollouts=8 released="--threshold 1.0 --log_ratio_clip 2.0" ;; # run_opd_1b.sh
    grpo:*-4B) rollouts=2 ;; # so many of 16,000 tokens fit 80 GB, by arithmetic
    grpo:*-[78]B) rollouts=1 ;;
    grpo:*) rollouts=4 ;;
  esac
  [ $((rollouts * NGPU)) -le 32 ] || rollouts=$((32 / NGPU)) # of the batch
  case $SCALE:$VARIANT in one:* | paper:* | *:official) SET+=(--micro_batch_size "$rollouts") ;; esac
  [ "$SCALE" != one ] || SET+=(--max_prompt_tokens 2048) # so that 24 GB suffice
  [ "$VARIANT" = paper ] || SET+=(--variant official $released)
}
# --- from runs to jobs ------------------------------------------------------------------------------------------------
prepare() {
  local DIR=$DIR SEED=$SEED SET=(--method sft)
  [ "$SCALE" != small ] || DIR=$OUT SEED=0 # what is pretrained has no seeds
  fit prepare renio.py "$@"
}
train() { run renio.py last "$@"; }
curve() { run renio.py each "$@"; }
study() { local TINY=${TINY%--prefix*}; run filter_experiments.py each "$@" $STUDY; }
run() { # run SCRIPT STEPS NAME METHOD FLAGS...: train, and score the last step or each checkpoint
  [[ " $METHODS " == *" $4 "* ]] || return 0
  settings "$4"
  fit train "$1" "$3" "${@:5}"
  case $SCALE$2 in paper* | *each) score "$3" --checkpoints "$DIR/$3" ;; *) score "$3" --model "$DIR/$3/final" ;; esac
}
fit() { # fit PHASE SCRIPT NAME FLAGS...
  local launch=("$PYTHON") words=("$2" --scale "$SCALE" --seed "$SEED" "${SET[@]}" ${TASK:+--task "$TASK"})
  local here=(--output_dir "$DIR/$3" --resume ${ENGINE:+--rollout_engine "$ENGINE"})
  words+=(${DATASET:+--dataset "$DATASET"} "${@:4}" $TINY)
  [ "$NGPU" -eq 1 ] || launch+=(-m torch.distributed.run --standalone --local_addr 127.0.0.1 --nproc_per_node "$NGPU")
  job "$1" "$DIR/$3" final
}
score() { # the sampling seed is the training seed: with one for all, scores of several training seeds would correlate
  local launch=("$PYTHON") words=(eval.py --scale "$SCALE" --seed "$SEED" --train_seed "$SEED" --label "$@" $FEW)
  local here=(${ENGINE:+--engine "$ENGINE"} ${DATA_DIR:+--data_dir "$DATA_DIR"})
  words+=(${TASK:+--task "$TASK"})
  [ "$2" = --checkpoints ] || here+=(--output "$DIR/$1/eval.json") # which --checkpoints implies
  job score "$DIR/$1" eval.json
  [[ " $LABELS " == *" $1 "* ]] || LABELS="$LABELS $1"
}
job() { # job PHASE FOLDER FILE: plan `launch words here`, which makes FILE in FOLDER; `words` decide what comes out
  local kept command number remove=$2
  [[ $PLANNED != *"|$1 $2|"* ]] || return 0 # another target has asked for it
  PLANNED="$PLANNED|$1 $2|"
  printf -v kept '%q ' "${words[@]}"
  if [ -e "$2/$1.command" ] && [ "$(cat "$2/$1.command")" != "$kept" ]; then
    case $1:$SCALE in prepare:micro) remove=$DIR ;; prepare:small) remove=$OUT ;; esac # with all that starts from it
    fail "$2 was made by" "  $(cat "$2/$1.command")" "but run_all.sh now says" "  $kept" \
      "To keep it undo the edit, or set another OUT; to make it anew: rm -r $remove"
  fi
  [ ! -e "$2/$3" ] || { THERE=$((THERE + 1)); return; }
  printf -v command '%q ' "${launch[@]}" "${words[@]}" ${here[@]+"${here[@]}"}
  printf -v number %04d $((N_$1 += 1))
  printf '%s\n' "$2" "$kept" "$command" >"$PLAN/$1/$number"
}
execute() { # the jobs of each phase, as many side by side as there are GPUs for
  local places=() side
  export -f run_job stop_jobs
  export PLAN PHASE TOTAL EACH GPUS SCALE TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM
  [ -z "$GPUS" ] || places=(--process-slot-var PLACE) # GNU's xargs; Macs, which have another, have no CUDA
  for PHASE in prepare train score; do
    TOTAL=$((N_$PHASE)) EACH=$NGPU; [ "$PHASE" != score ] || EACH=1
    [ "$TOTAL" -gt 0 ] || continue
    side=$((SLOTS / EACH)) side=$((side > JOBS ? JOBS : side > 0 ? side : 1))
    (trap '' INT HUP # of the terminal, which `stop` hears; `cat` ends when no job is left that could write
      printf '%s\0' $(ls "$PLAN/$PHASE") | xargs -0 -n 1 -P "$side" ${places[@]+"${places[@]}"} \
        "$BASH" -c 'run_job "$0"' | cat) || mkdir -p "$PLAN/stopped" &
    wait $!
    [ ! -e "$PLAN/stopped" ] || fail "stopped; the same command goes on from here"
  done
}
run_job() { # run_job NUMBER: of this PHASE, on the GPUs of its place among the jobs side by side; its log is beside it
  local folder kept command words status=0 title
  [ ! -e "$PLAN/stopped" ] || return 1
  { IFS= read -r folder; IFS= read -r kept; IFS= read -r command; } <"$PLAN/$PHASE/$1"
  title="$PHASE $((10#$1)) of $TOTAL, $folder"
  mkdir -p "$folder"; echo "$kept" >"$folder/$PHASE.command"
  [ -z "$GPUS" ] || export CUDA_VISIBLE_DEVICES=$(cut -d , -f $((PLACE * EACH + 1))-$(((PLACE + 1) * EACH)) <<<"$GPUS")
  echo "$title: started, log in $folder.log"
  eval "words=($command)"
  "${words[@]}" >>"$folder.log" 2>&1 &
  echo $! >"$PLAN/pids/$1"
  [ ! -e "$PLAN/stopped" ] || stop_jobs # meanwhile
  wait $! || status=$?; rm "$PLAN/pids/$1"
  [ "$status" -ne 0 ] || { echo "$title: made in $SECONDS s"; return; }
  mkdir "$PLAN/stopped" 2>/dev/null || return 1 # it was stopped: another has failed, or the user has stopped all
  stop_jobs
  printf '%s\n' "failed: $command" "the end of $folder.log:" "$(tr '\r' '\n' <"$folder.log" | tail -n 15)" >&2
  [ $PHASE$SCALE != preparesmall ] || echo "no hub? python tests/make_smollm2.py runs/smollm2; PRETRAINED=runs/smollm2"
  return 1
}
stop_jobs() { cat "$PLAN"/pids/* 2>/dev/null | xargs kill 2>/dev/null || true; }
stop() { # Ctrl-C and the like: each job gets one signal, from here
  trap '' INT TERM HUP; mkdir -p "$PLAN/stopped"
  stop_jobs
  wait # until no job is left
  fail "stopped; the same command goes on from the last checkpoints"
}
reproduce() { # reproduce TARGETS...
  local student seed target
  for student in $STUDENTS; do for seed in $SEEDS; do
    choose "$student" "$seed"
    for target in "$@"; do ! shown_in "$target" || "$target"; done
  done; done
  [ -z "${DRY:-}" ] || { { cat "$PLAN"/{prepare,train,score}/* 2>/dev/null || true; } | awk 'NR % 3 == 0'; return; }
  echo "runs and scores: $THERE are there, $((N_prepare + N_train + N_score)) to make"
  execute
  for student in $STUDENTS; do
    choose "$student" "${SEEDS%% *}"
    [ ! -d "$FOLDER" ] || "$PYTHON" eval.py report "$FOLDER" $LABELS
  done
}
# --- set-up -----------------------------------------------------------------------------------------------------------
setup() { # setup FILES...: install what these files name, into the active environment or into .venv
  local packages version
  if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then PYTHON=.venv/bin/python; fi
  [ -z "${DRY:-}" ] || return 0
  case ${ASKED_SCALE:-default}:${GPUS:-none} in
    one:none | paper:none) echo "no GPU is visible: enough to rehearse scale $SCALE, too slow for the real runs" ;;
    one:* | paper:*)
      version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
      [ "${version%%.*}" -ge 580 ] || fail "the NVIDIA driver is $version, but torch 2.13 needs 580 or newer" ;;
    default:[0-9GM]*) # GPUs are numbers, or names that begin with GPU- or MIG-; the machine never chooses the scale
      nvidia-smi --id="$GPUS" --query-gpu=memory.total --format=csv,noheader,nounits | sort -n | awk 'NR == 1 {
        print "this is scale micro; on the GPUs here, of " $1 " MiB or more, you could set SCALE=" \
          ($1 < 22500 ? "small" : $1 < 80000 ? "one" : "one or SCALE=paper") }' ;;
  esac
  [ "$PYTHON" = python ] || [ -x "$PYTHON" ] || { echo "no environment: making .venv"; python3 -m venv .venv; }
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11) and sys.prefix + " has a Python older than 3.11")'
  packages="$(cat "$@") $([ "$ENGINE" != vllm ] || echo vllm==0.32.0)"
  "$PYTHON" -c 'import importlib.metadata as found, sys
for name, version in (package.split("==") for package in sys.argv[1:]):
    assert found.version(name).split("+")[0] == version' $packages 2>/dev/null && return
  echo "installing packages: where none is there, 2.8 GB to download on Linux, 4 GB with vLLM"
  "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip
  "$PYTHON" -m pip install --quiet --disable-pip-version-check $packages
}
PYTHON=python TASK="" PLANNED="" LABELS="" THERE=0 N_prepare=0 N_train=0 N_score=0 PLAN=$(mktemp -d)
mkdir "$PLAN"/{prepare,train,score,pids}; trap 'rm -rf "$PLAN"' EXIT; trap stop INT TERM HUP
[ "$#" -gt 0 ] || set -- main
case $1 in
  -h | --help) sed -n '3,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" ;;
  --list)
    echo "target: what it makes: cost at micro | small | one | paper, for one seed (one and paper: estimates)"
    sed -n 's/^\([a-z0-9]*\)() {.*# \(.*: .* | .*\)/\1: \2/p' "$0" ;;
  setup) setup requirements.txt ;;
  test) setup requirements.txt tests/requirements.txt; "$PYTHON" -m pytest -q -n 2 --dist loadgroup tests ;;
  report)
    setup requirements.txt
    rm -rf "results/published/$SCALE"; mkdir -p results/published; cp -R ".github/results/$SCALE" results/published
    "$PYTHON" eval.py report "results/published/$SCALE" ;;
  *)
    for target in "$@"; do
      [[ " main $ALL figure3 figure4 figure5 all " == *" $target "* ]] || fail "$target: unknown; see run_all.sh --list"
    done
    setup requirements.txt
    reproduce "$@" ;;
esac
