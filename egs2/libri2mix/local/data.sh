#!/usr/bin/env bash
# Prepare Libri2Mix once for all models: <data_dir>/{train,valid,test}.
# From LibriSpeech, WHAM! noise and the official tables, or from mixtures that exist.
set -euo pipefail

data_dir=data     # where the sets' tables go
audio_dir=audio   # where audio goes that is generated: choose a large disk
fs=16000          # sampling rate in Hz: 8000 or 16000
nj=               # processes [as many as processors]
librispeech_dir=  # LibriSpeech: DIR/{train-clean-100,dev-clean,test-clean}
wham_noise_dir=   # wham_noise as distributed; for mix_clean alone not needed
metadata_dir=     # official tables: a checkout of https://github.com/JorisCos/LibriMix
libri2mix_dir=    # mixtures that exist: DIR/wav16k/min/{train-100,dev,test}/{mix_clean,s1,s2}
min_or_max=min    # cut to the shorter utterance, or pad to the longer
train_subset=train-100 # or train-360
mixture=mix_clean # what is to be separated: mix_clean or mix_both (with noise)
types=            # mixtures to write besides: mix_both, mix_clean, mix_single
skip_bad=false    # go on without mixtures whose files are missing or damaged
verify_all=false  # check every mixture that is generated, not only some
dry_run=false     # say how much there is to write and how long it takes, write nothing

# shellcheck source=utils/stage.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/stage.sh"
# shellcheck source=utils/parse_options.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/parse_options.sh"

options=(libri2mix --out "${data_dir}" --audio_dir "${audio_dir}" --fs "${fs}")
read -r -a kinds <<<"${types}"
add_option nj "${nj}"
add_option librispeech_dir "${librispeech_dir}"
add_option wham_noise_dir "${wham_noise_dir}"
add_option metadata_dir "${metadata_dir}"
add_option libri2mix_dir "${libri2mix_dir}"
add_option min_or_max "${min_or_max}"
add_option train_subset "${train_subset}"
add_option mixture "${mixture}"
add_option types "${kinds[@]:-}"
add_option skip_bad "${skip_bad}"
add_option verify_all "${verify_all}"
add_option dry_run "${dry_run}"

exec python3 -m espnet2_sepx.bin.make_corpus "${options[@]}"
