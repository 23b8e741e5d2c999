#!/usr/bin/env bash
# Reproduce the paper's tables and figures: train, score, report.
#
#   bash run_all.sh                    set up, then tables 1 and 2 at the scale this machine allows, and the report
#   bash run_all.sh table4 figure6     other targets, likewise; `all` for every one
#   bash run_all.sh --list             the targets, what each runs and costs
#   bash run_all.sh test               set up and run the tests
#   bash run_all.sh setup              only set up: a .venv unless an environment is active; what is there is skipped
#
# Environment: SCALE (micro | small | paper), SEEDS ("0 1 2"), STUDENTS (at paper scale, e.g. "Qwen/Qwen3-1.7B"),
# OUT (results/$SCALE), JOBS (runs side by side), NGPU (devices of a training run), ENGINE (vllm | transformers),
# DRY=1 (print the commands, run nothing). A run that is finished is skipped, an interrupted one goes on.
# To change a hyperparameter, edit the flags of a run below, or those of its scale in renio.py and eval.py.
set -euo pipefail
cd "$(dirname "$0")"

# --- set-up -----------------------------------------------------------------------------------------------------------

setup() { # setup REQUIREMENTS...: install what these files ask for and the environment lacks
  if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    PYTHON=python
  else
    PYTHON=.venv/bin/python
    [ -z "${DRY:-}" ] || return 0
    if [ ! -x .venv/bin/python ]; then
      echo "setting up .venv (once; about a minute and 2 GB)"
      python3 -m venv .venv
    fi
  fi
  [ -z "${DRY:-}" ] || return 0
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
  local file
  for file in "$@"; do
    "$PYTHON" - "$file" <<'END' || "$PYTHON" -m pip install --quiet --disable-pip-version-check --requirement "$file"
import importlib.metadata, sys
for line in open(sys.argv[1]):
    name, version = line.strip().split("==")
    try:
        installed = importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(1)
    if installed != version:
        sys.exit(1)
END
  done
}

# --- runs side by side ------------------------------------------------------------------------------------------------

run() { # run FILE... -- COMMAND...: run COMMAND, which makes the FILEs, with its output in a log beside the first's folder
  local files=() file log started=$SECONDS made=yes
  while [ "$1" != -- ]; do
    files+=("$1")
    [ -e "$1" ] || made=
    shift
  done
  shift
  file=${files[0]}
  log=$(dirname "$file").log
  if [ -n "$made" ]; then
    [ -n "${DRY:-}" ] || echo "$file is there: skipped"
    return
  fi
  if [ -n "${DRY:-}" ]; then
    local words
    printf -v words ' %q' "$@"
    echo "${words# }"
    return
  fi
  mkdir -p "$(dirname "$log")"
  echo "making $file (log: $log)"
  if ! "$@" >>"$log" 2>&1; then
    echo "failed: $*" >&2
    echo "last lines of $log:" >&2
    tr '\r' '\n' <"$log" | tail -n 15 >&2
    return 1
  fi
  echo "made $file in $((SECONDS - started)) s"
}

start() { # start COMMAND...: in the background; with $LIMIT of them running, wait for the oldest first
  if [ -n "${DRY:-}" ]; then
    "$@"
    return
  fi
  if [ "${#PIDS[@]}" -ge "$LIMIT" ]; then
    wait "${PIDS[0]}" || stop
    PIDS=("${PIDS[@]:1}")
  fi
  "$@" &
  PIDS+=($!)
}

finish() { # wait for every background job
  local pid
  for pid in ${PIDS[@]+"${PIDS[@]}"}; do wait "$pid" || stop; done
  PIDS=()
}

stop() { # a job failed or the user interrupted: end what still runs
  trap - INT TERM
  local pid
  for pid in ${PIDS[@]+"${PIDS[@]}"}; do
    pkill -TERM -P "$pid" 2>/dev/null || true
    kill "$pid" 2>/dev/null || true
  done
  echo "stopped; the same command goes on from here" >&2
  exit 1
}

# --- one training run and its scores ----------------------------------------------------------------------------------
# PHASE=prepare trains base and teacher, PHASE=train all runs of all targets, PHASE=score scores them. In each phase a run
# that several targets share is met once.

