#!/bin/sh
# Drives every convention of the REST API with curl and jq alone, against a running cloud.
#   tests/rest.sh [SOCKET]
# Prints a line for each check and ends non-zero at the first that fails.
set -eu
socket=${1:-/run/enoki/api.sock}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
base=http://enoki
project=/v1/projects/rest

# call METHOD PATH [curl arguments...]: body in $work/body, headers in $work/head, status in $status
call() {
    method=$1 path=$2
    shift 2
    status=$(curl --silent --show-error --unix-socket "$socket" --max-time 60 --request "$method" \
        --dump-header "$work/head" --output "$work/body" --write-out '%{http_code}' "$@" "$base$path")
}
header() { tr -d '\r' <"$work/head" | sed -n "s/^$1: //Ip" | head -n 1; }
field() { jq -r "$1" "$work/body"; }
check() {
    if [ "$2" != "$3" ]; then
        echo "FAILED $1: got '$2', wanted '$3'" >&2
        cat "$work/head" "$work/body" >&2
        exit 1
    fi
    echo "ok $1"
}
volume() { printf '{"name":"%s","labels":{"n":"%s"},"spec":{}}' "$1" "$2"; }

# Start from nothing, also after a run that was cut off.
for kind in instances volumes networks; do
    call GET "$project/$kind"
    [ "$status" = 200 ] || continue
    for name in $(field '.items[].name'); do
        [ "$kind/$name" = networks/default ] || call DELETE "$project/$kind/$name?wait=deleted&timeout=60s"
    done
done
call DELETE /v1/projects/rest
call POST /v1/projects --data '{"name":"rest","spec":{}}'
check "POST creates" "$status" 201
check "kind is singular" "$(field .kind)" project
check "every answer carries its revision" "$([ "$(header enoki-revision)" -ge "$(field .revision)" ] && echo yes)" yes
check "the ETag is the revision" "$(header etag)" "\"$(field .revision)\""
call POST /v1/projects --data '{"name":"rest","spec":{}}'
check "POST again is refused" "$status $(field .code)" "409 already_exists"
check "problems have their own type" "$(header content-type)" application/problem+json
call GET "$project/networks/default"
check "a project has a default network" "$(field '.spec.gateway + " " + .spec.egress')" "host nat"

# Faults tell where.
call POST "$project/volumes" --data '{"name":'
check "malformed JSON" "$status $(field .code)" "400 malformed_body"
call POST "$project/volumes" --data '{"name":"v","spec":{"sise":1}}'
check "unknown field" "$status $(field .code) $(field .field)" "422 unknown_field spec.sise"
call POST "$project/volumes" --data '{"name":"V","spec":{}}'
check "bad name" "$status $(field .code) $(field .field)" "422 invalid_field name"
call POST "$project/instances" --data '{"name":"i","spec":{"image":"a","memory":"1Gx"}}'
check "bad quantity" "$status $(field .code) $(field .field)" "422 invalid_quantity spec.memory"
call POST "$project/instances" --data '{"name":"i","spec":{"image":"a","nics":{"eth0":{"network":"none"}}}}'
check "unknown reference" "$status $(field .code) $(field .field)" "422 unknown_reference spec.nics.eth0.network"
call GET "$project/volumes/none"
check "not found" "$status $(field .code)" "404 not_found"
call GET "$project/cats"
check "no such address" "$status $(field .code)" "404 not_found"
call POST /v1/hosts --data '{}'
check "no such method" "$status $(field .code)" "405 method_not_allowed"
call GET "$project/volumes?limt=1"
check "unknown parameter" "$status $(field .code)" "422 unknown_field"
call GET "$project/volumes?limit=100000"
check "list too long" "$status $(field .code)" "422 invalid_field"
head -c 2000000 /dev/zero | tr '\0' ' ' >"$work/large"
call POST "$project/volumes" --data-binary "@$work/large"
check "body too large" "$status $(field .code)" "413 too_large"

# Lists: pages and selectors.
for n in 1 2 3 4 5; do
    call POST "$project/volumes" --data "$(volume "v$n" "$((n % 2))")"
    check "volume v$n" "$status" 201
done
pages= token=
while :; do
    call GET "$project/volumes?limit=2&continue=$token"
    pages="$pages$(field '[.items[].name] | join(",")') "
    token=$(field '.continue // empty')
    [ -n "$token" ] || break
done
check "pages follow each other" "$pages" "v1,v2 v3,v4 v5 "
call GET "$project/volumes?selector=n=0"
check "selectors choose by label" "$(field '[.items[].name] | join(",")')" v2,v4
call GET "$project/volumes?continue=nonsense"
check "a strange token is refused" "$status" 422

# Changing: PUT, PATCH, If-Match.
call GET "$project/volumes/v1"
first=$(field .revision)
cp "$work/body" "$work/v1"
call PUT "$project/volumes/v1" --data "@$work/v1"
check "an equal PUT changes nothing" "$status $(field .revision)" "200 $first"
call PATCH "$project/volumes/v1" --data '{"labels":{"n":null,"tier":"db"}}' --header "If-Match: \"$first\""
check "merge-patch adds and removes" "$status $(field '.labels | tojson')" '200 {"tier":"db"}'
check "labels are not the spec" "$(field .generation)" 1
call PATCH "$project/volumes/v1" --data '{"labels":{"tier":"web"}}' --header "If-Match: \"$first\""
check "a stale revision is refused" "$status $(field .code)" "409 stale_revision"
call DELETE "$project/volumes/v1" --header "If-Match: \"$first\""
check "also on delete" "$status $(field .code)" "409 stale_revision"
call PUT "$project/volumes/v6" --data '{"spec":{}}'
check "PUT makes what is not there" "$status" 201
call PATCH "$project/volumes/v1" --data '{"spec":{"type":"shared","path":"/srv"}}'
check "immutable fields stay" "$status $(field .code)" "422 immutable_field"
call PATCH "$project/volumes/v1" --data '{"spec":{"tpye":"shared"}}'
check "a patch's unknown field is refused" "$status $(field .code)" "422 unknown_field"

