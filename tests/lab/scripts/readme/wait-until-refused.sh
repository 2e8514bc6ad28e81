#!/bin/sh
# Waits until the client was refused.
for _ in $(seq 180); do
  docker logs client 2>&1 | grep 'pairing required' && exit
  sleep 1
done
exit 1