once() { # once NAME: whether this run is met for the first time in this phase
  case " $MET " in *" $PHASE:$NAME_PREFIX$1 "*) return 1 ;; esac
  MET="$MET $PHASE:$NAME_PREFIX$1"
}

train() { # train NAME FLAGS...: a run of renio.py in $DIR/NAME
  local name=$1
  shift
  start run "$DIR/$name/final" -- "${LAUNCH[@]}" renio.py --scale "$SCALE" --seed "$SEED" ${TRAINING[@]+"${TRAINING[@]}"} \
    "$@" --output_dir "$DIR/$name" --resume
}

score() { # score NAME LABEL FLAGS...: the scores of one model in $DIR/NAME/eval.json
  local name=$1 label=$2
  shift 2
  scorer "$DIR/$name/eval.json" --output "$DIR/$name/eval.json" --label "$label" "$@"
}

scorer() { # scorer FILE FLAGS...: run eval.py, which makes FILE, on the next GPU
  local file=$1 device=()
  shift
  if [ "$GPUS" -ge 1 ]; then
    device=(env "CUDA_VISIBLE_DEVICES=$((TURN % GPUS))")
    TURN=$((TURN + 1))
  fi
  start run "$file" -- ${device[@]+"${device[@]}"} "$PYTHON" eval.py --scale "$SCALE" --train_seed "$SEED" \
    "${SCORING[@]}" "$@"
}

arm() { # arm NAME LABEL FLAGS...: train a method and score it
  local name=$1 label=$2
  shift 2
  once "$name" || return 0
  if [ "$PHASE" = train ]; then
    train "$name" --model "$STUDENT" "$@"
  else
    score_run "$name" "$label"
  fi
}

score_run() { # score_run NAME LABEL: every checkpoint of a run, or at micro scale without CURVE=1 the last step only
  if [ "$SCALE" = paper ] || [ -n "${CURVE:-}" ]; then
    scorer "$DIR/$1/checkpoint-$LAST_STEP/eval.json" --checkpoints "$DIR/$1" --model "$STUDENT" --label "$2"
  elif [ "$SCALE" = micro ]; then
    score "$1" "$2" --model "$DIR/$1/final"
  else
    score "$1" "$2" --model "$STUDENT" --adapter "$DIR/$1/final"
  fi
}

# --- the runs ---------------------------------------------------------------------------------------------------------

base() { # at micro scale the student is trained here, on problems that leave out part of the operation table
  if [ "$PHASE" = prepare ]; then
    [ "$SCALE" != micro ] || train base --method sft --dataset arith-gaps --privileged_share 0.4
  elif first_or_micro; then
    score base base --model "$STUDENT"
    # what OPSD's teacher can do; the benchmarks of the paper scale have no worked solutions
    [ "$SCALE" = paper ] || score base-with-solution "base with solution" --model "$STUDENT" --privileged
  fi
}

teacher() {
  if [ "$PHASE" = prepare ]; then
    [ "$SCALE" != micro ] || train teacher --method sft --model init:micro-teacher --max_steps 800 --schedule_steps 800
  elif first_or_micro; then
    score teacher teacher --model "$TEACHER"
  fi
}

first_or_micro() { [ "$SCALE" = micro ] || [ "$SEED" = "${SEEDS%% *}" ]; } # elsewhere these two do not depend on the seed

opd() { arm "$1" "$1" --method opd --teacher "$TEACHER" "${@:2}"; }  # opd NAME FLAGS...
opsd() { arm "$1" "$1" --method opsd "${@:2}"; }                     # opsd NAME FLAGS...

opsd_runs() {
  CURVE=1 opsd opsd --save_rollouts True
  CURVE=1 opsd opsd+renio --weighting renio
}

opd_runs() {
  CURVE=1 opd opd --save_rollouts True
  CURVE=1 opd opd+renio --weighting renio
}

table1() {
  opsd_runs
  grpo
  on_code opsd
}

table2() {
  opd_runs
  on_code opd
}

grpo() {
  local CURVE=1 LAST_STEP=$GRPO_STEPS
  if [ "$SCALE" = paper ]; then
    arm grpo grpo --method grpo --prefix_tokens 16000 --temperature 1.2 --generations 8 --iterations 2 \
      --max_steps "$GRPO_STEPS" --save_steps 25 # 300 updates, two on each batch of rollouts
  else
    arm grpo grpo --method grpo
  fi
}

