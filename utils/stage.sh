#!/usr/bin/env bash
# Functions shared by recipe scripts: messages, stages, done-markers.
# Source it after `stage` and `stop_stage` are set.

log() {
    echo "$(date '+%H:%M:%S') $*" >&2
}

# One line: what is wrong, and the remedy.
die() {
    echo "error: $*" >&2
    exit 2
}

# in_stages N TITLE: is stage N asked for? Announces it if so.
in_stages() {
    [ "${stage:?}" -le "$1" ] && [ "${stop_stage:?}" -ge "$1" ] || return 1
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

# forward_options NAMES ARG...: split a recipe's command line. Options in NAMES (one string of
# words) belong to the corpus and go into the array `data_args`, as --name=value; all others, meant
# for sep.sh, into `sep_args`. Values of options that end in _dir or _metadata are paths, relative to
# where the user stands; they are made absolute, because the recipe runs in its own folder.
forward_options() {
    local names=" $1 " name value
    shift
    data_args=()
    sep_args=()
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) show_recipe_help ;;
        esac
        name="${1#--}"
        name="${name%%=*}"
        name="${name//-/_}"
        if [[ "$1" != --* || "${names}" != *" ${name} "* ]]; then
            sep_args+=("$1")
            shift
            continue
        fi
        if [[ "$1" == *=* ]]; then
            value="${1#*=}"
        else
            [ $# -gt 1 ] || die "option $1 lacks its value; see $0 --help"
            value="$2"
            shift
        fi
        shift
        [[ "${name}" =~ _(dir|metadata)$ && "${value}" != /* ]] && value="${PWD}/${value}"
        data_args+=("--${name}=${value}")
    done
}

# The header of the recipe, then the options of its data preparation, then those of sep.sh.
show_recipe_help() {
    cd "$(dirname "$0")" || exit 2
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$(basename "$0")"
    printf '\nData preparation (local/data.sh)\n================================\n'
    local/data.sh --help
    printf '\nExperiment (sep.sh)\n===================\n'
    exec ./sep.sh --help
}

# run_recipe DEFAULT... -- ARG...: the end of a recipe's run.sh. The recipe's `here`, and `corpus`,
# `data_options` and `data_licence` from the corpus' local/recipe.sh, are set; defaults are options
# like those of the command line, which wins over them.
run_recipe() {
    local defaults=()
    while [ "$1" != -- ]; do
        defaults+=("$1")
        shift
    done
    shift
    forward_options "${data_options:?}" "${defaults[@]}" "$@"
    cd "${here:?}" || exit 2
    exec ./sep.sh --corpus "${corpus:?}" --data_licence "${data_licence:?}" "${sep_args[@]}" -- "${data_args[@]}"
}

# add_option NAME VALUE...: append --NAME VALUE... to the array `options`, unless VALUE is empty.
add_option() {
    [ -z "$2" ] || options+=("--$1" "${@:2}")
}
