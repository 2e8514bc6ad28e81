#!/bin/sh
# In the workstation's own system: opens the link $5 in Chromium, writes $1 into the chat, waits for $2, prints what is on
# the page, and leaves a picture of it. The profile is a new one. It trusts the root certificate at $3, if there is one,
# and enters the password $4, if there is one.
set -e
if [ -n "$3" ]; then
  curl --silent --show-error --insecure --output /tmp/root.pem "$3"
  rm -rf "$HOME/.pki"
  mkdir -p "$HOME/.pki/nssdb"
  certutil -N -d "sql:$HOME/.pki/nssdb" --empty-password
  certutil -A -d "sql:$HOME/.pki/nssdb" -n root -t C,, -i /tmp/root.pem
fi
driver=http://127.0.0.1:9515
chromedriver --port=9515 > /tmp/chromedriver.log 2>&1 &
curl --silent --retry 30 --retry-connrefused --retry-delay 1 "$driver/status" > /tmp/status
post() { curl --silent --show-error --header 'Content-Type: application/json' --data "$2" "$driver/session$1"; }
arguments='["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]'
session=/$(post '' "{\"capabilities\": {\"alwaysMatch\": {\"goog:chromeOptions\": {\"args\": $arguments}}}}" |
  jq --raw-output --exit-status .value.sessionId)
look() { post "$session/execute/sync" "$(jq --null-input --arg script "$1" '{script: $script, args: []}')"; }
text() { look 'return document.body.innerText' | jq --raw-output .value; }
finish() {
  text
  curl --silent "$driver/session$session/screenshot" | jq --raw-output .value | base64 --decode > /root/page.png
  curl --silent --request DELETE "$driver/session$session" > /tmp/status
  kill %1 2> /tmp/status || kill $!
  exit "$1"
}
until_shown() { # TEXT SECONDS
  for _ in $(seq "$2"); do
    ! text | grep --quiet --fixed-strings "$1" || return 0
    sleep 1
  done
  echo "nothing shows: $1"
  finish 1
}
post "$session/url" "$(jq --null-input --arg url "$5" '{url: $url}')" > /tmp/status
# The field that is seen: menus have hidden ones.
seen() { # SELECTOR
  look "return [...document.querySelectorAll('$1')].find(it => it.offsetParent)" |
    jq --raw-output '.value // {} | to_entries[0].value // empty'
}
if [ -n "$4" ]; then
  for _ in $(seq 60); do
    field=$(seen 'input[type=password]')
    [ -z "$field" ] || break
    sleep 1
  done
  post "$session/element/$field/value" "$(jq --null-input --arg text "$4" '{text: ($text + "\ue007")}')" > /tmp/status
fi
# While the page connects it makes its field anew, and what was written there is lost: written is what stays.
is_written() { # TEXT
  field=$(seen textarea:enabled)
  post "$session/element/$field/clear" '{}' > /tmp/status
  post "$session/element/$field/value" "$(jq --null-input --arg text "$1" '{text: $text}')" > /tmp/status
  sleep 3
  value=$(curl --silent "$driver/session$session/element/$field/property/value" | jq --raw-output .value)
  [ "$value" = "$1" ]
}
for _ in $(seq 30); do
  ! is_written "$1" || break
done
post "$session/element/$field/value" '{"text": "\ue007"}' > /tmp/status
until_shown "$1" 60
until_shown "$2" 300 # the first turn after a start takes a busy machine a minute
finish 0