on_code() { # on_code METHOD: the code columns of Tables 1 and 2: other training data, prompts and benchmarks
  [ "$SCALE" = paper ] || return 0
  local SCORING=("${SCORING_CODE[@]}") TRAINING=("${TRAINING_CODE[@]}") extra=()
  [ "$1" = opsd ] || extra=(--teacher "$TEACHER")
  if [ "$PHASE" = score ] && first_or_micro && once code-base; then score code-base base --model "$STUDENT"; fi
  arm "code-$1" "$1" --method "$1" ${extra[@]+"${extra[@]}"}
  arm "code-$1+renio" "$1+renio" --method "$1" ${extra[@]+"${extra[@]}"} --weighting renio
}

table3() { # the main runs, and the same with rollouts of another length
  distillation_runs
  opsd "opsd@$OTHER_PREFIX" --prefix_tokens "$OTHER_PREFIX"
  opsd "opsd+renio@$OTHER_PREFIX" --prefix_tokens "$OTHER_PREFIX" --weighting renio
  opd "opd@$OTHER_PREFIX" --prefix_tokens "$OTHER_PREFIX"
  opd "opd+renio@$OTHER_PREFIX" --prefix_tokens "$OTHER_PREFIX" --weighting renio
}

distillation_runs() { # those of Tables 1 and 2, which other tables and figures show too
  opsd_runs
  opd_runs
}

table4() {
  distillation_runs
  opd opd+renio-noclip --weighting renio --log_ratio_clip inf
  opd opd+renio-nothreshold --weighting renio --threshold=-inf
  opd opd+renio-nonorm --weighting renio --weight_norm none
}

table8() {
  distillation_runs
  opsd opsd+ts_sample --weighting ts_sample
  opsd opsd+st_token --weighting st_token
}

figure1() { # the filter study: whole solutions, so that each has an answer to filter by
  local method arm extra name
  for method in opd opsd; do
    extra=(--method "$method")
    [ "$method" = opsd ] || extra+=(--teacher "$TEACHER")
    [ "$SCALE" = micro ] || extra+=(--prefix_tokens 4096)
    for arm in correct incorrect unfiltered; do
      name=$method-$arm
      once "$name" || continue
      if [ "$PHASE" = train ]; then
        start run "$DIR/$name/final" -- "${LAUNCH[@]}" filter_experiments.py --scale "$SCALE" --seed "$SEED" \
          ${TRAINING[@]+"${TRAINING[@]}"} --arm "$arm" --model "$STUDENT" "${extra[@]}" --output_dir "$DIR/$name" --resume
      else
        CURVE=1 score_run "$name" "$name"
      fi
    done
    name=$method-matched
    once "$name" || continue
    if [ "$PHASE" = train ]; then # three processes, an arm each
      start run "$DIR/$name"/{correct,incorrect,unfiltered}/final -- "${TORCHRUN[@]}" --nproc_per_node 3 \
        filter_experiments.py --scale "$SCALE" --seed "$SEED" ${TRAINING[@]+"${TRAINING[@]}"} --design matched \
        --model "$STUDENT" "${extra[@]}" --output_dir "$DIR/$name" --resume
    else
      for arm in correct incorrect unfiltered; do CURVE=1 score_run "$name/$arm" "$name-$arm"; done
    fi
  done
}

figure3() { distillation_runs; }
figure4() { table3; grpo; }
figure5() { distillation_runs; }

figure6() { # the main run has clip 3.0 and threshold 0.8
  distillation_runs
  local value
  for value in 2.0 2.5; do opd "opd+renio-clip$value" --weighting renio --log_ratio_clip "$value"; done
  for value in 0.6 1.0; do opd "opd+renio-threshold$value" --weighting renio --threshold "$value"; done
}

controls() { # what the paper lacks: shuffled weights, an oracle, and two published weightings
  distillation_runs
  opd opd+renio_shuffled --weighting renio_shuffled
  opsd opsd+renio_shuffled --weighting renio_shuffled
  opd opd+correctness --weighting correctness
  opsd opsd+correctness --weighting correctness
  opd opd+iw --weighting iw
  opsd opsd+pw --weighting pw
}

