#!/usr/bin/env bash
# Builds the manual as a site, in site/.
#
#   bash scripts/docs.sh            builds it; a broken link is an error
#   bash scripts/docs.sh --serve    shows it at http://127.0.0.1:8000, anew after every change
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --tests
. scripts/environment.sh
alum_activate

export NO_MKDOCS_2_WARNING=1
python scripts/docs.py
if [ "${1:-}" = --serve ]; then
    exec mkdocs serve
fi
mkdocs build --quiet
echo "docs: site/index.html is ready"
