#!/bin/sh
# Print the path of an interpreter that has the named sets of packages; install them if necessary.
#
#     python=$(sh env/bootstrap.sh product dev)
#
# Sets: product (env/requirements.txt), dev and demo (env/requirements-<set>.txt).
# Uses PYTHON if it is set, otherwise an active conda environment that has the product set, and
# changes neither. Without both it creates .venv, which keeps a copy of each lock file that is installed, so an installed set costs
# nothing, and a changed or interrupted one is installed again.
# TORCH=cpu, cu126, ... selects that build of torch instead of the package index's own.
set -eu
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0

pip_url=https://files.pythonhosted.org/packages/07/25/ee8c38ae72d66b844ce8eb9711ba905dba21ca1a8a0c960057c41cd23337/pip-26.3-py3-none-any.whl
pip_sha256=f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13

say() { echo "gristmill: $*" >&2; }
die() { say "$@"; exit 2; }
quietly() { "$@" >/dev/null 2>&1; }
log() { "$@" >>.venv/install.log 2>&1; }

lock() { if [ "$1" = product ]; then echo env/requirements.txt; else echo "env/requirements-$1.txt"; fi; }
flags() { if [ "$1" = demo ]; then echo --no-deps; fi; } # that lock file has the reason

new_enough() { quietly "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }

has() { # interpreter, set
    case $2 in product) modules="torch submitit" ;; dev) modules="pytest xdist ruff playwright" ;; *) modules=gguf ;; esac
    # shellcheck disable=SC2086
    quietly "$1" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' $modules
}

base_python() {
    for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
        if new_enough "$candidate"; then echo "$candidate" && return; fi
    done
    die "no Python 3.11 or newer on PATH (python3: $(python3 --version 2>&1)): load a module that" \
        "provides one, or conda env create -f env/environment.yml && conda activate gristmill"
}

fetch_pip() {
    wheel=.venv/${pip_url##*/}
    log .venv/bin/python -c '
import hashlib, sys, urllib.request
url, sha256, path = sys.argv[1:]
wheel = urllib.request.urlopen(url, timeout=60).read()
if hashlib.sha256(wheel).hexdigest() != sha256:
    sys.exit(f"{url} has another sha256 than expected")
open(path, "wb").write(wheel)
' "$pip_url" "$pip_sha256" "$wheel" && log .venv/bin/python "$wheel/pip" install --no-index "$wheel"
}

make_venv() {
    base=$(base_python)
    if quietly "$base" -m venv --clear .venv; then return; fi
    # Debian's python3 has no ensurepip unless python3-venv is installed: install pip ourselves.
    "$base" -m venv --clear --without-pip .venv >&2 || die "$base cannot create .venv"
    if log "$base" -m pip --python .venv/bin/python install pip; then return; fi
    if fetch_pip; then return; fi
    die "$base has no pip, and it could not be downloaded (see .venv/install.log): install python3-venv"
}

installed() {
    cmp -s "$(lock "$1")" ".venv/$1.lock" || return
    [ "$1" != product ] || [ -z "${TORCH:-}" ] || [ "$TORCH" = "$(cat .venv/torch)" ]
}

pip_install() { log .venv/bin/python -I -m pip install "$@"; }

install_torch() { # first and separately: its build may come from another index
    torch=$(grep '^torch==' env/requirements.txt)
    echo "${TORCH:-}" >.venv/torch
    if [ -z "${TORCH:-}" ]; then
        pip_install --constraint env/requirements.txt "$torch"
    else
        pip_install --no-deps --no-index "$torch+$TORCH" ||
            pip_install --no-deps --index-url "https://download.pytorch.org/whl/$TORCH" "$torch+$TORCH"
    fi
}

install() {
    say "installing $(lock "$1") into .venv (once; pip's output: .venv/install.log)"
    rm -f ".venv/$1.lock" .venv/install.log
    # shellcheck disable=SC2046
    if { [ "$1" != product ] || install_torch; } && pip_install $(flags "$1") -r "$(lock "$1")"; then
        cp "$(lock "$1")" ".venv/$1.lock"
    elif grep -q 'Retry(total=0' .venv/install.log; then
        die "the package index cannot be reached: run this where there is a network (a login node)," \
            "or set a mirror with PIP_INDEX_URL=; pip's output: .venv/install.log"
    else
        die "pip failed: $(grep -m 1 '^ERROR' .venv/install.log); its output: .venv/install.log"
    fi
}

python=${PYTHON:-}
if [ -z "$python" ] && [ -n "${CONDA_PREFIX:-}" ] && has "$CONDA_PREFIX/bin/python" product; then
    python=$CONDA_PREFIX/bin/python
fi
if [ -n "$python" ]; then
    new_enough "$python" || die "$python is not Python 3.11 or newer: choose another with PYTHON="
    for set in "$@"; do
        # shellcheck disable=SC2046
        has "$python" "$set" ||
            die "$python lacks packages: $python -m pip install" $(flags "$set") "-r $(lock "$set")"
    done
else
    python=.venv/bin/python
    quietly $python -I -c 'import pip' || make_venv
    for set in "$@"; do
        installed "$set" || install "$set"
    done
fi
echo "$python"
