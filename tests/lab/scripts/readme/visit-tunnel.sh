#!/bin/sh
# Opens a tunnel with the command $1 and visits the Control UI at its end. In a network of its own, so that no other
# tunnel can listen on the port.
ip link set lo up
timeout 60 sh -c "$1" &
curl --silent --fail --retry 50 --retry-connrefused --retry-delay 1 --retry-max-time 30 http://localhost:18789/
kill $!
