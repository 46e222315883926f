#!/usr/bin/env bash
# Prepare WSJ0-2mix once for all models: <data_dir>/{train,valid,test}.
# From WSJ0 (LDC93S6A, as distributed or converted) and the mixing lists, or from mixtures that exist.
# With --overlap_ratio and --test_overlap, partially overlapping (DSN): test sets test_overlap<percent>.
set -euo pipefail

data_dir=data     # where the sets' tables go
audio_dir=audio   # where audio goes that is generated: choose a large disk
fs=8000           # sampling rate in Hz: 8000 or 16000
nj=               # processes [as many as processors]
wsj0_dir=         # the corpus WSJ0: DIR/11-1.1/wsj0/si_tr_s/..., or merged, or converted
metadata_dir=     # lists and levels: a checkout of https://github.com/mpariente/pywsj0-mix
wsj0_2mix_dir=    # mixtures that exist: DIR/2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}
min_or_max=min    # cut to the shorter utterance, or pad to the longer
overlap_ratio=    # "min max": overlap of train and valid mixtures, 0..1
test_overlap=     # "1 0.75 0.5 0.25": a test set for each
partial_train=true # false: training mixtures stay whole, for drawing anew in every epoch
seed=0            # of the overlaps drawn
skip_bad=false    # go on without mixtures whose files are missing or damaged
verify_all=false  # check every mixture that is generated, not only some
dry_run=false     # say how much there is to write and how long it takes, write nothing

# shellcheck source=utils/stage.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/stage.sh"
# shellcheck source=utils/parse_options.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../../utils/parse_options.sh"

options=(wsj0_2mix --out "${data_dir}" --audio_dir "${audio_dir}" --fs "${fs}")
read -r -a overlap <<<"${overlap_ratio}"
read -r -a test_overlaps <<<"${test_overlap}"
add_option nj "${nj}"
add_option wsj0_dir "${wsj0_dir}"
add_option metadata_dir "${metadata_dir}"
add_option wsj0_2mix_dir "${wsj0_2mix_dir}"
add_option min_or_max "${min_or_max}"
add_option overlap_ratio "${overlap[@]:-}"
add_option test_overlap "${test_overlaps[@]:-}"
add_option partial_train "${partial_train}"
add_option seed "${seed}"
add_option skip_bad "${skip_bad}"
add_option verify_all "${verify_all}"
add_option dry_run "${dry_run}"

exec python3 -m espnet2_sepx.bin.make_corpus "${options[@]}"
