#!/bin/sh
# In the container: files such as its agent and its channels make.
set -e
cd /home/node/.openclaw
mkdir -p workspace/deep credentials/whatsapp agents/main/sessions npm/node_modules/plugin
echo before > workspace/note.md
chmod 0750 workspace/note.md
ln -s note.md workspace/link
ln -s /nowhere workspace/dangling
ln workspace/note.md workspace/deep/hard
echo session > credentials/whatsapp/creds.json
echo '{}' > agents/main/sessions/old.jsonl
echo plugin > npm/node_modules/plugin/index.js
echo key > /home/node/.config/openclaw/keyring
node /app/openclaw.mjs config set update.checkOnStart false > /dev/null
