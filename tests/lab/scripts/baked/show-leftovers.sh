#!/bin/sh
# What `openclaw-init uninstall` left, apart from the data, Docker and the key of its repository.
{
  docker ps --all --quiet
  find /usr/local/bin /usr/local/lib/openclaw-init /etc/openclaw-init -mindepth 1 -maxdepth 1 \
    ! -name '.*' ! -name '*docker-key*'
  ls -d /home/node/.openclaw /mnt/disks/*
  systemctl list-unit-files --no-legend 'openclaw*'
  getent passwd openclaw-gateway
  nft list table inet openclaw_init
  findmnt --noheadings --list --output TARGET | grep openclaw
} 2> /dev/null || true
