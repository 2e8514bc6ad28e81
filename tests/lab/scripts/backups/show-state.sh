#!/bin/sh
# What a restore must bring back. Databases change; of them it is enough that the gateway finds itself in them.
data=/mnt/disks/openclaw-data
cd /home/node/.openclaw || exit
for file in .env workspace/note.md credentials/whatsapp/creds.json agents/main/sessions/old.jsonl \
  npm/node_modules/plugin/index.js extensions/echo-plugin/index.js; do
  echo "$file $(stat -c '%a %u:%g' "$file") $(sha256sum < "$file")"
done
ls workspace
readlink workspace/link workspace/dangling
cat $data/config-openclaw/keyring
grep -o 'checkOnStart.*' openclaw.json
findmnt --noheadings --output FSROOT /home/node/.openclaw
stat -c '%a %u:%g' . ../.openclaw/state $data/config-openclaw
