#!/usr/bin/env bash
# The linter and the tests; the first use sets up .venv. Arguments go to pytest: bash test.sh -k geometry
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash run.sh setup
.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest "$@"
