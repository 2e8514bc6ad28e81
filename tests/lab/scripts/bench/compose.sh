#!/bin/sh
# The expert's container as a service of Compose, so that there is nothing to do for it any more.
set -e
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y docker-compose-plugin > /dev/null
cat > /root/compose.yaml << END
services:
  gateway:
    image: $1
    restart: unless-stopped
    command: node openclaw.mjs gateway --bind lan --port 18789
    ports: ["127.0.0.1:18789:18789"]
    volumes: ["/var/lib/openclaw:/home/node/.openclaw"]
END
# One that is killed leaves its lease on the state.
docker stop --time 60 openclaw-gateway > /dev/null
docker rm openclaw-gateway > /dev/null
docker compose --file /root/compose.yaml up --detach --quiet-pull
