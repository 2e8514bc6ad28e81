#!/bin/sh
# What the odd files are: names, kinds, owners, modes, numbers of links, targets, times, sizes, blocks, content.
cd /home/node/.openclaw/odd || exit
find . -printf '%P %y %U:%G %m %n %l %T@ %s\n' | sort
du hole | cut -f 1
sha256sum private program inner/same
