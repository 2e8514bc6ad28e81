#!/bin/sh
# What an expert types on a bare Debian 12 VM to get the gateway $1, with its state on the boot disk: a device that
# /etc/fstab names does not come up in the lab's machines.
set -e
export DEBIAN_FRONTEND=noninteractive
state=/var/lib/openclaw
curl -fsSL https://download.docker.com/linux/debian/gpg -o /etc/apt/keyrings/docker.asc
echo "deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/debian bookworm stable" \
  > /etc/apt/sources.list.d/docker.list
apt-get update -qq && apt-get install -qq -y docker-ce docker-ce-cli containerd.io > /dev/null
install -d -o 1000 -g 1000 -m 0700 "$state"
echo '{"gateway": {"mode": "local", "bind": "lan"}}' > "$state/openclaw.json"
echo "OPENCLAW_GATEWAY_TOKEN=$(openssl rand -hex 32)" > "$state/.env"
chown 1000:1000 "$state/openclaw.json" "$state/.env"
docker pull -q "$1" > /dev/null
docker run -d --name openclaw-gateway --restart unless-stopped --publish 127.0.0.1:18789:18789 \
  --volume "$state:/home/node/.openclaw" --env OPENCLAW_STATE_DIR=/home/node/.openclaw "$1" \
  node openclaw.mjs gateway --bind lan --port 18789 > /dev/null