# --- what to do -------------------------------------------------------------------------------------------------------

list() {
  cat <<'END'
target    runs  minutes  hours  what
main         5        7      6  tables 1 and 2 on one student (the default)
table1       3        6     28  base, GRPO, OPSD, OPSD+ReNIO; at paper scale 25 runs: 5 students, math and code
table2       2        5      5  base, OPD, OPD+ReNIO; at paper scale 8 runs: 2 students, math and code
table3       8        8      6  OPSD and OPD with and without ReNIO, rollouts of two lengths
table4       7        7      5  ReNIO without clip, without threshold, without batch normalization
table8       6        7      4  ReNIO against teacher-to-student and token weights
figure1      8       16     11  the filter study, designs free and matched (also figures 7 and 8)
figure3      4        6      3  histogram of log-ratios
figure4      9        8      9  seconds a step
figure5      4        6      3  weight against the teacher's entropy; weight of right and wrong rollouts
figure6      8        8      5  sweeps of clip and threshold
controls    10        8      6  shuffled weights, the oracle, IW-OPD, PW-OPSD
all         32       25     56  everything, shared runs once; at paper scale 60 runs
test                  6         the tests
setup                 1         only the environment

Training runs; minutes a seed at micro scale on 2 slow CPU cores, the training of base and teacher (4 minutes) in each; hours a
seed at paper scale on 4 GPUs: an estimate that no run has checked, from the seconds a step of the paper's Figure 4 (4 H200) and
0.45 h on one GPU for 12 answers to each of 90 problems (15,000 tokens an answer, 10,000 tokens a second), at 4 checkpoints.
END
}

each_seed() { # each_seed TARGETS...: train, then score, all runs of the targets for every seed of $STUDENT; report
  local target
  for PHASE in prepare train score; do
    for SEED in $SEEDS; do
      DIR=$FOLDER/seed$SEED NAME_PREFIX=$FOLDER/seed$SEED/ LIMIT=$JOBS
      case $SCALE in
        micro) STUDENT=$DIR/base/final TEACHER=$DIR/teacher/final ;;
        small) STUDENT=HuggingFaceTB/SmolLM2-135M-Instruct TEACHER=HuggingFaceTB/SmolLM2-360M-Instruct ;;
      esac
      if [ "$PHASE" = score ] && [ "$GPUS" -ge 1 ]; then LIMIT=$GPUS; fi
      if [ "$PHASE" != train ]; then
        base
        [ "$*" = table1 ] || teacher
      fi
      if [ "$PHASE" != prepare ]; then
        for target in "$@"; do "$target"; done
      fi
    done
    finish
  done
  if [ -n "${DRY:-}" ]; then
    echo "$PYTHON eval.py report $FOLDER"
  else
    "$PYTHON" eval.py report "$FOLDER"
  fi
}

paper_student() { # paper_student STUDENT: the paper's settings for it (Tables 5, 6 and 7), all in full
  STUDENT=$1
  local rate=5e-6 prefix=1024
  case $STUDENT in
    Qwen/Qwen3-*) TEACHER=Qwen/Qwen3-8B ;;
    *R1-Distill*) TEACHER=deepseek-ai/DeepSeek-R1-Distill-Qwen-7B rate=1e-6 prefix=2048 ;;
    *) echo "STUDENTS: $STUDENT is not of the paper; add its teacher and settings to run_all.sh" >&2; exit 2 ;;
  esac
  LAST_STEP=100 GRPO_STEPS=150 OTHER_PREFIX=4096 FOLDER=$OUT/${STUDENT##*/}
  local common=(--dtype bfloat16 --gradient_checkpointing True --lora_r 64 --lora_alpha 128 --learning_rate "$rate"
    --batch_size 32 --max_steps 100 --save_steps 25 --prefix_tokens "$prefix" --temperature 1.1 --beta 0
    --student_thinking False --teacher_thinking True --threshold 0.8 --log_ratio_clip 3.0 --rollout_engine "$ENGINE")
  TRAINING=(--task math --dataset siyanzhao/Openthoughts_math_30k_opsd "${common[@]}")
  TRAINING_CODE=(--task code --dataset open-thoughts/OpenThoughts-114k:metadata "${common[@]}")
  local sampling=(--decoding sampled --temperature 1.0 --top_p 0.95 --top_k 0 --max_new_tokens 38912 --thinking
    --engine "$ENGINE" --batch_size 512)
  SCORING=(--benchmarks aime24 aime25 hmmt25 --n 12 "${sampling[@]}")
  SCORING_CODE=(--benchmarks humaneval+ mbpp+ --n 4 "${sampling[@]}")
}

