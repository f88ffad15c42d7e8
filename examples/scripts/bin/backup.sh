#!/bin/sh
# Keep yesterday's copy of a folder.
set -eu
from=$1
to=$2
mkdir -p "$to"
cp -R "$from" "$to/$(date +%F)"
