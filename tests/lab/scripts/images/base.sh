#!/bin/sh
# In the bare Debian tree: trust, and the user that the official Node image has.
update-ca-certificates
groupadd --gid 1000 node
useradd --uid 1000 --gid node --shell /bin/bash --create-home node
