#!/usr/bin/env bash
# Stop the test cluster and its jobs (see up.sh); --wipe also removes its folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=${GRISTMILL_CLUSTER:-/var/tmp/gristmill-test}
conf=$root/etc/slurm.conf

[[ -e $root/.gristmill-test ]] || exit 0
if ((EUID != 0)); then
    echo "tests/cluster/down.sh: needs root" >&2
    exit 3
fi
[[ ${GRISTMILL_LOCKED-} == "$root" ]] ||
    GRISTMILL_LOCKED=$root exec flock --close "$root" "$here/down.sh" "$@"

# What belongs to this cluster has its SLURM_CONF in the environment it was started with, and is
# one of SLURM's programs or has a job's id; a shell or a test that only uses the cluster is not.
# Unlike a pid file, this is never out of date, and finds what a killed daemon left behind.
ours() {
    local file pid
    { grep -lszFx "SLURM_CONF=$conf" /proc/[0-9]*/environ || true; } | while read -r file; do
        pid=${file//[!0-9]/}
        case $(cat "/proc/$pid/comm" 2>/dev/null) in
        munged | mariadbd | slurm* | srun) echo "$pid" ;;
        *) if grep -qsz '^SLURM_JOB_ID=' "$file"; then echo "$pid"; fi ;;
        esac
    done
}

end=$((SECONDS + 5))
while pids=$(ours) && [[ $pids ]]; do
    for pid in $pids; do
        signal=KILL # there is no state that would be worth a clean end, but for the database's
        [[ $(cat "/proc/$pid/comm" 2>/dev/null) != mariadbd ]] || ((SECONDS > end)) || signal=TERM
        kill -$signal "$pid" 2>/dev/null || true
    done
    sleep 0.1
done

# Written in place: in a container /etc/hosts cannot be replaced.
if grep -q " # gristmill-test $root\$" /etc/hosts; then
    hosts=$(grep -v " # gristmill-test $root\$" /etc/hosts || true)
    echo "$hosts" >/etc/hosts
fi
rm -f "$root/env.sh"
if [[ ${1-} == --wipe ]]; then rm -rf "$root"; fi
