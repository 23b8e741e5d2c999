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
set -euo pipefail
cd "$(dirname "$0")"

# --- the runs ---------------------------------------------------------------------------------------------------------
# A line each; one that ends with a backslash goes on. To change a hyperparameter, edit the flags of its run: they win
# over those of the scale, below and in renio.py. A finished run stays as it is: remove its folder or set another OUT.
# kind: prepare  renio.py, before all others: a model that they start from or learn from
#       train    renio.py; scored at its last step, at paper scale at every checkpoint
#       curve    renio.py; scored at every checkpoint
#       filter   filter_experiments.py; scored at every checkpoint
#       matched  likewise, three arms side by side, each in a process and a folder of its own
#       eval     eval.py on a model as it is; each seed samples anew, so that differences to it can be paired
# A name with code- has code in place of math. For what stands in braces see the settings.
read -r -d '' RUNS <<'END' || true
# name                 scales      kind    flags
base                   micro       prepare --method sft --dataset arith-gaps --privileged_share 0.4
teacher                micro       prepare --method sft --model init:micro-teacher --max_steps 800 --schedule_steps 800
base                   all         eval    --model {student}
base-with-solution     micro,small eval    --model {student} --privileged
teacher                all         eval    --model {teacher}

opsd                   all         curve   --method opsd --save_rollouts True
opsd+renio             all         curve   --method opsd --weighting renio
opd                    all         curve   --method opd --teacher {teacher} --save_rollouts True
opd+renio              all         curve   --method opd --teacher {teacher} --weighting renio
grpo                   micro,small curve   --method grpo
grpo                   paper       curve   --method grpo --prefix_tokens 16000 --temperature 1.2 --generations 8 \
                                           --iterations 2 --max_steps 150 --save_steps 25
code-base              paper       eval    --model {student}
code-opsd              paper       curve   --method opsd
code-opsd+renio        paper       curve   --method opsd --weighting renio
code-opd               paper       curve   --method opd --teacher {teacher}
code-opd+renio         paper       curve   --method opd --teacher {teacher} --weighting renio

opsd@{other}           all         train   --method opsd --prefix_tokens {other}
opsd+renio@{other}     all         train   --method opsd --prefix_tokens {other} --weighting renio
opd@{other}            all         train   --method opd --teacher {teacher} --prefix_tokens {other}
opd+renio@{other}      all         train   --method opd --teacher {teacher} --prefix_tokens {other} --weighting renio

opd+renio-noclip       all         train   --method opd --teacher {teacher} --weighting renio --log_ratio_clip inf
opd+renio-nothreshold  all         train   --method opd --teacher {teacher} --weighting renio --threshold=-inf
opd+renio-nonorm       all         train   --method opd --teacher {teacher} --weighting renio --weight_norm none

opsd+ts_sample         all         train   --method opsd --weighting ts_sample
opsd+st_token          all         train   --method opsd --weighting st_token

opd-correct            all         filter  --arm correct --method opd --teacher {teacher} {whole}
opd-incorrect          all         filter  --arm incorrect --method opd --teacher {teacher} {whole}
opd-unfiltered         all         filter  --arm unfiltered --method opd --teacher {teacher} {whole}
opd-matched            all         matched --design matched --method opd --teacher {teacher} {whole}
opsd-correct           all         filter  --arm correct --method opsd {whole}
opsd-incorrect         all         filter  --arm incorrect --method opsd {whole}
opsd-unfiltered        all         filter  --arm unfiltered --method opsd {whole}
opsd-matched           all         matched --design matched --method opsd {whole}

opd+renio-clip2.0      all         train   --method opd --teacher {teacher} --weighting renio --log_ratio_clip 2.0
opd+renio-clip2.5      all         train   --method opd --teacher {teacher} --weighting renio --log_ratio_clip 2.5
opd+renio-threshold0.6 all         train   --method opd --teacher {teacher} --weighting renio --threshold 0.6
opd+renio-threshold1.0 all         train   --method opd --teacher {teacher} --weighting renio --threshold 1.0

opd+renio_shuffled     all         curve   --method opd --teacher {teacher} --weighting renio_shuffled
opsd+renio_shuffled    all         curve   --method opsd --weighting renio_shuffled
opd+correctness        all         train   --method opd --teacher {teacher} --weighting correctness
opsd+correctness       all         train   --method opsd --weighting correctness
opd+iw                 all         train   --method opd --teacher {teacher} --weighting iw
opsd+pw                all         train   --method opsd --weighting pw
END

