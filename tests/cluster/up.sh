#!/usr/bin/env bash
# The test cluster: a real SLURM of two nodes (node1, node2: 4 CPUs, 8000 MB, 2 fake GPUs each) on
# this one host, with accounting and three partitions: main, low (preempted by high), and high.
#
#     tests/cluster/up.sh && . /var/tmp/gristmill-test/env.sh && srun -N2 hostname
#     tests/cluster/down.sh [--wipe]
#
# One user at a time, since a test may cancel, restart and reconfigure: to work beside somebody
# else's, set GRISTMILL_CLUSTER to a folder of your own.
# A healthy cluster is left as it is; a broken one is restarted without its jobs.
# All it writes lies below GRISTMILL_CLUSTER (/var/tmp/gristmill-test), but for one line in
# /etc/hosts. It needs root. It installs nothing, and does not touch another SLURM on this host:
# own munge key, own database without a network port, own ports, and no file in /etc/slurm.
# Exit status: 3 if this host cannot have one, 1 if it did not start.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=${GRISTMILL_CLUSTER:-/var/tmp/gristmill-test}
export SLURM_CONF=$root/etc/slurm.conf PATH=$PATH:/usr/sbin:/sbin

cannot() {
    echo "tests/cluster/up.sh: $*" >&2
    exit 3
}

healthy() {
    [[ -f $SLURM_CONF ]] || return
    timeout 10 scontrol ping | grep 'is UP' &&
        (($(timeout 10 sinfo -hN -p main -o %t | grep -cxE 'idle|mix|alloc|comp|plnd') == 2)) &&
        # Asks slurmdbd, and through it the database: has the controller made itself known?
        timeout 10 sacctmgr -nP show cluster gristmill-test format=controlport | grep '^[1-9]'
} >/dev/null 2>&1

((EUID == 0)) || cannot "needs root"
missing=()
for command in slurmctld slurmd slurmdbd munged mariadbd mariadb-install-db \
    my_print_defaults sbatch; do
    command -v $command >/dev/null || missing+=("$command")
