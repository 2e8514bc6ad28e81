#!/bin/sh
# What a power cut while the container starts leaves: an endpoint with the port, in no container's sandbox.
set -e
kv=/var/lib/docker/network/files/local-kv.db
cp $kv /root/kv
systemctl stop docker.socket docker.service
sed 's#v1.0/sandbox/#v1.0/sandboy/#g' /root/kv > $kv
systemctl start docker.service
[ -z "$(docker ps --quiet)" ]
