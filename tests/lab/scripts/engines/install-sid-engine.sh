#!/bin/sh
# Puts the engine and the client of Debian's unstable release in the place of the machine's own; containerd and runc
# stay.
set -e
mkdir -p /root/sid/lists/partial /root/sid/archives/partial
sed -nE 's/^(deb .*) bookworm main.*/\1 sid main/p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null \
  | head -n 1 > /root/sid/sources.list
cd /root/sid
apt_sid() {
  apt-get --quiet=2 -o Dir::Etc::SourceList=/root/sid/sources.list -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists=/root/sid/lists -o Dir::Cache::Archives=/root/sid/archives -o APT::Sandbox::User=root "$@"
}
apt_sid update
apt_sid download docker.io docker-cli
systemctl stop docker.socket docker.service
for package in *.deb; do dpkg-deb --extract "$package" /; done
rm -r /root/sid
systemctl daemon-reload
systemctl start docker.service