done
((${#missing[@]} == 0)) || cannot "needs ${missing[*]}: apt-get install slurmctld slurmd" \
    "slurm-client slurmdbd munge mariadb-server-core mariadb-client-core"
# Longer ones do not fit into the address of a socket; others need quoting that slurm.conf lacks.
[[ $root =~ ^/[A-Za-z0-9/._-]{1,60}$ ]] || cannot "GRISTMILL_CLUSTER=$root is no short, plain path"
# The mark allows down.sh --wipe. A folder of somebody else's may hold links to anywhere.
if [[ ! -e $root/.gristmill-test ]]; then
    mkdir -p "$root"
    [[ -z $(ls -A "$root") ]] || cannot "$root holds something else"
    touch "$root/.gristmill-test"
fi
[[ -O $root && -O $root/.gristmill-test ]] || cannot "$root belongs to another user"

# One at a time, and --close: daemons that inherit the lock would keep it.
[[ ${GRISTMILL_LOCKED-} == "$root" ]] ||
    GRISTMILL_LOCKED=$root exec flock --close "$root" "$here/up.sh"

if healthy; then
    echo "up; in each shell that is to use it: . $root/env.sh"
    exit
fi
"$here/down.sh" >/dev/null

for node in node1 node2; do
    address=$(timeout 5 getent ahostsv4 $node | awk 'NR == 1 {print $1}') || true
    [[ ${address:-127.0.0.1} == 127.* ]] || cannot "$node is another machine ($address) already"
done

free() { # ports
    for port; do
        if (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 1; fi
    done
}
# Below 20000, where the rendezvous ports of distributed jobs begin; SLURM's own are 6817 and on.
for ((base = 16817; base < 19990; base += 10)); do
    if free $base $((base + 1)) $((base + 2)) $((base + 3)); then break; fi
done

finish() {
    local status=$?
    ((status)) || return
    echo "tests/cluster/up.sh: the cluster did not start" >&2
    tail -n 12 "$root"/log/*.log >&2
    "$here/down.sh"
    exit 1
}
trap finish EXIT
trap 'exit 1' INT TERM

rm -rf "${root:?}"/{run,log,state,spool,dev}
mkdir -p "$root"/{etc,run,log,state,dev,spool/node{1,2}}
chmod 755 "$root" "$root"/{etc,run,log}
# GPUs have to be character devices: with plain files jobs get no CUDA_VISIBLE_DEVICES.
for gpu in 0 1; do mknod "$root/dev/gpu$gpu" c 1 3; done
sed -e "s|@ROOT@|$root|; s|@HOST@|$(hostname -s)|; s|@FIRSTJOBID@|$(($(date +%s) % 60000000))|" \
    -e "s|@CTLD@|$base|; s|@DBD@|$((base + 1))|; s|@NODE1@|$((base + 2))|; s|@NODE2@|$((base + 3))|" \
    "$here/slurm.conf.in" >"$SLURM_CONF"
cat >"$root/etc/gres.conf" <<END
AutoDetect=off
NodeName=node[1-2] Name=gpu File=$root/dev/gpu[0-1] Flags=nvidia_gpu_env
END
(
    umask 077
    head -c 1024 /dev/urandom >"$root/etc/munge.key"
    # Found beside slurm.conf, and refused unless it is ours alone.
    cat >"$root/etc/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$root/run/munge.sock
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=$((base + 1))
SlurmUser=root
PidFile=$root/run/slurmdbd.pid
LogFile=$root/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
END
)
# SLURM does not need the names, but MASTER_ADDR=node1 has to resolve. The line says whose it is.
echo "127.0.0.1 node1 node2 # gristmill-test $root" >>/etc/hosts
echo "export SLURM_CONF=$SLURM_CONF" >"$root/env.sh"

# In an environment of their own: nothing of the caller's, who may be inside a job of a real
# cluster, and SLURM_CONF, by which down.sh knows them. The database listens on a socket that only
# root can reach and lets root in without a password; MYSQL_UNIX_PORT tells slurmdbd where.
start() {
    env -i PATH="$PATH" SLURM_CONF="$SLURM_CONF" MYSQL_UNIX_PORT="$root/mysql/sock" \
        "$@" </dev/null >>"$root/log/start.log" 2>&1
}
until_true() { # what, command...
    local what=$1 end=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > end)); then
            echo "tests/cluster/up.sh: no $what after a minute" >&2
            return 1
        fi
        sleep 0.1
    done
}

start munged --key-file="$root/etc/munge.key" --socket="$root/run/munge.sock" \
    --pid-file="$root/run/munged.pid" --log-file="$root/log/munged.log" \
    --seed-file="$root/run/munged.seed"
# Kept from start to start, since making it takes longer than all the rest; renamed when complete.
if [[ ! -d $root/mysql ]]; then
    rm -rf "$root/mysql.new"
    start mariadb-install-db --no-defaults --user=root --datadir="$root/mysql.new" \
        --tmpdir="$root/run" --auth-root-authentication-method=socket \
        --auth-root-socket-user=root --skip-test-db
    chmod 700 "$root/mysql.new"
    mv "$root/mysql.new" "$root/mysql"
fi
start setsid --fork mariadbd --no-defaults --user=root --datadir="$root/mysql" --tmpdir="$root/run" \
    --socket="$root/mysql/sock" --skip-networking --pid-file="$root/run/mariadbd.pid" \
    --log-error="$root/log/mariadbd.log" --innodb-buffer-pool-size=32M \
    --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --performance-schema=OFF
until_true database [ -S "$root/mysql/sock" ]
start slurmdbd
until_true slurmdbd timeout 10 sacctmgr -nP show cluster
start slurmctld -i
start slurmd -N node1
start slurmd -N node2
until_true "healthy cluster" healthy
echo "up; in each shell that is to use it: . $root/env.sh"
