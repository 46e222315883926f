#!/usr/bin/env bash
# Prepare `mini` once for all models: <data_dir>/{train,valid,test} and their audio.
# Without --speech_dir the speech is generated. A set that is complete is not made again.
set -euo pipefail

data_dir=data      # where the sets' tables go
audio_dir=audio    # where the audio goes
fs=8000            # sampling rate in Hz
nj=                # processes [as many as processors]
seed=0             # another seed, another corpus
speech_dir=        # your own clean speech: DIR/<speaker>/* or DIR/{train,dev,test}/<speaker>/*
noise_dir=         # add noise from these files
rir_dir=           # reverberate with these room responses, named <room>_<position>
num_train=         # mixtures [by the material]
num_valid=
num_test=
overlap_ratio=     # "min max": share of the speech that overlaps, 0..1 [cut to the shorter one]
noise_snr_db=      # "min max": louder speaker over noise [0 10]
level_range_db=2.5 # each speaker is up to this much above or below their mean
min_or_max=        # min or max: cut to the shorter signal, or pad to the longer [min]
max_seconds=10     # longer recordings are cut into equal pieces
from_metadata=     # rebuild from the tables DIR/<set>/{sources,metadata}.csv; they fix the mixing

# shellcheck source=utils/stage.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/stage.sh"
# shellcheck source=utils/parse_options.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/parse_options.sh"

options=(--out "${data_dir}" --audio_dir "${audio_dir}")
add_option fs "${fs}"
add_option nj "${nj}"
add_option speech_dir "${speech_dir}"
add_option noise_dir "${noise_dir}"
add_option rir_dir "${rir_dir}"
add_option from_metadata "${from_metadata}"
if [ -z "${from_metadata}" ]; then
    read -r -a overlap <<<"${overlap_ratio}"
    read -r -a snr <<<"${noise_snr_db}"
    add_option seed "${seed}"
    add_option num_train "${num_train}"
    add_option num_valid "${num_valid}"
    add_option num_test "${num_test}"
    add_option overlap_ratio "${overlap[@]:-}"
    add_option noise_snr_db "${snr[@]:-}"
    add_option level_range_db "${level_range_db}"
    add_option min_or_max "${min_or_max}"
    add_option max_seconds "${max_seconds}"
fi

exec python3 -m espnet2_sepx.bin.make_mini "${options[@]}"
