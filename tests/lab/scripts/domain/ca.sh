#!/bin/sh
# Makes a real ACME server of this machine, which trusts it: the unit pebble.service, not started.
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get install --yes --quiet --no-install-recommends pebble
mkdir -p /opt/pebble
cd /opt/pebble
openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=pebble -addext subjectAltName=IP:127.0.0.1 \
  -keyout key.pem -out /usr/local/share/ca-certificates/pebble.crt
update-ca-certificates
cat > config.json <<'EOF'
{"pebble": {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
  "certificate": "/usr/local/share/ca-certificates/pebble.crt", "privateKey": "/opt/pebble/key.pem",
  "httpPort": 80, "tlsPort": 443}}
EOF
cat > /etc/systemd/system/pebble.service <<'EOF'
[Service]
Environment=PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=0
ExecStart=/usr/bin/pebble -config /opt/pebble/config.json
EOF
systemctl daemon-reload
