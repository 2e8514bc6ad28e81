#!/bin/sh
# Starts a node of this name, which knows the gateway's token.
set -eu
image=$(docker inspect --format '{{.Image}}' openclaw-gateway)
gateway=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' openclaw-gateway)
docker run --detach --name "$1" --env-file /home/node/.openclaw/.env "$image" \
  node openclaw.mjs node run --host "$gateway" --port 18789 --display-name "$1"
