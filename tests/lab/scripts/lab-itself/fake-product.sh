#!/bin/bash
# Reports like the product: removes the old result, tells the boot's id, at last the result.
set -eu
url=http://169.254.169.254/computeMetadata/v1/instance/guest-attributes/openclaw
ask() { curl --fail --silent --show-error --header 'Metadata-Flavor: Google' "$@"; }
ask --request DELETE $url/result || true
ask --request PUT --data "$(cat /proc/sys/kernel/random/boot_id)" $url/boot-id
echo 'openclaw: the fake product runs' > /dev/console
ask --request PUT --data ready $url/result
