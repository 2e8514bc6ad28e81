#!/bin/sh
# A gcloud that writes down how it was called, and answers with the files `status`, `attributes`, `vm`, `disk` and
# `disks` beside it; without the file it refuses, as for what is not there.
cd "$(dirname "$0")" || exit
echo "$*" >> calls
give() { cat "$1" 2> /dev/null || { echo "ERROR: there is no $1" >&2 && exit 1; }; }
case $* in
*'instances list'*) cat vm 2> /dev/null || true ;;
*'disks list'*) cat disk 2> /dev/null || true ;;
*'format=value(status,'*) give status ;;
*'flatten=disks[]'*) give disks ;;
*'flatten=metadata'*) printf '#\nopenclaw-init-url\thttps://example.com/releases/download/v1/program\n' ;;
*get-guest-attributes*) give attributes ;;
esac
