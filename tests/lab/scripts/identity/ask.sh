#!/bin/bash
# Asks the metadata server, inside a container, for the paths on standard input, and by other methods and headers for
# a token. Prints of each the status; then everything that was answered.
server=http://169.254.169.254
token=$server/computeMetadata/v1/instance/service-accounts/default/token
answers=$(mktemp)
ask() {
  printf '%s ' "$1"
  shift
  { curl -s -m 20 --path-as-is --noproxy '*' -w '%{stderr}%{http_code}\n' -i "$@" >> "$answers"; } 2>&1
}
while read -r path; do ask "$path" -H 'Metadata-Flavor: Google' "$server$path"; done
ask no-flavor $token
ask forwarded -H 'Metadata-Flavor: Google' -H 'X-Forwarded-For: 10.0.0.1' $token
for method in POST PUT DELETE; do ask $method -X $method -H 'Metadata-Flavor: Google' -d x $token; done
cat "$answers"
rm "$answers"
