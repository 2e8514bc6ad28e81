#!/bin/sh
# In the workstation's own system: opens the link $3 in Chromium, writes $1 into the chat, waits for $2, prints what is on
# the page, and leaves a picture of it. The profile is a new one.
set -e
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
post "$session/url" "$(jq --null-input --arg url "$3" '{url: $url}')" > /tmp/status
# The field that is seen: menus have hidden ones. While the page connects it makes its field anew, and what was written
# there is lost: written is what stays.
is_written() { # TEXT
  field=$(look 'return [...document.querySelectorAll("textarea:enabled")].find(it => it.offsetParent)' |
    jq --raw-output '.value | to_entries[0].value')
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
