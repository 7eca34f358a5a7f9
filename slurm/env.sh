# shellcheck shell=bash
# What the .sbatch files share. They source it with their own arguments; not for login shells.

export DATASET=${1:-${DATASET:-nih}}
# A data set's YAML file may be relative to the folder that the job was submitted from. Everything
# else is relative to the project's root, as it is for make.
[ ! -f "${SLURM_SUBMIT_DIR:-.}/$DATASET" ] || DATASET=${SLURM_SUBMIT_DIR:-$PWD}/$DATASET
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

# PYTHON, else an active conda environment, else the environment that make has installed
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
export PYTHONDONTWRITEBYTECODE="${PYTHONDONTWRITEBYTECODE:-1}"
export {OMP,MKL,RAYON}_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# since SLURM 22.05 srun does not inherit it from sbatch
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# older versions of SLURM do not set SLURM_JOB_END_TIME; no version sets the path of the output
end=$(squeue -hj "${SLURM_JOB_ID:-}" -o %e 2>/dev/null | head -n 1)
export SLURM_JOB_END_TIME="${SLURM_JOB_END_TIME:-$(date -d "$end" +%s 2>/dev/null)}"
GRISTMILL_LOG=$(readlink /proc/$$/fd/1)
export GRISTMILL_LOG

# run STAGE [DATASET [SETTINGS...]]: run the stage as a step of this job. MODEL, RECIPE, NAME, FILE,
# RUNS and PROFILE come from the environment: sbatch --export=ALL,MODEL=gpt2 slurm/train.sbatch nih
run() {
    local stage=$1 code=0 options=() name element task=$SLURM_JOB_ID
    for name in MODEL RECIPE NAME FILE PROFILE; do
        [ -z "${!name:-}" ] || options+=("--${name,,}=${!name}")
    done
    [ -z "${RUNS:-}" ] || options+=("--root=$RUNS")
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
        # for one of the elements SLURM_JOB_ID is that of the whole array
        task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        # shellcheck disable=SC2153
        element=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP))
        if ((element >= SLURM_ARRAY_TASK_COUNT)); then
            echo "error: --array must be a range such as 0-15, so that no items are left out" >&2
            exit 2
        fi
        options+=("--element=$element/$SLURM_ARRAY_TASK_COUNT")
    fi
    # trap: until Python handles USR2, the signal would kill it. --wait: if one of several tasks
    # fails, the others would wait for it; tasks that get a signal end within seconds.
    # shellcheck disable=SC2016
    srun --export=ALL --wait=60 sh -c 'trap "" USR2; exec "$0" "$@"' "$python" -m jobs run "$stage" --batch \
        --dataset="$DATASET" "${options[@]}" -- "${@:3}" || code=$?
    # 75: interrupted, and progress is safe. The requeued job resumes.
    [ "$code" != 75 ] || { scontrol requeue "$task" && code=0; }
    exit "$code"
}