# --- the targets ------------------------------------------------------------------------------------------------------
# A line each: name, minutes at micro scale and hours at paper scale (--list says how they come about), what it is: the
# runs it needs, or the targets whose runs it needs. Lines without minutes are no targets, but shorten others.
read -r -d '' TARGETS <<'END' || true
models    -   -  : base base-with-solution teacher
pairs     -   -  : models opsd opsd+renio opd opd+renio
main      7   6  tables 1 and 2 on one student (the default): pairs grpo
table1    6  28  base, GRPO, OPSD, OPSD+ReNIO; the paper's 5 students, math and code: \
                 base base-with-solution opsd opsd+renio grpo code-base code-opsd code-opsd+renio
table2    5   5  base, OPD, OPD+ReNIO; 2 students of the paper, math and code: \
                 models opd opd+renio code-base code-opd code-opd+renio
table3    8   6  OPSD and OPD with and without ReNIO, rollouts of two lengths: \
                 pairs opsd@{other} opsd+renio@{other} opd@{other} opd+renio@{other}
table4    7   5  ReNIO without clip, without threshold, without batch normalization: \
                 pairs opd+renio-noclip opd+renio-nothreshold opd+renio-nonorm
table8    7   4  ReNIO against teacher-to-student and token weights: pairs opsd+ts_sample opsd+st_token
figure1  16  11  the filter study, designs free and matched (also figures 7 and 8): models opd-correct opd-incorrect \
                 opd-unfiltered opd-matched opsd-correct opsd-incorrect opsd-unfiltered opsd-matched
figure3   6   3  histogram of log-ratios: pairs
figure4   8   9  seconds a step: table3 grpo
figure5   6   3  weight against the teacher's entropy; weight of right and wrong rollouts: pairs
figure6   8   5  sweeps of clip and threshold (3.0 and 0.8 in the main run): \
                 pairs opd+renio-clip2.0 opd+renio-clip2.5 opd+renio-threshold0.6 opd+renio-threshold1.0
controls  8   6  shuffled weights, the oracle, IW-OPD, PW-OPSD: \
                 pairs opd+renio_shuffled opsd+renio_shuffled opd+correctness opsd+correctness opd+iw opsd+pw
all      25  56  everything, shared runs once: table1 table2 table3 table4 table8 figure1 figure6 controls
END

# --- settings by student and by scale ---------------------------------------------------------------------------------
# Teacher, learning rate, tokens a rollout (the paper's Tables 5 and 6), and the targets it shows a student in.
# STUDENTS may name others, for every target: the first line that matches has their settings.
read -r -d '' MODELS <<'END' || true
# scale {student}                               {teacher}                               rate  tokens  targets
micro   {folder}/base/final                     {folder}/teacher/final                  -     -       every
small   HuggingFaceTB/SmolLM2-135M-Instruct     HuggingFaceTB/SmolLM2-360M-Instruct     -     -       every
paper   Qwen/Qwen3-1.7B                         Qwen/Qwen3-8B                           5e-6  1024    every
paper   Qwen/Qwen3-4B                           Qwen/Qwen3-8B                           5e-6  1024    table1
paper   Qwen/Qwen3-8B                           Qwen/Qwen3-8B                           5e-6  1024    table1
paper deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B deepseek-ai/DeepSeek-R1-Distill-Qwen-7B 1e-6  2048    table1 table2
paper deepseek-ai/DeepSeek-R1-Distill-Qwen-7B   deepseek-ai/DeepSeek-R1-Distill-Qwen-7B 1e-6  2048    table1
paper   Qwen/Qwen3-*                            Qwen/Qwen3-8B                           5e-6  1024    none
paper   *R1-Distill*                            deepseek-ai/DeepSeek-R1-Distill-Qwen-7B 1e-6  2048    none
END

