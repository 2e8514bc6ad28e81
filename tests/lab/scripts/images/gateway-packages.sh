#!/bin/sh
# In the Node tree: upstream's packages and directories.
export DEBIAN_FRONTEND=noninteractive
apt-get update
# shellcheck disable=SC2086 # a list
apt-get install --yes --no-install-recommends $PACKAGES
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
install -d -o node -g node -m 0755 /home/node/.config
install -d -o node -g node -m 0700 /home/node/.openclaw /home/node/.openclaw/workspace /home/node/.config/openclaw
ln -s /app/openclaw.mjs /usr/local/bin/openclaw
