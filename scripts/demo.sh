#!/usr/bin/env bash
# The main job on real data of four hospitals: sets up, launches, submits, approves, trains, stops, reports.
#   bash scripts/demo.sh [--out DIR] [--rounds N] [--drop HOSPITAL@ROUND] [--interactive] [--store URL]
EXTRAS=demo
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python scripts/demo.py "$@"