settings() { # settings RATE TOKENS: what the runs of a scale share; OTHER is {other}, WHOLE is {whole}
  TRAINING=() SCORING=(--decoding sampled greedy) # STEPS: those of a run whose flags have no --max_steps
  WHOLE=(--prefix_tokens 4096)                    # so that each rollout has an answer to filter by
  case $SCALE in
    micro) STEPS=50 OTHER=16 WHOLE=() ;;
    small) STEPS=100 OTHER=64 ;;
    paper)
      STEPS=100 OTHER=4096
      local common=(--dtype bfloat16 --gradient_checkpointing True --lora_r 64 --lora_alpha 128 --learning_rate "$1"
        --batch_size 32 --max_steps "$STEPS" --save_steps 25 --prefix_tokens "$2" --temperature 1.1 --beta 0
        --student_thinking False --teacher_thinking True --threshold 0.8 --log_ratio_clip 3.0
        --rollout_engine "$ENGINE") # Tables 5 and 6
      TRAINING=(--task math --dataset siyanzhao/Openthoughts_math_30k_opsd "${common[@]}")
      CODE_TRAINING=(--task code --dataset open-thoughts/OpenThoughts-114k:metadata "${common[@]}")
      local sampling=(--decoding sampled --temperature 1.0 --top_p 0.95 --top_k 0 --max_new_tokens 38912 --thinking
        --engine "$ENGINE" --batch_size 512) # Table 7
      SCORING=(--benchmarks aime24 aime25 hmmt25 --n 12 "${sampling[@]}")
      CODE_SCORING=(--benchmarks humaneval+ mbpp+ --n 4 "${sampling[@]}")
      ;;
  esac
}

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

# --- from the tables to a plan ----------------------------------------------------------------------------------------

plan() { # plan TARGETS...: the jobs, in an order in which they can be done: PHASES, LIMITS, TITLES, FILES, COMMANDS
  local student target name scales kind flags
  PHASES=() LIMITS=() TITLES=() FILES=() COMMANDS=() TURN=0
  TORCHRUN=("$PYTHON" -m torch.distributed.run --standalone) LAUNCH=("$PYTHON")
  if [ "$SCALE" = paper ]; then
    JOBS=1 GPUS=$NGPU LAUNCH=("${TORCHRUN[@]}" --nproc_per_node "$NGPU")
  else
    JOBS=${JOBS:-$((GPUS >= 1 ? 1 : 2))} STUDENTS=
  fi
  for student in ${STUDENTS:-$(students)}; do
    choose "$student"
    SELECTED=" "
    for target in "$@"; do select_runs "$target" ""; done
    [ "$SELECTED" != " " ] || continue
    for PHASE in prepare train score; do
      LIMIT=$JOBS
      if [ "$PHASE" = score ] && [ "$GPUS" -ge 1 ]; then LIMIT=$GPUS; fi
      for SEED in $SEEDS; do
        DIR=$FOLDER/seed$SEED
        while read name scales kind flags; do
          [[ $SELECTED == *" $name "* && (,$scales, == *",$SCALE,"* || $scales == all) ]] || continue
          plan_run "${name/\{other\}/$OTHER}" "$kind" "$flags"
        done <<<"$RUNS"
      done
    done
    PHASE=report
    job "" "" -- "$PYTHON" eval.py report "$FOLDER"
  done
}

students() { # all that the table has targets for
  local scale student teacher rate tokens shown_in
  while read scale student teacher rate tokens shown_in; do
    [ "$scale" != "$SCALE" ] || [ "$shown_in" = none ] || echo "$student"
  done <<<"$MODELS"
}

