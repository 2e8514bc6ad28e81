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
mkdir workspace/echo
cat > workspace/echo/package.json << 'EOF'
{"name": "echo-plugin", "version": "1.0.0", "type": "module",
  "openclaw": {"extensions": ["./index.js"], "compat": {"pluginApi": ">=2026.3.24-beta.2"}}}
EOF
cat > workspace/echo/openclaw.plugin.json << 'EOF'
{"id": "echo-plugin", "name": "Echo", "description": "Repeats", "categories": ["other"],
  "contracts": {"tools": ["echo_it"]}, "activation": {"onStartup": true},
  "configSchema": {"type": "object", "additionalProperties": false}}
EOF
cat > workspace/echo/index.js << 'EOF'
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";
const parameters = { type: "object", properties: { input: { type: "string" } } };
const execute = async (_id, { input }) => ({ content: [{ type: "text", text: input }] });
export default definePluginEntry({ id: "echo-plugin", name: "Echo", description: "Repeats",
  register: (api) => api.registerTool({ name: "echo_it", description: "Repeats", parameters, execute }) });
EOF
node /app/openclaw.mjs plugins install --force --accept-capabilities /home/node/.openclaw/workspace/echo > /tmp/installed
