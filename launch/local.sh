#!/usr/bin/env bash
# Trains with several processes of this machine, as a cluster would: one process a GPU (or a share of them), or CPU
# processes to try things out.
#
#   launch/local.sh -n 2 --config=configs/nhanes.py --workdir=runs/two
#
#   -n 2       processes
#   -d 1       CPU devices of each process, where there is no GPU
#   -p FILE    run this Python file instead of training, say launch/preflight.py
#
# DRY_RUN=1 prints what would start. When a process fails the others are ended. SIGTERM and SIGUSR1 are passed on.
set -euo pipefail

processes=2 devices=1 program=(-m remind_jax.main)
while getopts ":n:d:p:" option; do
  case $option in
    n) processes=$OPTARG ;;
    d) devices=$OPTARG ;;
    p) program=("$OPTARG") ;;
    *) break ;;
  esac
  shift $((OPTIND - 1))
  OPTIND=1
done
if ! [[ $processes =~ ^[1-9][0-9]*$ && $devices =~ ^[1-9][0-9]*$ ]]; then
  echo "error: -n $processes -d $devices: write whole numbers of at least 1" >&2
  exit 2
fi

python=${PYTHON:-python}
gpus=0
if [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | wc -l) || gpus=0
fi
if ((gpus % processes)); then
  echo "error: $processes processes cannot share $gpus GPUs evenly" >&2
  exit 2
fi
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# Sets `settings` to what process $1 needs in its environment.
settings_of() {
  settings=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1")
  if ((gpus)); then
    local each=$((gpus / processes)) list
    list=$(seq -s, $(($1 * each)) $(($1 * each + each - 1)))
    settings+=("JAX_LOCAL_DEVICE_IDS=${list%,}")
  else
    # With too few threads in XLA's pool, several devices of one process wait for one another for ever.
    settings+=(JAX_PLATFORMS=cpu "NPROC=$(($(nproc) > 32 ? $(nproc) : 32))")
    settings+=("XLA_FLAGS=${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices")
  fi
}

if [[ -n ${DRY_RUN:-} ]]; then
  for ((i = 0; i < processes; i++)); do
    settings_of "$i"
    printf '%q ' env "${settings[@]}" "$python" "${program[@]}" "$@"
    echo
  done
  exit 0
fi

pids=()
pass_on() { kill -s "$1" "${pids[@]}" 2>/dev/null || true; }
trap 'pass_on TERM' TERM
trap 'pass_on USR1' USR1
trap 'pass_on INT' INT
trap 'pass_on KILL' EXIT
for ((i = 0; i < processes; i++)); do
  settings_of "$i"
  env "${settings[@]}" "$python" "${program[@]}" "$@" &
  pids+=($!)
done

# Waits for process $1 whatever signal arrives meanwhile; sets `code`.
code_of() {
  code=0
  wait "${pids[$1]}" || code=$?
  while kill -0 "${pids[$1]}" 2>/dev/null; do
    code=0
    wait "${pids[$1]}" || code=$?
  done
}

left=$processes worst=0 ended=()
while ((left)); do
  for ((i = 0; i < processes; i++)); do
    if [[ -n ${ended[i]:-} ]] || kill -0 "${pids[i]}" 2>/dev/null; then
      continue
    fi
    code_of "$i"
    ended[i]=yes left=$((left - 1))
    # 75 and 143 are processes that were asked to stop, which all save at the same step.
    if ((code && !worst)); then
      worst=$code
      if ((left && code != 75 && code != 143)); then
        echo "process $i of $processes ended with exit code $code: ending the others; the same command goes on" >&2
        sleep 3 # they may have something to say of their own
        pass_on KILL
      fi
    fi
  done
  sleep 0.2 || true
done
exit "$worst"
