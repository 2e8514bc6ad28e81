#!/bin/sh
# Records docs/pictures on a machine of the lab, which takes some minutes: `sh tests/lab/scripts/record/pictures.sh` at the
# top of the checkout, as root, with `termtosvg` on PATH (`pip install termtosvg-ng`).
set -eu
name=record
record() { # PICTURE ROWS COMMAND: what a terminal shows of it, one frame a second at most
    show="echo '$ sudo $3'; exec cargo lab exec --name $name -- env TERM=xterm-256color $3"
    echo "$show" > "$directory/show.sh"
    # A recorder needs a terminal itself.
    script --quiet --return --command \
        "termtosvg '$directory/$1.svg' -c 'sh $directory/show.sh' -g 100x$2 -m 1000 -M 2000 -D 4000 -t gjm8" \
        /dev/null < /dev/null
    mv "$directory/$1.svg" "docs/pictures/$1.svg"
}
directory=$(mktemp -d)
trap 'rm -r "$directory"; cargo lab down --name $name' EXIT
cargo lab up --name $name --attr openclaw-version=2026.8.2
record update 12 'openclaw-init update --to 2026.9.6'
record status 16 'openclaw-init status'
