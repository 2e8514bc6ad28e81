#!/bin/sh
# The programs of a machine that change more than files: each name of this file is one of them. What they did is
# below /var/lib/programs, and below /run/programs what a power failure takes away.
set -eu
kept=/var/lib/programs
now=/run/programs
[ -d $now/active ] || mkdir -p $kept/installed $kept/enabled $now/active
name=${0##*/}
case "$name $*" in
  apt-get*\ install\ *)
    for word; do :; done
    install=no
    for word; do
      case $word in install) install=yes ;; -*) ;; *) [ $install = no ] || : > "$kept/installed/$word" ;; esac
    done ;;
  apt-get*\ update*) : > $kept/updated ;;
  dpkg\ --print-architecture) echo amd64 ;;
  dpkg\ --audit) ;;
  dpkg-query\ --search*) exit 1 ;;
  dpkg-query\ --show*)
    shift 2
    for package; do
      if [ -e "$kept/installed/$package" ]; then echo "$package installed"; else missing=1; fi
    done
    exit "${missing:-0}" ;;
  systemctl\ is-enabled\ *) if [ -e "$kept/enabled/$2" ]; then echo enabled; else echo disabled; exit 1; fi ;;
  systemctl\ is-active\ *) if [ -e "$now/active/$2" ]; then echo active; else echo inactive; exit 3; fi ;;
  systemctl\ enable\ *) : > "$kept/enabled/$3" ;;
  systemctl\ start\ docker.service)
    [ -e $kept/installed/docker.io ]
    ln -sf engine.sock /run/docker.sock
    : > $now/active/docker.service ;;
  systemctl\ restart\ openclaw-shield.service)
    cp /etc/openclaw-init/shield.nft $now/table
    mkdir -p /run/openclaw-shield
    stat -c %d:%i /openclaw-init > /run/openclaw-shield/in-force
    : > "$now/active/$2" ;;
  systemctl\ start\ *) : > "$now/active/$2" ;;
  systemctl\ daemon-reload) ;;
  systemctl\ show\ --property=*)
    shift 2
    either() { if [ -e "$1" ]; then echo "$2"; else echo "$3"; fi; }
    for unit; do
      echo "LoadState=$(cat $kept/load-state 2> /dev/null || echo not-found)"
      echo "ActiveState=$(either "$now/active/$unit" active inactive)"
      echo "UnitFileState=$(either "$kept/enabled/$unit" enabled disabled)"
      echo
    done ;;
  nft\ -f\ *) cp "$2" $now/table ;;
  nft\ -j\ *)
    [ -e $now/table ] || exit 1
    mark=$(sed -n 's/.*comment "\(.*\)"/\1/p' $now/table | head -n 1)
    sed "s/@MARK@/$mark/" /shield.json ;;
  useradd\ *)
    grep -q '^openclaw-gateway:' /etc/passwd ||
      echo 'openclaw-gateway:x:1000:65534:OpenClaw gateway (openclaw-init):/nonexistent:/usr/sbin/nologin' >> /etc/passwd ;;
  chattr\ * | sysctl\ *) ;;
  *) echo "$name $*: not known here" >&2; exit 99 ;;
esac
