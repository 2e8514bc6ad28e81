#!/bin/sh
# How long $1 takes, in nanoseconds: ten times, after one that does not count.
set -e
sh -c "$1" > /dev/null 2>&1
for _ in $(seq 10); do
  start=$(date +%s%N)
  sh -c "$1" > /dev/null 2>&1
  echo $(($(date +%s%N) - start))
done
