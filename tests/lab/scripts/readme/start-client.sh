#!/bin/sh
# A client of the gateway's port on the VM with an identity of its own, as a browser at the end of the tunnel is one.
image=$(docker inspect --format '{{.Image}}' openclaw-gateway)
docker run --detach --name client --network host --env-file /home/node/.openclaw/.env \
  --entrypoint openclaw "$image" node run --host 127.0.0.1 --port 18789