reproduce() { # reproduce TARGETS...
  local target targets=("$@") expanded=()
  setup requirements.txt
  TORCHRUN=("$PYTHON" -m torch.distributed.run --standalone)
  LAUNCH=("$PYTHON")
  TRAINING=()
  if [ "$SCALE" = paper ]; then
    JOBS=1
    LAUNCH=("${TORCHRUN[@]}" --nproc_per_node "$NGPU")
    GPUS=$NGPU
  elif [ "$GPUS" -ge 1 ]; then
    JOBS=${JOBS:-1}
  else
    JOBS=${JOBS:-2}
    # Micro models gain nothing from threads, and glibc's defaults return memory to the system at every step, which
    # costs more than the arithmetic.
    export OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=200000000
  fi
  for target in "${targets[@]}"; do
    case $target in
      main) expanded+=(main_runs) ;;
      all) expanded+=(table1 table2 table3 table4 table8 figure1 figure6 controls) ;; # the other figures show these runs
      *) expanded+=("$target") ;;
    esac
  done
  if [ "$SCALE" != paper ]; then
    FOLDER=$OUT LAST_STEP=50 GRPO_STEPS=50 OTHER_PREFIX=16
    SCORING=(--decoding sampled greedy)
    if [ "$SCALE" = small ]; then LAST_STEP=100 GRPO_STEPS=100 OTHER_PREFIX=64; fi
    [ "$SCALE" != micro ] || [ -n "${DRY:-}" ] ||
      echo "micro scale: bash run_all.sh --list says how many minutes a seed on 2 slow cores; tail -f a log to watch"
    each_seed "${expanded[@]}"
    return
  fi
  local student students
  for student in ${STUDENTS:-Qwen/Qwen3-1.7B Qwen/Qwen3-4B Qwen/Qwen3-8B deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B \
    deepseek-ai/DeepSeek-R1-Distill-Qwen-7B}; do
    students=()
    for target in "${expanded[@]}"; do # the paper has Table 1 on five students, Table 2 on two, all else on one
      case $target:$student in
        table1:* | table2:*1.7B | table2:*1.5B | *:Qwen/Qwen3-1.7B) students+=("$target") ;;
        *) [ -z "${STUDENTS:-}" ] || students+=("$target") ;;
      esac
    done
    [ "${#students[@]}" -gt 0 ] || continue
    paper_student "$student"
    each_seed "${students[@]}"
  done
}

main_runs() {
  distillation_runs
  grpo
}

PIDS=() MET="" TURN=0
trap stop INT TERM
GPUS=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
if [ "$GPUS" -ge 4 ]; then allowed=paper; elif [ "$GPUS" -ge 1 ]; then allowed=small; else allowed=micro; fi
SCALE=${SCALE:-$allowed}
SEEDS=${SEEDS:-0}
OUT=${OUT:-results/$SCALE}
NGPU=${NGPU:-$((GPUS >= 1 ? GPUS : 4))}
ENGINE=${ENGINE:-vllm}
case $SCALE in
  micro | small | paper) ;;
  *) echo "SCALE=$SCALE: known are micro, small, paper" >&2; exit 2 ;;
esac
[ "$#" -gt 0 ] || set -- main
case $1 in
  test)
    setup requirements.txt tests/requirements.txt
    "$PYTHON" -m pytest -q tests
    ;;
  setup) setup requirements.txt ;;
  --list) list ;;
  *)
    for target in "$@"; do
      case $target in
        main | table[12348] | figure[13456] | controls | all) ;;
        *) echo "run_all.sh $target: unknown; bash run_all.sh --list names the targets" >&2; exit 2 ;;
      esac
    done
    reproduce "$@"
    ;;
esac
