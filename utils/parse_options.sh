#!/usr/bin/env bash
# Parse `--name value` options of the script that sources this file (Kaldi's calling convention).
#
#     nj=4          # number of parallel jobs
#     resume=true   # continue an interrupted run
#     . utils/parse_options.sh
#
# Every variable set before that line is an option, if its name begins with a lower-case letter and
# it does not merely come from the environment. `--name value` and `--name=value` are the same, and
# so are dashes and underscores in names. An option whose default is true or false takes only those.
# `--config FILE` sources FILE (assignments of options) before the command line is applied.
# `--help` prints $help_message, or else the header comment of the script, and all options.
# Parsing stops at the first argument that is not an option, or after `--`; "$@" is left shifted.

_po_error() {
    printf 'error: %s: %s; see %s --help\n' "${_po_script##*/}" "$1" "${_po_script}" >&2
    exit 2
}

# Is the variable $1 set, scalar, and not just inherited from the environment?
_po_is_own_variable() {
    [[ "$1" =~ ^[a-z][A-Za-z0-9_]*$ && "$(declare -p "$1" 2>/dev/null)" =~ ^declare\ -[-i]\  ]]
}

_po_is_option() {
    [[ "${_po_options}" == *" $1 "* ]]
}

# Read the script up to the line that sources us: assignments give the options in their order, the
# comments beside (or indented below) them their help, comment lines just above them a heading.
_po_read_script() {
    local LC_ALL=C _po_line _po_rest _po_name _po_last="" _po_above="" _po_count=0
    local _po_assignment='(^|;[[:space:]]*)([a-z][A-Za-z0-9_]*)='
    [ -r "${_po_script}" ] || return 0
    while IFS= read -r _po_line && [ "${_po_count}" -lt "$1" ]; do
        _po_count=$((_po_count + 1))
        if [[ "${_po_line}" =~ ^[[:space:]]+\#\ ?(.*) && -n "${_po_last}" ]]; then
            _po_comments[${_po_last}]+=" ${BASH_REMATCH[1]}"
        elif [[ "${_po_line}" =~ ^\#\ ?(.*) ]]; then
            [[ "${_po_line}" == *shellcheck* ]] || _po_above+="${BASH_REMATCH[1]}"$'\n'
            _po_last=""
        elif [[ "${_po_line}" =~ ^[a-z][A-Za-z0-9_]*= ]]; then
            _po_last=""
            _po_rest="${_po_line%%[[:space:]]#*}"
            while [[ "${_po_rest}" =~ ${_po_assignment} ]]; do
                _po_name="${BASH_REMATCH[2]}"
                _po_rest="${_po_rest#*"${BASH_REMATCH[0]}"}"
                if [ "${_po_name}" = help_message ] || ! [ -v "${_po_name}" ] ||
                    _po_is_option "${_po_name}"; then
                    continue
                fi
                _po_options+="${_po_name} "
                _po_headings[${_po_name}]="${_po_above}"
                _po_comments[${_po_name}]=""
                _po_last="${_po_name}"
                _po_above=""
            done
            if [[ -n "${_po_last}" && "${_po_line}" =~ [[:space:]]\#\ ?(.*)$ ]]; then
                _po_comments[${_po_last}]="${BASH_REMATCH[1]}"
            fi
            _po_above=""
        else
            _po_above="" _po_last=""
        fi
    done <"${_po_script}"
}

# Add the variables that the text of the script does not show, such as those of a sourced file.
_po_add_other_variables() {
    local LC_ALL=C _po_name
    for _po_name in $(compgen -v); do
        if [ "${_po_name}" != help_message ] && ! _po_is_option "${_po_name}" &&
            _po_is_own_variable "${_po_name}"; then
            _po_options+="${_po_name} "
        fi
    done
}

_po_help() {
    local _po_line _po_name _po_shebang=true
    if [ -n "${help_message:-}" ]; then
        printf '%b\n' "${help_message}"
    elif [ -r "${_po_script}" ]; then
        while IFS= read -r _po_line && [[ "${_po_line}" == \#* ]]; do
            if ! ${_po_shebang} || [[ "${_po_line}" != \#!* ]]; then
                _po_line="${_po_line#\#}"
                printf '%s\n' "${_po_line# }"
            fi
            _po_shebang=false
        done <"${_po_script}"
    fi
    printf '\nOptions (defaults in brackets):\n'
    for _po_name in ${_po_options}; do
        if [ -n "${_po_headings[${_po_name}]:-}" ]; then
            printf '\n'
            while IFS= read -r _po_line; do
                printf '  %s\n' "${_po_line}"
            done <<<"${_po_headings[${_po_name}]%$'\n'}"
        fi
        _po_line="${_po_comments[${_po_name}]:-} ${!_po_name:+[${!_po_name}]}"
        _po_line="${_po_line# }"
        printf '  --%-24s %s\n' "${_po_name}" "${_po_line% }"
    done
    printf '  --%-24s %s\n' "config" "source a file with assignments of these options"
    exit 0
}

# Print the option with the least edit distance (Levenshtein) to $1.
_po_nearest() {
    local _po_name _po_best="" _po_least=1000 _po_i _po_j _po_cost _po_diagonal _po_up
    local -a _po_row
    for _po_name in ${_po_options} config help; do
        for ((_po_j = 0; _po_j <= ${#_po_name}; _po_j++)); do _po_row[_po_j]=${_po_j}; done
        for ((_po_i = 1; _po_i <= ${#1}; _po_i++)); do
            _po_diagonal=${_po_row[0]}
            _po_row[0]=${_po_i}
            for ((_po_j = 1; _po_j <= ${#_po_name}; _po_j++)); do
                _po_up=${_po_row[_po_j]}
                _po_cost=1
                [ "${1:_po_i-1:1}" != "${_po_name:_po_j-1:1}" ] || _po_cost=0
                _po_cost=$((_po_diagonal + _po_cost))
                ((_po_up + 1 >= _po_cost)) || _po_cost=$((_po_up + 1))
                ((_po_row[_po_j - 1] + 1 >= _po_cost)) || _po_cost=$((_po_row[_po_j - 1] + 1))
                _po_diagonal=${_po_up}
                _po_row[_po_j]=${_po_cost}
            done
        done
        if ((_po_row[${#_po_name}] < _po_least)); then
            _po_least=${_po_row[${#_po_name}]}
            _po_best=${_po_name}
        fi
    done
    printf '%s' "${_po_best}"
}

_po_check_bool() { # option, value, what to blame
    if [[ "${!1}" == true || "${!1}" == false ]] && [[ "$2" != true && "$2" != false ]]; then
        _po_error "$3 takes true or false, got '$2'"
    fi
}

_po_source_config() {
    local _po_file="$1" _po_before="${_po_options}" _po_name
    local -A _po_old=()
    [ -r "${_po_file}" ] && [ ! -d "${_po_file}" ] ||
        _po_error "--config '${_po_file}': no such readable file"
    [[ "${_po_file}" == */* ]] || _po_file="./${_po_file}" # `.` would search PATH
    for _po_name in ${_po_options}; do
        _po_old[${_po_name}]="${!_po_name}"
    done
    # shellcheck source=/dev/null
    . "${_po_file}"
    for _po_name in ${_po_options}; do
        _po_check_bool "_po_old[${_po_name}]" "${!_po_name}" "$1: ${_po_name}"
    done
    _po_add_other_variables
    [ "${_po_options}" = "${_po_before}" ] ||
        _po_error "$1 sets unknown options: ${_po_options#"${_po_before}"}"
}

# Check the command line, then apply it: config files first, so that options win over them.
_po_parse() {
    local _po_name _po_value _po_key _po_argument _po_i
    local -a _po_names=() _po_values=() _po_configs=()
    while [ $# -gt 0 ]; do
        _po_argument="$1"
        case "${_po_argument}" in
            -h | --help) _po_help ;;
            --)
                _po_consumed=$((_po_consumed + 1))
                break
                ;;
            --*) ;;
            *) break ;;
        esac
        _po_name="${_po_argument#--}"
        _po_name="${_po_name%%=*}"
        _po_name="${_po_name//-/_}"
        [ "${_po_name}" = config ] || _po_is_option "${_po_name}" ||
            _po_error "unknown option ${_po_argument%%=*} (nearest: --$(_po_nearest "${_po_name}"))"
        if [[ "${_po_argument}" == *=* ]]; then
            _po_value="${_po_argument#*=}"
        else
            [ $# -gt 1 ] || _po_error "option ${_po_argument} lacks its value"
            shift
            _po_value="$1"
            _po_key="${_po_value#--}"
            _po_consumed=$((_po_consumed + 1))
            if [[ "${_po_value}" == --* ]] && _po_is_option "${_po_key//-/_}"; then
                _po_error "option ${_po_argument} lacks its value (${_po_value} follows)"
            fi
        fi
        shift
        _po_consumed=$((_po_consumed + 1))
        if [ "${_po_name}" = config ]; then
            _po_configs+=("${_po_value}")
        else
            _po_check_bool "${_po_name}" "${_po_value}" "option --${_po_name}"
            _po_names+=("${_po_name}")
            _po_values+=("${_po_value}")
        fi
    done
    for ((_po_i = 0; _po_i < ${#_po_configs[@]}; _po_i++)); do
        _po_source_config "${_po_configs[_po_i]}"
    done
    for ((_po_i = 0; _po_i < ${#_po_names[@]}; _po_i++)); do
        printf -v "${_po_names[_po_i]}" '%s' "${_po_values[_po_i]}"
    done
}

_po_script="${BASH_SOURCE[1]:-$0}"
_po_options=" "
_po_consumed=0
declare -A _po_comments=() _po_headings=()
_po_read_script "${BASH_LINENO[0]}"
_po_add_other_variables
_po_parse "$@"
shift "${_po_consumed}"
unset -v _po_script _po_options _po_consumed _po_comments _po_headings
unset -f _po_error _po_is_own_variable _po_is_option _po_read_script _po_add_other_variables \
    _po_help _po_nearest _po_check_bool _po_source_config _po_parse
