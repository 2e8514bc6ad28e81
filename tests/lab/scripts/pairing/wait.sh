#!/bin/sh
# Waits for a request on a terminal. The first answer comes before the question, the second after it.
set -eu
typed=$(mktemp)
{
  echo n
  until grep -q Approve "$typed"; do sleep 0.5; done
  echo y
} | script -qefc 'openclaw-init pair --wait 2m' "$typed"
