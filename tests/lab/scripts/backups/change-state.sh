#!/bin/sh
# In the container: something else in every place that fill-state.sh filled.
set -e
cd /home/node/.openclaw
echo after > workspace/note.md
echo more > workspace/more
rm -r credentials/whatsapp npm
echo other > /home/node/.config/openclaw/keyring
node /app/openclaw.mjs config set update.checkOnStart true > /dev/null
