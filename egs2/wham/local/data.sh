#!/usr/bin/env bash
# Prepare WHAM! once for all models: <data_dir>/{train,valid,test}.
# From wham_noise and wsj0-2mix (or WSJ0), or from mixtures that exist. With --noise_activity and
# --overlap_ratio, noise part of the time and partial overlap (DSN): test sets
# test_overlap<percent>_noise<percent>.
set -euo pipefail

data_dir=data     # where the sets' tables go
audio_dir=audio   # where audio goes that is generated: choose a large disk
fs=8000           # sampling rate in Hz: 8000 or 16000
nj=               # processes [as many as processors]
wham_noise_dir=   # wham_noise as distributed: DIR/{tr,cv,tt} and DIR/metadata
wsj0_2mix_dir=    # wsj0-2mix: DIR/2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}, or
wsj0_dir=         # the corpus WSJ0 (LDC93S6A)
wham_dir=         # mixtures that exist: DIR/wav8k/min/{tr,cv,tt}/{mix_both,s1,s2,noise}
min_or_max=min    # cut to the shorter utterance, or speech within the whole noise
mixture=mix_both  # what is to be separated: mix_both (with noise) or mix_clean
types=            # mixtures to write besides: mix_both, mix_clean, mix_single
overlap_ratio=    # "min max": overlap of train and valid mixtures, 0..1
test_overlap=     # "1 0.75 0.5 0.25": a test set for each
noise_activity=   # "min max": share of train and valid mixtures with noise, 0..1
test_noise=       # "1 0.75 0.5 0.25 0": test sets for each
partial_train=true # false: training mixtures stay whole, for drawing anew in every epoch
seed=0            # of overlaps and noises drawn
skip_bad=false    # go on without mixtures whose files are missing or damaged
verify_all=false  # check every mixture that is generated, not only some
dry_run=false     # say how much there is to write and how long it takes, write nothing

# shellcheck source=utils/stage.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/stage.sh"
# shellcheck source=utils/parse_options.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/parse_options.sh"

options=(wham --out "${data_dir}" --audio_dir "${audio_dir}" --fs "${fs}")
read -r -a kinds <<<"${types}"
read -r -a overlap <<<"${overlap_ratio}"
read -r -a test_overlaps <<<"${test_overlap}"
read -r -a noise <<<"${noise_activity}"
read -r -a test_noises <<<"${test_noise}"
add_option nj "${nj}"
add_option wham_noise_dir "${wham_noise_dir}"
add_option wsj0_2mix_dir "${wsj0_2mix_dir}"
add_option wsj0_dir "${wsj0_dir}"
add_option wham_dir "${wham_dir}"
add_option min_or_max "${min_or_max}"
add_option mixture "${mixture}"
add_option types "${kinds[@]:-}"
add_option overlap_ratio "${overlap[@]:-}"
add_option test_overlap "${test_overlaps[@]:-}"
add_option noise_activity "${noise[@]:-}"
add_option test_noise "${test_noises[@]:-}"
add_option partial_train "${partial_train}"
add_option seed "${seed}"
add_option skip_bad "${skip_bad}"
add_option verify_all "${verify_all}"
add_option dry_run "${dry_run}"

exec python3 -m espnet2_sepx.bin.make_corpus "${options[@]}"