choose() { # choose STUDENT: its settings, TEACHER, SHOWN_IN and FOLDER
  local scale pattern rate tokens
  while read scale pattern TEACHER rate tokens SHOWN_IN; do
    [[ $scale == "$SCALE" && $1 == $pattern ]] || continue
    STUDENT=$1 FOLDER=$OUT WHOSE=
    [ "$SCALE" != paper ] || FOLDER=$OUT/${1##*/} WHOSE="${1##*/}, "
    [ -z "${STUDENTS:-}" ] || SHOWN_IN=every
    settings "$rate" "$tokens"
    return
  done <<<"$MODELS"
  echo "STUDENTS: $1 is not of the paper; add its line to the settings in run_all.sh" >&2
  exit 2
}

line_of() { # line_of TARGET: MINUTES and NEEDS of its line; false where there is none
  local name hours rest
  while read name MINUTES hours rest; do
    NEEDS=${rest#*:}
    [ "$name" != "$1" ] || return 0
  done <<<"$TARGETS"
  return 1
}

select_runs() { # select_runs NAME TARGETS: a run that TARGETS need, or the runs of a target, into SELECTED
  local word
  if line_of "$1"; then
    for word in $NEEDS; do select_runs "$word" "$2 $1"; done
  else
    for word in $2; do
      case " $SHOWN_IN " in *" $word "* | " every ") SELECTED="$SELECTED$1 " ;; esac
    done
  fi
}

plan_run() { # plan_run NAME KIND FLAGS: the jobs of a line of RUNS in this phase and seed
  local name=$1 kind=$2 script=renio.py launch=("${LAUNCH[@]}") flags=() steps=$STEPS words word previous= folder
  local folders=("$DIR/$name") training=(${TRAINING[@]+"${TRAINING[@]}"}) scoring=("${SCORING[@]}")
  local student=${STUDENT/\{folder\}/$DIR} teacher=${TEACHER/\{folder\}/$DIR}
  case $name in code-*) training=("${CODE_TRAINING[@]}") scoring=("${CODE_SCORING[@]}") ;; esac
  case $kind in train | curve | filter | matched) flags=(--model "$student") ;; esac
  case $kind in filter | matched) script=filter_experiments.py ;; esac
  if [ "$kind" = matched ]; then
    launch=("${TORCHRUN[@]}" --nproc_per_node 3) folders=("$DIR/$name"/{correct,incorrect,unfiltered})
  fi
  read -r -a words <<<"$3"
  for word in "${words[@]}"; do
    case $word in
      "{student}") flags+=("$student") ;;
      "{teacher}") flags+=("$teacher") ;;
      "{other}") flags+=("$OTHER") ;;
      "{whole}") flags+=(${WHOLE[@]+"${WHOLE[@]}"}) ;;
      *) flags+=("$word") ;;
    esac
    [ "$previous" != --max_steps ] || steps=$word
    previous=$word
  done
  case $PHASE:$kind in
    prepare:prepare | train:train | train:curve | train:filter | train:matched)
      job "$name" "${folders[@]/%//final}" -- "${launch[@]}" "$script" --scale "$SCALE" --seed "$SEED" \
        ${training[@]+"${training[@]}"} "${flags[@]}" --output_dir "$DIR/$name" --resume
      ;;
    score:eval) score "$DIR/$name" --seed "$SEED" "${flags[@]}" ;;
    score:train | score:curve | score:filter | score:matched) for folder in "${folders[@]}"; do score "$folder"; done ;;
  esac
}

