# shellcheck shell=bash
# What the .sbatch files have in common; they source it once they have found it. Not for login shells.

# from the project's root, ./runs and .venv are what they are to make; a data set's file may also
# lie where the job was submitted
[ ! -f "${SLURM_SUBMIT_DIR:-.}/$DATASET" ] || DATASET=${SLURM_SUBMIT_DIR:-$PWD}/$DATASET
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

# the environment that make has installed, unless PYTHON= or an active conda environment is there
python=${PYTHON:-${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}}
python=${python:-$PWD/.venv/bin/python}
if [ ! -x "$python" ]; then
    echo "error: there is no $python: run make plan DATASET=$DATASET on a login node once" >&2
    exit 2
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
# see jobs/core/environment.py
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-20000}" KMP_BLOCKTIME="${KMP_BLOCKTIME:-1}"
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-33554432}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-1000000000}"
export {OMP,MKL,RAYON}_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # from SLURM 22.05 on srun does not take it over

# what newer versions of SLURM tell by themselves, and where this job's output goes
end=$(squeue -hj "${SLURM_JOB_ID:-}" -o %e 2>/dev/null | head -n 1)
export SLURM_JOB_END_TIME="${SLURM_JOB_END_TIME:-$(date -d "$end" +%s 2>/dev/null)}"
GRISTMILL_LOG=$(readlink /proc/$$/fd/1)
export GRISTMILL_LOG

# run STAGE [WORDS...]: the stage, as a step of this job. MODEL, RECIPE, NAME, FILE, RUNS and PROFILE
# may be given in the environment, as to make: sbatch --export=ALL,MODEL=gpt2 slurm/train.sbatch nih
run() {
    local stage=$1 code=0 options=() name element task=$SLURM_JOB_ID
    shift
    for name in MODEL RECIPE NAME FILE PROFILE; do
        [ -z "${!name:-}" ] || options+=("--${name,,}=${!name}")
    done
    [ -z "${RUNS:-}" ] || options+=("--root=$RUNS")
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
        # not its SLURM_JOB_ID, which for one of the elements is the whole array's
        task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        # shellcheck disable=SC2153
        element=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP))
        if ((element >= SLURM_ARRAY_TASK_COUNT)); then
            echo "error: --array has to be a range, as 0-15, so that all is shared out" >&2
            exit 2
        fi
        options+=("--element=$element/$SLURM_ARRAY_TASK_COUNT")
    fi
    # the trap: until Python listens, the signal would end it. --wait: where one of several tasks
    # fails, the others would wait for it; all that are told to end do so within seconds
    # shellcheck disable=SC2016
    srun --export=ALL --wait=60 sh -c 'trap "" USR2; exec "$0" "$@"' "$python" -m jobs run "$stage" --batch \
        --dataset="$DATASET" "${options[@]}" -- "$@" || code=$?
    # 75: told to end, progress is safe. It goes on when the job runs again.
    [ "$code" != 75 ] || { scontrol requeue "$task" && code=0; }
    exit "$code"
}
