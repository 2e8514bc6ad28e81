#!/bin/sh
# What a machine that did not become ready is like.
docker version --format '{{.Server.Version}}'
docker ps --all
ss -ltnp
journalctl --boot --no-pager --unit docker --unit openclaw-init | tail -n 80
