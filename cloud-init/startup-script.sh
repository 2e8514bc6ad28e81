#!/bin/sh
# Loader of openclaw-init: the value of the attribute `startup-script`. Nothing in it needs editing.
# It reads two attributes, of the instance or else of the project:
#   openclaw-init-url     where the program is: gs://BUCKET/OBJECT, https://... or http://...
#   openclaw-init-sha256  its SHA-256; nothing else is ever run, except the copy that is installed already
set -eu
installed=/usr/local/bin/openclaw-init
work=/usr/local/lib/openclaw-init # where programs may be executed; /tmp and /var can be mounted noexec
metadata="http://${GCE_METADATA_HOST:-169.254.169.254}/computeMetadata/v1"
meta() { # PATH [CURL_OPTION...]
    path=$1 && shift
    curl --silent --fail --noproxy '*' --retry 5 --retry-connrefused --retry-max-time 60 --connect-timeout 5 \
        --max-time 30 --header 'Metadata-Flavor: Google' "$@" "$metadata/$path"
}
attribute() { # KEY
    meta "instance/attributes/$1" || { [ $? -eq 22 ] && meta "project/attributes/$1"; }
}
is_wanted() { echo "$sha256  $1" | sha256sum --check --status 2> /dev/null; } # FILE
fall_back() { # WHY: the last good copy, or else the end of this boot, reported like any other failure
    if [ -x "$installed" ]; then
        echo "openclaw: loader: $1; running the copy that is installed"
        exec "$installed"
    fi
    echo "openclaw: loader: FAILED: $1; correct it and reboot, nothing is installed yet" | tee /dev/console
    now=$(date -u +%Y-%m-%dT%H:%M:%SZ) why=$(printf %s "$1" | LC_ALL=C tr -c ' !#-[]-~' ' ')
    for pair in result=pending "boot-id=$(cat /proc/sys/kernel/random/boot_id)" state=failed \
        "detail={\"updated\":\"$now\",\"message\":\"$why\"}" result=failed:loader-failed; do
        meta "instance/guest-attributes/openclaw/${pair%%=*}" --request PUT --data-raw "${pair#*=}" || break
    done
    exit 31
}
command -v curl > /dev/null || { apt-get -qq update && apt-get -qqy install curl; } ||
    fall_back "curl is missing and cannot be installed"
private=/run/openclaw-init/private old=/run/openclaw-init-loader.lock # who can open a lock can hold it: only root
install -d -m 0755 ${private%/*} && install -d -m 0700 $private && exec 9> $private/loader.lock && flock 9
[ ! -e $old ] || { chmod 0600 $old && exec 8> $old && flock 8; } # an earlier loader's, until the next reboot
source=$(attribute openclaw-init-url) || fall_back "the attribute openclaw-init-url is not set, or cannot be read"
sha256=$(attribute openclaw-init-sha256) || fall_back "the attribute openclaw-init-sha256 is not set, or cannot be read"
rm -rf "$work" && is_wanted "$installed" && exec "$installed"
url=$source && header=
case $source in
gs://?*/?*)
    object=$(printf %s "${source#gs://*/}" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g')
    bucket=${source#gs://} && bucket=${bucket%%/*}
    url="https://storage.googleapis.com/storage/v1/b/$bucket/o/$object?alt=media"
    token=$(meta instance/service-accounts/default/token | sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p')
    header=${token:+header = \"Authorization: Bearer $token\"} # a public object needs none
    ;;
https://* | http://*) ;;
*) fall_back "openclaw-init-url is neither gs://BUCKET/OBJECT nor https:// nor http://" ;;
esac
install -d -m 0700 "$work" || fall_back "$work cannot be written"
why=$(echo "$header" | curl --config - --silent --show-error --fail --location --proto =https,http --retry 5 \
    --retry-connrefused --connect-timeout 5 --max-time 300 --output "$work/openclaw-init" "$url" 2>&1) ||
    fall_back "cannot fetch $source: $why"
is_wanted "$work/openclaw-init" || fall_back "what $source has is not the file with the SHA-256 $sha256"
why=$(chmod 0700 "$work/openclaw-init" 2>&1 && "$work/openclaw-init" --version 2>&1) ||
    fall_back "what $source has cannot run here (on $(uname -m), in $work, which must not be mounted noexec): $why"
exec "$work/openclaw-init"
