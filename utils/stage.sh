#!/usr/bin/env bash
# Functions shared by recipe scripts: messages, stages, done-markers.
# Source it after `stage` and `stop_stage` are set.

log() {
    echo "$(date '+%H:%M:%S') ($(basename "${BASH_SOURCE[1]}"):${BASH_LINENO[0]}) $*" >&2
}

# One line: what is wrong, and the remedy.
die() {
    echo "error: $*" >&2
    exit 2
}

# in_stages N TITLE: is stage N asked for? Announces it if so.
in_stages() {
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ] || return 1
    log "stage $1: $2"
}

# need_file FILE STAGE: stop unless an earlier stage has made FILE.
need_file() {
    [ -e "$1" ] || die "$1 is missing; run stage $2 first (./run.sh --stage $2 --stop_stage $2 with the same options)"
}

# Done-markers. A marker holds a hash of all that a result depends on: options (as words) and the
# contents of files (words that start with @). A result is reused only if its marker agrees.
hash_of() {
    local word
    for word in "$@"; do
        case "${word}" in
            @*) printf 'file %s\0' "$(sha256sum <"${word#@}")" ;;
            *) printf '%s\0' "${word}" ;;
        esac
    done | sha256sum | cut -c1-16
}

# is_done MARKER WORD...
is_done() {
    local marker=$1
    shift
    [ -f "${marker}" ] && [ "$(cat "${marker}")" = "$(hash_of "$@")" ]
}

# mark_done MARKER WORD...
mark_done() {
    local marker=$1
    shift
    hash_of "$@" >"${marker}.tmp$$"
    mv "${marker}.tmp$$" "${marker}"
}
