#!/bin/sh
# Makes the image of version $1 below the official name: the fake gateway with 400 MB that no other version has.
set -e
mkdir -p /root/image && cd /root/image
docker image inspect base:1 > /dev/null 2>&1 || docker tag ghcr.io/openclaw/openclaw:0.1.1 base:1
head -c 400M /dev/urandom > content
printf 'FROM base:1\nCOPY content /content\n' > Dockerfile
docker build --quiet --label "org.opencontainers.image.version=$1" --tag "ghcr.io/openclaw/openclaw:$1" .
rm -r /root/image
