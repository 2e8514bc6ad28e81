#!/bin/sh
# Files that a plain copy would not bring along.
set -e
mkdir -p /home/node/.openclaw/odd/inner && cd /home/node/.openclaw/odd
echo private > private && chmod 600 private && chown 1000:1000 private
echo program > program && chown 1000:1001 program && chmod 6755 program
ln private inner/same && ln -s /etc/shadow absolute && ln -s nowhere dangling && ln -s loop loop
truncate -s 1G hole && printf x >> hole
setfattr -n user.kept -v yes private 2> /dev/null || true
touch -d '2001-02-03 04:05:06.789' private && touch -h -d '2002-03-04' dangling
chown -R --no-dereference 1000:1000 inner && touch -d '2003-04-05' inner .