# Dry run.
call POST "$project/instances?dry_run=true" --data '{"name":"dry","spec":{"image":"enoki/tiny:1","memory":"900Ti"}}'
check "a dry run explains" "$status $(field '.hosts[0].fits') $(field '.hosts[0].reasons[0].code')" "200 false no_capacity"
call GET "$project/instances/dry"
check "and changes nothing" "$status" 404
call DELETE "$project/volumes/v6?dry_run=true"
check "a dry delete" "$status" 200
call GET "$project/volumes/v6"
check "deletes nothing" "$status" 200

# Idempotency.
call POST "$project/volumes" --data "$(volume again 1)" --header 'Idempotency-Key: k1'
check "first try" "$status" 201
uid=$(field .uid)
call POST "$project/volumes" --data "$(volume again 1)" --header 'Idempotency-Key: k1'
check "the retry gets the same answer" "$status $(field .uid)" "201 $uid"
call POST "$project/volumes" --data "$(volume other 1)" --header 'Idempotency-Key: k1'
check "the key with another request is refused" "$status $(field .code)" "422 idempotency_mismatch"

# Watching.
call GET "$project/volumes"
from=$(field .revision)
curl --silent --no-buffer --unix-socket "$socket" --max-time 20 "$base$project/volumes?watch=true&from=$from" >"$work/events" &
watcher=$!
call POST "$project/volumes" --data "$(volume seen 1)"
call DELETE "$project/volumes/seen?wait=deleted&timeout=10s"
check "delete waits" "$status" 200
for _ in $(seq 100); do grep -q '^event: delete' "$work/events" && break; sleep 0.1; done
kill "$watcher" 2>/dev/null || true
check "a watch tells put, then delete" "$(sed -n 's/^event: //p' "$work/events" | grep -v bookmark | uniq | tr '\n' ' ')" "put delete "
last=$(sed -n 's/^id: //p' "$work/events" | head -n 1)
curl --silent --no-buffer --unix-socket "$socket" --max-time 2 --header "Last-Event-ID: $last" "$base$project/volumes?watch=true" >"$work/events" || true
check "Last-Event-ID resumes" "$(sed -n 's/^event: //p' "$work/events" | head -n 1)" delete
call GET "$project/volumes?watch=true&from=0"
check "a revision that is gone is 410" "$status $(field .code)" "410 revision_compacted"
call GET "$project/volumes"
from=$(field .revision)
curl --silent --no-buffer --unix-socket "$socket" --max-time 20 "$base$project/volumes?watch=true&from=$from" >"$work/events" &
watcher=$!
call PATCH "$project/volumes/v2" --data '{"labels":{"after":"410"}}'
for _ in $(seq 100); do grep -q '^event: put' "$work/events" && break; sleep 0.1; done
kill "$watcher" 2>/dev/null || true
check "listing again and watching from there goes on" "$(sed -n 's/^data: //p' "$work/events" | head -n 1 | jq -r .labels.after)" 410

# Reading what was written.
call PATCH "$project/volumes/v2" --data '{"labels":{"x":"y"}}'
call GET "$project/volumes/v2?at_least=$(field .revision)"
check "at_least is reached" "$status $(field .labels.x)" "200 y"
call GET "$project/volumes/v2?at_least=999999999"
check "a revision of the future is told" "$status $(field .code)" "504 stale_replica"

# Verbs and waiting.
call POST "$project/instances?wait=running&timeout=60s" --data '{"name":"vm","spec":{"image":"enoki/tiny:1","pids":50}}'
check "wait=running" "$status $(field .status.phase)" "201 running"
call POST "$project/instances/vm/stop"
check "a verb without waiting is 202" "$status" 202
call POST "$project/instances/vm/stop?wait=stopped&timeout=60s"
check "and with it 200" "$status $(field .status.phase)" "200 stopped"
call GET "$project/instances/vm/exec?command=true"
check "exec on what does not run" "$status $(field .code)" "409 not_running"
call POST "$project/instances/vm/start?wait=nonsense&timeout=1s"
check "what does not come in time is 202" "$status" 202
call DELETE "$project/networks/default"
check "what is used stays" "$status $(field .code)" "409 in_use"
call DELETE "$project/instances/vm"
check "DELETE is 202" "$status $(field .status.phase)" "202 deleting"
call PATCH "$project/instances/vm" --data '{"labels":{"a":"b"}}'
check "what is being deleted is not changed" "$status $(field .code)" "409 deleting"
call DELETE "$project/instances/vm?wait=deleted&timeout=60s"
case $status in 200 | 404) echo "ok and then it is gone" ;; *) check "delete" "$status" 200 ;; esac
call GET "$project/instances/vm"
check "gone" "$status" 404

# The rest.
for path in /healthz /readyz /metrics; do
    call GET "$path"
    check "$path" "$status" 200
done
call GET /openapi.json
check "OpenAPI 3.1" "$(field .openapi)" 3.1.0
call GET "/v1/events?kind=instance&project=rest&name=vm"
check "events tell the story" "$(field '[.items[].reason] | contains(["created", "placed"])')" true
for name in v1 v2 v3 v4 v5 v6 again; do call DELETE "$project/volumes/$name"; done
call DELETE /v1/projects/rest
check "the empty project goes with its network" "$status" 202
echo "every convention holds"
