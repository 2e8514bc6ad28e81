# The gateway from its npm package, in the shape of upstream's image: working directory /app with
# openclaw.mjs, user node (1000:1000), tini as the entry point, `openclaw` on the path.
ARG NODE_IMAGE=node:24-bookworm-slim
FROM $NODE_IMAGE

RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      ca-certificates curl git hostname lsof openssl procps python3 tini \
 && rm -rf /var/lib/apt/lists/*

ARG OPENCLAW_VERSION
ARG NPM_REGISTRY
RUN npm install --global --prefix /opt/openclaw --cache /tmp/npm --no-audit --no-fund \
      --allow-scripts=openclaw,koffi,protobufjs,@google/genai \
      ${NPM_REGISTRY:+--registry="$NPM_REGISTRY"} "openclaw@$OPENCLAW_VERSION" \
 && mv /opt/openclaw/lib/node_modules/openclaw /app \
 && ln -s /app/openclaw.mjs /usr/local/bin/openclaw \
 && rm -rf /opt/openclaw /tmp/npm /root/.npm \
 && install -d -o node -g node -m 0755 /home/node/.config \
 && install -d -o node -g node -m 0700 \
      /home/node/.openclaw /home/node/.openclaw/workspace /home/node/.config/openclaw

ENV NODE_ENV=production
ENV PATH=/home/node/.local/bin:$PATH
WORKDIR /app
USER node
EXPOSE 18789
HEALTHCHECK --interval=3m --timeout=10s --start-period=5m --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:18789/healthz').then((r)=>process.exit(r.ok?0:1)).catch(()=>process.exit(1))"]
ENTRYPOINT ["tini", "-s", "--"]
CMD ["node", "openclaw.mjs", "gateway"]
