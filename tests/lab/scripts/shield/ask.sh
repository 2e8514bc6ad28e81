#!/bin/bash
# Prints each way to the metadata server that answers: address, protocol, port.
name='\x08metadata\x06google\x08internal\x00'
query="\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00$name\\x00\\x01\\x00\\x01"
for address in 169.254.169.254 fd20:ce::254; do
  for way in tcp/80 udp/80 tcp/53 udp/53; do
    case $way in
      tcp/53) question="\\x00\\x2a$query" ;;
      udp/53) question=$query ;;
      *) question='GET / HTTP/1.0\r\n\r\n' ;;
    esac
    export way address question
    # shellcheck disable=SC2016 # for the inner shell
    answer=$(timeout 2 bash -c 'exec 3<> "/dev/${way%/*}/$address/${way#*/}" && printf "$question" >&3 && head -c 1 <&3 | wc -c' \
      2> /dev/null)
    [ "$answer" = 1 ] && echo "$address $way"
  done
done
true
