#!/bin/sh
# The real gateway, from npm to where upstream's image has it. By the tree's own npm: this machine's, under an older
# Node, leaves optional packages out. With its install scripts: the gateway makes up for them when it runs.
export NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
npm install --global --prefix /opt/gateway --cache /tmp/npm --no-audit --no-fund \
  --allow-scripts=openclaw,koffi,protobufjs,@google/genai "openclaw@$VERSION"
mv /opt/gateway/lib/node_modules/openclaw /app
rm -rf /opt/gateway
chown -R node:node /app