score() { # score FOLDER [FLAGS...]: on the next GPU, plan_run's run in FOLDER, or the model that FLAGS name
  local file=$1/eval.json label=${1#"$DIR/"} device=()
  label=${label#code-}
  local command=(--output "$file" --label)
  if [ "$kind" = eval ]; then
    command+=("${label//-/ }" "${@:2}")
  elif [ "$SCALE" = paper ] || [ "$kind" != train ]; then
    file=$1/checkpoint-$steps/eval.json
    command=(--checkpoints "$1" --model "$student" --label "${label//\//-}") # an arm's folder is in its run's
  elif [ "$SCALE" = micro ]; then
    command+=("$label" --model "$1/final")
  else
    command+=("$label" --model "$student" --adapter "$1/final")
  fi
  [ "$GPUS" -eq 0 ] || device=(env "CUDA_VISIBLE_DEVICES=$((TURN++ % GPUS))")
  job "scores of ${1#"$DIR/"}" "$file" -- ${device[@]+"${device[@]}"} "$PYTHON" eval.py --scale "$SCALE" \
    --train_seed "$SEED" "${scoring[@]}" "${command[@]}"
}

job() { # job TITLE FILE... -- COMMAND...: add to the plan a COMMAND that makes the FILEs
  local files="" command
  TITLES+=("$WHOSE$1, seed $SEED") PHASES+=("$PHASE") LIMITS+=("$LIMIT")
  shift
  while [ "$1" != -- ]; do
    printf -v files '%s %q' "$files" "$1"
    shift
  done
  shift
  printf -v command ' %q' "$@"
  FILES+=("$files") COMMANDS+=("${command# }")
}

# --- jobs side by side ------------------------------------------------------------------------------------------------

execute() { # make what the plan has and is not there yet
  local i number=0 total=0 todo=0 title before=
  for i in "${!PHASES[@]}"; do
    [ "${PHASES[i]}" != report ] || continue
    total=$((total + 1))
    is_there "$i" || todo=$((todo + 1))
  done
  echo "$total runs and scores, $todo to make; bash run_all.sh --list says how long they take"
  TIMES=$(mktemp)
  trap 'rm -f "$TIMES"' EXIT
  for i in "${!PHASES[@]}"; do
    PHASE=${PHASES[i]} LIMIT=${LIMITS[i]}
    [ "$PHASE" = "$before" ] || finish
    before=$PHASE
    if [ "$PHASE" = report ]; then
      eval "${COMMANDS[i]}"
      continue
    fi
    number=$((number + 1))
    title="[$number of $total] ${TITLES[i]}"
    if is_there "$i"; then
      echo "$title: is there, skipped"
      continue
    fi
    todo=$((todo - 1))
    if [ "${#PIDS[@]}" -ge "$LIMIT" ]; then # wait for the oldest
      wait "${PIDS[0]}" || stop
      PIDS=("${PIDS[@]:1}")
    fi
    make "$i" "$title" "$todo" &
    PIDS+=($!)
  done
}

is_there() { # is_there INDEX: whether all files of a job are
  local file files
  eval "files=(${FILES[$1]})"
  for file in "${files[@]}"; do [ -e "$file" ] || return 1; done
}

make() { # make INDEX TITLE TODO: run a job, which TODO others follow, with a log beside the folder of its first file
  local files log started=$SECONDS
  eval "files=(${FILES[$1]})"
  log=$(dirname "${files[0]}").log
  mkdir -p "$(dirname "$log")"
  echo "$2: started, log in $log"
  if ! eval "${COMMANDS[$1]}" >>"$log" 2>&1; then
    echo "failed: ${COMMANDS[$1]}" >&2
    echo "last lines of $log:" >&2
    tr '\r' '\n' <"$log" | tail -n 15 >&2
    return 1
  fi
  echo "$PHASE $((SECONDS - started))" >>"$TIMES"
  echo "$2: made in $((SECONDS - started)) s$(time_left "$3")"
}

time_left() { # time_left JOBS: that of so many, by the mean time of this phase's jobs in this call
  [ "$PHASE" != prepare ] || return 0 # its jobs take several times as long as all others
  awk -v phase="$PHASE" -v jobs="$1" -v limit="$LIMIT" '
    $1 == phase { made++; spent += $2 }
    END {
      left = jobs * spent / made / limit
      if (left >= 100) printf "; about %.0f min left", left / 60
      else if (left > 0) printf "; about %.0f s left", left
    }' "$TIMES"
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

# --- what to do -------------------------------------------------------------------------------------------------------

reproduce() { # reproduce TARGETS...
  local i
  setup requirements.txt
  plan "$@"
  if [ -n "${DRY:-}" ]; then
    for i in "${!PHASES[@]}"; do is_there "$i" || echo "${COMMANDS[i]}"; done
    return
  fi
  # Micro models gain nothing from threads, and glibc's defaults return memory to the system at every step, which costs
  # more than the arithmetic.
  [ "$GPUS" -ge 1 ] ||
    export OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=200000000
  execute
}

runs_at() { # runs_at SCALE TARGET: how many runs a seed, but for those that prepare
  local SCALE=$1 SEEDS=0 STUDENTS= JOBS= GPUS=0 phase runs=0
  plan "$2"
  for phase in "${PHASES[@]}"; do [ "$phase" != train ] || runs=$((runs + 1)); done
  echo "$runs"
}

list() {
  local target minutes hours rest runs at_paper
  echo "target    runs  minutes  hours  what"
  while read target minutes hours rest; do
    [ "$minutes" != - ] || continue
    runs=$(runs_at micro "$target") at_paper=$(runs_at paper "$target") rest=${rest%%:*}
    [ "$runs" = "$at_paper" ] || rest="$rest; at paper scale $at_paper runs"
    printf '%-9s %4s  %7s  %5s  %s\n' "$target" "$runs" "$minutes" "$hours" "$rest"
  done <<<"$TARGETS"
  cat <<'END'
test                  6         the tests
setup                 1         only the environment

Training runs; minutes a seed at micro scale on 2 slow CPU cores, the training of base and teacher (4 minutes) in each;
hours a seed at paper scale on 4 GPUs: an estimate that no run has checked, from the seconds a step of the paper's
Figure 4 (4 H200) and 0.45 h on one GPU for 12 answers to each of 90 problems (15,000 tokens an answer, 10,000 tokens a
second), at 4 checkpoints.
END
}

PIDS=() PYTHON=python
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
    "$PYTHON" -m pytest -q --numprocesses 2 --dist loadfile tests
    ;;
  setup) setup requirements.txt ;;
  --list) list ;;
  *)
    for target in "$@"; do
      if ! line_of "$target" || [ "$MINUTES" = - ]; then
        echo "run_all.sh $target: unknown; bash run_all.sh --list names the targets" >&2
        exit 2
      fi
    done
    reproduce "$@"
    ;;
esac
