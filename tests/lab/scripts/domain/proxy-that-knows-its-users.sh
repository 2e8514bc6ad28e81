#!/bin/sh
# A proxy of somebody's own on this machine: it has a certificate of the CA at $1 for the gateway's name, and says to
# the gateway who comes.
set -e
export DEBIAN_FRONTEND=noninteractive
systemctl mask --quiet caddy.service
apt-get install --yes --quiet --no-install-recommends caddy
cat > /root/Caddyfile <<EOF
{
	admin off
	acme_ca $1
}
claw.example.com {
	reverse_proxy 127.0.0.1:18789 {
		header_up X-Forwarded-User person@example.com
	}
}
EOF
systemd-run --quiet --unit somebodys-proxy --setenv HOME=/root caddy run --config /root/Caddyfile --adapter caddyfile
timeout 120 sh -c 'until curl --silent --insecure --output /root/page https://claw.example.com/; do sleep 1; done'
