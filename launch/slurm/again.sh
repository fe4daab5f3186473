# shellcheck shell=bash
# Read by the scripts beside it: what follows from the exit code of a run.
set -euo pipefail

# Queues the job again if the run was stopped in time (75), and ends with its code.
end_with() {
  if (($1 == 75)); then
    if ((${SLURM_RESTART_COUNT:-0} >= ${MOST_RESTARTS:-100})); then
      echo "stopped in time for the ${MOST_RESTARTS:-100}th restart: not queued again" >&2
    else
      echo "stopped in time; queued again" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
  fi
  exit "$1"
}
