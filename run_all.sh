#!/usr/bin/env bash
# Reproduce the paper's tables: train, score, report.
#
#   bash run_all.sh            set up, then run the main job at the scale this machine allows, and write the report
#   bash run_all.sh figure1    the filter study, likewise
#   bash run_all.sh test       set up and run the tests
#   bash run_all.sh setup      only set up: a .venv unless an environment is active; what is there is skipped
#   bash run_all.sh --list     name the targets
#
# Environment: SCALE (micro | small | paper), SEEDS ("0 1 2"), OUT (results/$SCALE), JOBS (runs side by side).
# To change a hyperparameter, edit the flags of a run below, or those of its scale in renio.py and eval.py.
set -euo pipefail
cd "$(dirname "$0")"

# --- set-up -----------------------------------------------------------------------------------------------------------

setup() { # setup REQUIREMENTS...: install what these files ask for and the environment lacks
  if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    PYTHON=python
  else
    if [ ! -x .venv/bin/python ]; then
      echo "setting up .venv (once; about a minute and 2 GB)"
      python3 -m venv .venv
    fi
    PYTHON=.venv/bin/python
  fi
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
  local file
  for file in "$@"; do
    "$PYTHON" - "$file" <<'EOF' || "$PYTHON" -m pip install --quiet --disable-pip-version-check --requirement "$file"
import importlib.metadata, sys
for line in open(sys.argv[1]):
    name, version = line.strip().split("==")
    try:
        installed = importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(1)
    if installed != version:
        sys.exit(1)
EOF
  done
}

# --- runs side by side ------------------------------------------------------------------------------------------------

run() { # run FILE COMMAND...: run COMMAND, which makes FILE, with its output in a log beside the folder of FILE
  local file=$1 log started=$SECONDS
  log=$(dirname "$file").log
  shift
  if [ -e "$file" ]; then
    echo "$file is there: skipped"
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

start() { # start COMMAND...: in the background; with JOBS running, wait for the oldest first
  if [ "${#PIDS[@]}" -ge "$JOBS" ]; then
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

# --- the main job: tables 1 and 2 -------------------------------------------------------------------------------------

train() { # train NAME FLAGS...: a run of $SCRIPT in $DIR/NAME, continued where it was interrupted
  local name=$1
  shift
  run "$DIR/$name/final" "${LAUNCH[@]}" "$SCRIPT" --scale "$SCALE" --seed "$SEED" --output_dir "$DIR/$name" --resume "$@"
}

score() { # score NAME LABEL FLAGS...: the scores of a model in $DIR/NAME/eval.json
  local name=$1 label=$2
  shift 2
  run "$DIR/$name/eval.json" "$PYTHON" eval.py --scale "$SCALE" --label "$label" --train_seed "$SEED" \
    --decoding sampled greedy --output "$DIR/$name/eval.json" "$@"
}

base() { # at micro scale the student is trained here, on problems that leave out part of the operation table
  [ "$SCALE" != micro ] || train base --method sft --dataset arith-gaps --privileged_share 0.4
  score base base --model "$STUDENT"
  # what OPSD's teacher can do; the benchmarks of the paper scale have no worked solutions
  [ "$SCALE" = paper ] || score base-with-solution "base with solution" --model "$STUDENT" --privileged
}

teacher() {
  [ "$SCALE" != micro ] || train teacher --method sft --model init:micro-teacher --max_steps 800 --schedule_steps 800
  score teacher teacher --model "$TEACHER"
}

arm() { # arm NAME FLAGS...: train a method and score its last step
  local name=$1
  shift
  train "$name" --model "$STUDENT" "$@"
  if [ "$SCALE" = micro ]; then
    score "$name" "$name" --model "$DIR/$name/final"
  else
    score "$name" "$name" --model "$STUDENT" --adapter "$DIR/$name/final"
  fi
}

for_each_seed() { # for_each_seed ARMS: make base and teacher, then the runs that the function ARMS starts; report
  for SEED in $SEEDS; do
    DIR=$OUT/seed$SEED
    case $SCALE in
      micro) STUDENT=$DIR/base/final TEACHER=$DIR/teacher/final ;;
      small) STUDENT=HuggingFaceTB/SmolLM2-135M-Instruct TEACHER=HuggingFaceTB/SmolLM2-360M-Instruct ;;
      paper) STUDENT=Qwen/Qwen3-1.7B TEACHER=Qwen/Qwen3-8B ;;
    esac
    start base
    start teacher
    finish
    "$1"
    finish
  done
  "$PYTHON" eval.py report "$OUT"
}

table12() {
  start arm opd --method opd --teacher "$TEACHER"
  start arm opsd --method opsd
  start arm opd+renio --method opd --teacher "$TEACHER" --weighting renio
  start arm opsd+renio --method opsd --weighting renio
}

figure1() { # whole solutions, so that each has an answer to filter by
  local SCRIPT=filter_experiments.py arm length=()
  [ "$SCALE" = micro ] || length=(--prefix_tokens 4096)
  for arm in correct incorrect unfiltered; do
    start arm "opd-$arm" --method opd --teacher "$TEACHER" --arm "$arm" ${length[@]+"${length[@]}"}
    start arm "opsd-$arm" --method opsd --arm "$arm" ${length[@]+"${length[@]}"}
  done
}

# --- what to do -------------------------------------------------------------------------------------------------------

PIDS=()
trap stop INT TERM
GPUS=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
if [ "$GPUS" -ge 4 ]; then allowed=paper; elif [ "$GPUS" -ge 1 ]; then allowed=small; else allowed=micro; fi
SCALE=${SCALE:-$allowed}
SEEDS=${SEEDS:-0}
OUT=${OUT:-results/$SCALE}
case $SCALE in
  micro | small | paper) ;;
  *) echo "SCALE=$SCALE: known are micro, small, paper" >&2; exit 2 ;;
esac

case ${1:-main} in
  main | figure1)
    setup requirements.txt
    LAUNCH=("$PYTHON")
    if [ "$GPUS" -ge 1 ]; then
      JOBS=${JOBS:-1}
      [ "$SCALE" != paper ] || LAUNCH=("$PYTHON" -m torch.distributed.run --nproc_per_node "$GPUS")
    else
      JOBS=${JOBS:-2}
      # Micro models gain nothing from threads, and glibc's defaults return memory to the system at every step, which
      # costs more than the arithmetic.
      export OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=200000000
    fi
    [ "$SCALE" != micro ] || echo "micro scale: about 5 minutes a seed on 2 slow cores; tail -f a log to watch"
    SCRIPT=renio.py
    if [ "${1:-main}" = main ]; then for_each_seed table12; else for_each_seed figure1; fi
    ;;
  test)
    setup requirements.txt tests/requirements.txt
    "$PYTHON" -m pytest -q tests
    ;;
  setup) setup requirements.txt ;;
  --list)
    cat <<'EOF'
main     tables 1 and 2 for one student: base, OPD, OPD+ReNIO, OPSD, OPSD+ReNIO (the default)
figure1  the filter study: OPD and OPSD on correct-only, incorrect-only and unfiltered rollouts
test     the tests
setup    only the environment
EOF
    ;;
  *) echo "run_all.sh $1: unknown; bash run_all.sh --list names the targets" >&2; exit 2 ;;
esac
